"""Taking a set of voters up: the core's memory goes on in the numbers of the next set.

Which set, and when, is `core.reconfigure`'s; an upgrade of heart carries it out.
"""

from __future__ import annotations

import msgspec

from haclusterd.core.model import ClusterSpec
from haclusterd.core.numbering import Numbering, numbering
from haclusterd.core.owner import forget_leases
from haclusterd.core.ranking import service_order
from haclusterd.core.reconfigure import set_floor
from haclusterd.core.state import NEVER, Node, Peer, PeerLink, Roll, Service, unknown_service


def adopt(node: Node, spec: ClusterSpec, now_us: int) -> None:
    """Go on as `spec` says: the same memory in its numbers.

    Its services are those of before, unless others came into the file that is in force while this
    node was away: of them it knows as much as at a start. If it is the times that are others, who
    stood by this node did so by the old ones: no lease goes on, and it listens anew for the longer.
    """
    by = numbering(node.spec, spec)
    before, old = node.peers, node.spec
    node.peers = [before[n] if n >= 0 else _stranger(spec) for n in by.my_nodes]
    for peer in node.peers:
        peer.links = _fitted(peer.links, spec)
        if peer.services:
            peer.services = by.entries(peer.services)
        peer.releases = by.releases(peer.releases)
    node.services = [
        _renumbered(node.services[k], by) if k >= 0 else unknown_service(spec, now_us)
        for k in by.my_services
    ]
    node.marks = [
        msgspec.structs.replace(mark, node=by.node(mark.node))
        for mark in node.marks
        if by.node(mark.node) >= 0
    ]
    node.marked = frozenset(by.node(n) for n in node.marked) - {-1}
    node.unvoting = frozenset(by.node(n) for n in node.unvoting) - {-1}
    node.left_out = frozenset(by.node(n) for n in node.left_out) - {-1}
    node.spare_node, node.spare_since_us = -1, NEVER
    node.spec = spec
    node.order = service_order(spec)
    node.slaves, node.successors, node.ranked_doomed = (), (), frozenset()
    node.rank_dirty = True
    node.wake_us = now_us
    roll = node.roll
    node.roll = Roll(
        known=max(roll.known, spec.revision),
        kin=(old.config_hash,),
        floor=roll.floor,
        blind=spec.revision > old.revision + 1,
        returned=roll.returned,
        listens_us=roll.listens_us,
    )
    if roll.returned or now_us < roll.listens_us:
        node.roll.listens_us = now_us + spec.timing.hold_down_us
    if old.timing.bounds_us != spec.timing.bounds_us:
        _begin_anew(node, max(old.timing.hold_down_us, spec.timing.hold_down_us), now_us)
    node.dialect = max(node.dialect, 2 if spec.revision > 1 else 1)
    if roll.known > spec.revision:
        node.roll.known_hash = roll.known_hash
    set_floor(node)


def _stranger(spec: ClusterSpec) -> Peer:
    return Peer(links=_fitted([], spec))


def _fitted(links: list[PeerLink], spec: ClusterSpec) -> list[PeerLink]:
    """A NIC may have come or gone by restarts of the others while this node was away."""
    return [*links, *(PeerLink() for _ in range(len(links), spec.links))][: spec.links]


def _begin_anew(node: Node, hold_down_us: int, now_us: int) -> None:
    node.roll.listens_us = max(node.roll.listens_us, now_us + hold_down_us)
    forget_leases(node)
    for service in node.services:
        service.deferred = None
        if service.claim is not None:
            service.claim.granted &= 1 << node.spec.me


def _renumbered(service: Service, by: Numbering) -> Service:
    """Promises, lease and claim of one service in the new numbers; all its clocks as they were."""
    heard = service.voter_sent_us
    service.voter_sent_us = [heard[n] if n >= 0 else NEVER for n in by.my_nodes]
    service.stood_by = _renumbered_mask(service.stood_by, by)
    service.won_too = _renumbered_mask(service.won_too, by)
    service.promise = by.identity(service.promise)
    service.identity = by.identity(service.identity)
    service.recovering = by.identity(service.recovering)
    granted = (by.identity(i) for i in service.passed_on)
    service.passed_on = tuple(i for i in granted if i.node >= 0)
    service.moving_to, service.from_node = by.node(service.moving_to), by.node(service.from_node)
    service.guard = by.node(service.guard)
    if service.release is not None:
        service.release = next(iter(by.releases((service.release,))), None)
    claim = service.claim
    if claim is not None:
        claim.identity = by.identity(claim.identity)
        claim.granted = _renumbered_mask(claim.granted, by)
    deferred = service.deferred
    if deferred is not None:
        identity = by.identity(deferred.identity)
        service.deferred = (
            msgspec.structs.replace(deferred, identity=identity) if identity.node >= 0 else None
        )
    return service


def _renumbered_mask(mask: int, by: Numbering) -> int:
    return sum(1 << mine for mine, n in enumerate(by.my_nodes) if n >= 0 and mask >> n & 1)
