"""Who stands still for a while, beside others that may count by marks (core.node, core.marks)."""

from __future__ import annotations

import pytest

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core.model import Flag, LastResort
from haclusterd.core.state import holding_down
from tests.unit.core_bench import HOLD_DOWN_MS, STANDBY, Bench, kinds, spec_of
from tests.unit.test_core_orders import marks

BY_MARKS = int(Flag.BY_MARKS)


def met(flags: int = 0) -> Bench:
    """n0 has met both, long after its hold-down; n1 counts by marks or does not."""
    bench = Bench(ready=False)
    for _ in range(HOLD_DOWN_MS // 20 + 10):
        bench.hear(1, STANDBY, flags=flags)
        bench.hear(2, STANDBY)
        bench.pass_ms(20)
    assert not holding_down(bench.node, bench.now_us)
    return bench


def stand_still(bench: Bench, *pieces_ms: int, awake_us: int = 100) -> bool:
    """Several times, with so much of a run between; whether it holds down when it wakes for good.

    None of them is told as a freeze.
    """
    for piece_ms in pieces_ms:
        bench.pass_ms(awake_us / 1000)
        bench.give(inp.Tick())
        bench.now_us += piece_ms * 1000
        bench.give(inp.Tick())
    return holding_down(bench.node, bench.now_us)


@pytest.mark.parametrize(
    ("pieces_ms", "awake_us", "left_out"),
    [
        ((140,), 100, False),
        ((151,), 100, True),
        ((80, 80), 100, True),
        ((60, 60, 60), 20_000, True),
        ((80, 80), 26_000, False),
        ((140, 30, 30), 100, False),
    ],
)
def test_s1_who_may_have_been_left_out_holds_down(
    pieces_ms: tuple[int, ...], awake_us: int, left_out: bool
) -> None:
    """F36: several times with hardly a run between is standing still once."""
    assert stand_still(met(BY_MARKS), *pieces_ms, awake_us=awake_us) == left_out
    assert not stand_still(met(), *pieces_ms, awake_us=awake_us)


def test_s1_it_votes_again_after_a_hold_down() -> None:
    bench = met(BY_MARKS)
    assert stand_still(bench, 200)
    bench.keep_hearing(HOLD_DOWN_MS - 1, (1, STANDBY), (2, STANDBY))
    assert holding_down(bench.node, bench.now_us)
    bench.keep_hearing(2, (1, STANDBY), (2, STANDBY))
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
