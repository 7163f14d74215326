"""The claimant: when a service is lost, whose turn it is, a claim's life (DESIGN 6, Claim)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec

from haclusterd.core import inputs as inp
from haclusterd.core.actions import SendBeat
from haclusterd.core.model import Identity, Release, State
from tests.unit.core_bench import STANDBY, Bench, entry, kinds, spec_of

OWNER = Identity(3, 1, 77)
GONE_MS = 161  # dead_ms, the grace of 10 ms, and one more


def slave(nodes: int = 3) -> Bench:
    """Node 0 is the primary slave of node 1, which owns the service."""
    bench = Bench(spec_of(nodes)).after_hold_down()
    others = [(n, STANDBY) for n in range(2, nodes)]
    bench.keep_hearing(200, (1, entry(OWNER, State.OWNED)), *others)
    bench.hear(1, entry(OWNER, State.OWNED))
    bench.forget()
    return bench


def test_claim_epoch_is_the_highest_promised_or_owned_that_was_heard_plus_one() -> None:
    bench = slave()
    bench.keep_hearing(100, (2, entry(Identity(8, 2, 1))))
    bench.keep_hearing(100, (2, entry(OWNER)))
    assert bench.stands_in(State.CLAIMING)
    assert bench.service.promise.epoch == 9


def test_claim_for_silence_comes_at_dead_ms_and_its_grace_and_not_before() -> None:
    """10 ms more than a voter needs: an owner back from a stun of 120 ms is heard until then."""
    bench = slave()
    bench.keep_hearing(159, (2, entry(OWNER)))
    assert bench.stands_in(State.STANDBY)
    bench.pass_ms(2)
    assert bench.stands_in(State.CLAIMING)
    assert "T101" in bench.rows
    assert "n1 silent on 2/2 links for 160 ms" in bench.said[-1].text


def test_claim_only_with_two_way_contact_to_a_majority() -> None:
    """ML15: a slave in a minority never claims."""
    bench = slave()
    bench.pass_ms(5_000)
    assert bench.stands_in(State.STANDBY)
    assert not bench.node.majority


def test_claim_two_beats_after_regaining_a_majority() -> None:
    bench = slave()
    bench.pass_ms(1_000)
    bench.keep_hearing(49, (2, entry(OWNER)))
    assert bench.stands_in(State.STANDBY)
    bench.keep_hearing(30, (2, entry(OWNER)))
    assert bench.stands_in(State.CLAIMING)


def test_claim_is_resent_at_4_15_and_40_ms_the_same() -> None:
    bench = slave()
    bench.keep_hearing(GONE_MS, (2, entry(OWNER)))
    claim = bench.service.claim
    assert claim is not None
    bench.forget()
    bench.pass_ms(60)
    for beat in kinds(bench.asked, SendBeat):
        assert beat.beats[0].services[0].promise == claim.identity
        assert beat.beats[0].services[0].state == State.CLAIMING
    sent = {
        bench.node.sent_us[b.beats[0].seq] - claim.sent_us for b in kinds(bench.asked, SendBeat)
    }
    assert {4_000, 15_000, 40_000} <= sent


def test_claim_grants_later_than_the_lease_are_void() -> None:
    bench = slave()
    bench.keep_hearing(GONE_MS, (2, entry(OWNER)))
    promised = bench.service.promise
    bench.pass_ms(100, tick=False)
    bench.now_us = bench.service.claim.sent_us + 100_001 if bench.service.claim else 0
    bench.hear(2, entry(promised))
    assert not bench.stands_in(State.OWNED)
    bench.pass_ms(1)
    assert "T203" in bench.rows


def test_claim_grant_names_the_nonce() -> None:
    bench = slave()
    bench.keep_hearing(GONE_MS, (2, entry(OWNER)))
    promised = bench.service.promise
    bench.hear(2, entry(Identity(promised.epoch, 0, promised.nonce ^ 1)))
    assert bench.stands_in(State.CLAIMING)
    bench.hear(2, entry(promised))
    assert bench.stands_in(State.OWNED)


def test_claim_heard_paces_everyone() -> None:
    """At most one new epoch per service per dead_ms (V5: no livelock)."""
    bench = slave()
    bench.keep_hearing(140, (2, entry(OWNER)))
    bench.hear(2, entry(Identity(4, 2, 5), State.CLAIMING))
    bench.keep_hearing(100, (2, entry(OWNER)))
    assert bench.stands_in(State.STANDBY)
    bench.keep_hearing(100, (2, entry(OWNER)))
    assert bench.stands_in(State.CLAIMING)
    assert bench.service.promise.epoch == 5


def test_claims_that_fail_wait_longer_each_time() -> None:
    bench = slave()
    times = []
    for _ in range(200):
        bench.keep_hearing(25, (2, entry(OWNER)))
        if "T101" in bench.rows:
            times.append(bench.now_us)
            bench.forget()
    gaps_ms = [(b - a) // 1000 for a, b in itertools.pairwise(times)]
    assert gaps_ms == sorted(gaps_ms)
    assert gaps_ms[0] >= 150
    assert gaps_ms[-1] >= 850
    assert gaps_ms[-1] <= 1_000


def test_claim_lets_a_lapsed_owner_go_first_for_at_most_two_dead_ms() -> None:
    bench = slave()
    bench.keep_hearing(280, (1, entry(OWNER, State.LAPSED)), (2, entry(OWNER)))
    assert bench.stands_in(State.STANDBY)
    bench.keep_hearing(80, (1, entry(OWNER, State.LAPSED)), (2, entry(OWNER)))
    assert bench.stands_in(State.CLAIMING)


def test_claim_does_not_wait_for_a_lapsed_owner_that_released() -> None:
    bench = slave()
    bench.keep_hearing(200, (1, entry(OWNER, State.LAPSED)), (2, entry(OWNER)))
    bench.hear(1, STANDBY, releases=(Release(0, OWNER, 0),))
    bench.pass_ms(1)
    assert bench.stands_in(State.CLAIMING)


def test_claim_release_target_first_the_others_after_rank_times_delay() -> None:
    for to, delay_ms in ((0, 0), (2, 15), (3, 15)):
        bench = slave(4)
        bench.hear(1, STANDBY, releases=(Release(0, OWNER, to),))
        bench.pass_ms(delay_ms - 1 if delay_ms else 0)
        if delay_ms:
            assert bench.stands_in(State.STANDBY), to
        bench.pass_ms(2)
        assert bench.stands_in(State.CLAIMING), to


def test_claim_second_slave_waits_its_rank() -> None:
    nodes = spec_of().nodes
    first = msgspec.structs.replace(nodes[2], priority=200)
    bench = Bench(spec_of(nodes=3))
    bench.node.spec = msgspec.structs.replace(bench.spec, nodes=(nodes[0], nodes[1], first))
    bench.after_hold_down()
    bench.keep_hearing(200, (1, entry(OWNER, State.OWNED)), (2, STANDBY))
    bench.hear(1, entry(OWNER, State.OWNED))
    assert bench.node.slaves == (2, 0)
    bench.keep_hearing(GONE_MS + 13, (2, entry(OWNER)))
    assert bench.stands_in(State.STANDBY)
    bench.pass_ms(2)
    assert bench.stands_in(State.CLAIMING)


def test_claim_never_against_an_owner_in_two_way_reach() -> None:
    bench = slave()
    bench.service.lost_us = bench.now_us - 1  # whatever this node concluded before
    bench.service.silence_us = bench.now_us - 200_000
    bench.hear(1, entry(Identity(2, 1, 5), State.OWNED))  # an owner at another epoch
    bench.keep_hearing(100, (1, entry(Identity(2, 1, 5), State.OWNED)), (2, entry(OWNER)))
    assert bench.stands_in(State.STANDBY)


def test_primary_checks_itself_before_acting() -> None:
    """EG22: a node that could not serve claims nothing."""
    obstacles: tuple[Callable[[Bench], object], ...] = (
        lambda b: b.report(ready=False),
        lambda b: b.give(inp.AgentChanged(False)),
        lambda b: b.give(inp.CarrierChanged(0, False)),
        lambda b: b.give(inp.MaintenanceRequested(1, True)),
        lambda b: b.give(inp.StopRequested()),
    )
    for obstacle in obstacles:
        bench = slave()
        obstacle(bench)
        bench.keep_hearing(500, (2, entry(OWNER)))
        assert bench.stands_in(State.STANDBY)


def test_claim_not_with_an_odd_configuration() -> None:
    """RELIABILITY 42: most of the others run another configuration."""
    bench = slave()
    end_us = bench.now_us + 500_000
    while bench.now_us < end_us:
        bench.hear(2, entry(OWNER), config_hash=99)
        bench.pass_ms(25)
    assert bench.stands_in(State.STANDBY)


def test_cold_start_waits_for_the_preferred_owner_then_goes_by_rank() -> None:
    spec = spec_of(services=1)
    preferring = tuple(msgspec.structs.replace(s, preferred=2) for s in spec.services)
    bench = Bench(msgspec.structs.replace(spec, services=preferring))
    bench.keep_hearing(1_990, (1, STANDBY))
    assert bench.stands_in(State.STANDBY)
    bench.keep_hearing(30, (1, STANDBY))
    assert bench.stands_in(State.CLAIMING)


def test_owner_of_a_service_is_not_taken_for_lost_by_itself() -> None:
    """EG16: the owner ranks like everybody else, or a switchover comes straight back."""
    bench = Bench()
    bench.own()
    bench.keep_owning(160)
    assert bench.service.lost_us < 0
    bench.hear(2, STANDBY)
    bench.give(inp.SwitchoverRequested(1, 0, 2))
    bench.pass_ms(20)
    assert bench.stands_in(State.STANDBY)
    bench.keep_hearing(40, (1, STANDBY), (2, STANDBY))
    bench.pass_ms(10)
    assert bench.stands_in(State.CLAIMING)  # the target never claimed: back to where it was
