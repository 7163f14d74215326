"""An owner that counts by marks, and nodes that come back beside it (core.marks, core.voter)."""

from __future__ import annotations

from typing import Any

import pytest

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core.model import NOBODY, Echo, Flag, Identity, LastResort, Quorum, State
from tests.unit.core_bench import HOLD_DOWN_MS, STANDBY, Bench, entry, kinds, spec_of
from tests.unit.test_core_orders import marks
from tests.unit.test_core_voter import OWNER, claims

BY_MARKS, STARTING = int(Flag.BY_MARKS), int(Flag.STARTING)


def alone(services: int = 1) -> Bench:
    """n0 owns s0 by the marks of n1 and n2."""
    bench = Bench(spec_of(services=services, last_resort=LastResort.NONE))
    bench.own()
    bench.pass_ms(400)
    bench.give(marks(1, 2))
    bench.pass_ms(500)
    assert bench.stands_in(State.OWNED), bench.said
    bench.forget()
    return bench


def starting(flags: int = BY_MARKS, two_way: bool = True, ready: bool = False) -> Bench:
    """n0 is at the end of its hold-down, and has heard n1 own s0 until then."""
    bench = Bench(ready=ready)
    while bench.now_us - bench.began_us < (HOLD_DOWN_MS - 10) * 1000:
        bench.hear(1, entry(OWNER, State.OWNED), flags=flags, two_way=two_way)
        bench.hear(2, STANDBY)
        bench.pass_ms(20)
    bench.hear(1, entry(OWNER, State.OWNED), flags=flags, two_way=two_way)
    bench.pass_ms(HOLD_DOWN_MS + 1 - (bench.now_us - bench.began_us) / 1000)
    assert bench.service.promise == NOBODY
    return bench


def test_an_owner_that_counts_by_marks_says_so() -> None:
    bench = alone()
    beat = kinds(bench.pass_ms(30), act.SendBeat)[-1].beats[0]
    assert beat.flags & BY_MARKS
    ordinary = Bench()
    ordinary.own()
    assert (
        not kinds(ordinary.asked or ordinary.pass_ms(30), act.SendBeat)[-1].beats[0].flags
        & BY_MARKS
    )


def test_s1_who_heard_it_in_the_hold_down_waits_for_its_silence() -> None:
    """Nobody else stands by it: that it stood still for 75 ms is no reason to take over."""
    bench = starting(ready=True)
    assert not claims(bench)
    bench.keep_hearing(120, (2, STANDBY))
    assert "T101" not in bench.rows
    bench.keep_hearing(60, (2, STANDBY))
    assert "T101" in bench.rows


def test_an_ordinary_owner_is_covered_by_its_majority() -> None:
    assert claims(starting(0, True))


def test_s1_an_owner_by_marks_that_was_not_met_is_waited_for() -> None:
    """F41: it is stunned again and again, and its beats are too old to be two-way."""
    assert not claims(starting(BY_MARKS, False))


def test_the_owner_by_marks_itself_is_granted_at_once() -> None:
    bench = starting()
    assert claims(bench, Identity(9, 1, 5))


def test_s1_alone_by_marks_it_listens_after_a_thaw() -> None:
    """F25: who has come back meanwhile may have taken over."""
    bench = alone()
    bench.now_us += 400_000
    bench.give(inp.Froze(400_000, 77))
    assert bench.stands_in(State.LAPSED)
    bench.pass_ms(245)
    assert bench.stands_in(State.LAPSED)
    bench.pass_ms(100)
    assert bench.stands_in(State.OWNED)


def test_s1_alone_by_marks_a_second_stun_is_no_silence() -> None:
    """What waits in the socket is too old to be two-way, and says that somebody is back."""
    bench = alone()
    for _ in range(3):
        bench.hear(1, STANDBY, flags=STARTING)
        bench.pass_ms(20)
    bench.now_us += 400_000
    bench.give(inp.Froze(400_000, 77))
    bench.now_us += 99_000
    bench.hear_on(0, bench.beat(1, entry(Identity(9999, 1, 3), State.OWNED), two_way=False))
    bench.pass_ms(100)
    assert bench.stands_in(State.LAPSED)


def test_s1_the_lease_of_who_is_alone_hangs_on_those_who_are_back() -> None:
    """Once they are up for a lease: an earlier life of theirs may have granted something."""
    bench = alone()
    bench.incarnations[1] = 200
    mine = bench.service.identity

    def hear(ms: float, **words: Any) -> None:
        for _ in range(int(ms / 20)):
            bench.hear(1, entry(NOBODY, **words), flags=STARTING)
            bench.pass_ms(20)

    hear(90, held=mine.epoch)
    assert bench.node.left_out == {1, 2}
    hear(200, held=mine.epoch)
    assert bench.node.left_out == {2}
    assert bench.stands_in(State.OWNED), "it waits for this owner, though it does not vote yet"
    hear(40, held=mine.epoch - 1)
    assert bench.stands_in(State.OWNED)
    hear(80, held=mine.epoch - 1)
    assert bench.stands_in(State.LAPSED), "it has not heard of this term"


def test_s1_who_was_started_again_says_nothing_for_a_lease() -> None:
    bench = alone()
    mine = bench.service.identity
    bench.incarnations[1] = 200
    for _ in range(8):
        bench.hear(1, entry(NOBODY, held=mine.epoch), flags=STARTING)
        bench.pass_ms(15)
    heard_us = bench.service.voter_sent_us[1]
    assert bench.now_us - heard_us < 40_000
    bench.incarnations[1] = 300
    bench.hear(1, entry(NOBODY, held=mine.epoch), flags=STARTING)
    assert bench.service.voter_sent_us[1] == heard_us


def test_s1_with_one_more_vote_by_marks_it_listens_after_a_thaw_as_well() -> None:
    """Those that were marked may be three of five, and back."""
    bench = Bench(spec_of(nodes=5))
    bench.after_hold_down()
    bench.keep_hearing(100, (1, STANDBY), (2, STANDBY), (3, STANDBY))
    claim = bench.service.promise
    for n in (1, 2, 3):
        bench.hear(n, entry(claim))
    assert bench.stands_in(State.OWNED), bench.said
    bench.pass_ms(400)
    bench.give(marks(2, 3, 4))
    for _ in range(40):
        bench.hear(1, entry(bench.service.promise, lease_seq=bench.node.seq))
        bench.pass_ms(20)
    assert bench.stands_in(State.OWNED), bench.said
    mine = bench.service.identity
    bench.now_us += 400_000
    bench.give(inp.Froze(400_000, 77))
    bench.keep_hearing(245, (1, entry(mine)))
    assert bench.stands_in(State.LAPSED)
    bench.keep_hearing(60, (1, entry(mine)))
    assert "T501" in bench.rows


@pytest.mark.parametrize(
    ("state", "cleared"),
    [
        (State.STANDBY, True),
        (State.OWNED, True),
        (State.ACQUIRING, True),
        (State.LAPSED, False),
        (State.CLAIMING, False),
    ],
)
def test_s1_a_mark_goes_though_the_node_owns_another_service(state: State, cleared: bool) -> None:
    """F27: what counts is that it stands by what is owned here."""
    bench = alone(services=2)
    mine, theirs = bench.service.identity, Identity(5, 1, 9)
    for _ in range(4):
        bench.hear(1, entry(mine, lease_seq=bench.node.seq), entry(theirs, state))
        bench.pass_ms(20)
    assert (1 not in bench.node.marked) == cleared


def test_s1_a_claim_asks_who_is_marked_and_heard_again() -> None:
    """F28: n1 may win by the vote of n2 in the next moment, and neither needs this node."""
    bench = Bench(ready=False).after_hold_down()
    bench.pass_ms(400)
    bench.give(marks(1, 2))
    bench.pass_ms(300)
    assert bench.node.unvoting == {1, 2}
    for ready in (False, True):
        for _ in range(6):
            for n in (1, 2):
                bench.hear(n, STANDBY, flags=STARTING)
            bench.report(ready=ready)
            bench.pass_ms(20)
    assert "T101" not in bench.rows, "it could only fail"
    bench.pass_ms(280)
    assert {"T101", "T301"} <= set(bench.rows), "they are silent again"


def test_s1_a_claim_under_way_asks_who_is_heard_meanwhile() -> None:
    bench = Bench(spec_of(nodes=4)).after_hold_down()
    bench.report(ready=False)
    bench.keep_hearing(400, (1, STANDBY), (2, STANDBY))
    bench.give(marks(3))
    bench.keep_hearing(300, (1, STANDBY), (2, STANDBY))
    bench.hear(3, STANDBY, flags=STARTING)
    bench.keep_hearing(60, (1, STANDBY), (2, STANDBY))
    bench.report()
    bench.keep_hearing(40, (1, STANDBY), (2, STANDBY))
    claim = bench.service.claim
    assert claim is not None
    bench.hear(3, STANDBY, flags=STARTING)
    bench.pass_ms(26)
    assert bench.node.left_out == frozenset()
    bench.hear(1, entry(claim.identity))
    assert bench.service.claim is not None, "2 of 3 without n3, and 2 of 4 with it"
    bench.hear(2, entry(claim.identity))
    assert "n0 won s0 at epoch 1001 with 3 of 4 votes" in [what.text for what in bench.said]


def test_s1_who_stood_still_in_its_hold_down_begins_it_anew() -> None:
    """F29: it has not heard who owns what, and its time says nothing."""
    bench = Bench()
    bench.pass_ms(100)
    bench.now_us += 300_000
    bench.give(inp.Froze(300_000, 77))
    bench.pass_ms(240)
    assert not claims(bench)
    bench.pass_ms(20)
    assert claims(bench)


def test_where_one_vote_is_enough_an_owner_in_the_socket_is_heard() -> None:
    """A slave was stunned while another one took over: its words are too old to be two-way."""
    bench = Bench(spec_of(quorum=Quorum.AVAILABILITY))
    bench.keep_hearing(600, (1, entry(OWNER, State.OWNED)), (2, STANDBY))
    bench.keep_hearing(100, (2, STANDBY))
    bench.now_us += 95_000
    owner = Identity(OWNER.epoch + 1, 2, 7)
    bench.hear_on(0, bench.beat(2, entry(owner, State.OWNED), two_way=False))
    bench.pass_ms(30)
    assert "T101" not in bench.rows
    bench.pass_ms(150)
    assert "T101" in bench.rows


def test_s1_an_owner_by_marks_that_is_heard_one_way_is_waited_for() -> None:
    """It may be stunned again and again, and what it sends in between be old."""
    bench = Bench(ready=False).after_hold_down()
    bench.keep_hearing(100, (1, STANDBY), (2, STANDBY))
    for flags, granted in ((BY_MARKS, False), (0, True)):
        word = bench.beat(1, entry(OWNER, State.OWNED), two_way=False, flags=flags)
        bench.hear_on(0, word)
        assert claims(bench, Identity(9, 2, 5)) == granted
        bench.pass_ms(160)
    assert bench.service.guard == 1


def test_s1_who_is_heard_again_counts_without_a_tick() -> None:
    """An owner that is stunned again and again reads and beats, and may never have one."""
    bench = alone()
    bench.incarnations[1] = 200
    bench.hear(1, STANDBY, flags=STARTING)
    assert bench.node.left_out == {1, 2}
    bench.now_us += 99_000
    bench.hear_on(0, bench.beat(1, STANDBY, two_way=False, flags=STARTING))
    assert bench.node.left_out == {1, 2}
    bench.now_us += 2_000
    bench.hear_on(0, bench.beat(1, STANDBY, two_way=False, flags=STARTING))
    assert bench.node.left_out == {2}
    thawed = alone()
    thawed.incarnations[1] = 200
    thawed.hear(1, STANDBY)
    assert thawed.node.left_out == {2}, "it votes"


def hear_who_waits(bench: Bench) -> int:
    """n1 is back, and waits for the owner for 140 ms. When the newest beat was sent that counts."""
    for _ in range(7):
        bench.hear(1, entry(NOBODY, held=bench.service.identity.epoch), flags=STARTING)
        bench.pass_ms(20)
    return bench.service.voter_sent_us[1]


def test_s1_a_renewal_hangs_on_no_echo_of_who_only_waits() -> None:
    """It is told as a claim, and nobody waits for that."""
    bench = alone()
    bench.incarnations[1] = 200
    mine = bench.service.identity
    heard_us = hear_who_waits(bench)
    assert heard_us > bench.now_us - 60_000
    bench.service.promise = Identity(mine.epoch + 1, 0, 9)
    bench.hear(1, entry(NOBODY, held=mine.epoch), flags=STARTING)
    assert bench.service.voter_sent_us[1] == heard_us


def test_s1_who_votes_carries_no_lease_by_hearing_alone() -> None:
    """Only in its hold-down does it wait for whom it hears. It votes: for somebody else here."""
    bench = alone()
    bench.incarnations[1] = 200
    mine = bench.service.identity
    heard_us = hear_who_waits(bench)
    bench.hear(1, entry(Identity(mine.epoch + 1, 2, 9), held=mine.epoch))
    assert bench.node.unvoting == {1, 2}
    assert bench.service.voter_sent_us[1] == heard_us


def test_s1_what_was_sent_before_it_counted_by_marks_made_nobody_wait() -> None:
    bench = alone()
    bench.incarnations[1] = 200
    bench.node.by_marks_us = bench.now_us + 10**9
    assert hear_who_waits(bench) < bench.now_us - 100_000


def test_s1_what_was_heard_before_a_thaw_here_made_nobody_wait_for_this_life() -> None:
    bench = alone()
    bench.incarnations[1] = 200
    mine = bench.service.identity
    heard_us = hear_who_waits(bench)
    former = Echo(4711, bench.node.seq, 0)
    echoes = (former, None, None)
    word = bench.beat(1, entry(NOBODY, held=mine.epoch), flags=STARTING, echoes=echoes)
    bench.hear_on(0, word)
    assert bench.service.voter_sent_us[1] == heard_us


def test_a_mark_stays_while_a_lapsed_owner_has_no_word_of_its_own() -> None:
    """Heard, the node counts anyway; if it dies again at once it should not be needed."""
    bench = alone()
    mine = bench.service.identity
    bench.now_us += 120_000
    bench.give(inp.Froze(120_000, 77))
    assert bench.stands_in(State.LAPSED)
    for _ in range(2):
        bench.hear(1, entry(mine))
        bench.pass_ms(5)
    assert bench.node.marked == {1, 2}
    bench.keep_hearing(100, (1, entry(mine)))
    for _ in range(3):
        bench.hear(1, entry(bench.service.promise, lease_seq=bench.node.seq))
        bench.pass_ms(20)
    assert bench.stands_in(State.OWNED)
    assert bench.node.marked == {2}


def test_s1_no_lease_without_who_has_just_started_reaches_to_the_end_of_its_hold_down() -> None:
    """F40: it may hear nothing of what this node says."""
    bench = alone()
    bench.incarnations[1] = 4711
    heard_us = bench.now_us
    bench.hear(1, STANDBY, two_way=False, flags=STARTING)
    bench.pass_ms(99)
    assert bench.node.left_out == {1, 2}
    assert bench.service.lease_until_us <= heard_us + 162_500
    bench.pass_ms(70)
    assert bench.stands_in(State.LAPSED)


def test_s1_what_is_won_without_them_ends_with_their_hold_down_as_well() -> None:
    """n1 is heard, one way, for less than a lease when this node claims by marks."""
    bench = Bench(ready=False).after_hold_down()
    bench.pass_ms(400)
    bench.give(marks(1, 2))
    bench.pass_ms(300)
    bench.incarnations[1] = 4711
    heard_us = bench.now_us
    bench.hear(1, STANDBY, two_way=False, flags=STARTING)
    bench.pass_ms(80)
    bench.report()
    bench.pass_ms(10)
    assert bench.node.left_out == {1, 2}
    assert bench.stands_in(State.OWNED), bench.said
    assert bench.service.lease_until_us == heard_us + 162_500


def test_who_is_marked_once_more_stays_left_out() -> None:
    """By a second operator, or by the order that is given again on another host: nothing changes
    for who serves alone."""
    bench = alone()
    bench.give(inp.MarksOrdered(2, (inp.Marked(1, 9, "olga"), inp.Marked(2, 9, "olga"))))
    bench.pass_ms(400)
    assert bench.stands_in(State.OWNED)
    assert bench.node.left_out == {1, 2}
