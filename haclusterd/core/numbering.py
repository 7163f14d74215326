"""Nodes and services are small integers: their positions in one configuration.

While the voters change, neighbours count by two configurations for a while. The hash in a beat says
by which its sender counts; here a beat is put into one's own numbers: nodes by id, services by name
and addresses.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from haclusterd.core.actions import EndCalls, Recover
from haclusterd.core.model import (
    NOBODY,
    NOBODY_NODE,
    Beat,
    ClusterSpec,
    Identity,
    Release,
    ServiceEntry,
    ServiceSpec,
    State,
)

Served = tuple[str, list[str]]  # name and addresses

# What a sender says of a service that its configuration does not have.
UNHEARD_OF = ServiceEntry(NOBODY, -1, int(State.STANDBY), False, 0)


class Numbering(msgspec.Struct, frozen=True):
    """From their numbers to mine (-1: not here), and from mine to theirs (-1: not there).

    A node that is not here keeps its epoch and nonce in an identity and loses its number: who
    promised it stands by somebody who is gone, which is not the same as standing by nobody.
    """

    nodes: tuple[int, ...]
    services: tuple[int, ...]
    my_nodes: tuple[int, ...]
    my_services: tuple[int, ...]

    def identity(self, theirs: Identity) -> Identity:
        """The same identity in my numbers."""
        node = self.nodes[theirs.node] if theirs.node >= 0 else NOBODY_NODE
        return theirs if node == theirs.node else Identity(theirs.epoch, node, theirs.nonce)

    def node(self, theirs: int) -> int:
        """A node in my numbers; -1 stays -1."""
        return self.nodes[theirs] if theirs >= 0 else theirs

    def entry(self, theirs: ServiceEntry) -> ServiceEntry:
        """The same word of a service in my numbers."""
        promise = self.identity(theirs.promise)
        if promise is theirs.promise:
            return theirs
        return msgspec.structs.replace(theirs, promise=promise)

    def entries(self, theirs: Sequence[ServiceEntry]) -> tuple[ServiceEntry, ...]:
        """By my services; `UNHEARD_OF` where they have none."""
        return tuple(self.entry(theirs[k]) if k >= 0 else UNHEARD_OF for k in self.my_services)

    def releases(self, theirs: Sequence[Release]) -> tuple[Release, ...]:
        """Those of services that exist here."""
        return tuple(
            Release(self.services[r.service], self.identity(r.identity), self.node(r.to))
            for r in theirs
            if self.services[r.service] >= 0
        )

    def order(self, theirs: Recover | EndCalls) -> Recover | EndCalls:
        """What an agent was told, for one that counts by my numbers."""
        service, identity = self.services[theirs.service], self.identity(theirs.identity)
        if isinstance(theirs, EndCalls):
            return EndCalls(service, identity)
        from_node = self.node(theirs.from_node)
        return Recover(service, identity, from_node, theirs.cause, theirs.times)


def numbering(theirs: ClusterSpec, mine: ClusterSpec) -> Numbering:
    """How to remember by `mine` what counted by `theirs`. A service whose addresses have changed is
    another one: who served it under the name may not be who answers there now."""
    node_ids, my_node_ids = [n.id for n in theirs.nodes], [n.id for n in mine.nodes]
    served, my_served = served_by(theirs.services), served_by(mine.services)
    return Numbering(
        _places(node_ids, my_node_ids),
        _places(served, my_served),
        _places(my_node_ids, node_ids),
        _places(my_served, served),
    )


def reading(theirs: ClusterSpec, mine: ClusterSpec) -> Numbering:
    """`numbering` for the beats of a node that counts by `theirs`. Where it has other times, what
    it says of services does not count: its lease may be longer than this node waits."""
    by = numbering(theirs, mine)
    if theirs.timing.bounds_us == mine.timing.bounds_us:
        return by
    return msgspec.structs.replace(
        by, services=(-1,) * len(by.services), my_services=(-1,) * len(by.my_services)
    )


def served_by(services: Sequence[ServiceSpec]) -> list[Served]:
    """What a service is, whatever its place in the file and the NICs that carry it."""
    return [(s.name, sorted(a.ip for a in s.addresses)) for s in services]


def _places(of: Sequence[object], among: Sequence[object]) -> tuple[int, ...]:
    return tuple(among.index(one) if one in among else -1 for one in of)


def is_sound(beat: Beat, nodes: int, services: int) -> bool:
    """Whether every number in `beat` exists among so many. Plain loops: this is the hot path."""
    if len(beat.echoes) != nodes or len(beat.services) != services:
        return False
    for entry in beat.services:
        if not NOBODY_NODE <= entry.promise.node < nodes:
            return False
    if not beat.releases:
        return True
    return len(beat.releases) <= services and all(
        0 <= release.service < services
        and NOBODY_NODE <= release.identity.node < nodes
        and NOBODY_NODE <= release.to < nodes
        for release in beat.releases
    )


def renumbered(beat: Beat, by: Numbering) -> Beat | None:
    """A sound beat of theirs in my numbers; None where its sender is no node of mine."""
    sender = by.nodes[beat.sender]
    if sender < 0:
        return None
    return msgspec.structs.replace(
        beat,
        sender=sender,
        echoes=tuple(beat.echoes[n] if n >= 0 else None for n in by.my_nodes),
        services=by.entries(beat.services),
        releases=by.releases(beat.releases),
    )
