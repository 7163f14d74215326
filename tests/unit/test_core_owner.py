"""The owner: how far its lease reaches, when it fences, how it wins back a stray vote."""

from __future__ import annotations

import pytest

from haclusterd.core import inputs as inp
from haclusterd.core.actions import (
    AddAddresses,
    Announce,
    CloseFence,
    EndCalls,
    FlushSockets,
    KillFreeswitch,
    Recover,
    RemoveAddresses,
    RenewFence,
    SendBeat,
)
from haclusterd.core.model import Identity, Quorum, State
from haclusterd.core.node import next_deadline_us
from tests.unit.core_bench import STANDBY, Bench, entry, kinds, spec_of


def test_lease_starts_at_the_claims_own_send_time() -> None:
    bench = Bench().after_hold_down()
    bench.keep_hearing(100, (1, STANDBY))
    claim = bench.service.claim
    assert claim is not None
    bench.pass_ms(30)
    bench.hear(1, entry(claim.identity))
    assert bench.stands_in(State.OWNED)
    assert bench.service.lease_until_us == claim.sent_us + 100_000


def test_after_a_late_grant_the_next_echo_opens_the_fence() -> None:
    """A grant to the third resend leaves a lease that is shorter than the fence's time."""
    bench = Bench().after_hold_down()
    bench.keep_hearing(100, (1, STANDBY))
    claim = bench.service.claim
    assert claim is not None
    bench.pass_ms(claim.sent_us / 1000 + 45 - bench.now_us / 1000)
    bench.hear(1, entry(claim.identity))
    assert bench.stands_in(State.OWNED)
    bench.forget()
    bench.hear(1, entry(claim.identity, lease_seq=bench.node.seq))
    assert kinds(bench.asked, RenewFence), "not a whole beat later"


def test_lease_runs_from_the_send_time_of_the_newest_echoed_beat() -> None:
    bench = Bench()
    mine = bench.own()
    bench.pass_ms(30)
    seq = bench.node.seq
    sent_us = bench.node.sent_us[seq]
    bench.pass_ms(30)
    bench.hear(1, entry(mine, lease_seq=seq))
    assert bench.service.lease_until_us == sent_us + 100_000
    bench.hear(1, entry(mine, lease_seq=seq - 1))  # an older echo shortens nothing
    assert bench.service.lease_until_us == sent_us + 100_000


def test_lease_needs_a_majority_of_echoes() -> None:
    bench = Bench(spec_of(5)).after_hold_down()
    bench.keep_hearing(80, (1, STANDBY), (2, STANDBY))
    bench.keep_hearing(30, (1, STANDBY), (2, STANDBY))
    mine = bench.service.promise
    bench.hear(1, entry(mine))
    assert bench.stands_in(State.CLAIMING)
    bench.hear(2, entry(mine))
    assert bench.stands_in(State.OWNED)
    until_us = bench.service.lease_until_us
    bench.pass_ms(30)
    bench.hear(1, entry(mine, lease_seq=bench.node.seq))
    assert bench.service.lease_until_us == until_us  # one echo of two
    bench.hear(2, entry(mine, lease_seq=bench.node.seq))
    assert bench.service.lease_until_us > until_us


def test_lease_echo_of_an_unknown_send_is_void() -> None:
    bench = Bench()
    mine = bench.own()
    until_us = bench.service.lease_until_us
    for seq in (-1, 10**9, 2**63):
        bench.hear(1, entry(mine, lease_seq=seq))
    assert bench.service.lease_until_us == until_us


def test_lapse_fences_and_only_fences() -> None:
    bench = Bench()
    bench.own()
    assert next_deadline_us(bench.node) <= bench.service.lease_until_us
    bench.pass_ms(101)
    assert bench.stands_in(State.LAPSED)
    assert kinds(bench.asked, CloseFence)
    assert not kinds(bench.asked, RemoveAddresses)
    assert not kinds(bench.asked, KillFreeswitch)


def test_lapse_is_woken_for_and_comes_before_any_other_input() -> None:
    bench = Bench()
    bench.own()
    bench.pass_ms(150, tick=False)
    found = bench.hear(1, STANDBY)
    assert bench.stands_in(State.LAPSED)
    assert not kinds(found, RenewFence)


def test_fence_is_renewed_with_every_beat_only_as_far_as_the_lease_reaches() -> None:
    bench = Bench()
    bench.own()
    bench.keep_owning(100)
    bench.forget()
    bench.pass_ms(38)
    renewals = kinds(bench.asked, RenewFence)
    assert renewals
    assert {r.lease_until_us for r in renewals} == {bench.service.lease_until_us}
    bench.forget()
    bench.pass_ms(40)  # now + fence_ms would pass the end of the lease
    assert kinds(bench.asked, SendBeat)
    assert not kinds(bench.asked, RenewFence)


def test_fence_low_and_a_late_echo_give_one_extra_renewal() -> None:
    bench = Bench()
    mine = bench.own()
    bench.pass_ms(70)
    bench.forget()
    seq = bench.node.seq
    bench.hear(1, entry(mine, lease_seq=seq))
    assert len(kinds(bench.asked, RenewFence)) == 1


def test_reclaim_without_recovery_is_announced() -> None:
    """DESIGN 2.4: the owner back before anybody else; the calls never left."""
    bench = Bench()
    mine = bench.own()
    bench.keep_owning(160)
    bench.pass_ms(101)
    bench.forget()
    bench.hear(1, entry(mine))
    bench.pass_ms(1)
    assert bench.stands_in(State.RECLAIMING)
    assert bench.service.promise.epoch == mine.epoch + 1
    bench.hear(1, entry(bench.service.promise))
    assert bench.stands_in(State.OWNED)
    assert kinds(bench.asked, AddAddresses)
    assert kinds(bench.asked, Announce)
    assert not kinds(bench.asked, Recover)


def test_reclaim_waits_for_the_confirmed_fence() -> None:
    bench = Bench()
    mine = bench.own()
    bench.obeys = False
    bench.pass_ms(101)
    bench.keep_hearing(60, (1, entry(mine)))
    assert bench.stands_in(State.LAPSED)
    bench.give(inp.FenceClosed(0, True))
    bench.keep_hearing(30, (1, entry(mine)))
    assert bench.stands_in(State.RECLAIMING)


def test_fence_not_confirmed_is_asked_for_once_a_beat() -> None:
    bench = Bench()
    bench.own()
    bench.obeys = False
    bench.pass_ms(101)
    bench.forget()
    bench.pass_ms(100)
    assert 3 <= len(kinds(bench.asked, CloseFence)) <= 8  # at most one per half a beat
    bench.give(inp.FenceClosed(0, True))
    bench.forget()
    bench.pass_ms(100)
    assert not kinds(bench.asked, CloseFence)


def test_release_only_after_fence_closed_and_address_gone() -> None:
    bench = Bench()
    mine = bench.own()
    bench.hear(2, STANDBY)
    bench.obeys = False
    bench.give(inp.SwitchoverRequested(1, 0, 2))
    bench.give(inp.AddressesRemoved(0, True))
    assert "T701" not in bench.rows
    bench.give(inp.FenceClosed(0, False))
    assert "T701" not in bench.rows
    bench.give(inp.FenceClosed(0, True))
    release = bench.service.release
    assert release is not None
    assert (release.identity, release.to) == (mine, 2)
    bench.forget()
    bench.pass_ms(60)  # repeated in the beats
    assert all(release in beat.beats[0].releases for beat in kinds(bench.asked, SendBeat))


def test_release_keeps_its_target_when_addresses_fail_late() -> None:
    bench = Bench()
    bench.own()
    bench.hear(1, STANDBY)
    bench.hear(2, STANDBY)
    bench.obeys = False
    bench.give(inp.SwitchoverRequested(1, 0, 2))
    bench.give(inp.AddressesAdded(0, False, "late"))
    bench.give(inp.FenceClosed(0, True))
    bench.give(inp.AddressesRemoved(0, True))
    assert bench.service.release is not None
    assert bench.service.release.to == 2


def test_stray_vote_is_won_back_at_a_higher_epoch() -> None:
    bench = Bench()
    mine = bench.own()
    bench.keep_owning(160)
    stray = Identity(mine.epoch + 3, 2, 5)
    bench.hear(2, entry(stray))
    assert "T409" in bench.rows
    assert bench.service.promise.epoch == stray.epoch + 1
    bench.hear(2, entry(bench.service.promise))
    assert "T411" in bench.rows
    assert bench.service.identity == bench.service.promise


def test_freeze_first_fence_then_flush_then_listen_under_a_new_incarnation() -> None:
    """DESIGN 6, Freeze; RELIABILITY 4: the sockets hold the past."""
    bench = Bench()
    mine = bench.own()
    bench.pass_ms(500, tick=False)
    found = bench.give(inp.Froze(500_000, 4711))
    order = [type(a) for a in found if isinstance(a, CloseFence | FlushSockets | SendBeat)]
    assert order[:2] == [CloseFence, FlushSockets]
    assert bench.node.incarnation == 4711
    seq = bench.node.seq
    assert bench.stands_in(State.LAPSED)
    bench.hear(1, entry(mine, lease_seq=seq - 1))  # an echo of the former life
    assert not bench.stands_in(State.OWNED)


def test_superseded_owner_of_nothing_else_kills_freeswitch() -> None:
    bench = Bench()
    mine = bench.own()
    bench.hear(2, entry(Identity(mine.epoch + 1, 2, 3), State.OWNED))
    assert "T407" in bench.rows
    assert kinds(bench.asked, KillFreeswitch)
    assert kinds(bench.asked, CloseFence)
    assert kinds(bench.asked, RemoveAddresses)


@pytest.mark.parametrize(("nodes", "quorum"), [(1, Quorum.MAJORITY), (2, Quorum.AVAILABILITY)])
def test_single_instance_is_naturally_master(nodes: int, quorum: Quorum) -> None:
    """M7; and `availability` acts without a majority (ML15, ML16)."""
    bench = Bench(spec_of(nodes, quorum=quorum))
    bench.pass_ms(245)
    assert bench.stands_in(State.STANDBY)
    bench.pass_ms(60)
    assert bench.stands_in(State.OWNED)
    bench.pass_ms(5_000)
    assert bench.stands_in(State.OWNED)


def test_addresses_not_confirmed_gone_are_asked_for_again() -> None:
    bench = Bench()
    bench.own()
    bench.hear(2, STANDBY)
    bench.obeys = False
    bench.give(inp.SwitchoverRequested(1, 0, 2))
    bench.give(inp.FenceClosed(0, True))
    bench.give(inp.AddressesRemoved(0, False, "busy"))
    bench.forget()
    bench.pass_ms(60)
    assert len(kinds(bench.asked, RemoveAddresses)) >= 2
    assert "T701" not in bench.rows
    bench.give(inp.AddressesRemoved(0, True))
    assert "T701" in bench.rows


def lapsed_and_granted() -> tuple[Bench, Identity]:
    """An owner that lapsed and then, its fence closed, granted node 1's claim."""
    bench = Bench()
    mine = bench.own()
    bench.pass_ms(101)
    assert bench.stands_in(State.LAPSED)
    claim = Identity(mine.epoch + 1, 1, 77)
    bench.hear(1, entry(claim, State.CLAIMING))
    assert bench.service.promise == claim
    bench.forget()
    return bench, claim


def test_lapsed_owner_whose_grant_may_have_won_ends_its_calls() -> None:
    """Nobody says what came of the claim: its calls may be another's by now (S4)."""
    bench, claim = lapsed_and_granted()
    bench.keep_hearing(400, (2, entry(claim)))
    assert "T505" in bench.rows
    assert "T501" not in bench.rows
    assert kinds(bench.asked, EndCalls)


def test_lapsed_owner_reclaims_when_its_grant_came_to_nothing() -> None:
    bench, claim = lapsed_and_granted()
    bench.keep_hearing(400, (1, entry(claim, held=claim.epoch - 1)), (2, entry(claim)))
    assert "T501" in bench.rows
    assert not kinds(bench.asked, EndCalls)


@pytest.mark.parametrize(("first_tells", "row"), [(False, "T505"), (True, "T501")])
def test_a_later_grant_that_came_to_nothing_says_nothing_of_the_first(
    first_tells: bool, row: str
) -> None:
    """Seed 1766 of ten minutes: node 1 had won unheard before node 2 claimed in vain (S4)."""
    bench, claim = lapsed_and_granted()
    bench.pass_ms(160)
    later = Identity(claim.epoch + 1, 2, 78)
    bench.hear(2, entry(later, State.CLAIMING))
    assert bench.service.promise == later
    nothing = (2, entry(later, held=claim.epoch - 1))
    known = (1, entry(claim, held=claim.epoch - 1))
    bench.keep_hearing(500, nothing, *([known] if first_tells else []))
    assert row in bench.rows
    assert ("T505" in bench.rows) == (row == "T505")
