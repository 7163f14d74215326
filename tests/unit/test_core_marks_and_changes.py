"""Marks and a change of the voters keep out of each other's way (core.marks, core.reconfigure)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core import reconfigure
from haclusterd.core.adoption import adopt
from haclusterd.core.model import ClusterSpec, Flag, Identity, State
from haclusterd.core.state import NEVER, holding_down
from tests.unit.core_bench import Bench, entry, kinds
from tests.unit.test_core_reconfigure import (
    FOUR,
    READS_2,
    THREE,
    TWO,
    at_revision_2,
    decided,
    flips,
    say,
    stage,
)


def mark(bench: Bench, n: int) -> str:
    """What heart answers to `node mark-dead`; empty if it is done."""
    order = inp.MarksOrdered(9, (inp.Marked(n, 256, "anna"),))
    (found,) = kinds(bench.give(order), act.Answered)
    return "" if found.ok else found.text


def test_ml18_no_mark_beside_a_change_that_can_still_be_decided() -> None:
    bench = at_revision_2().after_hold_down()
    say(bench, 1)
    assert stage(bench, FOUR).ok
    assert "change to revision 3, and 2 of 3 are alive" in mark(bench, 2)
    bench.pass_ms(400)
    assert mark(bench, 2) == "", "alone it can never be decided, and marks are the way out"
    other = at_revision_2().after_hold_down()
    say(other, 1, FOUR)
    assert "change to revision 3" in mark(other, 2), "somebody else has staged it"
    calm = at_revision_2().after_hold_down()
    say(calm, 1)
    assert mark(calm, 2) == ""


def test_ml18_no_change_beside_a_mark() -> None:
    bench = at_revision_2().after_hold_down()
    say(bench, 1)
    assert mark(bench, 2) == ""
    assert "`haclusterctl node unmark n2` first" in stage(bench, FOUR).text
    assert stage(bench, FOUR, kept=True).ok, "what was staged before a restart stays so"
    (found,) = kinds(bench.give(inp.MarksOrdered(9, ())), act.Answered)
    assert found.ok, "taking a mark back is never refused"


def test_s1_what_was_agreed_to_before_a_start_is_not_taken_up_in_the_hold_down() -> None:
    """An owner that counts this node as dead serves on: it has to be heard, and to hear, first."""
    bench = at_revision_2()
    stage(bench, FOUR, kept=True)
    for _ in range(4):
        say(bench, 1, FOUR)
        bench.pass_ms(60)
    assert not decided(bench)
    say(bench, 1, FOUR)
    bench.pass_ms(20)
    assert decided(bench)
    assert flips(bench, 130) == []
    assert len(flips(bench, 30)) == 1


def asks(bench: Bench, sender: int, staged: ClusterSpec | None = None) -> bool:
    """Whether n0 grants a claim of `sender`, which counts by set 2."""
    claim = Identity(5, sender, 9)
    words = {"flags": READS_2, "revision": 2}
    if staged is not None:
        words |= {"staged": staged.revision, "staged_hash": staged.config_hash}
    bench.hear(sender, entry(claim, State.CLAIMING), **words)
    return bench.service.promise == claim


def test_s1_a_claim_of_who_is_left_behind_is_not_granted() -> None:
    """It may not know yet that it was removed, and nobody's echo of it counts in the next set."""
    bench = at_revision_2().after_hold_down()
    bench.give(inp.Overheard(3, FOUR.config_hash))
    assert not asks(bench, 1)
    assert not asks(bench, 1, TWO), "another file of that revision"
    assert asks(bench, 1, FOUR), "it is about to take set 3 up"


def test_s1_the_same_at_a_node_that_has_taken_the_next_set_up() -> None:
    before = msgspec.structs.replace(THREE, revision=1, config_hash=1)
    bench = at_revision_2(kin=(before.config_hash,)).after_hold_down()
    words = {"flags": READS_2, "revision": 1, "config_hash": before.config_hash}
    claim = entry(Identity(5, 1, 9), State.CLAIMING)
    bench.hear(1, claim, **words)
    assert bench.service.promise != claim.promise
    bench.hear(1, claim, staged=2, staged_hash=THREE.config_hash, **words)
    assert bench.service.promise == claim.promise


def test_s1_who_returns_with_a_set_that_is_in_force_meanwhile_votes_once_it_counts_by_it() -> None:
    """Some of those who count by it cannot hear it before, and may own by marks."""
    bench = at_revision_2()
    stage(bench, FOUR, kept=True)
    bench.give(inp.Overheard(3, FOUR.config_hash))
    bench.after_hold_down()
    assert not asks(bench, 1, FOUR)
    assert kinds(bench.asked, act.SendBeat)[-1].beats[0].flags & Flag.STARTING
    adopt(bench.node, FOUR, bench.now_us)
    assert holding_down(bench.node, bench.now_us + 249_000), "it has not heard them yet"
    assert not holding_down(bench.node, bench.now_us + 250_000)


def test_s1_who_takes_up_two_sets_on_its_return_votes_once_it_has_listened_by_the_second() -> None:
    """An owner by set 4 that joined with it can read neither set 2 nor set 3."""
    bench = at_revision_2()
    stage(bench, FOUR, kept=True)
    bench.give(inp.Overheard(4, 4711))
    bench.after_hold_down()
    adopt(bench.node, FOUR, bench.now_us)
    bench.pass_ms(400)
    assert holding_down(bench.node, bench.now_us), "set 4 is in force, and not taken up"
    again = msgspec.structs.replace(FOUR, revision=4, config_hash=4711)
    adopt(bench.node, again, bench.now_us)
    assert holding_down(bench.node, bench.now_us + 249_000)
    assert not holding_down(bench.node, bench.now_us + 250_000)
    adopt(bench.node, msgspec.structs.replace(again, revision=5), bench.now_us + 200_000)
    assert holding_down(bench.node, bench.now_us + 449_000), "it is in the middle of that"


def test_s1_no_set_is_decided_while_it_listens_by_the_one_before() -> None:
    bench = at_revision_2().after_hold_down()
    bench.node.roll.listens_us = bench.now_us + 100_000
    assert stage(bench, FOUR).ok
    say(bench, 1, FOUR)
    bench.pass_ms(90)
    assert bench.node.roll.decided_us == NEVER
    say(bench, 1, FOUR)
    bench.pass_ms(40)
    assert bench.node.roll.decided_us != NEVER


def test_who_returned_before_the_set_was_in_force_goes_on_voting_when_it_is() -> None:
    """A lease may hang on its echo."""
    bench = at_revision_2()
    stage(bench, FOUR, kept=True)
    bench.after_hold_down().pass_ms(30)
    bench.give(inp.Overheard(3, FOUR.config_hash))
    bench.pass_ms(30)
    assert asks(bench, 1, FOUR)
    reloaded = at_revision_2().after_hold_down()
    assert stage(reloaded, FOUR).ok
    reloaded.give(inp.Overheard(3, FOUR.config_hash))
    assert asks(reloaded, 1, FOUR)


def test_who_returned_waits_for_nobody_to_take_the_set_up() -> None:
    bench = at_revision_2()
    stage(bench, FOUR, kept=True)
    bench.give(inp.Overheard(3, FOUR.config_hash))
    bench.after_hold_down()
    bench.node.services[0].promise = Identity(1, 0, 5)
    say(bench, 1, FOUR)
    assert reconfigure.whose_turn(bench.node, bench.now_us) == ""
    bench.node.roll.returned = False
    assert reconfigure.whose_turn(bench.node, bench.now_us) == "n1"


def hear_all(bench: Bench, ms: float, *nodes: int, **words: Any) -> None:
    for _ in range(int(ms / 20)):
        for n in nodes:
            say(bench, n, **words)
        bench.pass_ms(20)


def test_s1_who_came_with_a_set_counts_by_marks_once_all_others_count_by_it() -> None:
    """Who may come back by the set before cannot be heard here; and one may have taken this set
    up, and not written that down."""
    bench = at_revision_2(kin=(), proven=False).after_hold_down()
    assert "order it on a node that is part of the cluster" in mark(bench, 2)
    bench.give(inp.MarksOrdered(-1, (inp.Marked(2, 256, "anna"),)))
    hear_all(bench, 3_000, 1)
    assert bench.node.roll.proven
    assert bench.node.marked == {2}
    assert bench.node.unvoting == frozenset()
    bench.give(inp.MarksOrdered(-1, ()))
    assert "came with revision 2 and has not heard all others count by it" in mark(bench, 2)
    hear_all(bench, 1_500, 1, 2)
    hear_all(bench, 400, 1)
    hear_all(bench, 1_500, 1, 2)
    assert "came with" in mark(bench, 2), "not all of them for long enough"
    hear_all(bench, 600, 1, 2)
    hear_all(bench, 400, 1)
    assert mark(bench, 2) == ""
    hear_all(bench, 400, 1)
    assert bench.node.unvoting == {2}


def test_s1_who_reads_the_set_before_counts_by_marks_at_once() -> None:
    bench = at_revision_2(kin=(1,))
    bench.give(inp.MarksOrdered(-1, (inp.Marked(2, 256, "anna"),)))
    bench.pass_ms(200)
    assert bench.node.unvoting == frozenset()
    bench.pass_ms(400)
    assert bench.node.unvoting == {2}


@pytest.mark.parametrize(("revision", "blind"), [(3, False), (4, True)])
def test_s1_who_goes_two_sets_on_cannot_read_the_one_between(revision: int, blind: bool) -> None:
    bench = at_revision_2().after_hold_down()
    adopt(bench.node, msgspec.structs.replace(FOUR, revision=revision), bench.now_us)
    assert bench.node.roll.blind == blind


def test_s1_who_has_agreed_to_be_removed_claims_nothing_once_that_is_in_force() -> None:
    """It may have stood still since, and count by marks without those who have gone on."""
    bench = at_revision_2().after_hold_down()
    assert stage(bench, FOUR).ok
    bench.give(inp.Overheard(3, FOUR.config_hash))
    assert reconfigure.may_claim(bench.node)
    without = msgspec.structs.replace(bench.node.roll, stays=False)
    bench.node.roll = without
    assert not reconfigure.may_claim(bench.node)


def test_a_set_that_cannot_be_taken_up_costs_no_vote_for_good() -> None:
    """Two of four that were restarted, and whose upgrade fails, would be the end of all service."""
    bench = at_revision_2()
    stage(bench, FOUR, kept=True)
    bench.give(inp.Overheard(3, FOUR.config_hash))
    bench.pass_ms(19_900)
    assert holding_down(bench.node, bench.now_us)
    bench.pass_ms(200)
    assert asks(bench, 1, FOUR)
    adopt(bench.node, FOUR, bench.now_us)
    assert not holding_down(bench.node, bench.now_us), "it may own by now"


@pytest.mark.parametrize(("flags", "holds"), [(0, False), (int(Flag.BY_MARKS), True)])
def test_who_returns_votes_at_once_where_those_ahead_count_by_no_marks(
    flags: int, holds: bool
) -> None:
    """An ordinary owner by the later set has a majority, which this node's vote cannot be part of
    before it reads it."""
    bench = at_revision_2(kin=(FOUR.config_hash,))
    stage(bench, FOUR, kept=True)
    for _ in range(13):
        words = {"flags": READS_2 | flags, "revision": 3, "config_hash": FOUR.config_hash}
        bench.hear(1, **words)
        bench.pass_ms(20)
    bench.give(inp.Overheard(3, FOUR.config_hash))
    bench.pass_ms(5)
    assert holding_down(bench.node, bench.now_us) == holds
