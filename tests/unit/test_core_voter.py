"""The voter: DESIGN 6, Identity, Lease (the echo), Grant, Release and Epochs, one test per rule."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from haclusterd.core import inputs as inp
from haclusterd.core.actions import Persist, SendBeat
from haclusterd.core.model import EPOCH_MAX, NOBODY, Flag, Identity, Release, State
from tests.unit.core_bench import STANDBY, Bench, entry, kinds, spec_of

OWNER = Identity(3, 1, 77)
CLAIM = Identity(4, 2, 88)


def supporting(ms_of_owner: float = 100) -> Bench:
    """Node 0 stands by node 1, which owns the service and was heard just now."""
    bench = Bench().after_hold_down()
    bench.report(ready=False)  # a voter only
    bench.keep_hearing(ms_of_owner, (1, entry(OWNER, State.OWNED)), (2, STANDBY))
    bench.hear(1, entry(OWNER, State.OWNED))
    assert bench.service.promise == OWNER
    bench.forget()
    return bench


def claims(bench: Bench, claim: Identity = CLAIM, **changes: Any) -> bool:
    bench.hear(claim.node, entry(claim, State.CLAIMING), **changes)
    return bench.service.promise == claim


def holds(bench: Bench) -> bool:
    return bench.service.holding


def test_grant_never_while_the_owner_was_heard_within_dead_ms() -> None:
    bench = supporting()
    bench.pass_ms(119)
    assert not claims(bench)
    assert bench.service.deferred is None  # more than a beat and 5 ms are missing


def test_grant_after_dead_ms_of_silence_is_persisted_and_told_at_once() -> None:
    bench = supporting()
    bench.pass_ms(151)
    bench.ensure_recent_send()
    bench.forget()
    assert claims(bench)
    assert bench.rows[-1] == "V1"
    assert kinds(bench.asked, Persist)[-1].promises == (CLAIM,)
    assert kinds(bench.asked, SendBeat)[-1].beats[0].services[0].promise == CLAIM


def test_grant_at_most_one_claimant_per_epoch() -> None:
    bench = supporting()
    bench.pass_ms(151)
    assert claims(bench)
    assert not claims(bench, Identity(CLAIM.epoch, 1, 5))
    bench.pass_ms(500)
    assert not claims(bench, Identity(CLAIM.epoch, 1, 5))
    assert bench.service.promise == CLAIM


def test_grant_never_within_the_start_hold_down_not_even_for_a_release() -> None:
    bench = Bench(ready=False)
    bench.give(inp.Restored((OWNER,)))
    bench.pass_ms(200)
    bench.hear(1, STANDBY, releases=(Release(0, OWNER, 2),))
    assert bench.service.release is not None
    assert not claims(bench)
    bench.pass_ms(51)
    assert claims(bench)


def test_grant_restarts_the_silence_timer() -> None:
    bench = supporting()
    bench.pass_ms(151)
    assert claims(bench)
    bench.pass_ms(100)
    assert not claims(bench, Identity(5, 1, 6))


def test_grant_deferred_up_to_a_beat_and_5_ms_short_then_judged_from_scratch() -> None:
    bench = supporting()
    bench.pass_ms(125)
    assert not claims(bench)
    assert bench.service.deferred is not None
    bench.pass_ms(24)
    assert bench.service.promise == OWNER
    bench.pass_ms(2)
    assert bench.service.promise == CLAIM


def test_grant_deferred_is_dropped_if_the_owner_was_heard() -> None:
    bench = supporting()
    bench.pass_ms(130)
    claims(bench)
    bench.hear(1, entry(OWNER, State.OWNED))
    bench.pass_ms(60)
    assert (bench.service.promise, bench.service.deferred) == (OWNER, None)


def test_grant_deferred_is_dropped_if_another_was_granted() -> None:
    bench = supporting()
    bench.pass_ms(130)
    claims(bench)
    bench.pass_ms(15, tick=False)
    bench.hear(2, STANDBY, releases=(Release(0, OWNER, -1),))
    other = Identity(4, 1, 5)
    assert claims(bench, other)
    bench.pass_ms(60)
    assert bench.service.promise == other


def test_grant_deferred_is_dropped_if_the_node_froze() -> None:
    bench = supporting()
    bench.pass_ms(130)
    claims(bench)
    bench.pass_ms(200, tick=False)
    bench.give(inp.Froze(200_000, 5))
    bench.pass_ms(100)
    assert bench.service.promise == OWNER


def test_grant_deferred_is_dropped_if_the_claimant_went_silent() -> None:
    bench = supporting()
    bench.pass_ms(125)
    claims(bench)
    bench.pass_ms(100, tick=False)  # a busy process; nothing came from the claimant since
    bench.give(inp.Tick())
    assert bench.service.promise == OWNER


def test_grant_silence_timer_restarts_after_a_thaw() -> None:
    bench = supporting(200)
    bench.pass_ms(120, tick=False)
    bench.give(inp.Froze(120_000, 5))
    bench.ensure_recent_send()
    assert not claims(bench)
    bench.pass_ms(151)
    assert claims(bench)


def test_s1_who_stood_still_for_dead_begins_its_hold_down_anew() -> None:
    """Others, who count by marks, may have left it out meanwhile."""
    bench = supporting(200)
    bench.hear(2, STANDBY, flags=int(Flag.BY_MARKS))
    bench.pass_ms(150, tick=False)
    bench.give(inp.Froze(150_000, 5))
    bench.pass_ms(270)
    assert not claims(bench)
    bench.pass_ms(30)
    assert claims(bench)


def test_grant_the_holders_own_new_claim_needs_no_silence() -> None:
    bench = supporting()
    assert claims(bench, Identity(4, 1, 99))


def test_grant_needs_a_two_way_claim() -> None:
    bench = supporting()
    bench.pass_ms(151)
    assert not claims(bench, two_way=False)
    assert claims(bench)


def test_grant_not_to_a_node_of_another_configuration() -> None:
    """RELIABILITY 42: no claims by the odd node."""
    bench = supporting()
    bench.pass_ms(151)
    assert not claims(bench, config_hash=1234)


def test_identity_an_echo_needs_the_whole_identity_not_the_epoch() -> None:
    bench = supporting()
    seq = bench.service.lease_seq
    bench.hear(1, entry(Identity(OWNER.epoch, 1, OWNER.nonce + 1), State.OWNED))
    assert bench.service.lease_seq == seq
    bench.hear(1, entry(OWNER, State.OWNED))
    assert bench.service.lease_seq == bench.seqs[1]


def test_lease_echo_only_for_a_two_way_beat() -> None:
    bench = supporting()
    seq, silence_us = bench.service.lease_seq, bench.service.silence_us
    bench.pass_ms(10)
    bench.hear(1, entry(OWNER, State.OWNED), two_way=False)
    assert (bench.service.lease_seq, bench.service.silence_us) == (seq, silence_us)


def test_lease_echo_restarts_the_silence_timer_with_the_same_event() -> None:
    bench = supporting()
    bench.pass_ms(10)
    bench.hear(1, entry(OWNER, State.OWNED))
    assert bench.service.lease_seq == bench.seqs[1]
    assert bench.service.silence_us == bench.now_us


def test_s1_a_grant_echoes_nothing_of_the_former_owners() -> None:
    """Who is granted may have sent a beat of that very number, and would live by it unheard."""
    bench = supporting()
    assert bench.service.lease_seq == bench.seqs[1]
    bench.pass_ms(151)
    assert claims(bench)
    assert kinds(bench.asked, SendBeat)[-1].beats[0].services[0].lease_seq == -1


def test_lease_echo_never_during_the_start_hold_down() -> None:
    bench = Bench(ready=False)
    bench.give(inp.Restored((OWNER,)))
    bench.keep_hearing(200, (1, entry(OWNER, State.OWNED)))
    assert bench.service.lease_seq == -1


def test_lease_an_owners_beat_is_answered_within_a_ms_with_the_echo() -> None:
    bench = supporting()
    bench.pass_ms(5)
    assert kinds(bench.hear(1, entry(OWNER, State.OWNED)), SendBeat) == []
    (answer,) = kinds(bench.pass_ms(1), SendBeat)
    assert (answer.to, answer.beats[0].reply) == ((1,), True)
    assert answer.beats[0].services[0].lease_seq == bench.seqs[1]


def test_lease_answers_are_bounded_to_one_per_ms_and_never_answer_answers() -> None:
    bench = supporting()
    bench.pass_ms(5)
    bench.forget()
    for _ in range(50):
        bench.hear(1, entry(OWNER, State.OWNED))
    bench.pass_ms(1)
    assert len(kinds(bench.asked, SendBeat)) == 1
    bench.pass_ms(2)
    assert kinds(bench.hear(1, entry(OWNER, State.OWNED), reply=True), SendBeat) == []


def test_release_of_the_present_promise_waives_the_silence() -> None:
    bench = supporting()
    bench.hear(1, STANDBY, releases=(Release(0, OWNER, 2),))
    assert "V7" in bench.rows
    assert claims(bench)


def test_release_that_a_claim_carries_along_counts_as_well() -> None:
    """The RELEASE itself was lost: the claim rests on it and brings it."""
    bench = supporting()
    assert claims(bench, releases=(Release(0, OWNER, 2),))


@pytest.mark.parametrize(
    "other", [Identity(2, 1, 77), Identity(3, 1, 78), Identity(3, 2, 77), NOBODY]
)
def test_release_of_anything_but_the_present_promise_counts_for_nothing(other: Identity) -> None:
    bench = supporting()
    bench.hear(1, STANDBY, releases=(Release(0, other, 2),))
    assert bench.service.release is None
    assert not claims(bench)


def test_release_makes_nobody_an_owner() -> None:
    """Addressed to this node, it still takes a majority (RELIABILITY 3.2 e)."""
    bench = Bench().after_hold_down()
    bench.keep_hearing(100, (1, entry(OWNER, State.OWNED)), (2, STANDBY))
    bench.hear(1, STANDBY, releases=(Release(0, OWNER, 0),))
    bench.pass_ms(5)
    assert bench.stands_in(State.CLAIMING)
    assert bench.service.promise.epoch == OWNER.epoch + 1


def test_epochs_an_owner_at_a_higher_epoch_is_adopted_and_persisted() -> None:
    bench = supporting()
    newer = Identity(9, 2, 5)
    bench.hear(2, entry(newer, State.OWNED))
    assert bench.service.promise == newer
    assert bench.rows[-1] == "V5"
    assert kinds(bench.asked, Persist)[-1].promises == (newer,)


def test_epochs_an_owner_at_a_lower_epoch_is_not() -> None:
    bench = supporting()
    bench.hear(2, entry(Identity(2, 2, 5), State.OWNED))
    assert bench.service.promise == OWNER


def test_epochs_a_restarted_node_knows_what_it_promised() -> None:
    bench = Bench(ready=False)
    bench.give(inp.Restored((OWNER,)))
    assert bench.service.promise == OWNER
    bench.give(inp.Restored((Identity(1, 2, 3),)))
    assert bench.service.promise == OWNER


def test_epochs_that_nobody_can_have_counted_to_are_not_followed() -> None:
    bench = supporting()
    bench.hear(1, entry(OWNER), releases=(Release(0, Identity(EPOCH_MAX + 1, 1, 1), 0),))
    assert bench.service.promise == OWNER
    for word in (
        entry(Identity(2**64 - 1, 2, 1), State.CLAIMING),
        entry(OWNER, State.OWNED, held=2**64 - 1),
    ):
        bench.hear(word.promise.node, word)
    assert bench.service.highest <= EPOCH_MAX
    assert bench.service.promise == OWNER
    msgspec.msgpack.encode(bench.node)  # what an upgrade hands over fits


def test_lapsed_owner_grants_nothing_before_its_fence_is_confirmed() -> None:
    bench = Bench()
    mine = bench.own()
    bench.obeys = False
    bench.pass_ms(101)
    assert bench.stands_in(State.LAPSED)
    bench.hear(1, STANDBY)
    other = Identity(mine.epoch + 1, 1, 3)
    assert not claims(bench, other)
    bench.give(inp.FenceClosed(0, False))
    assert not claims(bench, other)
    bench.give(inp.FenceClosed(0, True))
    assert claims(bench, other)


def test_owner_grants_nobody() -> None:
    bench = Bench()
    mine = bench.own()
    assert not claims(bench, Identity(mine.epoch + 1, 2, 3))


def test_former_owner_that_granted_its_successor_ends_its_calls_when_it_serves() -> None:
    """DESIGN 2.4; M5: they live elsewhere from then on."""
    bench = Bench()
    mine = bench.own()
    bench.hear(2, STANDBY)
    bench.give(inp.SwitchoverRequested(1, 0, 2))
    other = Identity(mine.epoch + 1, 2, 3)
    assert claims(bench, other)
    assert holds(bench)
    bench.hear(2, entry(other, State.ACQUIRING))
    assert "T103" in bench.rows
    assert not holds(bench)
    bench.forget()
    bench.hear(2, entry(other, State.OWNED))
    assert "T103" not in bench.rows


def test_lapsed_owner_hears_from_a_third_that_it_had_a_successor() -> None:
    bench = Bench()
    mine = bench.own()
    bench.pass_ms(101)
    bench.pass_ms(1000)
    bench.hear(2, entry(Identity(mine.epoch + 1, 1, 5), held=mine.epoch + 1))
    assert "T505" in bench.rows
    yielded = next(what for what in bench.said if what.row == "T505")
    assert "n1 owns it at epoch 2" in yielded.text


def test_bounded_spec_has_a_majority() -> None:
    assert [spec_of(n).needed for n in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]
