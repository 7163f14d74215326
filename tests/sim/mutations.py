"""The guards of the protocol, each taken away by a function that patches this process.

Those of promises, grants and claims; `mutations_time` has those of leases, freezes and restarts.
A process that called one of them plays broken clusters from then on: `drills` forks for each.
"""

from __future__ import annotations

from typing import Any

from haclusterd.core import claimant, detector, moves, node, owner, standing, state, voter
from haclusterd.core.actions import Action
from haclusterd.core.inputs import LocalReport
from haclusterd.core.model import NOBODY, ClusterSpec, Identity, Release, State
from haclusterd.core.state import NEVER, Claim, Node, Service
from haclusterd.core.takeover import TABLE, Event, Row


def patch(target: object, name: str, by: object) -> None:
    setattr(target, name, by)


# grants -------------------------------------------------------------------------------------


def grant_twice() -> None:
    """Grant once: a second claimant of the same epoch is granted too, if all else allows it."""
    true = voter._judge

    def judge(n: Node, k: int, service: Service, identity: Identity, *rest: Any, **w: Any) -> None:
        held = service.promise
        if identity.epoch != held.epoch or identity == held:
            true(n, k, service, identity, *rest, **w)
            return
        lower = Identity(held.epoch - 1, held.node, held.nonce)
        service.promise = lower
        true(n, k, service, identity, *rest, **w)
        if service.promise == lower:
            service.promise = held

    patch(voter, "_judge", judge)


def no_silence() -> None:
    """Silence before grant: any claim at a higher epoch is granted at once."""
    patch(voter, "_silence_missing", lambda *args: 0)


def granting_without_timer() -> None:
    """Restart the timers on granting: the silence of the former owner goes on counting."""
    true = moves.promise

    def promise(n: Node, service: Service, identity: Identity, now_us: int) -> None:
        silence_us = service.silence_us
        true(n, service, identity, now_us)
        service.silence_us = silence_us

    for module in (moves, voter):
        patch(module, "promise", promise)


def owner_grants() -> None:
    """An owner grants nobody: here it does, while it owns."""
    true = voter._judge

    def judge(*args: Any, **words: Any) -> None:
        patch(voter, "owns", lambda service: False)
        true(*args, **words)
        patch(voter, "owns", state.owns)

    patch(voter, "_judge", judge)


def minority_wins() -> None:
    """A majority: half of the voters are enough for a win and for a lease."""
    patch(ClusterSpec, "needed", property(lambda spec: max(2, len(spec.nodes) // 2)))


def own_claim_waits() -> None:
    """The holder's own new claim needs no silence: here it waits as everybody else's."""
    true = voter._silence_missing

    def missing(n: Node, service: Service, identity: Identity, now_us: int) -> int:
        held = service.promise
        if held == NOBODY or held.node != identity.node:
            return true(n, service, identity, now_us)
        return max(0, service.silence_us + n.spec.timing.dead_us - now_us)

    patch(voter, "_silence_missing", missing)


# releases -----------------------------------------------------------------------------------


def release_of_anything() -> None:
    """A release counts for the present promise only: here it counts for any."""
    true = voter.hear_release

    def hear_release(n: Node, release: Any, now_us: int, out: list[Action]) -> None:
        held = n.services[release.service].promise
        if held != NOBODY and held.node == release.identity.node:
            release = type(release)(release.service, held, release.to)
        true(n, release, now_us, out)

    patch(voter, "hear_release", hear_release)


def release_before_stop() -> None:
    """Released only when fence and addresses are gone: here it is said at once."""
    for key in ((State.OWNED, Event.GIVEN_UP), (State.LAPSED, Event.GIVEN_UP)):
        row = TABLE[key]
        effects = (*row.effects, "publish_release")
        TABLE[key] = Row(row.number, row.state, row.event, row.next, effects, row.text)

    def publish(n: Node, k: int, s: Service, now_us: int, out: list[Action]) -> None:
        s.release, s.released_us = Release(k, s.identity, s.moving_to), now_us

    moves._EFFECTS["publish_release"] = publish


def claims_in_a_pause() -> None:
    """In a pause nobody claims for silence: here the pause is forgotten."""
    patch(claimant, "waits_for_resume", lambda n, service, now_us: False)
    patch(voter, "withholds", lambda n, service, who, now_us: False)


def hold_down_waived_for_release() -> None:
    """The hold-down holds for a RELEASE as well: here it waives that, too."""
    true = state.holding_down

    def holding_down(n: Node, now_us: int) -> bool:
        return true(n, now_us) and not any(s.release for s in n.services)

    for module in (voter, claimant):
        patch(module, "holding_down", holding_down)


def lapsed_grants_unfenced() -> None:
    """A lapsed owner grants nobody before its fence is confirmed closed."""
    patch(voter, "_stopped", lambda service: True)


def lapsed_claims_unfenced() -> None:
    """A lapsed owner claims nothing before its fence is confirmed closed."""

    def may_claim(n: Node, service: Service) -> bool:
        return n.majority and not standing.odd_config(n)

    patch(claimant, "_may_claim", may_claim)


# claims -------------------------------------------------------------------------------------


def claims_unpaced() -> None:
    """At most one new epoch per service and `dead`: no pace at all."""
    true = moves._EFFECTS["claim"]

    def claim(n: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
        true(n, k, service, now_us, out)
        service.paced_until_us = NEVER

    moves._EFFECTS["claim"] = claim


def epochs_not_adopted() -> None:
    """A node adopts the highest epoch it hears: here it counts from what it promised itself."""
    true = voter.hear_entries

    def hear_entries(n: Node, *rest: Any) -> Any:
        before = [s.highest for s in n.services]
        answer = true(n, *rest)
        for service, highest in zip(n.services, before, strict=True):
            service.highest = max(highest, service.promise.epoch)
        return answer

    patch(voter, "hear_entries", hear_entries)


def nonce_ignored() -> None:
    """A grant names the claim's nonce: here node and epoch are enough."""
    true = owner.hear_votes

    def hear_votes(n: Node, beat: Any, now_us: int, out: list[Action]) -> None:
        for k, entry in enumerate(beat.services):
            claim = n.services[k].claim
            promised = entry.promise.epoch, entry.promise.node
            if claim is not None and promised == (claim.identity.epoch, claim.identity.node):
                owner.count_grant(n, k, n.services[k], beat.sender, now_us, out)
        true(n, beat, now_us, out)

    patch(owner, "hear_votes", hear_votes)


def late_grants_count() -> None:
    """Grants later than `lease` after the claim are void: here none is too late."""

    def count(n: Node, k: int, service: Service, by: int, now_us: int, out: list[Action]) -> None:
        claim = service.claim
        if claim is not None:
            claim.granted |= 1 << by
            if claim.granted.bit_count() >= n.spec.needed:
                moves.happen(n, k, Event.GRANTED, now_us, out)

    def nurse(n: Node, k: int, claim: Claim, now_us: int, out: list[Action]) -> int:
        if now_us - claim.sent_us > 10 * n.spec.timing.lease_us:
            moves.happen(n, k, Event.CLAIM_VOID, now_us, out)
        return now_us + n.spec.timing.heartbeat_us

    patch(owner, "count_grant", count)
    patch(claimant, "_nurse", nurse)


def no_resend() -> None:
    """A claim is said again at 4, 15 and 40 ms: here once."""

    def nurse(n: Node, k: int, claim: Claim, now_us: int, out: list[Action]) -> int:
        due_us = claim.sent_us + n.spec.timing.lease_us + 1
        if now_us < due_us:
            n.next_beat_us = max(n.next_beat_us, claim.sent_us + n.spec.timing.lease_us)
            return due_us
        moves.happen(n, k, Event.CLAIM_VOID, now_us, out)
        return now_us

    patch(claimant, "_nurse", nurse)


def no_two_beats() -> None:
    """A slave waits two beats after it regained a majority: here not at all."""
    true = detector.survey

    def survey(n: Node, now_us: int, out: list[Action]) -> None:
        true(n, now_us, out)
        n.majority_since_us = NEVER

    patch(detector, "survey", survey)


def lapsed_owner_not_first() -> None:
    """A slave that hears a lapsed owner lets it go first, for a while: here it does not."""
    true = voter._hear_own

    def hear_own(n: Node, k: int, service: Service, *rest: Any) -> Any:
        answer = true(n, k, service, *rest)
        service.lapsed_heard_us = NEVER
        return answer

    patch(voter, "_hear_own", hear_own)


def reclaims_in_spite_of_a_successor() -> None:
    """Reclaim only while no higher epoch was owned: nobody tells, nobody asks."""
    successor_untold()
    patch(claimant, "_may_have_been_owned_since", lambda *args: NOBODY)


def successor_untold() -> None:
    """A former owner is told of its successor, and lets go: here it is not."""
    patch(voter, "_hear_of_successor", lambda *args: None)


def grants_of_others_ignored() -> None:
    """What a voter granted may have won unheard: here only what this node granted itself may."""
    true = claimant._may_have_been_owned_since

    def since(n: Node, k: int, service: Service, now_us: int) -> Identity:
        found = true(n, k, service, now_us)
        return found if found == service.promise else NOBODY

    patch(claimant, "_may_have_been_owned_since", since)


def forgetting_unseen() -> None:
    """A voter that forgot tells of a second winner: here its word of one epoch is ignored."""
    patch(claimant, "_has_forgotten", lambda *args: False)


def always_newest() -> None:
    """A node that won an epoch may not have been the last: here it takes itself for the last."""
    patch(claimant, "_is_newest", lambda *args: True)


def freeswitch_back_unseen() -> None:
    """What comes back at an owner is held: here its calls count as gone."""
    true = node._TAKE[LocalReport]

    def report(n: Node, event: LocalReport, now_us: int, out: list[Action]) -> None:
        held = [service.holding for service in n.services]
        true(n, event, now_us, out)
        for service, holding in zip(n.services, held, strict=True):
            service.holding = holding

    node._TAKE[LocalReport] = report


def claims_without_majority() -> None:
    """Only with two-way contact to a majority: here anybody claims."""

    def may_claim(n: Node, service: Service) -> bool:
        return not (service.state is State.LAPSED and not service.fence_closed)

    patch(claimant, "_may_claim", may_claim)


def no_hold_down() -> None:
    """Hold-down: a restarted node echoes, grants and claims at once."""
    for module in (state, voter, claimant, node):
        patch(module, "holding_down", lambda *args: False)
