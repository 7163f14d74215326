"""Marks and a change of the voters keep out of each other's way (core.marks, core.reconfigure)."""

from __future__ import annotations

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from tests.unit.core_bench import Bench, kinds
from tests.unit.test_core_reconfigure import FOUR, at_revision_2, decided, flips, say, stage


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
