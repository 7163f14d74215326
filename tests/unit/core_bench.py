"""One node on the bench: its peers are played by hand, its kernel obeys at once.

`Bench` gives the node under test inputs at a time in ms that only goes on, answers its actions
like an executor (unless told not to), and keeps what it asked for and said.
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeVar

import msgspec

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core.model import (
    NOBODY,
    AddressSpec,
    Beat,
    ClusterSpec,
    Echo,
    Identity,
    NodeSpec,
    Release,
    ServiceEntry,
    ServiceSpec,
    State,
    Timing,
)
from haclusterd.core.node import next_deadline_us, step
from haclusterd.core.state import Service, start

LAN = Timing(25_000, 100_000, 40_000, 150_000, 10_000, 60_000, 15_000, 2_000_000)
HOLD_DOWN_MS = 250
ME = 0

A = TypeVar("A")


def spec_of(nodes: int = 3, services: int = 1, **changes: Any) -> ClusterSpec:
    spec = ClusterSpec(
        "bench",
        ME,
        tuple(NodeSpec(f"n{i}", (f"10.1.0.{i + 1}", f"10.2.0.{i + 1}")) for i in range(nodes)),
        tuple(
            ServiceSpec(
                f"s{k}", (AddressSpec(f"203.0.113.{k + 1}", 24, "eth0"),), (f"p{k}",), -1, 10
            )
            for k in range(services)
        ),
        LAN,
    )
    return msgspec.structs.replace(spec, **changes)


class Bench:
    """Node 0 of a cluster; `obeys` False leaves its actions without results."""

    def __init__(self, spec: ClusterSpec | None = None, ready: bool = True) -> None:
        self.spec = spec or spec_of()
        self.now_us = 1_000_000_000
        self.began_us = self.now_us
        self.node = start(self.spec, self.now_us, 0xABCDEF)
        self.obeys = True
        self.asked: list[act.Action] = []
        self.said: list[act.Decided] = []
        self.seqs = [0] * len(self.spec.nodes)
        self.incarnations = [100 + n for n in range(len(self.spec.nodes))]
        self.give(inp.AgentChanged(True))
        if ready:
            self.report()

    # time and inputs ------------------------------------------------------------------------

    def give(self, event: inp.Input) -> list[act.Action]:
        """Step with `event` now, and carry out what comes of it."""
        found: list[act.Action] = []
        events = deque([event])
        while events:
            self.node, actions = step(self.node, events.popleft(), self.now_us)
            found += actions
            if self.obeys:
                events.extend(r for a in actions if (r := result_of(a)) is not None)
        self.asked += found
        self.said += [a for a in found if isinstance(a, act.Decided)]
        return found

    def pass_ms(self, ms: float, tick: bool = True) -> list[act.Action]:
        """Let time go by, with a Tick whenever the node wants one."""
        end_us = self.now_us + int(ms * 1000)
        found = []
        while tick and next_deadline_us(self.node) <= end_us:
            self.now_us = max(self.now_us, next_deadline_us(self.node))
            found += self.give(inp.Tick())
        self.now_us = end_us
        return found

    def after_hold_down(self) -> Bench:
        self.pass_ms(HOLD_DOWN_MS + 1)
        return self

    def report(self, ready: bool = True, calls: int = 0, **changes: Any) -> list[act.Action]:
        word = inp.ServiceReport(ready, "" if ready else "not ready", calls)
        report = inp.LocalReport(True, 77, 100, 0, calls, False, (word,) * len(self.spec.services))
        return self.give(msgspec.structs.replace(report, **changes))

    # peers ----------------------------------------------------------------------------------

    def beat(
        self,
        sender: int,
        *entries: ServiceEntry,
        two_way: bool = True,
        releases: tuple[Release, ...] = (),
        **changes: Any,
    ) -> Beat:
        self.seqs[sender] += 1
        none = ServiceEntry(NOBODY, -1, State.STANDBY, True, 0)
        echo = Echo(self.node.incarnation & 0xFFFFFFFF, self.node.seq, 0) if two_way else None
        beat = Beat(
            sender=sender,
            link=0,
            incarnation=self.incarnations[sender],
            seq=self.seqs[sender],
            number=self.seqs[sender],
            reply=False,
            config_hash=self.spec.config_hash,
            rank_hash=self.node.rank_hash,
            flags=0,
            health=100,
            load=0,
            calls=0,
            echoes=tuple(echo if n == self.spec.me else None for n in range(len(self.spec.nodes))),
            services=(*entries, *(none,) * (len(self.spec.services) - len(entries))),
            releases=releases,
        )
        return msgspec.structs.replace(beat, **changes)

    def hear(self, sender: int, *entries: ServiceEntry, **changes: Any) -> list[act.Action]:
        """A beat of `sender` arrives; the node has sent something recent for it to echo."""
        self.ensure_recent_send()
        return self.give(inp.Received(0, self.beat(sender, *entries, **changes)))

    def hear_on(self, link: int, beat: Beat) -> list[act.Action]:
        """`beat` arrives on `link`."""
        return self.give(inp.Received(link, beat))

    def ensure_recent_send(self) -> None:
        if self.now_us - self.node.sent_us.get(self.node.seq, -(10**15)) > 20_000:
            self.node.next_beat_us = self.now_us
            self.give(inp.Tick())

    def keep_hearing(self, ms: float, *words: tuple[int, ServiceEntry]) -> None:
        """Each (sender, entry) beats every 25 ms while `ms` go by."""
        end_us = self.now_us + int(ms * 1000)
        while self.now_us < end_us:
            for sender, entry in words:
                self.hear(sender, entry)
            self.pass_ms(min(25.0, (end_us - self.now_us) / 1000))

    def keep_owning(self, ms: float) -> None:
        """Node 1 echoes the owner's newest beat every 10 ms."""
        end_us = self.now_us + int(ms * 1000)
        while self.now_us < end_us:
            self.hear(1, entry(self.service.identity, lease_seq=self.node.seq))
            self.pass_ms(10)
        self.hear(1, entry(self.service.identity, lease_seq=self.node.seq))

    # what came of it ------------------------------------------------------------------------

    @property
    def service(self) -> Service:
        return self.node.services[0]

    def stands_in(self, state: State) -> bool:
        return self.service.state is state

    def hears(self, n: int) -> bool:
        return self.node.peers[n].alive

    @property
    def rows(self) -> list[str]:
        return [what.row for what in self.said]

    def forget(self) -> None:
        """Only what comes from here on is of interest."""
        self.asked.clear()
        self.said.clear()

    def own(self) -> Identity:
        """Win service 0 with the vote of node 1."""
        self.after_hold_down()
        self.hear(1)
        self.keep_hearing(100, (1, STANDBY))
        claim = self.service.promise
        assert self.stands_in(State.CLAIMING), self.said
        self.hear(1, entry(claim))
        assert self.stands_in(State.OWNED), self.said
        self.hear(1, entry(claim, lease_seq=self.node.seq))
        self.forget()
        return claim


def result_of(action: act.Action) -> inp.Input | None:
    """What a kernel that obeys reports."""
    if isinstance(action, act.CloseFence):
        return inp.FenceClosed(action.service, True)
    if isinstance(action, act.AddAddresses):
        return inp.AddressesAdded(action.service, True)
    if isinstance(action, act.RemoveAddresses):
        return inp.AddressesRemoved(action.service, True)
    return None


def entry(
    promise: Identity = NOBODY,
    state: State = State.STANDBY,
    lease_seq: int = -1,
    ready: bool = True,
    calls: int = 0,
    held: int = 0,
) -> ServiceEntry:
    if state in (State.OWNED, State.ACQUIRING):
        held = max(held, promise.epoch)
    return ServiceEntry(promise, lease_seq, state, ready, calls, held)


def kinds(actions: list[act.Action], kind: type[A]) -> list[A]:
    return [a for a in actions if isinstance(a, kind)]


STANDBY = entry()
