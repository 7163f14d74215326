"""What seldom happens to a node, one case at a time: each is a branch of `core` of its own."""

from __future__ import annotations

import msgspec

from haclusterd.core import inputs as inp
from haclusterd.core import moves
from haclusterd.core.actions import Action, EndCalls, KillFreeswitch, Recover
from haclusterd.core.model import Echo, Identity, Release, State
from haclusterd.core.node import is_calm
from haclusterd.core.state import NEVER
from tests.unit.core_bench import STANDBY, Bench, entry, kinds, spec_of


def owner_cut_off() -> Bench:
    """Node 0 owns service 0, and then hears nobody until its lease has lapsed."""
    bench = Bench()
    bench.own()
    bench.pass_ms(120)
    assert bench.stands_in(State.LAPSED)
    return bench


def test_lapsed_owner_without_carrier_reclaims_when_the_carrier_is_back() -> None:
    bench = owner_cut_off()
    bench.give(inp.CarrierChanged(0, False))
    unready = entry(ready=False)
    bench.keep_hearing(100, (1, unready), (2, unready))
    assert bench.stands_in(State.LAPSED)
    assert "T501" not in bench.rows
    bench.give(inp.CarrierChanged(0, True))
    bench.keep_hearing(25, (1, unready), (2, unready))
    assert "T501" in bench.rows


def test_a_round_trip_that_cannot_be_is_not_measured() -> None:
    """The peer says that it held the beat for longer than it can have had it."""
    bench = Bench().after_hold_down()
    bench.ensure_recent_send()
    beat = bench.beat(1)
    echo = Echo(bench.node.incarnation & 0xFFFFFFFF, bench.node.seq, 10**9)
    bench.give(inp.Received(0, msgspec.structs.replace(beat, echoes=(echo, None, None))))
    assert bench.node.peers[1].links[0].rtt_us == 0
    assert bench.hears(1)


def test_a_copy_on_another_link_makes_a_known_beat_two_way() -> None:
    """Its content is no news then; that it was heard both ways is, and echoes the owner's lease."""
    bench = Bench().after_hold_down()
    owner = Identity(1, 1, 7)
    bench.hear(1, entry(owner, State.OWNED))
    bench.pass_ms(50)
    bench.ensure_recent_send()
    one_way = bench.beat(1, entry(owner, State.OWNED), two_way=False)
    echo = Echo(bench.node.incarnation & 0xFFFFFFFF, bench.node.seq, 0)
    bench.hear_on(0, one_way)
    assert bench.service.lease_seq != one_way.seq
    copy = msgspec.structs.replace(one_way, link=1, echoes=(echo, None, None))
    bench.hear_on(1, copy)
    assert bench.service.lease_seq == one_way.seq
    assert bench.service.silence_us == bench.now_us


def test_a_win_without_a_claim_takes_nothing() -> None:
    bench = Bench().after_hold_down()
    out: list[Action] = []
    moves._EFFECTS["take"](bench.node, 0, bench.service, bench.now_us, out)
    assert (out, bench.service.identity.epoch, bench.service.lease_until_us) == ([], 0, NEVER)


def test_superseded_owner_of_something_else_keeps_its_freeswitch() -> None:
    bench = Bench(spec_of(services=2))
    bench.own()
    bench.node.services[1].holding = True
    found = bench.hear(1, entry(Identity(9, 1, 3), State.OWNED))
    assert [what.service for what in kinds(found, EndCalls)] == [0]
    assert not kinds(found, KillFreeswitch)


def own_with_a_new_freeswitch() -> Bench:
    """Nobody else was ready: the service stayed, and the agent recovers its calls in place."""
    bench = Bench()
    bench.own()
    bench.pass_ms(1)
    bench.hear(1, entry(bench.service.identity, lease_seq=bench.node.seq, ready=False))
    bench.give(inp.FreeswitchExited())
    assert bench.stands_in(State.OWNED)
    bench.report(freeswitch_up=False)
    assert not bench.service.holding
    bench.report()
    return bench


def test_f15_an_owner_whose_freeswitch_came_back_does_not_recover_its_calls_twice() -> None:
    bench = own_with_a_new_freeswitch()
    bench.pass_ms(101)
    assert bench.stands_in(State.LAPSED)
    bench.forget()
    bench.hear(1, entry(bench.node.services[0].promise, ready=False))
    bench.keep_hearing(160, (1, entry(bench.service.promise, ready=False)))
    bench.hear(1, entry(bench.service.promise, ready=False))
    assert bench.stands_in(State.OWNED), bench.said
    assert not kinds(bench.asked, Recover)


def test_f15_an_owner_whose_freeswitch_came_back_ends_its_calls_when_superseded() -> None:
    bench = own_with_a_new_freeswitch()
    found = bench.hear(1, entry(Identity(9, 1, 3), State.OWNED))
    assert kinds(found, EndCalls)


def test_f15_a_freeswitch_that_comes_back_while_fenced_is_given_its_calls_by_the_reclaim() -> None:
    bench = own_with_a_new_freeswitch()
    bench.give(inp.FreeswitchExited())
    bench.pass_ms(101)
    assert bench.stands_in(State.LAPSED)
    bench.report()
    assert not bench.service.holding
    bench.forget()
    bench.keep_hearing(160, (1, entry(bench.service.promise, ready=False)))
    bench.hear(1, entry(bench.service.promise, ready=False))
    assert len(kinds(bench.asked, Recover)) == 1


def test_f15_what_a_new_agent_recovers_again_is_held_here() -> None:
    bench = Bench()
    mine = bench.own()
    bench.pass_ms(1)
    bench.hear(1, entry(mine, lease_seq=bench.node.seq, ready=False))
    bench.give(inp.RecoveryEnded(0, mine, False, "the profile does not start"))
    bench.give(inp.FreeswitchExited())
    assert not bench.service.holding
    bench.give(inp.AgentChanged(False))
    found = bench.give(inp.AgentChanged(True))
    assert len(kinds(found, Recover)) == 1
    assert bench.service.holding


def test_f17_why_a_term_could_not_recover_its_calls_ends_with_it() -> None:
    bench = Bench()
    mine = bench.own()
    bench.pass_ms(1)
    bench.hear(1, entry(mine, lease_seq=bench.node.seq, ready=False))
    bench.give(inp.RecoveryEnded(0, mine, False, "the profile does not start"))
    assert bench.service.unrecovered
    bench.hear(1, entry(Identity(9, 1, 3), State.OWNED))
    assert bench.stands_in(State.STANDBY)
    assert not bench.service.unrecovered


def test_f17_a_failure_in_place_counts_also_from_an_agent_that_knows_no_nonce() -> None:
    bench = own_with_a_new_freeswitch()
    epoch = bench.service.identity.epoch
    bench.give(inp.RecoveryEnded(0, Identity(epoch - 1, 0, 0), False, "of an older term"))
    bench.give(inp.RecoveryEnded(0, Identity(epoch, 1, 0), False, "of another node"))
    why = ["", "the profile does not start", ""]
    assert bench.service.unrecovered == why[0]
    bench.give(inp.RecoveryEnded(0, Identity(epoch, 0, 0), False, why[1]))
    assert bench.service.unrecovered == why[1]
    bench.give(inp.RecoveryEnded(0, Identity(epoch, 0, 0), True))
    assert bench.service.unrecovered == why[2]


def test_calm_is_an_owner_with_a_majority_and_nothing_on_the_move() -> None:
    bench = Bench()
    assert not is_calm(bench.node), "no majority"
    bench.own()
    bench.pass_ms(1)
    assert is_calm(bench.node)
    bench.give(inp.FreeswitchExited())
    assert not is_calm(bench.node)


def test_report_of_a_freeswitch_that_is_not_up_does_not_bring_it_back() -> None:
    bench = Bench()
    bench.give(inp.FreeswitchExited())
    bench.report(freeswitch_up=False)
    assert bench.node.freeswitch_gone
    assert not bench.node.freeswitch_up
    bench.report()
    assert not bench.node.freeswitch_gone


def test_late_grant_is_void_before_any_tick_could_drop_the_claim() -> None:
    """It lies in the socket when the process goes on after a stun, before the Tick."""
    bench = claiming()
    claim = bench.service.promise
    bench.pass_ms(101, tick=False)
    bench.give(inp.Received(0, bench.beat(1, entry(claim))))
    assert bench.stands_in(State.CLAIMING)
    assert "T201" not in bench.rows


def claiming() -> Bench:
    bench = Bench().after_hold_down()
    bench.keep_hearing(100, (1, STANDBY))
    assert bench.stands_in(State.CLAIMING)
    return bench


def test_claimant_that_grants_another_gives_its_own_claim_up() -> None:
    """Its own claim is out of time, and the Tick that would have dropped it comes later."""
    bench = claiming()
    mine, claim = bench.service.promise, bench.service.claim
    assert claim is not None
    bench.pass_ms((claim.sent_us - bench.now_us) / 1000 + 90)
    bench.hear(2)
    bench.pass_ms(65, tick=False)
    other = Identity(mine.epoch + 1, 2, 5)
    bench.give(inp.Received(0, bench.beat(2, entry(other, State.CLAIMING))))
    assert bench.service.promise == other
    assert bench.rows[-2:] == ["T203", "V1"]
    assert bench.service.claim is None


def test_lapsed_owner_that_hears_of_anothers_grant_ends_its_calls() -> None:
    """The voter does not know whether that claim won, and the claimant is not heard (S4)."""
    bench = owner_cut_off()
    granted = Identity(bench.service.promise.epoch + 1, 1, 77)
    bench.keep_hearing(40, (2, entry(granted)))
    assert bench.stands_in(State.LAPSED), "it listens for two beats"
    bench.keep_hearing(50, (2, entry(granted)))
    (lost,) = [what for what in bench.said if what.row == "T505"]
    assert lost.text == f"n0 lost s0 while fenced: n1 owns it at epoch {granted.epoch}"
    assert "T501" not in bench.rows


def test_lapsed_owner_keeps_its_calls_when_the_claimant_says_that_nothing_came_of_it() -> None:
    bench = owner_cut_off()
    mine = bench.service.promise
    granted = Identity(mine.epoch + 1, 1, 77)
    bench.keep_hearing(20, (2, entry(granted)))
    bench.keep_hearing(40, (2, entry(granted)), (1, entry(granted, held=mine.epoch)))
    assert "T501" in bench.rows
    assert "T505" not in bench.rows


def test_lapsed_owner_does_not_believe_a_claimant_that_forgot_its_claim() -> None:
    """It crashed before its promise was on the disk; until then it may have served."""
    bench = owner_cut_off()
    mine = bench.service.promise
    granted = Identity(mine.epoch + 1, 1, 77)
    bench.keep_hearing(90, (2, entry(granted)), (1, entry(mine, held=mine.epoch)))
    assert "T505" in bench.rows
    assert "T501" not in bench.rows


def test_restarted_claimant_says_that_its_claim_may_have_won() -> None:
    """The win may not have reached the disk, as its promise did."""
    own, other = Identity(5, 0, 9), Identity(5, 1, 9)
    for promise, owned in ((other, 3), (own, 5)):
        bench = Bench()
        bench.give(inp.Restored((promise,), (3,)))
        assert bench.service.owned_epoch == owned


def test_lapsed_owner_does_not_wait_for_a_claim_that_goes_on_and_on() -> None:
    bench = owner_cut_off()
    granted = Identity(bench.service.promise.epoch + 1, 1, 77)
    bench.keep_hearing(260, (1, entry(granted, State.CLAIMING)))
    assert "V1" in bench.rows
    assert "T505" in bench.rows
    assert "T501" not in bench.rows


def test_owner_is_not_unseated_by_hearsay_of_a_later_owner() -> None:
    """It counts on from there; it yields to an owner that it hears, or when its lease ends."""
    bench = Bench()
    mine = bench.own()
    bench.hear(1, entry(mine, lease_seq=bench.node.seq, held=mine.epoch + 3))
    assert bench.stands_in(State.OWNED)
    assert bench.service.owned_epoch == mine.epoch + 3
    assert bench.service.highest == mine.epoch + 3


def test_release_of_a_service_that_is_not_configured_counts_for_nothing() -> None:
    bench = Bench().after_hold_down()
    owner = Identity(1, 1, 7)
    bench.hear(1, entry(owner, State.OWNED))
    bench.forget()
    bench.hear(1, entry(owner), releases=(Release(5, owner, 0),))
    assert "V7" not in bench.rows
    assert bench.service.release is None
