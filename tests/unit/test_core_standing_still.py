"""Who stands still for a while, beside others that may count by marks (core.node, core.marks)."""

from __future__ import annotations

import pytest

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core.model import Flag, LastResort, Quorum, State
from haclusterd.core.state import holding_down, listens_until_us
from tests.unit.core_bench import HOLD_DOWN_MS, STANDBY, Bench, entry, kinds, spec_of
from tests.unit.test_core_by_marks import alone
from tests.unit.test_core_orders import marks
from tests.unit.test_core_voter import OWNER

ANEW_MS = HOLD_DOWN_MS + 25
BY_MARKS, STARTING = int(Flag.BY_MARKS), int(Flag.STARTING)


def met(flags: int = 0) -> Bench:
    """n0 has met both, long after its hold-down; n1 counts by marks or does not."""
    bench = Bench(ready=False)
    for _ in range(HOLD_DOWN_MS // 20 + 10):
        bench.hear(1, STANDBY, flags=flags)
        bench.hear(2, STANDBY)
        bench.pass_ms(20)
    assert not holding_down(bench.node, bench.now_us)
    return bench


def stand_still(bench: Bench, *pieces_ms: int, awake_ms: int = 1) -> bool:
    """Not told as a freeze; whether it holds down when it wakes for good."""
    for piece_ms in pieces_ms:
        bench.pass_ms(awake_ms)
        bench.give(inp.Tick())
        bench.now_us += piece_ms * 1000
        bench.give(inp.Tick())
    return holding_down(bench.node, bench.now_us)


@pytest.mark.parametrize(
    ("pieces_ms", "left_out"), [((95,), False), ((149,), True), ((151,), True), ((80, 80), True)]
)
def test_s1_who_may_have_been_left_out_holds_down(
    pieces_ms: tuple[int, ...], left_out: bool
) -> None:
    """F34, F40: what proves that it was heard may be 75 ms old already, and what it said between
    two pieces need not have been heard."""
    assert stand_still(met(BY_MARKS), *pieces_ms) == left_out
    assert not stand_still(met(), *pieces_ms)


@pytest.mark.parametrize(
    ("piece_ms", "awake_ms", "holds"), [(80, 1, True), (80, 40, True), (80, 100, False)]
)
def test_s1_what_was_said_between_two_pieces_need_not_have_been_heard(
    piece_ms: int, awake_ms: int, holds: bool
) -> None:
    """F40: but after three beats it has been. Who counted by marks does not say so any more."""
    bench = met(BY_MARKS)
    for _ in range(3):
        bench.hear(1, STANDBY)
        bench.pass_ms(20)
    assert stand_still(bench, piece_ms, piece_ms, awake_ms=awake_ms) == holds


def test_who_has_not_met_a_node_is_no_worse_off_for_short_pieces() -> None:
    """It may be dead for weeks; a starved node keeps its vote beside it."""
    bench = Bench(ready=False).after_hold_down()
    bench.keep_hearing(100, (1, STANDBY))
    assert not stand_still(bench, 140, 80, 80)
    assert stand_still(bench, 151)


def test_s1_a_dead_marker_is_not_waited_for() -> None:
    bench = met(BY_MARKS)
    bench.keep_hearing(400, (2, STANDBY))
    assert not stand_still(bench, 95)


def test_s1_a_hold_down_counts_from_the_first_words_in_it() -> None:
    """F40: it read the clock, stood still before they were out, for less than is noticed."""
    bench = met(BY_MARKS)
    assert stand_still(bench, 151)
    bench.now_us += 70_000
    bench.give(inp.Tick())
    assert listens_until_us(bench.node) == bench.now_us + ANEW_MS * 1000
    bench.now_us += 70_000
    bench.give(inp.Tick())
    assert listens_until_us(bench.node) == bench.now_us + (ANEW_MS - 70) * 1000, "once"


def test_s1_marks_that_were_heard_of_are_not_forgotten() -> None:
    """F36: a mark that was cleared may come back by an old word."""
    bench = met(BY_MARKS)
    for _ in range(3):
        bench.hear(1, STANDBY)
    assert stand_still(bench, 151)


@pytest.mark.parametrize(("flags", "listens_ms"), [(BY_MARKS, ANEW_MS), (0, 150)])
def test_s1_a_hold_down_ends_with_listening_in_one_piece(flags: int, listens_ms: int) -> None:
    """F36: what it hears after 75 ms is too old to be two-way. F40: who counts by marks counts
    without this node until it has heard it for a lease."""
    bench = Bench(ready=False)
    for _ in range((HOLD_DOWN_MS - 90) // 20):
        bench.hear(1, STANDBY, flags=flags)
        bench.pass_ms(20)
    for piece_ms, until_ms in ((70, 0), (80, listens_ms)):
        bench.now_us += piece_ms * 1000
        bench.give(inp.Tick())
        assert listens_until_us(bench.node) >= bench.now_us + until_ms * 1000
    bench.pass_ms(listens_ms - 1)
    assert holding_down(bench.node, bench.now_us)
    bench.pass_ms(27)
    assert not holding_down(bench.node, bench.now_us)


def test_s1_an_incarnation_that_is_not_met_lives() -> None:
    """F36: what waits in a socket while this node is stunned is too old to prove it current."""
    bench = alone()
    assert bench.node.left_out == {1, 2}
    bench.incarnations[1] = 4711
    bench.hear(1, STANDBY, two_way=False)
    assert bench.node.peers[1].incarnation != 4711
    assert bench.node.left_out == {2}
    bench.pass_ms(260)
    assert bench.node.left_out == {1, 2}


def test_who_starts_and_is_not_met_counts_after_a_lease() -> None:
    """As who is met: it gives no vote before."""
    bench = alone()
    bench.incarnations[1] = 4711
    for _ in range(4):
        bench.hear(1, STANDBY, two_way=False, flags=STARTING)
        assert bench.node.left_out == {1, 2}
        bench.pass_ms(24)
    bench.pass_ms(5)
    bench.hear(1, STANDBY, two_way=False, flags=STARTING)
    assert bench.node.left_out == {2}


def test_s1_where_one_vote_is_enough_an_owner_heard_in_the_hold_down_is_waited_for() -> None:
    """F36: it is stunned as this node's hold-down ends, and nobody else refuses."""
    bench = Bench(spec_of(quorum=Quorum.AVAILABILITY))
    bench.keep_hearing(HOLD_DOWN_MS - 80, (1, entry(OWNER, State.OWNED)), (2, STANDBY))
    bench.keep_hearing(140, (2, STANDBY))
    assert "T101" not in bench.rows
    bench.keep_hearing(2_500, (2, STANDBY))
    assert "T101" in bench.rows


def test_s1_it_votes_again_after_a_hold_down() -> None:
    bench = met(BY_MARKS)
    assert stand_still(bench, 200)
    woken_us = bench.now_us
    bench.keep_hearing(ANEW_MS - 1, (1, STANDBY), (2, STANDBY))
    assert holding_down(bench.node, woken_us + (ANEW_MS - 1) * 1000)
    bench.keep_hearing(50, (1, STANDBY), (2, STANDBY))
    assert not holding_down(bench.node, bench.now_us)


def test_s1_who_was_never_met_may_have_marked_this_node() -> None:
    """F36: it stands still from before this node has started."""
    bench = Bench(ready=False).after_hold_down()
    bench.keep_hearing(100, (1, STANDBY))
    assert stand_still(bench, 151)
    whole = Bench(ready=False).after_hold_down()
    whole.keep_hearing(100, (1, STANDBY), (2, STANDBY))
    assert not stand_still(whole, 151)


def test_a_mark_is_said_before_it_is_in_force() -> None:
    """F36: all that who is back has heard of its marker may be from that time. Of a mark of this
    node itself there is nothing to say: it counts nobody out."""
    bench = Bench(spec_of(last_resort=LastResort.NONE))
    bench.own()
    bench.pass_ms(400)
    bench.give(marks(1, 2))
    assert bench.node.unvoting == frozenset()
    assert kinds(bench.pass_ms(30), act.SendBeat)[-1].beats[0].flags & BY_MARKS
    marked = met()
    marked.give(marks(0))
    assert not kinds(marked.pass_ms(30), act.SendBeat)[-1].beats[0].flags & BY_MARKS
