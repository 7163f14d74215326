"""Where this node stands: its own entry in the beat, and the ranking kept up to date.

Connects the node's state with the pure order of `core.ranking`.
"""

from __future__ import annotations

from haclusterd.core.model import NOBODY_NODE, ServiceEntry, State
from haclusterd.core.ranking import Facts, rank
from haclusterd.core.state import NEVER, Node, Service, flags

RANK_DIFFERS_US = 3_000_000  # a rank hash that differs for longer is an alarm (EG16)
_OWNED = State.OWNED  # looked up once: see core.state
_UNDER_WAY = (State.CLAIMING, State.ACQUIRING, State.OWNED)


def odd_config(node: Node) -> bool:
    """Most of the others run another configuration: then this node claims nothing."""
    me, mine, kin = node.spec.me, node.spec.config_hash, node.roll.kin
    balance = 0  # plain, because it is asked with every beat
    for n, peer in enumerate(node.peers):
        if peer.alive and n != me:
            balance += 1 if peer.config_hash != mine and peer.config_hash not in kin else -1
    return balance > 0


def _entry(node: Node, service: Service, able: bool) -> ServiceEntry:
    state = service.state
    if state is _OWNED and service.promise != service.identity:
        state = State.CLAIMING  # a new claim of the holder's own is under way
    ready = service.ready or not node.spec.freeswitch
    ready = ready and able and service.backoff_until_us == NEVER and service.carrier
    return ServiceEntry(
        service.promise,
        service.lease_seq,
        int(state),
        ready,
        service.calls,
        service.owned_epoch,
    )


def entries(node: Node) -> tuple[ServiceEntry, ...]:
    able = node.agent_up and not odd_config(node)
    return tuple(_entry(node, s, able) for s in node.services)


def facts(node: Node, now_us: int) -> tuple[Facts, ...]:
    """What the ranking is computed from: the newest beats, and one's own as it would be sent."""
    me = node.spec.me
    return tuple(
        Facts(True, flags(node, now_us), node.health, node.load, node.calls, entries(node))
        if n == me
        else Facts(p.alive, p.flags, p.health, p.load, p.calls, p.services)
        for n, p in enumerate(node.peers)
    )


def lost_services(node: Node) -> frozenset[int]:
    """Services without an owner or a claimant under way, as this node knows it."""
    return frozenset(
        k
        for k, s in enumerate(node.services)
        if s.lost_us != NEVER and s.claim is None and not _under_way(node, k, s)
    )


def _under_way(node: Node, k: int, service: Service) -> bool:
    """Somebody but the lost owner itself says that it has it, or is about to."""
    return any(
        peer.alive
        and peer.services
        and peer.services[k].state in _UNDER_WAY
        and peer.services[k].promise != service.promise
        for peer in node.peers
    )


def doomed_services(node: Node, now_us: int) -> frozenset[int]:
    """Services to be handed out together: those lost, and beside them those about to be.

    Two masters that die within some ms are noticed one after the other, on each node in another
    order perhaps. Who is suspect when the first of them counts as lost is handed out with it, or
    two slaves would go for the same service and a master for the other (EG25).
    """
    lost = lost_services(node)
    if not lost:
        return lost
    suspect_us = now_us - node.spec.timing.suspect_us
    return lost | {
        k
        for k, s in enumerate(node.services)
        if s.promise.node not in (NOBODY_NODE, node.spec.me)
        and s.silence_us <= suspect_us
        and s.claim is None
        and not _under_way(node, k, s)
    }


def refresh(node: Node, now_us: int) -> None:
    node.rank_dirty = False
    node.ranked_flags = flags(node, now_us)
    node.ranked_doomed = doomed_services(node, now_us)
    ranking = rank(node.spec, facts(node, now_us), node.ranked_doomed)
    node.slaves, node.successors = ranking.slaves, ranking.successors
    node.rank_hash = ranking.hash


def watch_rank(node: Node, now_us: int) -> None:
    """Since when another node ranks the slaves otherwise; who counts by another set does."""
    me, revision, mine = node.spec.me, node.spec.revision, node.rank_hash
    for n, peer in enumerate(node.peers):
        if peer.rank_hash != mine and peer.alive and n != me and peer.revision == revision:
            if node.rank_differs_us == NEVER:
                node.rank_differs_us = now_us
            return
    node.rank_differs_us = NEVER
