"""Marks and a change of the voters keep out of each other's way (core.marks, core.reconfigure)."""

from __future__ import annotations

import msgspec

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core.model import ClusterSpec, Identity, State
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
