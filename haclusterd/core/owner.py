"""The owner: how far a lease reaches, when the fence is renewed, and when it has to close.

A lease lasts until `s0 + lease_us`, s0 being this node's own send time of its newest beat that a
majority, itself included, has echoed (DESIGN 6, Lease). No clock but one's own is involved.
"""

from __future__ import annotations

from haclusterd.core import quorum
from haclusterd.core.actions import Action, CloseFence, RemoveAddresses, RenewFence
from haclusterd.core.detector import LOW32, alone_until_us, first_heard_us
from haclusterd.core.model import Beat, Flag, Identity, State
from haclusterd.core.moves import CLAIM_WAITS_MAX, happen
from haclusterd.core.state import NEVER, Node, Service, owns
from haclusterd.core.takeover import Event

_STARTING = int(Flag.STARTING)


def hear_votes(node: Node, beat: Beat, now_us: int, out: list[Action]) -> None:
    """What a peer's promises mean for the services this node owns or claims."""
    me = node.spec.me
    waits_us = _waits_since_us(node, beat, now_us) if node.unvoting else NEVER
    for k, entry in enumerate(beat.services):
        service = node.services[k]
        if service.claim is not None and entry.promise == service.claim.identity:
            count_grant(node, k, service, beat.sender, now_us, out)
        if not owns(service):
            continue
        sent_us = NEVER
        # A renewal is told as a claim: nobody waits for that.
        if waits_us != NEVER and entry.held == service.identity.epoch == service.promise.epoch:
            sent_us = waits_us
        if entry.promise == service.identity:
            service.stood_by |= 1 << beat.sender
            sent_us = max(sent_us, node.sent_us.get(entry.lease_seq, NEVER))
        if sent_us > service.voter_sent_us[beat.sender]:
            service.voter_sent_us[beat.sender] = sent_us
            extend_lease(node, k, service, now_us, out)
        elif _conflicts(service, entry.promise, me) and _may_renew(node, service, now_us):
            why = f"{node.spec.nodes[beat.sender].id} stands by epoch {entry.promise.epoch}"
            happen(node, k, Event.PROMISE_CONFLICT, now_us, out, cause=why)


def _waits_since_us(node: Node, beat: Beat, now_us: int) -> int:
    """When the newest beat was sent here that the sender, marked dead and back, has heard in its
    hold-down: it waits for the owner's silence from there as one that stands by it (voter, guard).
    NEVER where it is no such node."""
    sender, echo = beat.sender, beat.echoes[node.spec.me]
    if sender not in node.unvoting or not beat.flags & _STARTING or echo is None:
        return NEVER
    if now_us - first_heard_us(node.peers[sender]) < node.spec.timing.lease_us:
        return NEVER  # it may have granted something just before it started
    if echo.incarnation != node.incarnation & LOW32:
        return NEVER
    sent_us = node.sent_us.get(echo.seq, NEVER)
    return sent_us if sent_us > node.by_marks_us else NEVER  # that beat said so


def _conflicts(service: Service, promise: Identity, me: int) -> bool:
    """A voter that stands by a claim which never won must be won back at a higher epoch."""
    if service.state is not State.OWNED or service.claim is not None:
        return False
    return promise.epoch >= service.identity.epoch and promise != service.identity


def _may_renew(node: Node, service: Service, now_us: int) -> bool:
    """At the pace of claims; and seldom where no vote is needed: owners of two parts that share a
    voter would win it from each other for as long as they are apart (V5)."""
    if quorum.needed(node) == 1:
        rest_us = CLAIM_WAITS_MAX * node.spec.timing.dead_us
        return now_us - service.promised_us >= rest_us
    return now_us >= service.paced_until_us


def count_grant(
    node: Node, k: int, service: Service, voter: int, now_us: int, out: list[Action]
) -> None:
    """A vote for the claim under way; grants later than `lease_us` after it are void."""
    claim = service.claim
    if claim is None or now_us - claim.sent_us > node.spec.timing.lease_us:
        return
    claim.granted |= 1 << voter
    if claim.granted.bit_count() >= quorum.needed(node):
        happen(node, k, Event.GRANTED, now_us, out)


def extend_lease(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    """The lease follows the newest beat that a majority echoed; the fence follows the lease."""
    others = sorted(service.voter_sent_us, reverse=True)
    needed = quorum.needed(node)
    # One's own vote is always as new as the newest beat, so the others have to give one less.
    s0_us = others[needed - 2] if needed > 1 else now_us
    lease_until_us = _lease_from(node, s0_us, now_us)
    if lease_until_us <= service.lease_until_us:
        return
    service.lease_until_us = lease_until_us
    low_us = node.spec.timing.fence_us - node.spec.timing.heartbeat_us
    if service.fence_until_us - now_us < low_us:
        renew(node, k, service, now_us, out)


def _lease_from(node: Node, s0_us: int, now_us: int) -> int:
    lease_until_us = s0_us + node.spec.timing.lease_us
    return min(lease_until_us, alone_until_us(node, now_us)) if node.left_out else lease_until_us


def renew(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    """Keep the fence open for `fence_us` more, if the lease reaches that far."""
    fence_until_us = now_us + node.spec.timing.fence_us
    if fence_until_us <= service.lease_until_us:
        service.fence_until_us = fence_until_us
        out.append(RenewFence(k, service.lease_until_us))


def renew_all(node: Node, now_us: int, out: list[Action]) -> None:
    """With every regular beat."""
    for k, service in enumerate(node.services):
        if owns(service):
            if quorum.needed(node) == 1:
                lease_until_us = _lease_from(node, now_us, now_us)
                service.lease_until_us = max(service.lease_until_us, lease_until_us)
            renew(node, k, service, now_us, out)


def lapse(node: Node, now_us: int, out: list[Action]) -> None:
    """Before anything else in a step: leases that ran out meanwhile."""
    for k, service in enumerate(node.services):
        if now_us >= service.lease_until_us and owns(service) and node.spec.needed > 1:
            happen(node, k, Event.LEASE_LAPSED, now_us, out)


_STOPPING = (State.STANDBY, State.LAPSED, State.RELEASING)


def insist(node: Node, now_us: int, out: list[Action]) -> None:
    """Ask again, once a beat, for a fence or addresses whose removal was not confirmed."""
    for k, service in enumerate(node.services):
        if service.fence_closed and not service.addresses:
            continue
        if now_us - service.stop_asked_us < node.spec.timing.heartbeat_us // 2:
            continue  # asked in this beat: the answer is on its way
        service.stop_asked_us = now_us
        if service.state in _STOPPING and not service.fence_closed:
            out.append(CloseFence(k))
        if service.state in (State.STANDBY, State.RELEASING) and service.addresses:
            out.append(RemoveAddresses(k))


def stopped(node: Node, k: int, now_us: int, out: list[Action]) -> None:
    """A fence or an address is confirmed gone: what was waiting for it."""
    service = node.services[k]
    if service.state is State.RELEASING and service.fence_closed and not service.addresses:
        happen(node, k, Event.RELEASED, now_us, out)
    elif service.state is State.LAPSED and service.fence_closed:
        happen(node, k, Event.FENCE_CLOSED, now_us, out)


def forget_leases(node: Node) -> None:
    """After a freeze: no echo of the former life extends anything."""
    for service in node.services:
        service.voter_sent_us = [NEVER] * len(node.spec.nodes)
        service.lease_until_us = NEVER
