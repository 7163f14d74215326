"""The claimant: when a service counts as lost, whose turn it is, and a claim's short life.

Run from `Tick` only, so that no silence is concluded while beats wait unread in a socket.
"""

from __future__ import annotations

from haclusterd.core import quorum
from haclusterd.core.actions import Action
from haclusterd.core.model import NOBODY, NOBODY_NODE, Identity, State
from haclusterd.core.moves import happen, name_of
from haclusterd.core.orders import waits_for_resume
from haclusterd.core.reconfigure import may_claim
from haclusterd.core.standing import odd_config, refresh
from haclusterd.core.state import (
    FAR,
    NEVER,
    Claim,
    Node,
    Service,
    holding_down,
    is_departing,
    listens_until_us,
)
from haclusterd.core.takeover import Event


def pursue(node: Node, now_us: int, out: list[Action]) -> int:
    """Advance every claim that is under way or due. Returns when to look again (us)."""
    wake_us = FAR
    for k in node.order:
        service = node.services[k]
        if node.rank_dirty:
            refresh(node, now_us)  # a claim made just now counts for the next service
        claim = service.claim
        if claim is not None:
            wake_us = min(wake_us, _nurse(node, k, claim, now_us, out))
        elif service.state in (State.STANDBY, State.LAPSED):
            wake_us = min(wake_us, _consider(node, k, service, now_us, out))
        if service.deferred is not None:
            wake_us = min(wake_us, service.deferred.due_us)
    return wake_us


def _nurse(node: Node, k: int, claim: Claim, now_us: int, out: list[Action]) -> int:
    """Resend the claim at its set times; void it when its grants could not count any more."""
    timing = node.spec.timing
    if quorum.needed(node) == 1:
        happen(node, k, Event.GRANTED, now_us, out)
        return FAR
    if now_us - claim.sent_us > timing.lease_us:
        happen(node, k, Event.CLAIM_VOID, now_us, out)
        return now_us
    if claim.resent < len(timing.resend_us):
        due_us = claim.sent_us + timing.resend_us[claim.resent]
        if now_us < due_us:
            return due_us
        claim.resent += 1
        node.next_beat_us = now_us
        return now_us
    return claim.sent_us + timing.lease_us + 1


def mark_lost(node: Node, now_us: int) -> bool:
    """Note which services nobody holds any more, as far as this node may conclude it."""
    changed = False
    for service in node.services:
        if service.lost_us != NEVER or service.claim is not None or service.state in _HELD:
            continue
        lost_us = _lost_since(node, service)
        if lost_us <= now_us:
            service.lost_us = lost_us
            changed = True
    if changed:
        node.rank_dirty = True
    return changed


_HELD = (State.ACQUIRING, State.OWNED, State.RELEASING)


def _lost_since(node: Node, service: Service) -> int:
    """When silence (or a release) makes the service lost in this node's eyes; may lie ahead."""
    held = service.promise
    hold_down_ends_us = listens_until_us(node)
    if service.release is not None and service.release.identity == held:
        return service.released_us
    if held == NOBODY:
        return hold_down_ends_us
    if held.node == node.spec.me:
        return service.silence_us
    return max(service.silence_us + node.spec.timing.dead_us, hold_down_ends_us)


def _consider(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> int:
    """Claim if it is this node's turn; otherwise say when that may be."""
    if service.lost_us == NEVER:
        return _lost_since(node, service)
    if holding_down(node, now_us) or not _may_claim(node, service) or _is_held(node, k, now_us):
        return FAR
    if waits_for_resume(node, service, now_us):
        return node.paused_until_us
    due_us = _due(node, k, service, now_us)
    if due_us > now_us:
        return due_us
    if service.holding:
        since = _may_have_been_owned_since(node, k, service, now_us)
        if since != NOBODY:
            listened_us = node.majority_since_us + 2 * node.spec.timing.heartbeat_us
            if now_us < listened_us:
                return listened_us  # that claimant may be about to say that nothing came of it
            owner, epoch = since.node, since.epoch
            happen(node, k, Event.SUPERSEDED, now_us, out, owner=owner, epoch=epoch)
            return now_us  # its calls are the past
    service.from_node = service.promise.node
    silent = node.peers[service.promise.node] if service.promise.node >= 0 else None
    service.times = {"last_heartbeat": silent.heard_us if silent else now_us}
    service.times["dead"] = service.lost_us
    cause = _cause(node, service, now_us)
    happen(node, k, Event.FIRST_IN_LINE, now_us, out, cause=cause)
    return now_us


def _may_have_been_owned_since(node: Node, k: int, service: Service, now_us: int) -> Identity:
    """Whom a node in reach has granted the service after this node had it; NOBODY if nothing came
    of that, as the claimant itself says.

    It may have won, taken the calls up and gone again, all unheard; also if a later claim, which
    was granted as well, came to nothing. At this node's own epoch, too, where that was won twice,
    or may have been: a voter has forgotten that it stood by this node, or the claimant is in reach,
    and this node not known to be the newest that won it.
    """
    fresh_us = now_us - node.spec.timing.two_way_us
    granted = [service.promise, *service.passed_on]
    is_newest = _is_newest(node, k, service, fresh_us)
    one_owner = quorum.needed(node) > 1  # else every part has one, and epochs say nothing
    for n, peer in enumerate(node.peers):
        if service.won_too >> n & 1 and one_owner and not is_newest:
            return Identity(service.identity.epoch, n, 0)
        if peer.services and peer.two_way_us >= fresh_us:
            told = peer.services[k].promise
            twin = told.epoch == service.identity.epoch
            doubtful = (told.node == n and one_owner) or _has_forgotten(service, n, told)
            if not twin or (doubtful and not is_newest):
                granted.append(told)
    for held in granted:
        if held.epoch < service.identity.epoch or held.node in (node.spec.me, NOBODY_NODE):
            continue
        peer = node.peers[held.node]
        if peer.two_way_us < fresh_us or not peer.services:
            return held
        entry = peer.services[k]
        remembers = entry.promise.epoch >= held.epoch  # its promises only grow, if it kept them
        at_rest = entry.state in (State.STANDBY, State.LAPSED)
        if entry.held >= held.epoch or not at_rest or not remembers:
            return held
    return NOBODY


def _has_forgotten(service: Service, voter: int, told: Identity) -> bool:
    """Of one epoch a node stands by one claim while it remembers. Who stood by this node's, and
    stands by `told` now or made that claim, has forgotten; that there is such a claim is no sign.
    """
    stood_by = service.stood_by
    return bool(stood_by >> voter & 1 or (told.node >= 0 and stood_by >> told.node & 1))


def _is_newest(node: Node, k: int, service: Service, fresh_us: int) -> bool:
    """Of all that won this node's epoch it was the last: who stands by it still has granted that
    epoch to nobody since, and the others are no majority; also of those that are marked dead now,
    for they may have voted since.
    """
    stands_by = 1 << node.spec.me
    for n, peer in enumerate(node.peers):
        if peer.services and peer.two_way_us >= fresh_us:
            stands_by |= (peer.services[k].promise == service.identity) << n
    others = len(node.spec.nodes) - stands_by.bit_count()
    return others < node.spec.needed


def _is_held(node: Node, k: int, now_us: int) -> bool:
    """Somebody in two-way reach has a valid lease, at whatever epoch: a claim could only fail. Or
    an owner by marks was heard in the hold-down, and is not silent for long enough (voter).

    Where one vote is enough a claim could not fail: there it is enough to be heard, for what waits
    in a socket after a stun is too old to be two-way.
    """
    alone = quorum.needed(node) == 1
    if now_us - node.services[k].guard_us < node.spec.timing.dead_us:
        return True
    return any(
        peer.services
        and peer.services[k].state in (State.ACQUIRING, State.OWNED)
        and now_us - (peer.heard_us if alone else peer.two_way_us) <= node.spec.timing.two_way_us
        for peer in node.peers
    )


def _may_claim(node: Node, service: Service) -> bool:
    """Two-way contact to a majority, the cluster's own configuration, and one's own fence shut."""
    if not node.majority or (service.state is State.LAPSED and not service.fence_closed):
        return False
    return may_claim(node) and not odd_config(node)


def _due(node: Node, k: int, service: Service, now_us: int) -> int:
    """The time of this node's turn: rank x delay after the loss, behind whoever goes first."""
    timing = node.spec.timing
    if service.state is State.LAPSED:
        if not service.carrier or node.freeswitch_gone or node.spec.me in node.marked:
            return FAR
        return max(service.lost_us, service.paced_until_us, _listened_us(node, service))
    line = node.successors[k] if node.successors else ()
    if node.spec.me not in line or node.leaving or node.maintenance or is_departing(node):
        return FAR
    place = _place(node, k, service, line, now_us)
    silent = service.release is None and service.promise.node not in (node.spec.me, NOBODY_NODE)
    base_us = max(
        service.lost_us + (timing.grace_us if silent else 0),
        service.paced_until_us,
        node.majority_since_us + 2 * timing.heartbeat_us,
        service.lapsed_heard_us + 2 * timing.dead_us,
        node.resumed_us,  # after a pause: in the order of the ranking, not all at once
    )
    due_us = base_us + place * timing.rank_delay_us
    if not service.owner_seen and service.release is None:
        preferred = node.spec.services[k].preferred
        if preferred not in (node.spec.me, -1):
            discovered_us = node.start_us + timing.discovery_us
            due_us = max(due_us, discovered_us + place * timing.rank_delay_us)
    return due_us


def _listened_us(node: Node, service: Service) -> int:
    """Where one vote is enough nobody refuses an owner that stood still while another took over: it
    has to hear of that first, two beats long."""
    if node.spec.needed > 1 or len(node.spec.nodes) == 1:
        return NEVER
    return service.silence_us + 2 * node.spec.timing.heartbeat_us


def _place(node: Node, k: int, service: Service, line: tuple[int, ...], now_us: int) -> int:
    """0 for whoever claims at once: the release's target, else the first in the ranking.

    A target that has gone for another service meanwhile has no precedence: two masters that
    release within a ms name the same slave.
    """
    me = node.spec.me
    place = line.index(me)
    release = service.release
    if release is None or release.identity != service.promise:
        return place
    if _went_elsewhere(node, k, release.to, now_us):
        return place
    if release.to == me:
        return 0
    if release.identity.node == me:
        return len(node.spec.nodes)  # it has just given the service away: last
    return max(1, place + (0 if release.to in line[:place] else 1))


def _went_elsewhere(node: Node, k: int, n: int, now_us: int) -> bool:
    """Node `n` claimed or took another service than `k` just now."""
    return any(
        s.promise.node == n and now_us - s.promised_us <= node.spec.timing.dead_us
        for j, s in enumerate(node.services)
        if j != k
    )


def _cause(node: Node, service: Service, now_us: int) -> str:
    """The sentence's second half: on what this claim rests."""
    held = service.promise
    if service.state is State.LAPSED:
        return "its lease had lapsed and no higher epoch is known"
    if held == NOBODY:
        return "nobody has owned it since the cluster started"
    who = name_of(node, held.node)
    if service.release is not None and service.release.identity == held:
        return f"{who} released it"
    if held.node == node.spec.me:
        return "its own former claim or term has ended"
    if held.node in node.unvoting:
        return f"{who} was marked dead"
    silent_ms = (now_us - service.silence_us) // 1000
    return f"{who} silent on {node.spec.links}/{node.spec.links} links for {silent_ms} ms"
