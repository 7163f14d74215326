"""What opens a service again when its drain or switchover is over, and what must not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from haclusterd.agent import lifting
from haclusterd.agent.switch import SwitchError
from tests.fixtures.agent_parts import view
from tests.unit.test_drains import OPENED, SHUT, drain
from tests.unit.test_lifting import HERE, Lifted, lapsed

pytestmark = pytest.mark.timeout(20)

BOTH = ("east", "internal")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Lifted:
    monkeypatch.setattr(lifting, "LIFT_AFTER_S", 0.0)
    return Lifted()


@pytest.mark.parametrize("how", ["drain", "switchover"])
async def test_what_is_to_be_opened_while_its_lease_has_lapsed_is_opened_when_it_is_back(
    bench: Lifted, how: str
) -> None:
    if how == "drain":
        bench.orders.words = [drain("service:east")]
        await bench.look()
    else:
        await bench.drains.hold("east")
    bench.view, bench.orders.words = lapsed(), []
    if how == "switchover":
        await bench.drains.let_go("east", False)
    await bench.look(2)
    assert OPENED not in bench.done
    bench.view = view(HERE)
    await bench.look(2)
    assert bench.done[-1] == OPENED
    assert bench.orders.standing_by == ()


async def test_a_drain_that_ends_waits_for_a_recovery_that_is_tried_again(bench: Lifted) -> None:
    bench.orders.words = [drain("service:east")]
    await bench.look()
    bench.orders.words, bench.resting = [], False
    await bench.look(2)
    assert bench.done == [SHUT]
    bench.resting = True
    await bench.look()
    assert bench.done == [SHUT, OPENED]


@pytest.mark.parametrize("away", BOTH)
async def test_a_profile_that_does_not_run_keeps_no_other_closed_when_a_drain_ends(
    away: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifting, "LIFT_AFTER_S", 0.0)
    bench = Lifted(BOTH)
    assert bench.switch is not None
    real, running = bench.switch.stand_by, set(BOTH) - {away}

    async def stand_by(profiles: Sequence[str], on: bool) -> None:
        if not on and not running.issuperset(profiles):
            raise SwitchError("Invalid Profile")
        await real(profiles, on)

    bench.switch.stand_by = stand_by  # type: ignore[method-assign]
    bench.orders.words = [drain("service:east")]
    await bench.look()
    bench.orders.words = []
    await bench.look(3)
    opened = [one for one in bench.done if not one[2]]
    assert [one[1] for one in opened] == [tuple(running)]  # once
    assert (bench.drains.problems, bench.orders.standing_by) == ({}, ())
    monkeypatch.setattr(lifting, "SAY_AFTER_S", 0.0)
    assert [alarm.text for alarm in bench.drains.lifting.alarms()] == ["east: Invalid Profile"]
    running.add(away)
    await bench.look(2)
    assert bench.done[-1] == ("stand_by", (away,), False)
    assert bench.drains.lifting.alarms() == []


async def test_a_switchover_that_begins_while_a_drain_ends_shuts_what_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Lifted(BOTH)
    assert bench.switch is not None
    bench.orders.words = [drain("service:east")]
    await bench.look()
    real = bench.switch.stand_by

    async def stand_by(profiles: Sequence[str], on: bool) -> None:
        await real(profiles, on)
        await bench.drains.hold("east")

    bench.switch.stand_by = stand_by  # type: ignore[method-assign]
    bench.orders.words = []
    await bench.look()
    assert bench.done[-1] == ("stand_by", ("east",), False)  # and internal is not
    assert list(bench.orders.standing_by) == ["east"], "if the agent dies in it, it is opened"
