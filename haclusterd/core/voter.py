"""The voter: whom this node supports for each service, and when it may change its mind.

The rules are DESIGN section 6, Identity, Lease, Grant and Release. Safety rests on one sentence:
a promise leaves an owner only after that owner's own release, or `dead_us` after the last lease
echo given to it, and every lease echo restarts that clock.
"""

from __future__ import annotations

import enum

from haclusterd.core.actions import Action, Decided
from haclusterd.core.model import (
    EPOCH_MAX,
    NOBODY,
    Beat,
    Flag,
    Identity,
    Release,
    ServiceEntry,
    State,
)
from haclusterd.core.moves import happen, name_of, persist, promise
from haclusterd.core.orders import withholds
from haclusterd.core.reconfigure import is_akin
from haclusterd.core.state import NEVER, Deferred, Node, Peer, Service, holding_down, owns
from haclusterd.core.takeover import Event


class Answer(enum.IntEnum):
    """How soon a peer wants to know that its beat was heard."""

    NONE = 0  # the next regular beat tells
    SOON = 1  # an owner: within the round
    NOW = 2  # somebody whose right hangs on it


_HOLDERS = (State.ACQUIRING, State.OWNED)
_CLAIMANTS = (State.CLAIMING, State.RECLAIMING)
_KEEPERS = (State.LAPSED, State.RECLAIMING)  # of what may be theirs still
_BY_MARKS = int(Flag.BY_MARKS)


def hear_entries(
    node: Node, beat: Beat, news: bool, two_way: bool, now_us: int, out: list[Action]
) -> Answer:
    """Take in what a peer says of every service; how soon it wants an answer."""
    # Neither echo nor grant for who counts by a set that has been left behind (core.reconfigure).
    starting = holding_down(node, now_us)
    hold_down = starting or beat.revision < node.roll.floor
    # Also later, of an owner that is heard one way only: it may be stunned again and again.
    guarded = _may_be_alone(node, beat) and (starting or not two_way)
    if news:
        for release in beat.releases:
            if two_way and not hold_down:
                _catch_up(node, release, beat.sender, now_us, out)
            hear_release(node, release, now_us, out)
    answer = Answer.NONE
    for k, entry in enumerate(beat.services):
        service = node.services[k]
        epoch = entry.promise.epoch
        if max(epoch, entry.held) > EPOCH_MAX:
            continue
        if epoch > service.highest:
            service.highest = epoch
        if entry.promise.node == beat.sender:
            fresh = two_way and not hold_down
            if guarded and entry.state in _HOLDERS:
                # Nobody else's lease is in its way: it is waited for as if this node stood by it.
                service.guard, service.guard_us = beat.sender, now_us
                if epoch > service.owned_epoch:
                    _know_owner(node, service, epoch, out)
            answer = max(answer, _hear_own(node, k, service, entry, beat, fresh, now_us, out))
        if (
            two_way
            and entry.held > service.identity.epoch
            and (entry.held > service.owned_epoch or service.holding or service.state in _KEEPERS)
        ):
            _hear_of_successor(node, k, service, entry, beat.sender, now_us, out)
        elif (
            two_way
            and entry.held == service.identity.epoch
            and not owns(service)
            and (entry.state in _KEEPERS or entry.state in _HOLDERS)
        ):
            # Had it only heard of this node's term it would have ended its own: it won that epoch.
            service.won_too |= 1 << beat.sender
    return answer


def hear_stranger(node: Node, beat: Beat, now_us: int) -> None:
    """An owner that needs nobody's vote is waited for also in an incarnation that was not met: it
    is stunned, or was, and what it sends is too old to be two-way."""
    if beat.incarnation == node.peers[beat.sender].incarnation or not _may_be_alone(node, beat):
        return
    for service, entry in zip(node.services, beat.services, strict=True):
        if entry.promise.node == beat.sender and entry.state in _HOLDERS:
            service.guard, service.guard_us = beat.sender, now_us


def _may_be_alone(node: Node, beat: Beat) -> bool:
    alone = bool(beat.flags & _BY_MARKS) or node.spec.needed == 1
    return alone and beat.sender not in node.marked


def _hear_own(
    node: Node,
    k: int,
    service: Service,
    entry: ServiceEntry,
    beat: Beat,
    fresh: bool,
    now_us: int,
    out: list[Action],
) -> Answer:
    """The sender promises itself: it owns, claims, or did own."""
    state = entry.state
    if state in _HOLDERS:
        service.owner_seen = True
        if fresh and beat.sender not in node.marked:
            _hear_owner(node, k, service, entry, beat, now_us, out)
        return Answer.SOON if state == State.OWNED else Answer.NOW
    if state in _CLAIMANTS:
        known = entry.promise == service.promise
        if fresh:
            hear_claim(node, k, service, entry.promise, beat, now_us, out)
        return Answer.NOW if known else Answer.NONE
    if state == State.LAPSED and entry.promise == service.promise:
        if fresh and service.lapsed_heard_us == NEVER:
            service.lapsed_heard_us = now_us
        return Answer.NOW
    return Answer.NONE


def _hear_owner(
    node: Node,
    k: int,
    service: Service,
    entry: ServiceEntry,
    beat: Beat,
    now_us: int,
    out: list[Action],
) -> None:
    """The lease echo, and the same event restarts the silence timer (DESIGN 6, Lease)."""
    if entry.promise.epoch > service.owned_epoch:
        _know_owner(node, service, entry.promise.epoch, out)
    if entry.promise == service.promise:
        service.lease_seq = beat.seq
        service.silence_us = now_us
        service.lapsed_heard_us = NEVER
        service.deferred = None
        if service.lost_us != NEVER:
            service.lost_us = NEVER
            node.rank_dirty = True
    elif entry.promise.epoch > service.promise.epoch:
        adopt(node, k, service, entry.promise, now_us, out)
        service.lease_seq = beat.seq


def _know_owner(node: Node, service: Service, epoch: int, out: list[Action]) -> None:
    service.owned_epoch = epoch
    persist(node, out)  # a former owner that returns has to be told, also after a restart


def _hear_of_successor(
    node: Node,
    k: int,
    service: Service,
    entry: ServiceEntry,
    sender: int,
    now_us: int,
    out: list[Action],
) -> None:
    """Another node owned the service after this one, if no more: nothing to reclaim or to keep.

    Whoever heard of that owner passes it on, for it may be gone when this node returns.
    """
    if entry.held > service.owned_epoch:
        service.owned_epoch = entry.held
        service.highest = max(service.highest, entry.held)
        service.owner_seen = True
        persist(node, out)
    if owns(service):
        return
    if service.holding or service.state in _KEEPERS:
        owner = entry.promise.node if entry.promise.epoch == entry.held else sender
        happen(node, k, Event.SUPERSEDED, now_us, out, owner=owner, epoch=entry.held)


def adopt(
    node: Node, k: int, service: Service, identity: Identity, now_us: int, out: list[Action]
) -> None:
    """Stand by an owner that won at a higher epoch without this node's vote.

    Its majority refused the former owner for `dead_us`, so nobody's lease can rest on ours.
    """
    promise(node, service, identity, now_us)
    service.failed = 0
    name, owner = node.spec.services[k].name, node.spec.nodes[identity.node].id
    text = f"{owner} owns {name} at epoch {identity.epoch}"
    out.append(Decided(now_us, "V5", text, k, identity.epoch))
    persist(node, out)
    if service.state is not State.STANDBY or service.holding or service.addresses:
        happen(node, k, Event.SUPERSEDED, now_us, out)


def _catch_up(node: Node, release: Release, sender: int, now_us: int, out: list[Action]) -> None:
    """The promised node itself releases a later claim of its own, which this node missed.

    It is granted now: the holder's own claim needs no silence, and the release can count (F4).
    """
    identity = release.identity
    if release.service >= len(node.services) or identity.node != sender:
        return
    if identity.epoch > EPOCH_MAX:
        return
    service = node.services[release.service]
    if service.promise.node == sender and identity.epoch > service.promise.epoch:
        _judge(node, release.service, service, identity, now_us, out, may_defer=False)


def hear_release(node: Node, release: Release, now_us: int, out: list[Action]) -> None:
    """A release counts only for the present promise; it waives the silence, nothing else."""
    if release.service >= len(node.services):
        return
    service = node.services[release.service]
    if release.identity != service.promise or service.release is not None or owns(service):
        return
    if service.promise == NOBODY:
        return
    service.release = release
    service.released_us = now_us
    service.lost_us = now_us
    service.lapsed_heard_us = NEVER  # it does not come back: nothing to wait for
    node.rank_dirty = True
    node.wake_us = now_us
    name = node.spec.services[release.service].name
    who = name_of(node, release.identity.node)
    text = f"{who} released {name} of epoch {release.identity.epoch}"
    out.append(Decided(now_us, "V7", text, release.service, release.identity.epoch))


def hear_claim(
    node: Node,
    k: int,
    service: Service,
    identity: Identity,
    beat: Beat,
    now_us: int,
    out: list[Action],
) -> None:
    """Judge a claim (DESIGN 6, Grant). The grant is this node's promise in its next beat."""
    if identity == service.promise:
        return  # granted already; the answer repeats it
    if identity.node != service.promise.node or identity.epoch > service.promise.epoch:
        # A claim in the air paces everyone: at most one new epoch per service per dead_us.
        paced_us = now_us + node.spec.timing.dead_us
        if service.claim is None and not owns(service):
            service.paced_until_us = max(service.paced_until_us, paced_us)
    _judge(node, k, service, identity, now_us, out, may_defer=True)


def _judge(
    node: Node,
    k: int,
    service: Service,
    identity: Identity,
    now_us: int,
    out: list[Action],
    may_defer: bool,
) -> None:
    if identity.epoch <= service.promise.epoch:
        return
    claimant = node.peers[identity.node]
    if not is_akin(node, claimant.config_hash) or claimant.revision < node.roll.floor:
        return
    if _is_left_behind(node, claimant):
        return
    if identity.node in node.marked or withholds(node, service, identity.node, now_us):
        return
    if owns(service) or (service.state is State.RELEASING) or not _stopped(service):
        return
    short_us = _silence_missing(node, service, identity, now_us)
    if short_us > 0:
        if may_defer and short_us <= node.spec.timing.defer_us and service.deferred is None:
            service.deferred = Deferred(identity, now_us + short_us)
            node.wake_us = now_us
        return
    grant(node, k, service, identity, now_us, out)


def _is_left_behind(node: Node, claimant: Peer) -> bool:
    """Others have gone on to a set of voters that it is not about to take up: `may_claim` of one
    that has not heard of that."""
    roll = node.roll
    if roll.known <= claimant.revision:
        return False
    in_force = node.spec.config_hash if roll.known == node.spec.revision else roll.known_hash
    return (claimant.staged, claimant.staged_hash) != (roll.known, in_force)


def _stopped(service: Service) -> bool:
    """An owner whose lease lapsed grants nothing before its own fence is confirmed closed."""
    return service.state not in (State.LAPSED, State.RECLAIMING) or service.fence_closed


def _silence_missing(node: Node, service: Service, identity: Identity, now_us: int) -> int:
    """How many us of silence are missing for this claim; 0: none."""
    guard_us = NEVER if service.guard == identity.node else service.guard_us
    guarded_us = guard_us + node.spec.timing.dead_us - now_us
    return max(guarded_us, _silence_of_promised(node, service, identity, now_us))


def _silence_of_promised(node: Node, service: Service, identity: Identity, now_us: int) -> int:
    held = service.promise
    if held == NOBODY or held.node == identity.node or held.node in node.unvoting:
        return 0
    if service.release is not None and service.release.identity == held:
        return 0
    if held.node == node.spec.me and service.state not in _CLAIMANTS:
        return 0  # it was this node itself, and `_stopped` says that it stopped
    return max(0, service.silence_us + node.spec.timing.dead_us - now_us)


def grant(
    node: Node, k: int, service: Service, identity: Identity, now_us: int, out: list[Action]
) -> None:
    """Promise `identity`; a claim of my own is over with it."""
    if service.state in (State.CLAIMING, State.RECLAIMING):
        happen(node, k, Event.CLAIM_VOID, now_us, out)
    if service.holding:
        others = (i for i in service.passed_on if i.node != identity.node)
        service.passed_on = (*others, identity)
    promise(node, service, identity, now_us)
    node.next_beat_us = now_us
    name, who = node.spec.services[k].name, node.spec.nodes[identity.node].id
    text = f"grants {name} to {who} at epoch {identity.epoch}"
    out.append(
        Decided(now_us, "V1", f"{node.spec.nodes[node.spec.me].id} {text}", k, identity.epoch)
    )
    persist(node, out)


def judge_deferred(node: Node, now_us: int, out: list[Action]) -> None:
    """Deferred claims that are due, judged again from scratch after the sockets were drained."""
    for k, service in enumerate(node.services):
        deferred = service.deferred
        if deferred is None or now_us < deferred.due_us:
            continue
        service.deferred = None
        claimant = node.peers[deferred.identity.node]
        fresh = now_us - claimant.two_way_us <= node.spec.timing.two_way_us
        if fresh and not holding_down(node, now_us):
            _judge(node, k, service, deferred.identity, now_us, out, may_defer=False)
