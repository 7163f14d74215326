"""Nets of guards for one case: it breaks without all of them, and holds while one is left.

Both are played by `drills`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tests.sim import mutations_changes as c
from tests.sim import mutations_marks as d
from tests.sim import mutations_rules as r
from tests.sim import mutations_time as t


@dataclasses.dataclass(frozen=True)
class Net:
    """Guards of one case, each of which is the last one where the others are gone."""

    guards: tuple[Callable[[], None], ...]
    drama: str
    why: str


NETS: dict[str, Net] = {
    "a deferred claim is of the past": Net(
        (r.deferral_blind, r.deferral_outlives_the_owner, r.deferral_outlives_a_grant),
        "back_before_a_deferral_is_due",
        "it is judged again when it is due; it is dropped once another is granted, which an owner "
        "that is back needs, for its lease ended before; and once an owner is heard",
    ),
    "no set is taken up beside an owner by marks": Net(
        (
            c.taken_up_in_the_hold_down,
            d.who_is_back_is_not_asked,
            d.one_way_is_not_waited_for,
            d.alone_for_a_lease,
        ),
        "back_with_a_staged_set",
        "no set is decided or taken up in the hold-down; an owner by marks that has heard who is "
        "back counts it, and lapses when it is gone; those who hear it one way wait for it; and no "
        "lease without who is back reaches to the end of that one's hold-down",
    ),
    "who comes back by the set before and who came with the next": Net(
        (c.returned_votes_at_once, c.blind_and_counting),
        "returned_before_it_takes_up",
        "who starts and hears of a later set does not vote before it has taken that up; who cannot "
        "read the set before counts by no marks",
    ),
    "no marks of who cannot read the set before": Net(
        (c.blind_and_counting, d.said_once_in_force),
        "alone_in_a_set_it_came_with",
        "who came with a set counts by no marks until all others count by it; and who has heard of "
        "its marks says so, to those who count by the set before",
    ),
    "who has taken a set up on its return and who came with it": Net(
        (c.taken_up_and_deaf, c.blind_and_counting),
        "agrees_as_the_marked_returns",
        "who took the set up that it found in force listens once more; who cannot read the set "
        "before counts by no marks",
    ),
    "no winner by who was left behind": Net(
        (
            c.left_behind_may_win,
            c.returned_votes_at_once,
            c.former_nodes_unanswered,
            d.unmet_is_silent,
        ),
        "returned_with_who_was_removed",
        "who has just started and hears of a later set does not vote; who votes grants nothing to "
        "a claimant that is not about to take that set up; who was removed is told so; and what "
        "cannot be proved fresh is a sign of life",
    ),
    "an owner by marks listens after a thaw": Net(
        (d.deaf_is_silent, d.thawed_and_voting),
        "thaws_when_they_are_back",
        "while it stood still nobody was silent; and it begins its hold-down anew",
    ),
    "who stood still as it listened": Net(
        (d.listened_for_dead, d.unmet_is_silent),
        "unheard_as_they_listen",
        "it listens for a whole hold-down more; and what cannot be proved fresh is a sign of life",
    ),
    "who runs now and then in its hold-down": Net(
        (d.listened_in_pieces, d.strangers_unguarded, d.unmet_is_silent),
        "starts_in_pieces",
        "it has not listened; an owner by marks is waited for in an incarnation that was not met; "
        "and what cannot be proved fresh is a sign of life",
    ),
    "the past after a thaw": Net(
        (t.no_flush, t.same_incarnation, t.old_echoes_count),
        "thaw_meets_the_dead",
        "what waited in a socket is thrown away; what comes later echoes the former incarnation, "
        "of which no send time is known; and a noticed freeze is longer than three beats (presets)",
    ),
    "fenced after a thaw": Net(
        (t.thaw_unfenced, t.lease_end_unseen),
        "thawed_in_the_dark",
        "a freeze that is noticed is longer than the lease, whose end every step looks for",
    ),
}
