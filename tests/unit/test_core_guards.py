"""Guards of the core that others stand before or behind, so that no simulated world needs them.

Each test fails without its guard; the comments say which other one hides it elsewhere. The guards
that are needed alone have their drills in `tests/sim/drills.py`.
"""

from __future__ import annotations

import pytest

from haclusterd.core import inputs as inp
from haclusterd.core import ranking
from haclusterd.core.actions import KeepAddresses, SendBeat
from haclusterd.core.model import Flag, Identity, Release, State
from haclusterd.core.state import NEVER
from tests.unit.core_bench import STANDBY, Bench, entry, kinds, spec_of
from tests.unit.test_core_orders import marks, standby_bench
from tests.unit.test_core_reconfigure import READS_2, WITHOUT_ME, at_revision_2, stage
from tests.unit.test_core_voter import OWNER, claims, supporting


def lapsed() -> Bench:
    bench = Bench()
    bench.own()
    bench.pass_ms(150)
    assert bench.stands_in(State.LAPSED)
    bench.forget()
    return bench


# nodes marked dead ------------------------------------------------------------------------------


def test_ml18_a_marked_node_in_reach_makes_no_majority() -> None:
    """Its grant would not count either: a claim would be in vain."""
    bench = Bench(spec_of(nodes=4)).after_hold_down()
    living = (2, entry(OWNER)), (3, entry(OWNER))
    bench.keep_hearing(100, (1, entry(OWNER, State.OWNED)), *living)
    bench.keep_hearing(400, *living)
    bench.give(marks(1))
    bench.keep_hearing(300, (1, entry(OWNER, State.LAPSED)), *living)
    assert (bench.node.unvoting, bench.node.majority) == (frozenset({1}), True)
    bench.keep_hearing(120, (1, entry(OWNER, State.LAPSED)))
    assert not bench.node.majority, "two of three it takes, and n1 is none of them"


def test_ml18_a_marked_node_that_stands_fenced_does_not_reclaim() -> None:
    """No order leads here: whoever hears that it is marked lets everything go (below)."""
    bench = lapsed()
    bench.node.marked = frozenset({0})
    bench.keep_hearing(400, (1, STANDBY), (2, STANDBY))
    assert "T501" not in bench.rows
    bench.node.marked = frozenset()
    bench.keep_hearing(50, (1, STANDBY), (2, STANDBY))
    assert "T501" in bench.rows


@pytest.mark.parametrize("state", list(State))
def test_ml18_a_marked_node_lets_go_from_every_state(state: State) -> None:
    bench = lapsed()
    if state is State.RECLAIMING:
        bench.keep_hearing(10, (1, STANDBY), (2, STANDBY))
    elif state is not State.LAPSED:
        bench.service.state = state
    assert bench.stands_in(state)
    bench.obeys = False
    bench.give(marks(0))
    assert bench.service.state in (State.STANDBY, State.RELEASING)


# freezes ----------------------------------------------------------------------------------------


def test_a_thaw_drops_what_was_deferred() -> None:
    """Judged again, its claimant would not be fresh, and the silence of the owner too short."""
    bench = supporting()
    bench.pass_ms(140)
    assert not claims(bench)
    assert bench.service.deferred is not None
    bench.give(inp.Froze(120_000, 5))
    assert bench.service.deferred is None


def test_a_thaw_forgets_that_the_service_was_lost() -> None:
    """The voters would refuse: here a claim in vain is spared."""
    bench = standby_bench()
    bench.keep_hearing(130, (2, entry(OWNER)))
    assert bench.service.lost_us != NEVER, "and the grace is not over"
    bench.give(inp.Froze(120_000, 5))
    bench.keep_hearing(145, (2, entry(OWNER)))
    assert "T101" not in bench.rows, "nobody was silent for long enough since"
    bench.keep_hearing(50, (2, entry(OWNER)))
    assert "T101" in bench.rows


# owners -----------------------------------------------------------------------------------------


def test_an_owner_takes_no_release_of_what_it_owns() -> None:
    """Nobody else can have written one: passed on in its beats it would give the service away."""
    bench = Bench()
    mine = bench.own()
    bench.hear(1, entry(mine, lease_seq=bench.node.seq), releases=(Release(0, mine, 1),))
    bench.keep_owning(50)
    assert bench.service.release is None
    assert [b.releases for a in kinds(bench.asked, SendBeat) for b in a.beats if b.releases] == []


def test_late_words_of_an_earlier_stop_change_nothing_for_an_owner() -> None:
    """Today's executor is never late. Without the address in mind a lapse would not let it go."""
    bench = Bench()
    bench.own()
    bench.give(inp.FenceClosed(0, True))
    bench.give(inp.AddressesRemoved(0, True))
    assert (bench.service.fence_closed, bench.service.addresses) == (False, True)
    bench.pass_ms(150)
    assert bench.stands_in(State.LAPSED)
    assert KeepAddresses(0, False) in bench.asked


def test_stray_votes_are_won_back_at_the_pace_of_claims() -> None:
    """V5. The voters' own pace makes a second stray vote within `dead` rare."""
    bench = Bench()
    bench.own()
    bench.keep_owning(160)
    bench.hear(2, entry(Identity(9, 2, 7)))
    assert bench.rows.count("T409") == 1
    bench.hear(1, entry(bench.service.promise))
    assert bench.rows[-1] == "T411"
    bench.hear(2, entry(Identity(12, 2, 8)))
    bench.keep_owning(100)
    bench.hear(2, entry(Identity(12, 2, 8)))
    assert bench.rows.count("T409") == 1
    bench.keep_owning(60)
    bench.hear(2, entry(Identity(12, 2, 8)))
    assert bench.rows.count("T409") == 2


def test_a_fenced_owner_with_an_odd_configuration_does_not_reclaim() -> None:
    """RELIABILITY 42. The others would not grant it."""
    bench = lapsed()
    for _ in range(4):
        for n in (1, 2):
            bench.hear(n, STANDBY, config_hash=99)
        bench.pass_ms(25)
    assert bench.node.majority
    assert "T501" not in bench.rows
    bench.keep_hearing(50, (1, STANDBY), (2, STANDBY))
    assert "T501" in bench.rows


# claimants --------------------------------------------------------------------------------------


def test_a_node_that_is_letting_go_grants_nobody() -> None:
    """Its address may be up still. Its lease has mostly ended before a claim can come."""
    bench = Bench()
    mine = bench.own()
    bench.keep_hearing(50, (1, entry(mine)), (2, entry(mine)))
    bench.obeys = False
    bench.give(inp.SwitchoverRequested(1, 0, 2))
    assert bench.stands_in(State.RELEASING)
    assert not claims(bench, Identity(9, 2, 7))
    bench.give(inp.FenceClosed(0, True))
    bench.give(inp.AddressesRemoved(0, True))
    assert bench.stands_in(State.STANDBY)
    assert claims(bench, Identity(9, 2, 7))


@pytest.mark.parametrize("state", [State.CLAIMING, State.RECLAIMING])
def test_a_claimant_grants_a_later_claim_only_after_dead_ms(state: State) -> None:
    """It may have won: that nobody has a lease by its own claim is known `dead` after it."""
    bench = lapsed() if state is State.RECLAIMING else Bench().after_hold_down()
    bench.keep_hearing(10 if state is State.RECLAIMING else 100, (1, STANDBY), (2, STANDBY))
    assert bench.stands_in(state)
    bench.obeys = False
    assert not claims(bench, Identity(9, 2, 7))
    assert bench.service.deferred is None
    assert bench.stands_in(state)


def test_after_a_start_the_hold_down_counts_as_hearing_the_owner() -> None:
    """Or all nodes that start together would claim as it ends, without grace and ranks."""
    bench = Bench()
    bench.give(inp.Restored((OWNER,), (OWNER.epoch,)))
    bench.keep_hearing(255, (2, entry(OWNER)))
    assert bench.stands_in(State.STANDBY)
    bench.keep_hearing(10, (2, entry(OWNER)))
    assert bench.stands_in(State.CLAIMING)


@pytest.mark.parametrize("ranked", [False, True])
def test_a_departing_node_claims_nothing(monkeypatch: pytest.MonkeyPatch, ranked: bool) -> None:
    """The ranking leaves it out, too; either is enough."""
    bench = at_revision_2().after_hold_down()
    words = {"flags": READS_2, "revision": 2}
    for _ in range(4):
        bench.hear(1, entry(OWNER, State.OWNED), **words)
        bench.hear(2, entry(OWNER), **words)
        bench.pass_ms(25)
    assert stage(bench, WITHOUT_ME).ok
    if ranked:
        monkeypatch.setattr(ranking, "ABSENT", Flag(0))
    for _ in range(12):
        bench.hear(2, entry(OWNER), **words)
        bench.pass_ms(25)
    assert bench.node.successors[0][:1] == ((0,) if ranked else (2,))
    assert "T101" not in bench.rows
