"""The loop and the executor on a clock that the test moves: order, freezes, bounded work."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from itertools import pairwise
from typing import Any, cast

import pytest

from haclusterd.config.presets import PRESETS, to_timing
from haclusterd.core.actions import (
    AddAddresses,
    CloseFence,
    Decided,
    Persist,
    RemoveAddresses,
    RenewFence,
    SendBeat,
    ToAgent,
)
from haclusterd.core.inputs import AddressesAdded, AddressesRemoved, AgentChanged, FenceClosed
from haclusterd.core.model import (
    NOBODY,
    AddressSpec,
    ClusterSpec,
    Identity,
    NodeSpec,
    ServiceSpec,
    State,
)
from haclusterd.core.state import start
from haclusterd.heart.addresses import ServiceAddresses
from haclusterd.heart.errors import HeartError
from haclusterd.heart.executor import Executor
from haclusterd.heart.fence import Mode
from haclusterd.heart.freeswitch_process import FreeswitchProcess
from haclusterd.heart.journal import Journal
from haclusterd.heart.links import Links
from haclusterd.heart.loop import Chores, Loop
from haclusterd.wire import ClusterKey, KeyRing, Wire

TIMING = to_timing(PRESETS["lan"])
NODES = tuple(NodeSpec(f"n{n}", (f"127.0.81.{n + 1}",)) for n in range(3))
SERVICES = (ServiceSpec("s0", (AddressSpec("203.0.113.10", 24, "eth0"),), preferred=0),)
SPEC = ClusterSpec("c", 0, NODES, SERVICES, TIMING, freeswitch=False)
RING = KeyRing((ClusterKey(1, bytes(32)),))
NEVER = 1 << 62


class Clock:
    def __init__(self) -> None:
        self.us = 1_000_000

    def __call__(self) -> int:
        return self.us


class FakeFence:
    """Records calls; `pause_us` passes between arm and the reading of the clock."""

    mode: Mode = "nftables"
    overlap_bound_ms = 0
    fault = ""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.calls = clock, []  # type: tuple[Clock, list[str]]
        self.loaded, self.armed, self.pause_us = True, True, 0
        self.refuse_load = False

    def load(self) -> None:
        self.calls.append("load")
        if self.refuse_load:
            raise HeartError("no nft")
        self.loaded = True

    def unload(self) -> None:
        self.calls.append("unload")

    def hand_on(self) -> None:
        self.calls.append("hand on")

    def begin_load(self) -> None:
        self.calls.append("load")

    def load_result(self) -> str | None:
        self.loaded = not self.refuse_load
        return "no nft" if self.refuse_load else ""

    def arm(self) -> bool:
        self.calls.append("arm")
        self.clock.us += self.pause_us
        return self.loaded

    def incomplete(self) -> bool:
        return False

    def needs(self, device: str) -> bool:
        return False

    def device_gone(self, device: str) -> None:
        return

    def renew(self, indices: Collection[int]) -> bool:
        self.calls.append("renew")
        return self.loaded and self.armed

    def close(self, indices: Collection[int]) -> bool:
        self.calls.append("close")
        return self.loaded


class FakeAddresses:
    def __init__(self) -> None:
        self.failure = ""

    def add(self, k: int, now_us: int) -> str:
        return self.failure

    def remove(self, k: int) -> str:
        return self.failure


class Outbox:
    def __init__(self) -> None:
        self.messages: list[ToAgent] = []

    def send(self, message: ToAgent) -> None:
        self.messages.append(message)


class NoChores(Chores):
    def due_us(self) -> int:
        return NEVER

    def run_due(self, now_us: int) -> None:
        raise AssertionError("nothing is due")


class World:
    """A loop with fakes on the kernel's side and a real wire and links."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fence, self.addresses, self.outbox = FakeFence(self.clock), FakeAddresses(), Outbox()
        self.read, self.write = os.pipe()
        self.journal = Journal(self.write, levels=False)
        self.wire = Wire(SPEC, RING, 7)
        self.executor = Executor(
            wire=self.wire,
            links=Links(0, [n.links for n in NODES], 0),
            fence=self.fence,
            addresses=cast(ServiceAddresses, self.addresses),
            freeswitch=FreeswitchProcess(),
            agent=self.outbox,
            journal=self.journal,
            fence_us=TIMING.fence_us,
            clock=self.clock,
        )
        node = start(SPEC, self.clock.us, 7)
        self.loop = Loop(node, self.executor, NoChores(), clock=self.clock)

    def said(self) -> str:
        self.journal.close()
        os.close(self.write)
        return os.read(self.read, 1 << 16).decode()


@pytest.fixture
def world() -> World:
    return World()


def lease_for(world: World, us: int) -> RenewFence:
    return RenewFence(0, world.clock.us + us)


def test_arm_then_clock_then_renew(world: World) -> None:
    world.executor.execute([lease_for(world, TIMING.fence_us)])
    assert world.fence.calls == ["arm", "renew"]


def test_a_pause_after_the_decision_does_not_renew(world: World) -> None:
    """The core decided in time; the process then stood still between arm and send."""
    world.fence.pause_us = 1
    world.executor.execute([lease_for(world, TIMING.fence_us)])
    assert "renew" not in world.fence.calls
    assert world.executor.renewals_late == 1


def test_a_renewal_that_was_not_armed_any_more_is_tried_once_more(world: World) -> None:
    world.fence.armed = False
    world.executor.execute([lease_for(world, 10 * TIMING.fence_us)])
    assert world.fence.calls == ["arm", "renew", "arm", "renew"]
    assert world.executor.renewals_late == 1


def test_a_lost_table_is_loaded_again_at_most_once_a_second(world: World) -> None:
    world.fence.loaded, world.fence.refuse_load = False, True
    results = []
    for _beat in range(10):
        results += world.executor.execute([lease_for(world, 10 * TIMING.fence_us)])
        world.clock.us += 25_000
    assert world.fence.calls.count("load") == 1
    assert "no nft" in world.executor.fence_fault
    assert all(isinstance(r, AddressesAdded) and not r.ok for r in results)
    assert len(results) == 9, "a service whose fence does not open cannot be served here"


def test_a_lost_table_that_comes_back_costs_no_service(world: World) -> None:
    world.fence.loaded = False
    renewal = lease_for(world, 10 * TIMING.fence_us)
    assert world.executor.execute([renewal]) == []
    assert "renew" not in world.fence.calls
    world.fence.loaded = True
    assert world.executor.execute([renewal]) == []
    assert world.fence.calls[-1] == "renew"
    assert world.executor.fence_fault == ""
    assert "do not `flush ruleset`" in world.said()


def test_results_come_back_as_inputs(world: World) -> None:
    results = world.executor.execute([CloseFence(0), AddAddresses(0), RemoveAddresses(0)])
    done_us = world.clock()
    assert results == [
        FenceClosed(0, True), AddressesAdded(0, True, at_us=done_us), AddressesRemoved(0, True)
    ]  # fmt: skip
    world.fence.loaded, world.fence.refuse_load = False, True
    world.addresses.failure = "no NIC"
    results = world.executor.execute([CloseFence(0), AddAddresses(0)])
    assert results == [FenceClosed(0, False), AddressesAdded(0, False, "no NIC", done_us)]


def test_decisions_and_promises_go_to_the_agent(world: World) -> None:
    decided, persist = Decided(1, "T101", "n0 claims s0"), Persist((NOBODY,))
    world.executor.execute([decided, persist])
    assert world.outbox.messages == [decided, persist]
    assert "T101 n0 claims s0" in world.said()


def test_a_repeated_seal_is_reported_and_not_sent(world: World) -> None:
    beats: list[SendBeat] = []
    world.executor._do[SendBeat] = beats.append
    world.loop.turn()
    del world.executor._do[SendBeat]
    world.executor._send_beat(beats[0])
    world.executor._send_beat(beats[0])
    assert "the nonce would repeat" in world.said()


def test_a_gap_longer_than_the_lease_is_a_freeze(world: World) -> None:
    world.loop.turn()
    incarnation = world.loop.node.incarnation
    world.clock.us += TIMING.lease_us
    world.loop.now()
    assert (world.loop.freezes, world.loop.stood_us) == (0, 0)
    world.clock.us += TIMING.lease_us + 1
    world.loop.now()
    assert world.loop.freezes == 1
    assert world.loop.stood_us > TIMING.lease_us
    assert world.loop.node.incarnation != incarnation
    # Sealing under the old incarnation would raise: wire and core changed together.
    world.clock.us += TIMING.heartbeat_us * 2
    world.loop.turn()
    assert "not sent" not in world.said()


def test_a_freeze_fences_before_anything_is_sent(world: World) -> None:
    order: list[str] = []
    node = world.loop.node
    seen = dict(world.executor._do)

    def recorded(kind: type) -> Any:
        def run(action: Any) -> None:
            order.append(kind.__name__)
            seen[kind](action)

        return run

    for kind in seen:
        world.executor._do[kind] = recorded(kind)
    world.loop.feed(AgentChanged(True), world.clock.us)
    service = node.services[0]
    service.state, service.identity = State.OWNED, Identity(1, 0, 5)
    service.promise, service.fence_closed = service.identity, False
    service.lease_until_us = world.clock.us + 50_000
    order.clear()
    world.clock.us += TIMING.lease_us + 1
    world.loop.now()
    assert order[0] == "CloseFence"
    assert order.index("FlushSockets") < order.index("SendBeat")


def test_beats_go_out_at_their_time(world: World) -> None:
    sent: list[int] = []
    world.executor._do[SendBeat] = lambda action: sent.append(world.clock.us)
    for _ms in range(200):
        world.loop._inputs.clear()
        now = world.loop.now()
        if world.loop.node.next_beat_us <= now:
            world.loop.turn()
        world.clock.us += 1000
    gaps = [b - a for a, b in pairwise(sent)]
    assert 7 <= len(sent) <= 10
    assert max(gaps) <= 1.1 * TIMING.heartbeat_us + 1000


def hear_something(
    world: World, monkeypatch: pytest.MonkeyPatch, calm: bool, regular: bool = True
) -> int:
    """One turn in which a link has beats; until when the next ones are left to gather (us)."""
    read, write = os.pipe()
    world.loop._register(read)
    world.loop._link_of[read] = 0

    def receive(_link: int) -> bool:
        world.loop._round = regular
        return bool(os.read(read, 1))

    monkeypatch.setattr(world.loop, "_receive", receive)
    monkeypatch.setattr("haclusterd.heart.loop.is_calm", lambda _node: calm)
    os.write(write, b"beat")
    world.loop.turn()
    return world.loop._gather_until_us - world.clock.us


def test_beats_of_a_calm_round_are_gathered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hear_something(world, monkeypatch, calm=True) == TIMING.gather_us
    world.loop._gather_until_us = world.clock.us + 100_000
    began = time.monotonic()
    assert world.loop._wait(world.clock.us + 10_000_000) != []
    assert time.monotonic() - began >= 0.099


@pytest.mark.parametrize(("stood_us", "turns"), [(60_000, 3), (0, 3)])
def test_what_waited_while_it_stood_still_is_read_before_anybody_is_silent(
    world: World, monkeypatch: pytest.MonkeyPatch, stood_us: int, turns: int
) -> None:
    """A turn reads so many datagrams of a link; a Tick in between could take who waits in the
    queue for silent. But a flood that never ends does not stop time."""
    read, write = os.pipe()
    world.loop._register(read)
    world.loop._link_of[read] = 0
    os.write(write, b"beats")
    ticked: list[int] = []
    came_us = world.clock.us + stood_us
    monkeypatch.setattr(world.loop, "_receive", lambda _link: False)
    monkeypatch.setattr(world.loop, "feed", lambda event, now: ticked.append(now - came_us))
    world.loop.node.rank_dirty = True
    world.clock.us += stood_us
    for _ in range(turns):
        world.loop.turn()
        world.clock.us += 1_000
    assert ticked == []
    for _ in range(60):
        world.loop.turn()
        world.clock.us += 1_000
    assert ticked[0] // 1_000 == 51


def test_beats_are_never_kept_waiting_while_something_moves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hear_something(world, monkeypatch, calm=False) < 0


def test_answers_begin_no_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hear_something(world, monkeypatch, calm=True, regular=False) < 0


def test_gathering_ends_at_once_for_any_other_news(world: World) -> None:
    """FreeSWITCH's pidfd, the agent, a signal: nothing of it waits for beats."""
    read, write = os.pipe()
    world.loop.watch(read, lambda: None)
    world.loop._gather_until_us = world.clock.us + 10_000_000
    os.write(write, b"news")
    began = time.monotonic()
    assert [descriptor for descriptor, _mask in world.loop._wait(world.clock.us + 10**8)] == [read]
    assert time.monotonic() - began < 5
