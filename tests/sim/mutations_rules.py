"""Mutations of single rules about grants, claims and releases, each with a drama of its own.

See `dramas_rules` and `drills`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from haclusterd.core import claimant, moves, speech, state, voter
from haclusterd.core.actions import Action
from haclusterd.core.model import Beat, Identity, Release, State
from haclusterd.core.state import NEVER, Node, Service
from tests.sim import dramas_rules
from tests.sim.mutations import patch
from tests.sim.swarm import LAN

# grants -------------------------------------------------------------------------------------


def deferral_blind() -> None:
    """Deferral judged again: when it is due, it is granted without another look."""

    def judge_deferred(n: Node, now_us: int, out: list[Action]) -> None:
        for k, service in enumerate(n.services):
            if service.deferred is not None and now_us >= service.deferred.due_us:
                identity, service.deferred = service.deferred.identity, None
                if identity.epoch > service.promise.epoch:
                    voter.grant(n, k, service, identity, now_us, out)

    patch(voter, "judge_deferred", judge_deferred)


def deferral_outlives_the_owner() -> None:
    """A deferral is dropped once the owner is heard: here it stays."""
    true = voter._hear_owner

    def hear_owner(n: Node, k: int, service: Service, *rest: Any) -> None:
        kept = service.deferred
        true(n, k, service, *rest)
        service.deferred = kept

    patch(voter, "_hear_owner", hear_owner)


def deferral_outlives_a_grant() -> None:
    """A deferral is dropped once another claim is granted: here it stays."""
    true = moves.promise

    def promise(n: Node, service: Service, identity: Identity, now_us: int) -> None:
        kept = service.deferred
        true(n, service, identity, now_us)
        service.deferred = kept

    for module in (moves, voter):
        patch(module, "promise", promise)


def never_defers() -> None:
    """A voter a few ms short defers a claim: here it waits for the next word of it."""
    true = voter._judge

    def judge(*args: Any, **words: Any) -> None:
        true(*args, **{**words, "may_defer": False})

    patch(voter, "_judge", judge)


def releasing_grants() -> None:
    """Who is still letting go grants nobody: here it does."""
    true = voter._judge

    def judge(n: Node, k: int, service: Service, *rest: Any, **words: Any) -> None:
        letting_go = service.state is State.RELEASING
        if letting_go:
            service.state = State.STANDBY
        true(n, k, service, *rest, **words)
        if letting_go:
            service.state = State.RELEASING

    patch(voter, "_judge", judge)


def echoes_in_its_hold_down() -> None:
    """No lease echo in the start hold-down: here there is, and still no grant and no claim."""
    true = voter._hear_own

    def hear_own(
        n: Node, k: int, s: Service, entry: Any, beat: Beat, fresh: bool, now_us: int, *rest: Any
    ) -> Any:
        if entry.state in voter._HOLDERS and state.holding_down(n, now_us):
            fresh = n.peers[beat.sender].two_way_us == now_us
        return true(n, k, s, entry, beat, fresh, now_us, *rest)

    patch(voter, "_hear_own", hear_own)


def grants_unwritten() -> None:
    """A grant is written: here it is not, until something else is."""
    true = voter.grant

    def grant(*args: Any) -> None:
        patch(voter, "persist", lambda n, out: None)
        true(*args)
        patch(voter, "persist", moves.persist)

    patch(voter, "grant", grant)


# claims -------------------------------------------------------------------------------------


def heard_claims_pace_nobody() -> None:
    """A heard claim paces everyone: here everybody keeps to one's own pace alone."""
    true = voter.hear_claim

    def hear_claim(n: Node, k: int, service: Service, *rest: Any) -> None:
        paced_until_us = service.paced_until_us
        true(n, k, service, *rest)
        service.paced_until_us = paced_until_us

    patch(voter, "hear_claim", hear_claim)


def lapsed_owner_first_for_ever() -> None:
    """The lapsed owner goes first for two `dead` at most: here as long as it likes."""
    true = claimant._due

    def due(n: Node, k: int, service: Service, now_us: int) -> int:
        waits = service.state is not State.LAPSED and service.lapsed_heard_us != NEVER
        return state.FAR if waits else true(n, k, service, now_us)

    patch(claimant, "_due", due)


# releases -----------------------------------------------------------------------------------


def claim_without_its_release() -> None:
    """A claim carries the RELEASE that it rests on: here it says nothing of it."""
    true = moves._EFFECTS["claim"]

    def claim(n: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
        true(n, k, service, now_us, out)
        service.release, service.released_us = None, NEVER

    moves._EFFECTS["claim"] = claim


def release_said_once() -> None:
    """A RELEASE is repeated in the beats: here it is said once."""
    true = speech._compose
    said: set[tuple[int, Release]] = set()

    def compose(n: Node, *rest: Any) -> tuple[Beat, ...]:
        beats = true(n, *rest)
        own = {r for r in beats[0].releases if r.identity.node == n.spec.me}
        old = {r for r in own if (n.spec.me, r) in said}
        said.update((n.spec.me, r) for r in own)
        kept = tuple(r for r in beats[0].releases if r not in old)
        return tuple(msgspec.structs.replace(beat, releases=kept) for beat in beats)

    patch(speech, "_compose", compose)


# the relation of the times ------------------------------------------------------------------


def stop_uncovered() -> None:
    """`dead` covers the lease and the stop: here the lease and a quarter of the stop."""
    short = msgspec.structs.replace(LAN, dead_us=LAN.lease_us + LAN.stop_us // 4)
    patch(dramas_rules, "timing", short)
