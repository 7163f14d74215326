"""The drills: which guard is taken away, which worlds aim at it, and what has to break.

`drills` plays them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec

from tests.sim import dramas_orders
from tests.sim import mutations as m
from tests.sim import mutations_changes as c
from tests.sim import mutations_files as f
from tests.sim import mutations_marks as d
from tests.sim import mutations_rules as r
from tests.sim import mutations_time as t
from tests.sim.swarm import LAN


@dataclasses.dataclass(frozen=True)
class Drill:
    """A guard to take away, and the worlds that aim at it: kinds of faults, or a drama."""

    take_away: Callable[[], None]
    by: str  # the invariants that count as its catch
    kinds: tuple[str, ...] = ()
    drama: str = ""
    swarm: tuple[tuple[str, Any], ...] = ()  # what differs from `aimed_swarm`
    broken: tuple[tuple[str, Any], ...] = ()  # what does so as part of the mutation
    calls: bool = False  # it is about calls: S4 counts; otherwise a fault there hides none here

    @property
    def rule(self) -> str:
        """The first sentence of what the mutation says of itself."""
        return (self.take_away.__doc__ or "").split("\n")[0]


def worlds(*kinds: str, **swarm: Any) -> dict[str, Any]:
    return {"kinds": kinds, "swarm": tuple(swarm.items())}


TOO_LONG = msgspec.structs.replace(LAN, dead_us=80_000)  # config.py refuses it

DRILLS: dict[str, Drill] = {
    # grants
    "grant once": Drill(m.grant_twice, "S3", drama="crossed_nonces"),
    "silence before grant": Drill(m.no_silence, "S1 S5", **worlds("cut_one_way", "triangle")),
    "restart timers on granting": Drill(
        m.granting_without_timer, "S1 S5", **worlds("stun", "cut_node", "torn_release")
    ),
    "an owner grants nobody": Drill(m.owner_grants, "S1 S5", **worlds("pair_flickers")),
    "who is letting go grants nobody": Drill(
        r.releasing_grants, "S1 S5", drama="lets_go_and_answers"
    ),
    "a claim that came a few ms early": Drill(r.never_defers, "V2", drama="a_beat_short"),
    "a grant is written": Drill(r.grants_unwritten, "S2", drama="granted_and_restarted"),
    "majority": Drill(
        m.minority_wins, "S1 S5", **worlds("cut_half", nodes=4, rates_ppm=(0, 0, 0, 0))
    ),
    "the holder's own claim needs no silence": Drill(
        m.own_claim_waits, "S5", drama="promise_conflict"
    ),
    # releases
    "release of the present promise only": Drill(
        m.release_of_anything, "S1 S5", **worlds("torn_release")
    ),
    "hold-down for releases": Drill(
        m.hold_down_waived_for_release, "S1 S5", drama="release_after_a_restart"
    ),
    "release after the stop only": Drill(
        m.release_before_stop, "S1", drama="freeswitch_dies_under_load"
    ),
    "a claim carries its release": Drill(
        r.claim_without_its_release, "V2", drama="released_to_one_alone"
    ),
    "a release is repeated": Drill(r.release_said_once, "V2", drama="release_lost_at_first"),
    # claims
    "claim pacing": Drill(m.claims_unpaced, "V5", **worlds("triangle", "stun", "cut_half")),
    "a heard claim paces everyone": Drill(
        r.heard_claims_pace_nobody, "V5", drama="refused_and_heard"
    ),
    "resend": Drill(m.no_resend, "V2", drama="lost_claim"),
    "two beats after rejoin": Drill(m.no_two_beats, "S5", drama="switches_reboot"),
    "the lapsed owner goes first": Drill(
        m.lapsed_owner_not_first, "S5", drama="owner_back_in_pieces"
    ),
    "the lapsed owner goes first for a while only": Drill(
        r.lapsed_owner_first_for_ever, "V2", drama="fenced_out_of_reach"
    ),
    "claim nonce": Drill(m.nonce_ignored, "S1 S5", drama="crossed_nonces"),
    "void grants": Drill(m.late_grants_count, "S1 S2 S5", drama="grants_after_the_next"),
    "reclaim only without a higher epoch": Drill(
        m.reclaims_in_spite_of_a_successor,
        "S4",
        calls=True,
        **worlds("cut_node", "power_off", "freeze_long"),
    ),
    "a former owner is told of its successor": Drill(
        m.successor_untold, "V4", **worlds("cut_node", "power_off", "freeze_long")
    ),
    "a grant may have won unheard": Drill(m.grants_of_others_ignored, "S4", drama="winner_unheard"),
    "a voter that forgot": Drill(m.forgetting_unseen, "S4", calls=True, drama="epoch_won_twice"),
    "two winners of one epoch": Drill(m.always_newest, "S4", calls=True, drama="winners_meet"),
    "a FreeSWITCH that came back": Drill(
        m.freeswitch_back_unseen,
        "S4 S10",
        calls=True,
        **worlds("freeswitch", "cut_node", "maintenance", freeswitch=True),
    ),
    "epochs adopted": Drill(m.epochs_not_adopted, "V2", drama="blank_claimant"),
    "claim with a majority only": Drill(
        m.claims_without_majority, "V5", **worlds("cut_node", ending="minority")
    ),
    "no claim for silence in a pause": Drill(
        m.claims_in_a_pause, "P1", **worlds("pause", "power_off")
    ),
    "a former owner keeps its vote in a pause": Drill(
        dramas_orders.former_owner_votes, "S5", drama="owner_restarts_in_a_pause"
    ),
    # leases and the fence
    "echo restarts the silence timer": Drill(t.echo_without_timer, "S1 S5", **worlds("triangle")),
    "lease from the owner's send time": Drill(
        t.lease_from_hearing, "S1 S5", **worlds("late_echoes")
    ),
    "lease from the claim's send time": Drill(t.lease_from_win, "S1 S5", drama="late_grants"),
    "the lease is watched": Drill(t.lease_not_watched, "S1 S5", **worlds("cut_node")),
    "renew within the lease": Drill(
        t.renewed_beyond_lease, "S1", **worlds("cut_node", boundary=0.2)
    ),
    "clock read before renewing": Drill(
        t.clock_not_read, "S1", **worlds("freeze", "stun", boundary=0.3)
    ),
    "arm before renew": Drill(t.no_arm, "S1", **worlds("freeze", "stun", boundary=0.2)),
    "promise match": Drill(t.echo_of_any_promise, "S1 S5", drama="claims_of_one_epoch"),
    "no echo outlives its promise": Drill(t.echo_of_another, "S1 S5", drama="numbers_of_another"),
    "lapsed owner grants nobody before it is fenced": Drill(
        m.lapsed_grants_unfenced, "S1 S5", drama="unfenced_grant"
    ),
    "lapsed owner claims nothing before it is fenced": Drill(
        m.lapsed_claims_unfenced, "S5", drama="unfenced_claim"
    ),
    "lease relation": Drill(
        t.lease_longer, "S1 S5", broken=(("timing", TOO_LONG),), **worlds("cut_node", "stun")
    ),
    "the relation covers the stop": Drill(r.stop_uncovered, "S1", drama="slow_to_stop"),
    # restarts
    "hold-down": Drill(m.no_hold_down, "S1 S5", **worlds("triangle", "restart_forget")),
    "no echo in the hold-down": Drill(
        r.echoes_in_its_hold_down, "S1 S5", drama="forgets_and_hears_the_owner"
    ),
    "promises restored": Drill(t.promises_not_restored, "S2 S3", **worlds("crash", "freeze")),
    # the set of voters
    "nothing for an older set": Drill(c.no_floor, "S1 S5", drama="left_behind"),
    "one node at a time": Drill(c.many_at_once, "S1 S5", drama="two_at_once"),
    "written before it is said": Drill(c.said_before_written, "S1 S5", drama="unwritten"),
    "a decided set waits for older leases": Drill(
        c.taken_up_at_once, "S1 S5", drama="lease_left_over"
    ),
    "who is about to be removed takes nothing": Drill(
        c.removed_and_claiming, "S1 S5", drama="thaws_when_it_is_removed"
    ),
    "a file alone puts no set in force": Drill(c.file_is_enough, "S1 S5", drama="late_file"),
    "a set is decided by a majority": Drill(c.decided_by_one, "S1 S5", drama="without_a_majority"),
    "agreed to one file at a time": Drill(c.agrees_twice, "S1 S5", drama="agreed_twice"),
    "no mark beside a change of the voters": Drill(
        c.marks_beside_a_change, "S1 S5", drama="marked_beside_a_change"
    ),
    # other files
    "a file is read by its shape": Drill(f.read_by_counts, "S1 S5", drama="services_change_places"),
    "a file is read by its times": Drill(f.times_unasked, "S1 S5", drama="times_become_shorter"),
    "a neighbour's services go by their addresses": Drill(
        f.neighbours_by_name, "S1 S5", drama="left_behind_with_other_addresses"
    ),
    "a hold-down is by the file before, too": Drill(
        f.held_down_by_the_new_file, "S1 S5", drama="times_become_shorter_at_once"
    ),
    # nodes marked dead
    "who is back is asked": Drill(
        d.who_is_back_is_not_asked, "S1 S5", drama="claims_as_they_return"
    ),
    "who is back carries a lease": Drill(d.waiting_is_no_echo, "V2", drama="alone_as_they_return"),
    "an owner by marks is waited for": Drill(
        d.marks_unsaid, "S1 S5", drama="stunned_as_they_return"
    ),
    "who may have been left out listens": Drill(
        d.thawed_and_voting, "S1 S5", drama="asleep_after_they_took_over"
    ),
    "pieces count together": Drill(d.heard_between_pieces, "S1 S5", drama="unheard_between_pieces"),
    "a sign of life is enough": Drill(
        d.unmet_is_silent, "S1 S5", drama="unheard_as_they_hold_down"
    ),
    "no lease beyond a hold-down": Drill(
        d.alone_for_a_lease, "S1 S5", drama="unheard_as_they_hold_down"
    ),
    "nothing won beyond a hold-down": Drill(
        d.wins_for_a_lease, "S1 S5", drama="claims_as_they_hold_down"
    ),
    "an owner that was not met is waited for": Drill(
        d.strangers_unguarded, "S1 S5", drama="stunned_beside_one_vote"
    ),
    "marks are not forgotten": Drill(d.marks_forgotten, "S1 S5", drama="marked_by_an_old_word"),
    "an owner beside one vote is waited for": Drill(
        d.one_vote_and_unguarded, "S1 S5", drama="stunned_as_the_former_owner_returns"
    ),
    "a mark is said before it is in force": Drill(
        d.said_once_in_force, "S1 S5", drama="asleep_before_it_counts"
    ),
    "who was never met may have marked": Drill(
        d.unmet_has_marked_nobody, "S1 S5", drama="asleep_before_they_start"
    ),
    "cleared with its echo in hand": Drill(d.cleared_without_echo, "V2", drama="marked_dies_again"),
    "not cleared in its hold-down": Drill(
        d.cleared_while_starting, "V2", drama="marked_is_slow_to_vote"
    ),
    "a mark ends with the boot": Drill(
        d.marks_outlive_the_boot, "S1 S5", drama="starts_deaf_with_old_marks"
    ),
    # freshness and freezes
    "two-way": Drill(t.one_way_is_enough, "V2", drama="words_of_the_dead"),
    "freshness within three beats": Drill(t.old_echoes_count, "V2", drama="late_words"),
    "a freeze is noticed": Drill(t.freeze_not_noticed, "S5", drama="claim_at_the_thaw"),
    "silence timers restart after a thaw": Drill(
        t.thaw_keeps_timers, "S5", drama="claim_at_the_thaw"
    ),
}
