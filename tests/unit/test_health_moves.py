"""When an ill master hands over, and above all when not: ML9, MS11, and the stated bounds."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from haclusterd.agent.hand_over import MOVES_MAX, Move, Step, Watch
from haclusterd.config.watching import HealthSection
from haclusterd.core.view import PauseView, View
from tests.fixtures.agent_parts import view

POLICY = HealthSection(hand_over=True, better_by=30, after_s=30, every_s=600)
OWNERS = {"east": ("fs-a", 7), "west": ("fs-a", 3)}
EAST = {"east": ("fs-a", 7)}


def word(healths: tuple[int, int, int], owners: dict[str, tuple[str, int]] = EAST,
         me: str = "fs-a") -> View:  # fmt: skip
    found = view(owners, me)
    nodes = [
        msgspec.structs.replace(n, health=h) for n, h in zip(found.nodes, healths, strict=True)
    ]
    return msgspec.structs.replace(found, nodes=tuple(nodes))


def looks(watch: Watch, seen: View, seconds: range, ill: tuple[str, ...] = ("disk",)) -> list[str]:
    """To whom the first service is handed, second by second; empty for nowhere."""
    return [next((s.to for s in watch.look(seen, ill, float(t)) if s.to), "") for t in seconds]


def test_an_ill_master_hands_over_to_the_first_slave_that_is_clearly_better() -> None:
    found = looks(Watch(POLICY), word((40, 100, 100)), range(60))
    assert found.index("fs-b") == 30, "not before it has been so for after_s"
    assert set(found[:30]) == {""}


@pytest.mark.parametrize(
    ("healths", "why"),
    [
        ((50, 100, 100), None),  # not impaired
        ((40, 69, 69), "clearly better"),  # better by 29
        ((10, 45, 45), "clearly better"),  # better, and impaired itself
        ((40, 40, 40), "clearly better"),  # the same fault everywhere
        ((40, 10, 0), "clearly better"),  # worse
    ],
)
def test_it_stays_where_nobody_is_clearly_better(
    healths: tuple[int, int, int], why: str | None
) -> None:
    """ML9, MS11: the last one stands."""
    watch = Watch(POLICY)
    assert set(looks(watch, word(healths), range(1000))) == {""}
    steps = watch.look(word(healths), ("disk",), 1000.0)
    assert (why is None and steps == []) or why in steps[0].why  # type: ignore[operator]


def test_without_the_policy_or_a_sensor_health_moves_nothing() -> None:
    ill = word((10, 100, 100))
    assert set(looks(Watch(HealthSection()), ill, range(1000))) == {""}
    assert set(looks(Watch(POLICY), ill, range(1000), ill=())) == {""}


def test_a_break_of_the_difference_starts_the_time_anew() -> None:
    watch = Watch(POLICY)
    assert set(looks(watch, word((40, 100, 100)), range(29))) == {""}
    watch.look(word((40, 45, 45)), ("disk",), 29.0)
    assert looks(watch, word((40, 100, 100)), range(30, 62)).index("fs-b") == 30
    watch.look(word((100, 100, 100)), (), 62.0)
    assert looks(watch, word((40, 100, 100)), range(63, 80)) == [""] * 17


def test_a_fault_that_all_notice_at_different_times_moves_nothing() -> None:
    """ML9: after_s is longer than any sensor takes (a rule of the configuration)."""
    watch = Watch(POLICY)
    assert set(looks(watch, word((40, 100, 100)), range(17))) == {""}
    assert set(looks(watch, word((40, 40, 100)), range(17, 25))) == {""}
    assert set(looks(watch, word((40, 40, 40)), range(25, 500))) == {""}


def test_it_is_one_service_at_a_time_and_the_next_after_it_has_settled() -> None:
    watch = Watch(POLICY)
    seen = word((40, 100, 100), OWNERS)
    looks(watch, seen, range(31))
    steps = watch.look(seen, ("disk",), 31.0)
    assert [s.to for s in steps] == ["fs-b", ""]
    watch.moved("east", "fs-a", ("disk",), 31.0)
    left = word((40, 100, 100), {"east": ("fs-b", 8), "west": ("fs-a", 3)})
    found = looks(watch, left, range(32, 120))
    assert found.index("fs-c") == 29, "to a slave, and not to the new master"


def test_the_same_fault_at_the_new_owner_keeps_the_service_there() -> None:
    """A gateway that only an owner can judge: no tour around the cluster."""
    old, new = Watch(POLICY), Watch(POLICY)
    old.moved("east", "fs-a", ("gateway",), 0.0)
    seen = word((100, 40, 100), {"east": ("fs-b", 8)}, "fs-b")
    found = []
    for t in range(1, 3600, 5):
        new.heard(old.known(float(t)), float(t))
        found += [s for s in new.look(seen, ("gateway",), float(t)) if s.to]
    assert found == []
    assert "already" in new.look(seen, ("gateway",), 3500.0)[0].why
    new.look(seen, ("gateway",), 3700.0)
    assert new.look(seen, ("gateway",), 3731.0)[0].to == "fs-a", "after an hour it is tried again"


def test_a_service_moves_by_health_at_most_once_in_every_s() -> None:
    """Bounded, whatever the sensors say: another fault each time, all nodes in turn."""
    watches = {n: Watch(POLICY) for n in ("fs-a", "fs-b", "fs-c")}
    owner, moves, epoch = "fs-a", [], 7
    for t in range(7200):
        healths = [100, 100, 100]
        healths["abc".index(owner[-1])] = 10
        epoch_owner = {"east": (owner, epoch)}
        for me, watch in watches.items():
            for other in watches.values():
                watch.heard(other.known(float(t)), float(t))
            seen = word((healths[0], healths[1], healths[2]), epoch_owner, me)
            step = next((s for s in watch.look(seen, (f"fault{t}",), float(t)) if s.to), None)
            if step is not None:
                watch.moved("east", me, (f"fault{t}",), float(t))
                moves.append(t)
                owner, epoch = step.to, epoch + 1
                break
    assert len(moves) >= 2
    assert min(b - a for a, b in pairwise(moves)) >= 600


def test_a_pause_or_no_majority_keeps_everything() -> None:
    for change in ({"pause": PauseView(1, "an operator", 10**9)}, {"quorate": False}):
        seen = msgspec.structs.replace(word((40, 100, 100)), **change)
        watch = Watch(POLICY)
        assert set(looks(watch, seen, range(100))) == {""}


def test_a_node_that_is_no_slave_is_no_target() -> None:
    """Busy masters are the last resort of a loss, not of an ill neighbour."""
    watch = Watch(POLICY)
    seen = word((40, 100, 100), {"east": ("fs-a", 7), "west": ("fs-b", 3)})
    assert looks(watch, seen, range(40))[-1] == "fs-c"
    nobody = word((40, 100, 30), {"east": ("fs-a", 7), "west": ("fs-b", 3)})
    assert set(looks(Watch(POLICY), nobody, range(100))) == {""}


def test_what_others_tell_is_bounded_and_never_from_the_future() -> None:
    watch = Watch(POLICY)
    watch.heard([Move(f"s{n}", "fs-b", ("x",), -1e9) for n in range(1000)], 50.0)
    assert len(watch.known(50.0)) == MOVES_MAX
    assert all(move.age_s >= 0 for move in watch.known(50.0))
    assert watch.known(50.0 + 3601) == [], "and forgotten in the end"


def test_steps_say_why() -> None:
    watch = Watch(POLICY)
    assert watch.look(word((40, 100, 100)), ("disk",), 0.0) == [
        Step("east", "", "fs-b is better: waiting 30 s more")
    ]
    assert (
        "health 40 by disk; fs-b has 100" in watch.look(word((40, 100, 100)), ("disk",), 30)[0].why
    )
