"""`failover`: refused wherever a switchover would do, and never two owners."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from haclusterd.agent import failover as module
from haclusterd.agent.failover import Failover, Said
from haclusterd.agent.history import History
from haclusterd.agent.operators import OperatorError, Operators, Order
from haclusterd.agent.standing import Facts, judge
from haclusterd.core.actions import Answered
from haclusterd.core.inputs import FromAgent, SwitchoverRequested
from haclusterd.core.standby import Freshness
from haclusterd.core.view import PauseView, View
from haclusterd.sync.rpc import RequestFailed
from tests.fixtures.agent_parts import FakeSwitch, spec, view

pytestmark = pytest.mark.timeout(20)


class Bench:
    """fs-a, owner of east unless `view` says otherwise; the mesh answers for the others."""

    def __init__(self) -> None:
        self.view = view({"east": ("fs-a", 7)})
        self.after: View | None = view({"east": ("fs-b", 8)})
        self.acked = True
        self.answer: bytes | Exception = msgspec.json.encode(Said(True, "done there"))
        self.asked: list[tuple[str, str, Order]] = []
        self.methods: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {}
        self.sent: list[FromAgent] = []
        self.forced: list[tuple[str, float]] = []
        self.on_force: Callable[[], None] = lambda: None
        self.switch = FakeSwitch()
        self.history = History()
        self.operators = Operators(spec(), self.history, lambda: self.view, self.send)
        self.operators.switch = self.switch
        self.operators.join(self)
        self.failover = Failover(
            spec(), self.operators, self.history, lambda: self.view, self.force,
            lambda node, service: "its copy of the calls is suspended",
        )  # fmt: skip
        self.failover.join(self)

    def send(self, message: FromAgent) -> None:
        self.sent.append(message)
        answer = Answered(getattr(message, "request", 0), True, "it moves")
        asyncio.get_running_loop().call_soon(self.operators.answered, answer)
        if self.after is not None:
            self.view = self.after

    def force(self, service: str, seconds: float) -> None:
        self.forced.append((service, seconds))
        self.on_force()

    async def wait_acked(self, service: str, timeout_ms: int) -> bool:
        return self.acked

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        self.asked.append((node, method, msgspec.json.decode(payload, type=Order)))
        self.on_force()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        self.methods[method] = answer

    def unready(self, **changes: Any) -> View:
        """Nobody is in line for east."""
        seen = view({"east": ("fs-a", 7)}) if changes.pop("owned", True) else view({})
        services = tuple(msgspec.structs.replace(s, successors=()) for s in seen.services)
        return msgspec.structs.replace(seen, services=services, **changes)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def refused(work: Awaitable[str]) -> str:
    with pytest.raises(OperatorError) as caught:
        await work
    return str(caught.value)


async def test_where_a_switchover_would_do_it_is_refused(bench: Bench) -> None:
    text = await refused(bench.failover.act("east", "", "anna"))
    assert "fs-a can hand east over without losing a call: `haclusterctl switchover east`" in text
    text = await refused(bench.failover.act("east", "fs-c", "anna"))
    assert "`haclusterctl switchover east --to fs-c`" in text
    bench.operators.switch = None
    assert "switchover east" in await refused(bench.failover.check("east", ""))
    assert bench.sent == []


async def test_names_are_checked(bench: Bench) -> None:
    assert "known: east, west" in await refused(bench.failover.check("north", ""))
    assert "known: fs-a, fs-b, fs-c" in await refused(bench.failover.check("east", "fs-x"))
    assert "fs-a owns east already" in await refused(bench.failover.check("east", "fs-a"))


async def test_an_owner_that_cannot_hand_over_in_order_releases_all_the_same(bench: Bench) -> None:
    bench.acked = False
    text = await bench.failover.check("east", "")
    assert text == (
        "east would move from fs-a to fs-b although no standby has acknowledged its last change "
        "within 1000 ms: what changed since then is lost"
    )
    assert bench.sent == []
    assert "moved from fs-a to fs-b at epoch 8" in await bench.failover.act("east", "", "anna")
    assert bench.sent == [SwitchoverRequested(1, 0, 1)]
    assert [d.row for d in bench.history.last(3)] == ["A37"]


async def test_a_freeswitch_that_does_not_answer_is_no_obstacle(bench: Bench) -> None:
    bench.switch.up = False
    assert "FreeSWITCH does not answer (ESL is not" in await bench.failover.check("east", "fs-c")
    bench.after = view({"east": ("fs-c", 8)})
    await bench.failover.act("east", "fs-c", "anna")
    assert bench.sent == [SwitchoverRequested(1, 0, 2)]


async def test_heart_has_the_last_word(bench: Bench) -> None:
    bench.switch.up = False

    def refuses(message: FromAgent) -> None:
        answer = Answered(1, False, "fs-a does not own east")
        asyncio.get_running_loop().call_soon(bench.operators.answered, answer)

    bench.operators._send = refuses
    assert "does not own east" in await refused(bench.failover.act("east", "", "anna"))


async def test_a_node_that_is_not_ready_has_to_be_named_and_says_what_it_lacks(
    bench: Bench,
) -> None:
    bench.view = bench.unready()
    text = await refused(bench.failover.check("east", ""))
    assert "name one with --to (fs-b, fs-c)" in text
    text = await bench.failover.check("east", "fs-c")
    assert "which is not ready (its copy of the calls is suspended): calls may be lost" in text


async def test_a_forced_node_is_ready_for_a_moment_and_then_gets_it(bench: Bench) -> None:
    bench.view = bench.unready()
    bench.on_force = lambda: setattr(bench, "view", view({"east": ("fs-a", 7)}))
    bench.after = view({"east": ("fs-c", 8)})
    assert "to fs-c at epoch 8" in await bench.failover.act("east", "fs-c", "anna")
    assert [(n, m) for n, m, _ in bench.asked] == [("fs-c", "failover-force")]
    assert bench.sent == [SwitchoverRequested(1, 0, 2)]


async def test_a_node_that_cannot_be_made_ready_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READY_S", 0.1)
    bench.view = bench.unready()
    text = await refused(bench.failover.act("east", "fs-c", "anna"))
    assert "nothing was done" in text
    bench.answer = RequestFailed("not connected")
    assert "name another one" in await refused(bench.failover.act("east", "fs-c", "anna"))
    assert bench.sent == []


async def test_who_is_dead_or_in_maintenance_is_not_forced(bench: Bench) -> None:
    seen = bench.unready()
    for role, fix in (("maintenance", "maintenance off fs-c"), ("dead", "it is dead")):
        nodes = tuple(
            msgspec.structs.replace(n, role=role) if n.id == "fs-c" else n for n in seen.nodes
        )
        bench.view = msgspec.structs.replace(seen, nodes=nodes)
        assert fix in await refused(bench.failover.check("east", "fs-c"))
        assert "which is not ready" in await bench.failover.check("east", "")  # only fs-b is left


async def test_the_owner_elsewhere_is_asked_and_its_refusal_is_told(bench: Bench) -> None:
    bench.view = view({"east": ("fs-b", 7)})
    assert await bench.failover.act("east", "fs-c", "anna") == "done there"
    assert bench.asked[0] == ("fs-b", "failover", Order(service="east", to="fs-c"))
    bench.answer = msgspec.json.encode(Said(False, "use switchover"))
    assert await refused(bench.failover.check("east", "")) == "use switchover"


async def test_an_owner_that_is_heard_and_cannot_be_asked_keeps_it(bench: Bench) -> None:
    bench.view = view({"east": ("fs-b", 7)})
    bench.answer = RequestFailed("no answer in 20000 ms")
    text = await refused(bench.failover.act("east", "", "anna"))
    assert "Nobody else may take what it holds" in text
    assert "systemctl stop haclusterd" in text
    assert text.endswith("It may have been done: see `haclusterctl status` first")
    assert "may have been" not in await refused(bench.failover.check("east", ""))
    bench.answer = RequestFailed("not connected to that node")
    assert "may have been" not in await refused(bench.failover.act("east", "", "anna"))
    assert bench.forced == []
    alone = Failover(
        spec(), bench.operators, History(), lambda: bench.view, bench.force, lambda n, s: ""
    )
    assert "run this on fs-b" in await refused(alone.check("east", ""))


async def test_without_a_majority_nobody_takes_it(bench: Bench) -> None:
    bench.view = bench.unready(owned=False, quorate=False)
    text = await refused(bench.failover.act("east", "fs-c", "anna"))
    assert "node mark-dead ID --verified-by NAME" in text
    assert bench.asked == []


async def test_in_a_pause_the_pause_is_named(bench: Bench) -> None:
    bench.view = bench.unready(owned=False, pause=PauseView(256, "ben", 10**9))
    text = await refused(bench.failover.act("east", "fs-c", "anna"))
    assert "paused by ben" in text
    assert "`haclusterctl resume`" in text


async def test_what_is_taken_by_itself_is_waited_for(bench: Bench) -> None:
    bench.view = view({})
    text = await refused(bench.failover.act("east", "fs-c", "anna"))
    assert text.startswith("fs-a is ready and takes east by itself")
    assert "switchover east --to fs-c" in text


async def test_an_orphan_that_nobody_is_ready_for_goes_to_who_is_named(bench: Bench) -> None:
    bench.view = bench.unready(owned=False)
    assert "fs-a, which is not ready" in await bench.failover.check("east", "fs-a")
    bench.on_force = lambda: setattr(bench, "view", view({"east": ("fs-a", 9)}))
    assert await bench.failover.act("east", "fs-a", "anna") == "fs-a has taken east at epoch 9"
    assert bench.forced == [("east", module.FORCED_S)]
    assert bench.sent == []  # the cluster's own rules took it


async def test_an_orphan_goes_to_this_node_where_it_is_the_only_one_left(bench: Bench) -> None:
    seen = bench.unready(owned=False)
    dead = [n if n.id == "fs-a" else msgspec.structs.replace(n, role="dead") for n in seen.nodes]
    bench.view = msgspec.structs.replace(seen, nodes=tuple(dead))
    assert "fs-a, which is not ready" in await bench.failover.check("east", "")


async def test_an_orphan_that_stays_one_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAKEN_S", 0.1)
    bench.view = bench.unready(owned=False)
    bench.on_force = lambda: setattr(bench, "view", view({}))
    text = await refused(bench.failover.act("east", "fs-c", "anna"))
    assert "nobody has taken east yet" in text


async def test_what_others_ask_is_judged_here_again(bench: Bench) -> None:
    payload = msgspec.json.encode(Order(service="east", to="fs-c"))
    said = msgspec.json.decode(await bench.methods["failover"]("fs-b", payload), type=Said)
    assert (said.ok, "switchover east" in said.text) == (False, True)
    bench.view = view({"east": ("fs-b", 7)})
    said = msgspec.json.decode(await bench.methods["failover-check"]("fs-c", payload), type=Said)
    assert "fs-b owns east by now" in said.text
    order = msgspec.json.encode(Order(service="east", to="fs-a"))
    said = msgspec.json.decode(await bench.methods["failover-force"]("fs-c", order), type=Said)
    assert said.ok
    assert bench.forced == [("east", module.FORCED_S)]


def test_force_overrules_the_copy_and_nothing_else() -> None:
    facts = Facts(
        freeswitch=True, watched=True, process=None, esl_up=True, problem="",
        owners={"east": ("fs-b", 3)}, profiles={"east": ""},
        freshness={"east": Freshness("suspended", 1, 2, 900)}, lacking={"east": "no mod_x"},
    )  # fmt: skip
    assert not judge(spec(), facts).services[0].ready
    forced = dataclasses.replace(facts, forced=frozenset({"east"}))
    assert judge(spec(), forced).services[0].ready
    broken = dataclasses.replace(forced, profiles={"east": "it does not run"})
    assert judge(spec(), broken).services[0].reason == "it does not run"
