"""Carries out the takeover table: an event on a service becomes its row's effects.

Every effect either changes the node's state or emits actions; none decides.
"""

from __future__ import annotations

from collections.abc import Callable

from haclusterd.core.actions import (
    Action,
    AddAddresses,
    Announce,
    CloseFence,
    Decided,
    EndCalls,
    KeepAddresses,
    KillFreeswitch,
    Persist,
    Recover,
    RemoveAddresses,
    RenewFence,
)
from haclusterd.core.detector import alone_until_us
from haclusterd.core.model import Identity, Release, ServiceIndex, State
from haclusterd.core.quorum import voters
from haclusterd.core.state import NEVER, Claim, Node, Service, draw, owns
from haclusterd.core.takeover import TABLE, Event

CLAIM_WAITS_MAX = 6
BACK_OFF_US = 10_000_000  # a node that failed to take a service over is no candidate for it


def happen(
    node: Node,
    k: ServiceIndex,
    event: Event,
    now_us: int,
    out: list[Action],
    cause: str = "",
    gap_us: int = 0,
    owner: int = -1,
    epoch: int = 0,
) -> bool:
    """Apply `event` to service `k`; False where the table ignores it.

    `owner` and `epoch` are for the sentence, where they are not those of this node's promise.
    """
    service = node.services[k]
    row = TABLE.get((service.state, event))
    if row is None:
        return False
    if cause:
        service.given_up = cause
    votes = service.claim.granted.bit_count() if service.claim else 0
    claimed = service.claim.identity.epoch if service.claim else 0
    service.state = row.next
    for effect in row.effects:
        _EFFECTS[effect](node, k, service, now_us, out)
    node.rank_dirty = True
    node.next_beat_us = node.wake_us = now_us  # a change of state is told at once
    if service.claim:
        claimed = service.claim.identity.epoch
    epoch = epoch or claimed or service.promise.epoch
    to = service.moving_to
    owner = owner if owner >= 0 else service.promise.node
    text = row.text.format(
        me=_id(node, node.spec.me),
        service=node.spec.services[k].name,
        epoch=epoch,
        cause=service.given_up or "unknown cause",
        votes=votes,
        voters=voters(node),
        owner=_id(node, owner) if owner >= 0 else "nobody",
        to=_id(node, to) if to >= 0 else "whoever is first",
        gap_ms=gap_us // 1000,
        lease_ms=node.spec.timing.lease_us // 1000,
    )
    out.append(Decided(now_us, row.number, text, k, epoch))
    return True


def _id(node: Node, n: int) -> str:
    return node.spec.nodes[n].id


def name_of(node: Node, n: int) -> str:
    """The id of a node in an identity, which may name one that is no voter any more."""
    return _id(node, n) if n >= 0 else "a node that was removed"


def promise(node: Node, service: Service, identity: Identity, now_us: int) -> None:
    """Stand by `identity`; the silence timer starts anew (DESIGN 6, Grant)."""
    node.rank_dirty = True
    service.promise = identity
    service.restored = False
    service.promised_us = now_us
    service.highest = max(service.highest, identity.epoch)
    service.silence_us = now_us
    service.lease_seq = -1
    service.release = None
    service.released_us = NEVER
    service.deferred = None
    service.lost_us = NEVER
    service.lapsed_heard_us = NEVER


def persist(node: Node, out: list[Action]) -> None:
    """Have the promises written; at most the newest write of a turn counts."""
    out.append(promised(node))


def promised(node: Node) -> Persist:
    """What has to survive a restart."""
    promises = tuple(s.promise for s in node.services)
    return Persist(promises, tuple(s.owned_epoch for s in node.services))


def _claim(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    identity = Identity(service.highest + 1, node.spec.me, draw(node))
    release, released_us = service.release, service.released_us
    was = service.promise
    promise(node, service, identity, now_us)
    if release is not None and release.identity == was:
        # It rests on this RELEASE: the beats carry it along until the claim is decided.
        service.release, service.released_us = release, released_us
    service.claim = Claim(identity, now_us, 1 << node.spec.me, cause=service.given_up)
    # Each failure in a row makes the next attempt wait longer: no epoch race (V5).
    waits = min(1 + service.failed, CLAIM_WAITS_MAX)
    service.paced_until_us = now_us + waits * node.spec.timing.dead_us
    service.failed += 1
    service.times["claimed"] = now_us


def _drop_claim(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    service.claim = None


def _take(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    claim = service.claim
    if claim is None:
        return
    service.identity = claim.identity
    service.stood_by, service.won_too = claim.granted, 0
    service.owned_epoch = claim.identity.epoch
    service.passed_on = ()
    service.claim = None
    service.failed = 0
    service.paced_until_us = claim.sent_us + node.spec.timing.dead_us
    service.release = None
    lease_until_us = claim.sent_us + node.spec.timing.lease_us
    service.lease_until_us = min(lease_until_us, alone_until_us(node, now_us))
    me = node.spec.me  # one's own vote is counted apart: it is as new as the newest beat
    service.voter_sent_us = [
        claim.sent_us if claim.granted >> n & 1 and n != me else NEVER
        for n in range(len(node.spec.nodes))
    ]
    service.owner_seen = True
    service.moving_to = -1
    service.times["granted"] = now_us


def _open_fence(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    service.fence_closed = False
    fence_until_us = now_us + node.spec.timing.fence_us
    # Heart opens nothing beyond the lease: after a late grant only the next echo's lease is enough.
    service.fence_until_us = fence_until_us if fence_until_us <= service.lease_until_us else NEVER
    out.append(RenewFence(k, service.lease_until_us))


def _close_fence(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    service.fence_closed = False
    service.fence_until_us = NEVER
    service.stop_asked_us = now_us
    out.append(CloseFence(k))
    if service.addresses:
        out.append(KeepAddresses(k, False))


def _add_addresses(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    service.addresses = True
    service.acquiring_us = now_us
    out.append(AddAddresses(k))


def _remove_addresses(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    service.addresses = True  # until the result says otherwise
    service.stop_asked_us = now_us
    out.append(RemoveAddresses(k))


def _announce(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    out.append(Announce(k))


def _recover(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    if service.holding:
        return  # reclaimed in time: the calls never left this FreeSWITCH
    service.holding = True
    service.recovering, service.unrecovered = service.identity, ""
    times = dict(service.times)
    cause = service.given_up
    out.append(Recover(k, service.identity, service.from_node, cause, times))


def recover_again(node: Node, out: list[Action]) -> None:
    """A new agent may succeed where the last one failed; while it tries, the calls stay here."""
    for k, service in enumerate(node.services):
        if service.unrecovered and owns(service):
            service.unrecovered = ""
            service.holding = True
            cause, times = service.given_up, dict(service.times)
            out.append(Recover(k, service.recovering, service.from_node, cause, times))


def _persist(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    persist(node, out)


def _end_calls(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    """DESIGN 2.4: the calls live elsewhere now; a FreeSWITCH with nothing else to do is killed."""
    service.unrecovered = ""
    if not service.holding:
        return
    service.holding = False
    serving = any(
        owns(s) or (s.holding and s is not service) or s.state is State.LAPSED
        for s in node.services
    )
    spec = node.spec.services[k]
    if not serving and node.spec.freeswitch and spec.profiles:
        out.append(KillFreeswitch(f"{spec.name} is owned elsewhere"))
    out.append(EndCalls(k, service.promise))


def _back_off(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    service.backoff_until_us = now_us + BACK_OFF_US


def _publish_release(node: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
    """Name what the voters may stand by: a claim of this node's own that came to nothing covers
    the term before it. Who drops a claim may still be waiting for the end of an older term."""
    if service.addresses or not service.fence_closed:
        return
    own = service.promise.node == node.spec.me
    service.unrecovered = ""  # of the term that ends: no reason to let a later one go
    service.release = Release(k, service.promise if own else service.identity, service.moving_to)
    service.released_us = now_us


_EFFECTS: dict[str, Callable[[Node, int, Service, int, list[Action]], None]] = {
    "claim": _claim,
    "drop_claim": _drop_claim,
    "take": _take,
    "open_fence": _open_fence,
    "close_fence": _close_fence,
    "add_addresses": _add_addresses,
    "remove_addresses": _remove_addresses,
    "announce": _announce,
    "recover": _recover,
    "persist": _persist,
    "end_calls": _end_calls,
    "back_off": _back_off,
    "publish_release": _publish_release,
}
