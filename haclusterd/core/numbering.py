"""Nodes and services are small integers: their positions in one configuration.

While the voters change, neighbours count by two configurations for a while. The hash in a beat says
by which its sender counts; here a beat is put into one's own numbers, by id and by name.
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
    State,
)

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
    """How to read what counts by `theirs` where one counts by `mine`."""
    node_ids, my_node_ids = [n.id for n in theirs.nodes], [n.id for n in mine.nodes]
    names, my_names = [s.name for s in theirs.services], [s.name for s in mine.services]
    return Numbering(
        _places(node_ids, my_node_ids),
        _places(names, my_names),
        _places(my_node_ids, node_ids),
        _places(my_names, names),
    )


def _places(of: list[str], among: list[str]) -> tuple[int, ...]:
    return tuple(among.index(name) if name in among else -1 for name in of)


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
