"""One epoch that was won twice, for a voter between the two winners lost its memory (S4)."""

from __future__ import annotations

import pytest

from haclusterd.core import inputs as inp
from haclusterd.core.actions import EndCalls
from haclusterd.core.inputs import Marked, MarksOrdered
from haclusterd.core.model import Identity, Quorum, State
from tests.unit.core_bench import STANDBY, Bench, entry, kinds, spec_of


@pytest.mark.parametrize(("claimant_tells", "row"), [(False, "T505"), (True, "T501")])
@pytest.mark.parametrize("forgot", ["voter", "claimant"])
def test_s4_a_voter_that_stands_by_another_at_the_lapsed_owners_own_epoch(
    forgot: str, claimant_tells: bool, row: str
) -> None:
    """Seed 10300 of ten minutes: between two winners of one epoch its voters lost their memory."""
    bench = Bench()
    mine = bench.own()  # with the vote of node 1
    if forgot == "voter":
        bench.hear(2, entry(mine, lease_seq=bench.node.seq))
        bench.service.stood_by &= ~0b10
    bench.pass_ms(101)
    assert bench.stands_in(State.LAPSED)
    twin = Identity(mine.epoch, 1, 77)
    bench.forget()
    nothing = (1, entry(twin, held=mine.epoch - 1))  # nothing came of its claim, it says itself
    voter = (2, entry(twin, held=mine.epoch))
    bench.keep_hearing(400, voter, *([nothing] if claimant_tells else []))
    assert row in bench.rows
    assert ("T505" in bench.rows) == bool(kinds(bench.asked, EndCalls)) == (row == "T505")


def test_a_claim_of_the_same_epoch_that_came_to_nothing_ends_no_calls() -> None:
    """Of five, one granted a claim that failed, and its claimant died: nobody forgot anything."""
    bench = Bench(spec_of(nodes=5)).after_hold_down()
    bench.hear(4)
    bench.keep_hearing(100, (1, STANDBY), (2, STANDBY), (4, STANDBY))
    mine = bench.service.promise
    assert bench.stands_in(State.CLAIMING)
    twin = entry(Identity(mine.epoch, 3, 77), held=mine.epoch)
    bench.hear(4, twin)
    for n in (1, 2):
        bench.hear(n, entry(mine))
        bench.hear(n, entry(mine, lease_seq=bench.node.seq, held=mine.epoch))
    assert bench.stands_in(State.OWNED)
    bench.pass_ms(101)
    assert bench.stands_in(State.LAPSED)
    bench.forget()
    told = entry(mine, held=mine.epoch)
    bench.keep_hearing(120, (1, told), (2, told), (4, twin))
    assert "T501" in bench.rows
    assert not kinds(bench.asked, EndCalls)


def test_a_claimant_that_heard_of_the_term_has_not_won_its_epoch() -> None:
    bench = Bench()
    mine = bench.own()
    bench.pass_ms(101)
    bench.service.stood_by &= ~0b10  # node 2 voted
    bench.forget()
    twin = entry(Identity(mine.epoch, 1, 77), held=mine.epoch)
    bench.keep_hearing(400, (1, twin), (2, entry(mine, held=mine.epoch)))
    assert "T501" in bench.rows
    assert not kinds(bench.asked, EndCalls)


@pytest.mark.parametrize("meanwhile", [State.LAPSED, State.STANDBY])
@pytest.mark.parametrize(
    ("nodes", "remember", "row"),
    [(3, (), "T505"), (3, (2,), "T501"), (5, (2,), "T505"), (5, (2, 3), "T501")],
)
def test_s4_two_that_won_one_epoch_meet_without_the_voter_that_forgot(
    nodes: int, remember: tuple[int, ...], row: str, meanwhile: State
) -> None:
    """Seed 6727 of ten minutes: nobody knows whose term was the later, so neither goes on; unless
    those that remember this node's leave no majority that can have granted the other's since."""
    bench = Bench(spec_of(nodes=nodes)).after_hold_down()
    voters = tuple(range(1, nodes // 2 + 1))
    bench.keep_hearing(100, *((n, STANDBY) for n in voters))
    mine = bench.service.promise
    for n in voters:
        bench.hear(n, entry(mine))
    assert bench.stands_in(State.OWNED)
    bench.pass_ms(101)
    assert bench.stands_in(State.LAPSED)
    bench.forget()
    twin = Identity(mine.epoch, nodes - 1 if nodes > 3 else 1, 77)
    bench.hear(twin.node, entry(twin, State.LAPSED, held=mine.epoch))
    told = entry(mine, held=mine.epoch)
    others = tuple((n, told) for n in remember)
    silent = tuple((n, STANDBY) for n in voters if n not in (twin.node, *remember))
    bench.keep_hearing(
        400, (twin.node, entry(twin, meanwhile, held=mine.epoch)), *others, *silent[: nodes // 2]
    )
    assert row in bench.rows
    assert ("T505" in bench.rows) == bool(kinds(bench.asked, EndCalls)) == (row == "T505")


def won_with_node_2() -> tuple[Bench, Identity]:
    """Won with the vote of node 2 alone, and lapsed. The other winner of that epoch is node 1."""
    bench = Bench().after_hold_down()
    bench.hear(2)
    bench.keep_hearing(100, (2, STANDBY))
    mine = bench.service.promise
    bench.hear(2, entry(mine))
    assert bench.stands_in(State.OWNED)
    bench.pass_ms(101)
    assert bench.stands_in(State.LAPSED)
    bench.forget()
    return bench, Identity(mine.epoch, 1, 77)


def mark_dead(bench: Bench, n: int) -> None:
    bench.pass_ms(400)
    bench.give(MarksOrdered(1, (Marked(n, 1, "anna"),)))
    bench.pass_ms(300)
    assert bench.node.unvoting == {n}
    bench.forget()


def test_s4_the_other_winner_was_restarted_before_they_meet() -> None:
    bench, twin = won_with_node_2()
    bench.keep_hearing(400, (1, entry(twin, State.STANDBY, held=twin.epoch)))
    assert "T505" in bench.rows


@pytest.mark.parametrize("state", [State.OWNED, State.ACQUIRING])
def test_s4_the_other_winner_was_heard_as_owner_and_is_gone(state: State) -> None:
    bench, twin = won_with_node_2()
    bench.keep_hearing(30, (1, entry(twin, state)))
    bench.pass_ms(300)
    bench.incarnations[2], bench.seqs[2] = 999, 0
    bench.keep_hearing(500, (2, STANDBY))  # blank
    assert "T505" in bench.rows


def test_s4_two_winners_meet_while_the_voter_that_forgot_is_marked_dead() -> None:
    """A mark takes away no vote that was given before it."""
    bench, twin = won_with_node_2()
    mark_dead(bench, 2)
    bench.keep_hearing(400, (1, entry(twin, State.LAPSED, held=twin.epoch)))
    assert "T505" in bench.rows


def test_s4_a_voter_that_forgot_while_the_other_winner_is_marked_dead() -> None:
    bench = Bench()
    mine = bench.own()  # with the vote of node 1
    bench.pass_ms(101)
    mark_dead(bench, 2)
    bench.keep_hearing(400, (1, entry(Identity(mine.epoch, 2, 77), held=mine.epoch)))
    assert "T505" in bench.rows


def test_where_one_vote_is_enough_a_twin_ends_no_calls() -> None:
    """Two parts have an owner each, and their epochs say nothing: one goes on when they meet."""
    bench = Bench(spec_of(2, quorum=Quorum.AVAILABILITY))
    bench.pass_ms(305)
    mine = bench.service.identity
    bench.give(inp.Froze(300_000, 4711))
    assert bench.stands_in(State.LAPSED)
    bench.forget()
    twin = Identity(mine.epoch, 1, 77)
    bench.keep_hearing(400, (1, entry(twin, State.LAPSED, held=mine.epoch)))
    assert "T501" in bench.rows
    assert not kinds(bench.asked, EndCalls)
