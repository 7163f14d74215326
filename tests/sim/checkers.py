"""The safety invariants (RELIABILITY 3.5), checked as the world moves.

S1 one holder, S2 one owner per epoch, S3 one promise per epoch, S4 one takeover per loss, S5 no
takeover from a valid lease, S7 no calls of another service, S10 calls taken up once, S13 bounds,
V5 claims paced. What a world must come to in the end is in `liveness`.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import TYPE_CHECKING

from haclusterd.core.aliens import ALIENS_KEPT
from haclusterd.core.model import Identity
from haclusterd.core.state import SENT_TIMES_KEPT, Node, owns

if TYPE_CHECKING:
    from tests.sim.host import Host

# With `quorum = "availability"` each side of a partition has an owner of its own, and so its calls.
NOT_WITHOUT_A_MAJORITY = frozenset({"S1", "S2", "S4", "S5", "S10"})
REPEAT_MAX = 20  # violations kept of one run
TIMES_KEPT_MAX = 8  # events in a service's timeline
CLAIMS_MAX = 70  # per service in 70 dead times, however many nodes claim
CLAIM_TOLERANCE = 0.97  # clocks differ in rate


@dataclasses.dataclass
class Checkers:
    """Watches one world. Times are true microseconds of the simulation."""

    nodes: int
    services: int
    dead_us: int = 150_000
    violations: list[str] = dataclasses.field(default_factory=list)
    emit_until: list[list[int]] = dataclasses.field(default_factory=list)  # [service][node]
    winners: dict[tuple[int, int], Identity] = dataclasses.field(default_factory=dict)
    won_ever: set[tuple[int, Identity]] = dataclasses.field(default_factory=set)
    promised: dict[tuple[int, int, int], Identity] = dataclasses.field(default_factory=dict)
    taken_up: dict[tuple[int, Identity], int] = dataclasses.field(default_factory=dict)
    given_up: set[tuple[int, Identity]] = dataclasses.field(default_factory=set)  # recovery failed
    newest: dict[int, Identity] = dataclasses.field(default_factory=dict)  # winner by service
    server: dict[int, Identity] = dataclasses.field(default_factory=dict)
    carries: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)  # since epoch
    claimed: dict[tuple[int, int, int], int] = dataclasses.field(default_factory=dict)
    claims: list[deque[int]] = dataclasses.field(default_factory=list)
    muted: frozenset[str] = frozenset()  # invariants that are not reported
    changes: int = 0
    # by service and identity: the nodes that stood by it, and have not forgotten that since
    witnesses: dict[tuple[int, Identity], set[int]] = dataclasses.field(default_factory=dict)
    gone: set[int] = dataclasses.field(default_factory=set)  # powered off for now

    def __post_init__(self) -> None:
        self.emit_until = [[0] * self.nodes for _ in range(self.services)]
        self.claims = [deque() for _ in range(self.services)]

    def report(self, t_us: int, text: str) -> None:
        if len(self.violations) < REPEAT_MAX and text.partition(":")[0] not in self.muted:
            self.violations.append(f"{t_us / 1000:.3f} ms: {text}")

    # holders and epochs ---------------------------------------------------------------------

    def may_emit(self, t_us: int, service: int, node: int, until_us: int) -> None:
        """S1: from `t_us` to `until_us` this node can answer for the service, unless told anew."""
        row = self.emit_until[service]
        if until_us > t_us:
            for other, other_until in enumerate(row):
                if other_until > t_us and other != node:
                    overlap_ms = (min(until_us, other_until) - t_us) / 1000
                    both = f"n{node} and n{other} both hold s{service}"
                    self.report(t_us, f"S1: {both} (up to {overlap_ms:.1f} ms)")
        row[node] = until_us

    def won(self, t_us: int, service: int, identity: Identity, hosts: list[Host]) -> None:
        """S2: one owner per epoch, and they grow. S5: nobody wins while a lease is valid.

        `hosts` empty: it was won long ago, by a process that stopped since.

        A voter that lost its memory may be the one that two majorities share: then an epoch can
        repeat (DESIGN 6, Identity), but never while both hold (S1).
        """
        self.changes += 1
        key = (service, identity.epoch)
        before = self.winners.setdefault(key, identity)
        # A win that is carried out long after (no hosts) may be the elder of the two.
        elder_lost = not hosts and not self.is_known(service, identity)
        if before != identity and self.is_known(service, before) and not elder_lost:
            self.report(t_us, f"S2: s{service} epoch {identity.epoch}: {before} and {identity}")
        self.winners[key] = identity
        self.won_ever.add((service, identity))
        if not hosts:
            return
        newest = self.newest.get(service)
        repeats = newest is not None and newest.epoch >= identity.epoch
        if newest is not None and repeats and self.is_known(service, newest):
            self.report(t_us, f"S2: s{service} went from epoch {newest.epoch} to {identity.epoch}")
        self.newest[service] = identity
        for host in hosts:
            node = host.node
            if host.me == identity.node or not host.alive or node is None:
                continue
            other = node.services[service]
            if owns(other) and other.lease_until_us > host.local(t_us):
                left_ms = (other.lease_until_us - host.local(t_us)) / 1000
                has = f"n{host.me} has a lease for {left_ms:.1f} ms more"
                self.report(t_us, f"S5: n{identity.node} won s{service} while {has}")

    def promise(self, t_us: int, node: int, service: int, identity: Identity) -> None:
        """S3: a node stands by at most one claimant per epoch while it remembers."""
        key = (node, service, identity.epoch)
        before = self.promised.setdefault(key, identity)
        self.witnesses.setdefault((service, identity), set()).add(node)
        if before != identity:
            self.report(t_us, f"S3: n{node} promised s{service} to {before} and {identity}")

    def restart(self, node: int, persisted: tuple[Identity, ...]) -> None:
        """Promises made in the last moments before a crash may not have reached the disk."""
        for key in [k for k in self.promised if k[0] == node and k[2] > persisted[k[1]].epoch]:
            del self.promised[key]
        for (k, identity), nodes in self.witnesses.items():
            if identity.epoch > persisted[k].epoch:
                nodes.discard(node)

    def forget(self, node: int) -> None:
        """A restart that lost the promises: the hold-down has to make up for it."""
        for key in [k for k in self.promised if k[0] == node]:
            del self.promised[key]
        for nodes in self.witnesses.values():
            nodes.discard(node)

    def is_known(self, service: int, identity: Identity) -> bool:
        """Whoever asks a majority meets a node that stood by `identity` and remembers it; be it a
        majority of those alone who are not marked dead."""
        living = self.nodes - len(self.gone)
        told = self.witnesses.get((service, identity), set()) - self.gone
        return living - len(told) < living // 2 + 1

    # calls ----------------------------------------------------------------------------------

    def recovered(
        self, t_us: int, node: int, service: int, identity: Identity, again: bool
    ) -> None:
        """S10: once per epoch unless it failed, not beside the same calls. S4: by the winner."""
        before = self.taken_up.get((service, identity))
        self.taken_up[service, identity] = node
        self.carries[service, node] = identity.epoch
        name = f"s{service} of epoch {identity.epoch}"
        if before is not None and (service, identity) not in self.given_up:
            self.report(t_us, f"S10: calls of {name} taken up by n{before} and by n{node}")
        self.given_up.discard((service, identity))
        if again:
            self.report(t_us, f"S10: n{node} takes calls of {name} up beside themselves")
        if (service, identity) not in self.won_ever or identity.node != node:
            self.report(t_us, f"S4: n{node} takes calls of {name} up, which it did not win")

    def serves(self, t_us: int, node: int, service: int, identity: Identity, here: bool) -> None:
        """S4: whoever serves has the calls of the node before it, or takes them up; `here`: its
        FreeSWITCH carries calls of this service."""
        recovered = (service, identity) in self.taken_up
        before = self.server.get(service, identity)
        newer = before.node != node and before.epoch >= self.carries.get((service, node), 0)
        newer = newer and self.is_known(service, before)  # who forgot tells of nobody in between
        if not recovered and (newer or not here):
            whose = f"n{before.node} had them" if newer else "they are gone"
            text = f"S4: n{node} serves s{service} at epoch {identity.epoch} without its calls"
            self.report(t_us, f"{text}: {whose}")
        self.server[service] = identity
        self.carries[service, node] = identity.epoch

    def ended_foreign(self, t_us: int, node: int, service: int, why: str) -> None:
        """S7: calls of a service that the node owns are not touched for the sake of another."""
        self.report(t_us, f"S7: n{node} ends calls of s{service}, which it owns: {why}")

    # bounds and pace ------------------------------------------------------------------------

    def claim(self, t_us: int, node: int, life: int, service: int, renews: bool = False) -> None:
        """V5: one node claims a service at most once per `dead_us`; how many there are in all.

        An owner `renews` its right in answer to another's claim: of the claims of all it is none,
        or each counted twice where a pair that cannot hear each other is at odds (seed 7407).
        """
        key = (node, life, service)
        last_us = self.claimed.get(key)
        self.claimed[key] = t_us
        if last_us is not None and t_us - last_us < self.dead_us * CLAIM_TOLERANCE:
            after_ms = (t_us - last_us) / 1000
            self.report(t_us, f"V5: n{node} claims s{service} again after {after_ms:.1f} ms")
        if renews:
            return
        recent = self.claims[service]
        recent.append(t_us)
        while recent[0] < t_us - 70 * self.dead_us:
            recent.popleft()
        if len(recent) > CLAIMS_MAX:
            self.report(t_us, f"V5: {len(recent)} claims to s{service} within 70 dead times")

    def bounds(self, t_us: int, node: int, state: Node) -> None:
        """S13: nothing in the core grows without end."""
        sizes = {
            "sent_us": (len(state.sent_us), SENT_TIMES_KEPT + 1),
            "aliens": (len(state.aliens), ALIENS_KEPT),
            "times": (max(len(s.times) for s in state.services), TIMES_KEPT_MAX),
            "releases": (max(len(p.releases) for p in state.peers), self.services),
        }
        for name, (size, limit) in sizes.items():
            if size > limit:
                self.report(t_us, f"S13: {name} of n{node} holds {size}, more than {limit}")
