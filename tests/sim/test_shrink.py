"""A failure is made small, and what is left of it is the failure."""

from __future__ import annotations

import pytest

from tests.sim import checkers
from tests.sim.dramas import calm
from tests.sim.nemesis import CRASH, Fault, Plan, Stop
from tests.sim.shrink import fewest, kind_of, shrink, story
from tests.sim.world import World


@pytest.mark.parametrize("needed", [{3}, {1, 7}, {0, 5, 6, 9}, set()])
def test_the_fewest_parts_that_still_fail(needed: set[int]) -> None:
    asked: list[tuple[int, ...]] = []

    def fails(parts: tuple[int, ...]) -> bool:
        asked.append(parts)
        return needed <= set(parts)

    assert set(fewest(tuple(range(10)), fails)) == needed
    assert len(asked) < 100


def test_kind_is_the_first_invariant() -> None:
    assert kind_of(["12.000 ms: S1: n0 and n1", "V3: s0"]) == "S1"
    assert kind_of(["V3: s0 is owned by []"]) == "V3"
    assert kind_of([]) == ""


def test_a_failure_is_told_with_the_faults_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blind world: whoever takes calls up anew breaks an invariant. Only a power-off does that;
    what has nothing to do with it is left out."""

    def nobody_may(self: checkers.Checkers, t_us: int, node: int, *rest: object) -> None:
        if t_us > 3_000_000:
            self.report(t_us, f"S10: n{node} takes calls up")

    monkeypatch.setattr(checkers.Checkers, "recovered", nobody_may)
    needless = [Fault(4_000_000 + i * 500_000, "maintenance", i) for i in range(3)]
    fatal = [Fault(7_000_000 + i * 900_000, "power_off", i) for i in range(6)]
    plan = Plan((*needless, *fatal), (Stop(0, 10_000_000, CRASH),))
    world = World(5, calm(3, 1, 1), plan)
    assert world.run(0.5) != []
    failure = shrink(world, 0.5)
    assert [fault.kind for fault in failure.plan.faults] == ["power_off"]
    assert failure.plan.stops == ()
    text = story(failure, "abc1234")
    for part in ("seed 5 at commit abc1234", "1 faults are enough", "FAULT power_off", "VIOLATION"):
        assert part in text
