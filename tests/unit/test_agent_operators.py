"""Orders of operators: who carries them out, why they are refused, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from haclusterd.agent import operators as module
from haclusterd.agent.history import History
from haclusterd.agent.operators import OperatorError, Operators, Order
from haclusterd.core.actions import Answered, Relinquish
from haclusterd.core.inputs import FromAgent, MaintenanceRequested, SwitchoverRequested
from haclusterd.core.view import View
from haclusterd.sync.rpc import RequestFailed
from tests.fixtures.agent_parts import FakeSwitch, spec, view

pytestmark = pytest.mark.timeout(20)

PAUSED = ("stand_by", ("east",), True)
LIFTED = ("stand_by", ("east",), False)


class FakeMesh:
    """Other agents: `answers` by method, or an error."""

    def __init__(self) -> None:
        self.acked = True
        self.asked: list[tuple[str, str, bytes]] = []
        self.methods: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {}
        self.answer: bytes | Exception = b"done there"
        self.absent: dict[str, str] = {}  # agents that do not answer whether they are there

    async def wait_acked(self, service: str, timeout_ms: int) -> bool:
        return self.acked

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        if method == module.PRESENT:
            if node in self.absent:
                raise RequestFailed(self.absent[node])
            return b"yes"
        self.asked.append((node, method, payload))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        self.methods[method] = answer


class Bench:
    """Operators with a heart that answers `heart` and then shows `after`."""

    def __init__(self) -> None:
        self.view = view({"east": ("fs-a", 7), "west": ("fs-b", 2)})
        self.after = view({"east": ("fs-c", 8), "west": ("fs-b", 2)})
        self.heart = Answered(0, True, "east moves to fs-c")
        self.sent: list[FromAgent] = []
        self.mesh = FakeMesh()
        self.switch = FakeSwitch()
        self.operators = Operators(spec(), History(), lambda: self.view, self.send)
        self.operators.switch = self.switch
        self.operators.join(self.mesh)

    def send(self, message: FromAgent) -> None:
        self.sent.append(message)
        number: Any = getattr(message, "request", 0)
        answer = msgspec.structs.replace(self.heart, request=number)
        asyncio.get_running_loop().call_soon(self.operators.answered, answer)
        if self.heart.ok:
            self.view = self.after


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module, "ROW_DELAY_S", 0.01)
    return Bench()


async def refused(work: Awaitable[str]) -> str:
    with pytest.raises(OperatorError) as caught:
        await work
    return str(caught.value)


async def test_a_switchover_pauses_waits_orders_and_watches(bench: Bench) -> None:
    text = await bench.operators.switchover("east", "fs-c")
    assert text == "east moved from fs-a to fs-c at epoch 8"
    assert bench.sent == [SwitchoverRequested(1, 0, 2)]
    assert bench.switch.done == [PAUSED]  # elsewhere now: its profiles stay in standby


async def test_a_switchover_says_which_service_it_has_in_hand(bench: Bench) -> None:
    seen: list[str] = []
    real = bench.send

    def send(message: FromAgent) -> None:
        seen.append(bench.operators.switching("east"))
        real(message)

    bench.operators._send = send
    await bench.operators.switchover("east", None)
    assert seen == ["a switchover"]
    assert bench.operators.switching("east") == bench.operators.switching("west") == ""


async def test_only_the_profiles_of_the_service_are_paused(bench: Bench) -> None:
    bench.view = view({"east": ("fs-a", 7), "west": ("fs-a", 2)})
    await bench.operators.switchover("east", None)
    assert bench.switch.done == [PAUSED]
    assert bench.sent == [SwitchoverRequested(1, 0, -1)]


def three_in_line(owner_after: str) -> tuple[View, View]:
    """Before and after a switchover of a service that fs-b and fs-c are ready to take."""
    before = view({"east": ("fs-a", 7), "west": ("fs-b", 2)})
    services = [msgspec.structs.replace(s, successors=("fs-b", "fs-c")) for s in before.services]
    after = view({"east": (owner_after, 8), "west": ("fs-b", 2)})
    return msgspec.structs.replace(before, services=tuple(services)), after


async def test_a_frozen_agent_is_passed_over_and_refused_by_name(bench: Bench) -> None:
    """Nobody there would take up the calls, and heart does not know it yet."""
    bench.view, bench.after = three_in_line("fs-c")
    bench.mesh.absent = {"fs-b": "no answer from fs-b in 1000 ms"}
    said = await refused(bench.operators.switchover("east", "fs-b"))
    assert "fs-b would not take up the calls at once (no answer from fs-b in 1000 ms)" in said
    assert bench.sent == []
    assert bench.switch.done == []  # no call was refused for it
    assert "to fs-c" in await bench.operators.switchover("east", None)
    assert bench.sent == [SwitchoverRequested(1, 0, 2)]


async def test_where_no_agent_answers_heart_chooses(bench: Bench) -> None:
    bench.view, bench.after = three_in_line("fs-b")
    bench.mesh.absent = {"fs-b": "not connected to that node", "fs-c": "not connected"}
    await bench.operators.switchover("east", None)
    assert bench.sent == [SwitchoverRequested(1, 0, -1)]


async def test_an_older_agent_that_does_not_know_the_question_has_answered(bench: Bench) -> None:
    bench.mesh.absent = {"fs-c": "fs-c: unknown method 'present'"}
    await bench.operators.switchover("east", "fs-c")
    assert bench.sent == [SwitchoverRequested(1, 0, 2)]


async def test_refusals_name_the_reason_and_the_next_step(bench: Bench) -> None:
    switchover = bench.operators.switchover
    assert "known: east, west" in await refused(switchover("north", None))
    assert "known: fs-a, fs-b, fs-c" in await refused(switchover("east", "fs-x"))
    assert await refused(switchover("east", "fs-a")) == "fs-a owns east already"
    assert "fs-b is not ready to take east; ready: fs-c" in await refused(
        switchover("east", "fs-b")
    )
    bench.view = view({})
    assert "nobody serves east" in await refused(switchover("east", None))
    assert bench.sent == []


async def test_what_no_standby_has_is_not_moved_and_calls_go_on(bench: Bench) -> None:
    bench.mesh.acked = False
    assert "see `haclusterctl sync`" in await refused(bench.operators.switchover("east", None))
    assert bench.sent == []
    assert bench.switch.done == [PAUSED, LIFTED]


async def test_hearts_refusal_is_the_answer(bench: Bench) -> None:
    bench.heart = Answered(0, False, "no node is ready to take east")
    assert await refused(bench.operators.switchover("east", None)) == bench.heart.text
    assert bench.switch.done[-1] == LIFTED


async def test_a_silent_heart_is_not_waited_for_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.operators._send = bench.sent.append
    with monkeypatch.context() as patch:
        patch.setattr(Operators.ask, "__defaults__", (0.05,))
        assert "heart did not answer" in await refused(bench.operators.maintenance(True, None))
    assert bench.operators._waiting == {}


async def test_a_service_that_went_to_another_than_named_is_partly_done(bench: Bench) -> None:
    bench.after = view({"east": ("fs-b", 8), "west": ("fs-b", 2)})
    with pytest.raises(OperatorError) as caught:
        await bench.operators.switchover("east", "fs-c")
    assert caught.value.code == "partly"
    assert "moved from fs-a to fs-b at epoch 8, not to fs-c" in str(caught.value)


async def test_a_service_that_stays_away_is_partly_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOVED_S", 0.05)
    bench.after = view({"west": ("fs-b", 2)})
    with pytest.raises(OperatorError) as caught:
        await bench.operators.switchover("east", None)
    assert caught.value.code == "partly"


async def test_the_owners_agent_does_what_concerns_its_services(bench: Bench) -> None:
    assert await bench.operators.switchover("west", "fs-c") == "done there"
    node, method, payload = bench.mesh.asked[0]
    assert (node, method) == ("fs-b", "switchover")
    assert msgspec.json.decode(payload, type=Order) == Order("west", "fs-c")
    bench.mesh.answer = RequestFailed("fs-b: fs-c is not ready")
    said = await refused(bench.operators.switchover("west", "fs-c"))
    assert said == "fs-b refused: fs-c is not ready"


async def test_no_answer_is_no_refusal_and_no_question_either(bench: Bench) -> None:
    """V6: an order whose outcome is not known is not told as one that was not carried out."""
    for failure in ("connection with fs-b was lost", "no answer from fs-b in 15000 ms"):
        bench.mesh.answer = RequestFailed(failure)
        said = await refused(bench.operators.switchover("west", "fs-c"))
        assert said.startswith(f"fs-b was asked, but {failure}: it may have been done")
    bench.mesh.answer = RequestFailed("not connected to that node")
    said = await refused(bench.operators.switchover("west", "fs-c"))
    assert said == "fs-b could not be asked: not connected to that node"


async def test_what_another_node_did_in_part_is_told_as_that(bench: Bench) -> None:
    bench.after = view({"east": ("fs-b", 8), "west": ("fs-b", 2)})
    with pytest.raises(ValueError, match="partly done: east moved from fs-a to fs-b") as there:
        await bench.mesh.methods["switchover"]("fs-b", msgspec.json.encode(Order("east", "fs-c")))
    bench.mesh.answer = RequestFailed(f"fs-b: {there.value}")
    with pytest.raises(OperatorError) as caught:
        await bench.operators.switchover("west", "fs-c")
    assert caught.value.code == "partly"
    assert str(caught.value).startswith("east moved from fs-a to fs-b at epoch 8, not to fs-c")


async def test_orders_of_others_are_checked_like_local_ones(bench: Bench) -> None:
    serve = bench.mesh.methods["switchover"]
    for order in (Order("north"), Order("west"), Order("east", "fs-x")):
        with pytest.raises(ValueError):
            await serve("fs-b", msgspec.json.encode(order))
    done = await serve("fs-b", msgspec.json.encode(Order("east", "fs-c")))
    assert done == b"east moved from fs-a to fs-c at epoch 8"
    await bench.mesh.methods["maintenance"]("fs-b", msgspec.json.encode(Order(on=True)))
    assert bench.sent[-1] == MaintenanceRequested(2, True)


async def test_two_operators_at_once_take_turns(bench: Bench) -> None:
    bench.switch.hold.clear()
    first = asyncio.ensure_future(bench.operators.switchover("east", None))
    await asyncio.sleep(0.01)
    second = asyncio.ensure_future(bench.operators.maintenance(True, None))
    await asyncio.sleep(0.05)
    assert bench.sent == []
    bench.switch.hold.set()
    await asyncio.gather(first, second)
    assert [type(m) for m in bench.sent] == [SwitchoverRequested, MaintenanceRequested]


async def test_maintenance_of_another_node_goes_there(bench: Bench) -> None:
    assert await bench.operators.maintenance(True, "fs-c") == "done there"
    assert bench.mesh.asked[0][:2] == ("fs-c", "maintenance")
    assert "no node fs-z" in await refused(bench.operators.maintenance(True, "fs-z"))


async def test_without_a_view_there_is_nothing_to_order(bench: Bench) -> None:
    operators = Operators(spec(), History(), lambda: None, bench.sent.append)
    assert "try again" in await refused(operators.switchover("east", None))


async def test_b19_what_heart_relinquishes_is_a_switchover_with_its_calls(bench: Bench) -> None:
    bench.operators.relinquish(Relinquish(0, 2))
    await asyncio.gather(*bench.operators._relinquishing)
    assert bench.sent == [SwitchoverRequested(1, 0, 2)]
    assert bench.switch.done == [PAUSED]


async def test_b19_what_stands_in_the_way_is_said_and_nothing_moves(bench: Bench) -> None:
    bench.mesh.acked = False
    bench.operators.relinquish(Relinquish(0, 2))
    await asyncio.gather(*bench.operators._relinquishing)
    assert bench.sent == []
    assert bench.switch.done == [PAUSED, LIFTED]
    (said,) = [d for d in bench.operators._history.last() if d.row == "A25"]
    assert said.text.startswith("fs-a keeps east, which it was to relinquish: no standby has")


async def test_ml10_maintenance_is_kept_before_heart_hears_of_it(bench: Bench) -> None:
    kept: list[tuple[bool, int, int]] = []

    async def keep(on: bool, left_us: int) -> None:
        kept.append((on, left_us, len(bench.sent)))
        if not on:
            raise OperatorError("not done: the disk is full")

    bench.operators.keep_maintenance = keep
    await bench.operators.maintenance(True, None, 90_000_000)
    assert kept == [(True, 90_000_000, 0)]
    assert bench.sent == [MaintenanceRequested(1, True, 90_000_000)]
    assert await refused(bench.operators.maintenance(False, None)) == "not done: the disk is full"
    assert len(bench.sent) == 1
    await bench.operators.maintenance(True, "fs-c", 5)
    assert msgspec.json.decode(bench.mesh.asked[0][2], type=Order) == Order(on=True, left_us=5)


async def test_two_operators_at_once_are_served_one_after_the_other(bench: Bench) -> None:
    """Whoever comes second finds what the first has done, and nothing is done twice."""
    first = asyncio.create_task(bench.operators.switchover("east", None))
    await asyncio.sleep(0)
    second = asyncio.create_task(bench.operators.maintenance(True, None))
    third = asyncio.create_task(bench.operators.switchover("east", "fs-c"))
    done = await asyncio.gather(first, second, third, return_exceptions=True)
    assert done[0] == "east moved from fs-a to fs-c at epoch 8"
    kinds = [type(message) for message in bench.sent]
    assert kinds[:2] == [SwitchoverRequested, MaintenanceRequested]
    assert isinstance(done[2], OperatorError)


async def test_a_drained_service_stays_shut_when_a_switchover_fails(bench: Bench) -> None:
    bench.operators.is_closed = lambda service: service == "east"
    bench.heart = Answered(0, False, "no node is ready to take east")
    await refused(bench.operators.switchover("east", None))
    assert bench.switch.done == [PAUSED]


async def test_who_keeps_in_mind_what_stands_by_is_told(bench: Bench) -> None:
    told: list[tuple[Any, ...]] = []

    async def hold(service: str) -> None:
        told.append(("hold", service, list(bench.switch.done)))

    async def let_go(service: str, lifted: bool) -> None:
        told.append(("let go", service, lifted))

    bench.operators.hold, bench.operators.let_go = hold, let_go
    bench.heart = Answered(0, False, "no node is ready to take east")
    await refused(bench.operators.switchover("east", None))
    assert told == [("hold", "east", []), ("let go", "east", True)]
    bench.heart = Answered(0, True, "east moves to fs-c")
    await bench.operators.switchover("east", None)
    assert told[3] == ("let go", "east", False)  # it went: its profiles stand by there for good
