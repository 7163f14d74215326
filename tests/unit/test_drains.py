"""Drains: what takes no new calls and why, and how a node carries them out (B6, B7, E10)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from haclusterd.agent import drained, drains
from haclusterd.agent.drains import Drains
from haclusterd.agent.history import History
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.schema_upkeep import Drain
from haclusterd.agent.switch import SwitchError
from haclusterd.core.agreed import DrainWord
from haclusterd.core.model import FOR_GOOD_US
from haclusterd.core.view import View
from haclusterd.freeswitch.risks import Ringing
from tests.fixtures.agent_parts import FakeSwitch, spec, view

pytestmark = pytest.mark.timeout(20)

SHUT, OPENED = ("stand_by", ("east",), True), ("stand_by", ("east",), False)
MINUTE_US = 60_000_000


def drain(target: str, left_us: int = FOR_GOOD_US, move_us: int = FOR_GOOD_US) -> DrainWord:
    return DrainWord(target, 256, "anna on fs-a", left_us, move_us)


class Kept:
    """The orders, as far as drains need them."""

    def __init__(self) -> None:
        self.words: list[DrainWord] = []
        self.standing_by: tuple[str, ...] = ()

    def drains(self) -> list[DrainWord]:
        return self.words

    async def keep_standing_by(self, services: Sequence[str]) -> None:
        self.standing_by = tuple(services)


class Bench:
    """The drains of fs-a, which owns east; what it does is kept."""

    def __init__(self, spare: str = "") -> None:
        self.orders = Kept()
        self.view = view({"east": ("fs-a", 7), "west": ("fs-b", 2)})
        self.switch: FakeSwitch | None = FakeSwitch()
        self.working = ""
        self.legs = 0
        self.moved: list[tuple[str, str | None]] = []
        self.refusal = ""
        self.history = History()
        self.drains = Drains(
            spec(), spare, self.orders, self, self.history, lambda: self.view,
            lambda: self.switch, lambda name: self.working, lambda name: self.legs,
        )  # fmt: skip

    async def switchover(self, service: str, to: str | None) -> str:
        self.moved.append((service, to))
        if self.refusal:
            raise OperatorError(self.refusal)
        return "moved"

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            await self.drains.look(self.view)

    @property
    def done(self) -> list[Any]:
        assert self.switch is not None
        return [one for one in self.switch.done if one[0] == "stand_by"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(drains, "AGAIN_S", 0.0)
    monkeypatch.setattr(drains, "HOME_S", -1.0)
    return Bench()


# new calls --------------------------------------------------------------------------------------


async def test_b7_an_owned_drained_service_is_shut_once_and_opened_when_undone(
    bench: Bench,
) -> None:
    bench.orders.words = [drain("service:east")]
    await bench.look(3)
    assert bench.done == [SHUT]
    assert list(bench.orders.standing_by) == ["east"]
    bench.orders.words = []
    await bench.look(2)
    assert bench.done == [SHUT, OPENED]
    assert list(bench.orders.standing_by) == []
    assert [d.row for d in bench.history.last(9)] == ["A31", "A33"]


async def test_b7_a_drained_node_shuts_what_it_owns_and_nothing_moves(bench: Bench) -> None:
    bench.orders.words = [drain("node:fs-a"), drain("node:fs-b"), drain("service:west")]
    await bench.look(3)
    assert bench.done == [SHUT]
    assert bench.moved == []
    assert bench.drains.is_closed("west")


async def test_b7_a_service_that_went_while_it_was_opened_stands_by_again(bench: Bench) -> None:
    bench.orders.words = [drain("service:east")]
    await bench.look()
    assert bench.switch is not None
    bench.orders.words = []
    gone = view({"east": ("fs-b", 8), "west": ("fs-b", 2)})
    real = bench.switch.stand_by

    async def slowly(profiles: Sequence[str], on: bool) -> None:
        await real(profiles, on)
        bench.view = gone

    bench.switch.stand_by = slowly  # type: ignore[method-assign]
    await bench.drains.look(bench.view)
    assert bench.done == [SHUT, OPENED, SHUT]
    assert [d.row for d in bench.history.last(9)] == ["A31"]


async def test_b7_each_service_is_judged_by_the_newest_word(bench: Bench) -> None:
    bench.orders.words = [drain("service:east")]
    before = bench.view
    bench.view = view({"east": ("fs-b", 8), "west": ("fs-b", 2)})
    await bench.drains.look(before)
    assert bench.done == []


@pytest.mark.parametrize("what", ["process", "epoch", "recovery"])
async def test_b7_what_lifts_the_standby_is_followed_by_a_new_one(bench: Bench, what: str) -> None:
    bench.orders.words = [drain("service:east")]
    await bench.look()
    assert bench.switch is not None
    if what == "process":
        bench.switch.core_uuid = "another"
    elif what == "epoch":
        bench.view = view({"east": ("fs-a", 8), "west": ("fs-b", 2)})
    else:
        bench.working = "recovering its calls"
        await bench.look(2)
        assert bench.done == [SHUT]  # not beside a recovery
        bench.working = ""
    await bench.look(2)
    assert bench.done == [SHUT, SHUT]


async def test_b7_a_service_that_left_is_seen_to_by_its_new_owner(bench: Bench) -> None:
    bench.orders.words = [drain("service:east")]
    await bench.look()
    bench.view = view({"east": ("fs-c", 8), "west": ("fs-b", 2)})
    await bench.look()
    bench.orders.words = []
    await bench.look()
    assert bench.done == [SHUT]  # its end of calls has put the profile into standby, for good
    assert bench.orders.standing_by == ()


async def test_b7_an_agent_that_starts_opens_what_the_one_before_had_shut(bench: Bench) -> None:
    bench.orders.standing_by = ("east",)
    bench.drains.start()
    await asyncio.sleep(0)
    bench.drains.poke()
    for _ in range(100):
        await asyncio.sleep(0.02)
        if bench.done:
            break
    await bench.drains.stop()
    assert bench.done == [OPENED]


async def test_b7_what_freeswitch_refuses_is_told_and_tried_again(bench: Bench) -> None:
    assert bench.switch is not None
    bench.orders.words = [drain("service:east")]
    bench.switch.fail = SwitchError("no such profile")
    await bench.look()
    assert bench.drains.problems == {"east": "east still takes new calls: no such profile"}
    bench.switch.fail = None
    await bench.look()
    assert bench.drains.problems == {}
    bench.orders.words = []
    bench.switch.fail = SwitchError("no")
    await bench.look()
    assert "takes no new calls yet" in bench.drains.problems["east"]
    bench.switch.fail = None
    await bench.look()
    assert bench.done == [SHUT, OPENED]


async def test_b7_without_freeswitch_it_waits(bench: Bench) -> None:
    bench.orders.words = [drain("service:east")]
    assert bench.switch is not None
    bench.switch.up = False
    await bench.look()
    assert bench.done == []
    bench.switch.up = True
    await bench.look()
    assert bench.done == [SHUT]


async def test_a_switchover_that_its_agent_did_not_survive_leaves_nothing_shut(
    bench: Bench,
) -> None:
    await bench.drains.hold("east")
    assert list(bench.orders.standing_by) == ["east"]
    await bench.look(2)
    assert bench.done == []  # the switchover has it
    after = Drains(
        spec(), "", bench.orders, bench, bench.history, lambda: bench.view, lambda: bench.switch,
        lambda name: "", lambda name: 0,
    )  # fmt: skip
    after.start()
    await after.look(bench.view)
    await after.stop()
    assert bench.done == [OPENED]


@pytest.mark.parametrize(("lifted", "done"), [(True, []), (False, [OPENED])])
async def test_what_a_switchover_could_not_open_again_is_opened(
    bench: Bench, lifted: bool, done: list[Any]
) -> None:
    await bench.drains.hold("east")
    await bench.drains.let_go("east", lifted)
    await bench.look(2)
    assert bench.done == done
    assert list(bench.orders.standing_by) == []


async def test_a_drained_service_stays_shut_behind_a_switchover_that_failed(bench: Bench) -> None:
    bench.orders.words = [drain("service:east")]
    await bench.look()
    await bench.drains.hold("east")
    await bench.drains.let_go("east", True)
    await bench.look(2)
    assert bench.done == [SHUT]


# away -------------------------------------------------------------------------------------------


async def test_b7_what_is_empty_twice_moves(bench: Bench) -> None:
    bench.orders.words = [drain("node:fs-a", move_us=MINUTE_US)]
    bench.legs = 2
    await bench.look(3)
    bench.legs = 0
    await bench.look()
    assert bench.moved == []
    await bench.look()
    assert bench.moved == [("east", None)]


async def test_b7_a_ringing_call_is_waited_for(bench: Bench) -> None:
    bench.orders.words = [drain("node:fs-a", move_us=MINUTE_US)]
    assert bench.switch is not None
    bench.switch.ringing_legs = [Ringing("u1", "east", "inbound")]
    await bench.look(3)
    assert bench.moved == []
    bench.switch.fail = SwitchError("who knows")
    await bench.look(3)
    assert bench.moved == []
    bench.switch.fail = None
    bench.switch.ringing_legs = [Ringing("u1", "west", "inbound")]
    await bench.look(2)
    assert bench.moved == [("east", None)]


async def test_b7_when_the_time_is_over_it_moves_with_its_calls(bench: Bench) -> None:
    bench.orders.words = [drain("node:fs-a", move_us=0)]
    bench.legs = 7
    bench.refusal = "no node is ready to take east"
    await bench.look(2)
    assert bench.moved == [("east", None)] * 2  # again and again
    assert "no node is ready" in bench.drains.problems["east"]
    bench.refusal = ""
    await bench.look()
    assert bench.drains.problems == {}
    assert {d.row for d in bench.history.last(9)} == {"A31", "A35"}


async def test_b7_a_refused_move_is_not_tried_at_every_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drains, "AGAIN_S", 60.0)
    bench.orders.words = [drain("node:fs-a", move_us=0)]
    bench.refusal = "no"
    await bench.look(5)
    assert len(bench.moved) == 1


async def test_b7_an_aborted_drain_moves_nothing_more(bench: Bench) -> None:
    bench.orders.words = [drain("node:fs-a", move_us=MINUTE_US)]
    await bench.look()
    bench.orders.words = []
    await bench.look(3)
    assert bench.moved == []
    assert bench.done[-1] == OPENED


# the maintenance service ------------------------------------------------------------------------


def owning(**owners: str) -> View:
    return view({name: (node, 5) for name, node in owners.items()})


async def test_b6_it_takes_calls_only_while_another_service_does_not(bench: Bench) -> None:
    bench = Bench("east")
    await bench.look()
    assert bench.done == [SHUT]
    assert bench.drains.closed(bench.view) == {"east": "no other service is drained"}
    bench.orders.words = [drain("node:fs-b")]
    await bench.look()
    assert bench.done == [SHUT, OPENED]
    bench.orders.words = [drain("node:fs-a"), drain("service:east")]
    assert set(bench.drains.closed(bench.view)) == {"east"}


async def test_b6_it_comes_up_on_the_first_slave(bench: Bench) -> None:
    bench = Bench("west")
    bench.view = owning(east="fs-a", west="fs-a")
    bench.orders.words = [drain("node:fs-a", move_us=MINUTE_US)]
    bench.legs = 2
    await bench.look()
    assert bench.moved == [("west", "fs-b")]
    bench.view = owning(east="fs-a", west="fs-b")
    await bench.look()
    assert len(bench.moved) == 1  # it is there


async def test_b7_without_another_slave_the_rest_follows_there(bench: Bench) -> None:
    bench = Bench("west")
    nodes = owning(east="fs-a", west="fs-b").nodes
    lone = tuple(msgspec.structs.replace(n, rank=-1) for n in nodes)
    seen = owning(east="fs-a", west="fs-b")
    services = (
        msgspec.structs.replace(seen.services[0], successors=("fs-c", "fs-b")),
        seen.services[1],
    )
    bench.view = msgspec.structs.replace(seen, nodes=lone, services=services)
    bench.orders.words = [drain("node:fs-a", move_us=0)]
    await bench.look()
    assert bench.moved == [("east", "fs-b")]


async def test_b6_a_slave_that_has_only_it_becomes_a_slave_again(bench: Bench) -> None:
    bench = Bench("west")
    seen = owning(east="fs-b", west="fs-a")
    services = tuple(msgspec.structs.replace(s, successors=("fs-c", "fs-b")) for s in seen.services)
    bench.view = msgspec.structs.replace(seen, services=services)
    bench.legs = 1
    await bench.look(2)
    assert bench.moved == []  # not with a call on it
    bench.legs = 0
    await bench.look()
    assert bench.moved == [("west", "fs-b")]


# what is told -----------------------------------------------------------------------------------


def test_b7_status_shows_how_far_a_drain_is() -> None:
    seen = owning(east="fs-a", west="fs-b")
    words = [drain("node:fs-a", 3_600_000_000, 59_500_000), drain("service:west")]
    first, second = drained.shown(seen, words, "", {"east": 4, "west": 2}, {"east": "stuck"})
    assert first == Drain("node", "fs-a", "anna on fs-a", 3600, 60, ["east"], 4, "stuck")
    assert (second.left_s, second.moves_s, second.services, second.calls) == (
        None, None, ["west"], 2,
    )  # fmt: skip
    alarms = drained.alarms([first, second])
    assert [a.name for a in alarms] == ["drained", "drain_stuck", "drained"]
    assert alarms[0].text == (
        "fs-a takes no new calls, by anna on fs-a: 4 call legs left, moved in 1m, ends in 1h"
    )
    (empty,) = drained.shown(owning(east="fs-b", west="fs-b"), words[:1], "", {}, {})
    assert (empty.services, drained.alarms([empty])) == ([], [])


def test_b7_targets_are_names_of_services_and_nodes() -> None:
    assert drained.target_of(spec(), "east") == "service:east"
    assert drained.target_of(spec(), "node:fs-b") == "node:fs-b"
    with pytest.raises(OperatorError, match="known: east, west, fs-a, fs-b, fs-c"):
        drained.target_of(spec(), "fs-x")
    twins = msgspec.structs.replace(
        spec(), nodes=(msgspec.structs.replace(spec().nodes[0], id="east"),)
    )
    with pytest.raises(OperatorError, match="say service:east or node:east"):
        drained.target_of(twins, "east")
