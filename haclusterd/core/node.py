"""One step of a node: an input and the time go in, actions come out, the state has moved on.

`step` is the only door. It first ends what ran out (leases), then takes the input in, and on
`Tick` turns silence into decisions. `next_deadline_us` says when the next Tick is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from haclusterd.core import (
    aliens,
    claimant,
    detector,
    dialect,
    leaving,
    marks,
    orders,
    owner,
    reconfigure,
    relinquish,
    speech,
    standing,
    voter,
)
from haclusterd.core.actions import (
    Action,
    Decided,
    FlushSockets,
)
from haclusterd.core.inputs import (
    AddressesAdded,
    AddressesRemoved,
    AgentChanged,
    AlienAnswered,
    CarrierChanged,
    FenceClosed,
    FreeswitchExited,
    FreeswitchHung,
    Froze,
    Input,
    LocalReport,
    MaintenanceRequested,
    MarksOrdered,
    Overheard,
    PauseOrdered,
    Received,
    RecoveryEnded,
    Restored,
    StageRequested,
    StopRequested,
    SwitchoverRequested,
    Tick,
)
from haclusterd.core.model import Identity, State
from haclusterd.core.moves import happen, recover_again
from haclusterd.core.state import NEVER, Node, flags, listens_until_us, owns
from haclusterd.core.takeover import Event
from haclusterd.core.voter import Answer

STEADY_BEATS = 3  # regular ones, of which one at least is heard


def step(node: Node, event: Input, now_us: int) -> tuple[Node, list[Action]]:
    """Take one input in at `now_us` (read after the input arrived). `node` is changed in place."""
    out: list[Action] = []
    if node.left_out:
        detector.leave_out(node, node.left_out, now_us)  # a row of stuns may leave no Tick
    if now_us - node.ran_us > node.spec.timing.two_way_us:
        _stood_still(node, now_us - node.ran_us, now_us)
    elif node.roll.thawed and now_us > node.ran_us:
        # What was said first in that hold-down may be as late as this.
        node.roll.thawed = False
        node.roll.listens_us = max(node.roll.listens_us, now_us + _anew_us(node))
    node.ran_us = now_us
    if not isinstance(event, Froze):
        owner.lapse(node, now_us, out)
    _TAKE[type(event)](node, event, now_us, out)
    if node.next_beat_us <= now_us:
        speech.beat(node, now_us, out)
    elif node.answer_us <= now_us:
        speech.answer_gathered(node, now_us, out)
    return node, out


def next_deadline_us(node: Node) -> int:
    """When `Tick` is wanted next, at the latest."""
    deadline_us = min(node.next_beat_us, node.answer_us, node.wake_us)
    for service in node.services:
        if owns(service) and service.lease_until_us < deadline_us and node.spec.needed > 1:
            deadline_us = service.lease_until_us
    return deadline_us


def is_calm(node: Node) -> bool:
    """Nothing is on the move, so that a beat may lie in its socket for `gather_us`."""
    return node.majority and all(
        (s.state is State.STANDBY or s.state is State.OWNED)
        and s.claim is None
        and s.deferred is None
        and s.release is None
        and s.lost_us == NEVER
        for s in node.services
    )


def _received(node: Node, event: Received, now_us: int, out: list[Action]) -> None:
    beat = event.beat
    me = node.spec.me
    if beat.sender == me or len(beat.services) != len(node.services):
        return
    if len(beat.echoes) != len(node.peers):
        return
    if beat.revision > node.roll.known:
        reconfigure.overhear(node, beat.revision, beat.config_hash, now_us, out)
    dialect.hear(node, beat, now_us, out)
    silent = now_us - node.peers[beat.sender].two_way_us > node.spec.timing.two_way_us
    news, two_way_news = detector.hear(node, event.link, beat, now_us, out)
    if two_way_news and not node.roll.proven:
        reconfigure.join(node, beat, now_us, out)
    if news or two_way_news:
        wanted = voter.hear_entries(node, beat, news, two_way_news, now_us, out)
        if news:
            owner.hear_votes(node, beat, now_us, out)
    else:
        voter.hear_stranger(node, beat, now_us)
        wanted = Answer.NOW if detector.is_stranger(node, event.link, beat) else Answer.NONE
    if two_way_news and not beat.reply:
        speech.keep_step(node, beat.sender, now_us)
    # After a silence two-way contact is back within one exchange, not after two more beats.
    regained = silent and (two_way_news or not beat.reply)
    if node.next_beat_us <= now_us:
        return  # the beat is the answer
    if regained or (wanted is Answer.NOW and not beat.reply):
        speech.answer(node, event.link, beat.sender, now_us, out)
    elif wanted is Answer.SOON and not beat.reply:
        speech.answer_soon(node, event.link, beat.sender, now_us)


def _tick(node: Node, event: Tick, now_us: int, out: list[Action]) -> None:
    orders.expire(node, now_us, out)
    if node.roll.blind:
        reconfigure.settle_in(node, now_us)
    marks.review(node, now_us, out)
    detector.survey(node, now_us, out)
    dialect.settle(node, now_us, out)
    voter.judge_deferred(node, now_us, out)
    claimant.mark_lost(node, now_us)
    _refresh_ready(node, now_us)
    if node.rank_dirty:
        standing.refresh(node, now_us)
    standing.watch_rank(node, now_us)
    leaving.leave_broken(node, now_us, out)
    relinquish.consider(node, now_us, out)
    _end_endless_acquiring(node, now_us, out)
    node.wake_us = claimant.pursue(node, now_us, out)
    reconfigure.judge(node, now_us, out)


def _refresh_ready(node: Node, now_us: int) -> None:
    for service in node.services:
        if service.backoff_until_us != NEVER and now_us >= service.backoff_until_us:
            service.backoff_until_us = NEVER
            node.rank_dirty = True
    if node.ranked_flags != flags(node, now_us):
        node.rank_dirty = True  # the hold-down ended: the others rank this node from now on
    if node.ranked_doomed and node.ranked_doomed != standing.doomed_services(node, now_us):
        node.rank_dirty = True


def _end_endless_acquiring(node: Node, now_us: int, out: list[Action]) -> None:
    """Addresses that neither come up nor fail are a failure: the next in line shall have it."""
    limit_us = 2 * node.spec.timing.dead_us
    for k, service in enumerate(node.services):
        if service.state is State.ACQUIRING and now_us - service.acquiring_us > limit_us:
            reason = f"its addresses were not up after {limit_us // 1000} ms"
            _addresses_added(node, AddressesAdded(k, False, reason), now_us, out)


def _stood_still(node: Node, gap_us: int, now_us: int) -> None:
    """For so long that what it hears now is too old to be two-way, be it too short for a freeze."""
    timing, roll = node.spec.timing, node.roll
    if node.number - node.woke_number >= STEADY_BEATS:
        node.steady_us = node.ran_us
    node.woke_number = node.number
    began_listening = now_us - gap_us < listens_until_us(node)
    if marks.are_known(node) and (began_listening or marks.may_be_left_out(node, now_us)):
        roll.listens_us, roll.thawed = max(roll.listens_us, now_us + _anew_us(node)), True
    elif gap_us >= timing.dead_us and marks.are_about(node):
        roll.listens_us = max(roll.listens_us, now_us + timing.hold_down_us)
    elif began_listening:  # it may not have met who owns what
        roll.listens_us = max(roll.listens_us, now_us + timing.dead_us)


def _anew_us(node: Node) -> int:
    """A former owner claims as it ends; who has started hears a majority for two beats before."""
    return node.spec.timing.hold_down_us + node.spec.timing.heartbeat_us


def _froze(node: Node, event: Froze, now_us: int, out: list[Action]) -> None:
    """First fence, then flush, then listen; under a new incarnation (DESIGN 6, Freeze)."""
    for k in range(len(node.services)):
        happen(node, k, Event.FROZEN, now_us, out, gap_us=event.gap_us)
    out.append(FlushSockets())
    text = f"{_me(node)} stood still for {event.gap_us // 1000} ms and listens anew"
    out.append(Decided(now_us, "M15", text))
    owner.forget_leases(node)
    detector.forget_all(node, now_us)
    for service in node.services:
        service.silence_us = now_us
        service.deferred = None
        service.lost_us = NEVER
        service.lapsed_heard_us = NEVER
    node.incarnation = event.incarnation
    node.next_beat_us = now_us
    node.rank_dirty = True


def _restored(node: Node, event: Restored, now_us: int, out: list[Action]) -> None:
    for service, promise in zip(node.services, event.promises, strict=False):
        if promise.epoch > service.promise.epoch:
            service.promise = promise
            service.highest = max(service.highest, promise.epoch)
            if promise.node == node.spec.me:  # it may have won after that was written
                service.owned_epoch = max(service.owned_epoch, promise.epoch)
                service.restored = True
    for service, epoch in zip(node.services, event.owned, strict=False):
        service.owned_epoch = max(service.owned_epoch, epoch)
        service.highest = max(service.highest, epoch)


def _fence_closed(node: Node, event: FenceClosed, now_us: int, out: list[Action]) -> None:
    service = node.services[event.service]
    if event.ok and not owns(service):
        service.fence_closed = True
        owner.stopped(node, event.service, now_us, out)


def _addresses_added(node: Node, event: AddressesAdded, now_us: int, out: list[Action]) -> None:
    outcome = Event.ADDRESSES_UP if event.ok else Event.ADDRESSES_FAILED
    if event.ok and node.services[event.service].state is State.ACQUIRING:
        node.services[event.service].times["address_up"] = event.at_us or now_us
    if not event.ok and owns(node.services[event.service]):
        line = node.successors[event.service] if node.successors else ()
        node.services[event.service].moving_to = next((n for n in line if n != node.spec.me), -1)
    happen(node, event.service, outcome, now_us, out, cause="" if event.ok else event.reason)


def _addresses_removed(node: Node, event: AddressesRemoved, now_us: int, out: list[Action]) -> None:
    service = node.services[event.service]
    if event.ok and not owns(service):
        service.addresses = False
        owner.stopped(node, event.service, now_us, out)


def _carrier(node: Node, event: CarrierChanged, now_us: int, out: list[Action]) -> None:
    node.services[event.service].carrier = event.up
    node.wake_us = now_us
    node.rank_dirty = True


def _agent(node: Node, event: AgentChanged, now_us: int, out: list[Action]) -> None:
    """Without its agent a node keeps what it owns but cannot take over anything (DESIGN 3)."""
    node.agent_up = event.up
    node.wake_us = now_us
    node.rank_dirty = True
    if not event.up:
        out.append(Decided(now_us, "M9", f"{_me(node)} has lost its agent: calls unprotected"))
    else:
        recover_again(node, out)


def _report(node: Node, event: LocalReport, now_us: int, out: list[Action]) -> None:
    node.freeswitch_up = event.freeswitch_up
    if event.freeswitch_up:
        node.freeswitch_gone = False
    node.wake_us = now_us
    if (node.health, node.load, node.calls) != (event.health, event.load, event.calls):
        node.rank_dirty = True
    node.health, node.load, node.calls = event.health, event.load, event.calls
    node.syncing = event.syncing
    for service, word in zip(node.services, event.services, strict=False):
        if (service.ready, service.calls) != (word.ready, word.calls):
            node.rank_dirty = True
        service.ready, service.reason, service.calls = word.ready, word.reason, word.calls
        if event.freeswitch_up and service.state is State.OWNED:
            service.holding = True  # of a FreeSWITCH that came back the agent recovers in place


def stopped(node: Node) -> bool:
    """After StopRequested: nothing is held any more, the process may end."""
    return node.leaving and all(s.state is State.STANDBY for s in node.services)


def _recovery_ended(node: Node, event: RecoveryEnded, now_us: int, out: list[Action]) -> None:
    """The word is about one Recover, whatever right the service is held by now: a lease that was
    renewed or reclaimed since keeps the calls, and what is wrong with them. An agent that found the
    service owned here when it started knows no nonce (0)."""
    service, whose = node.services[event.service], event.identity
    resumed = whose == Identity(service.identity.epoch, node.spec.me, 0)
    if whose != service.recovering and not (resumed and service.state is State.OWNED):
        return
    if event.ok:
        service.unrecovered = ""  # a later attempt, while nobody else could have the service
        return
    service.unrecovered = event.reason or "no reason given"
    leaving.leave_unrecovered(node, event.service, now_us, out)


def _me(node: Node) -> str:
    return node.spec.nodes[node.spec.me].id


_TAKE: dict[type, Callable[[Node, Any, int, list[Action]], None]] = {
    Received: _received,
    Tick: _tick,
    Froze: _froze,
    Restored: _restored,
    FenceClosed: _fence_closed,
    AddressesAdded: _addresses_added,
    AddressesRemoved: _addresses_removed,
    FreeswitchExited: leaving.freeswitch_exited,
    FreeswitchHung: leaving.freeswitch_hung,
    CarrierChanged: _carrier,
    AgentChanged: _agent,
    LocalReport: _report,
    SwitchoverRequested: orders.switchover,
    MaintenanceRequested: orders.maintenance,
    PauseOrdered: orders.pause,
    MarksOrdered: marks.order,
    StopRequested: orders.stop,
    StageRequested: reconfigure.stage,
    Overheard: reconfigure.heard_beyond,
    RecoveryEnded: _recovery_ended,
    AlienAnswered: aliens.answered,
}
