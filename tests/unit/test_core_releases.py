"""F4: a release names what the voters may stand by, also after a claim that came to nothing."""

from __future__ import annotations

import pytest

from haclusterd.core import inputs as inp
from haclusterd.core.model import Identity, Release, State
from tests.unit.core_bench import STANDBY, Bench, entry
from tests.unit.test_core_voter import CLAIM, OWNER, claims, supporting

LATER = Identity(5, OWNER.node, 99)


def test_f4_a_dropped_claim_is_released_under_its_own_name() -> None:
    bench = Bench().after_hold_down()
    bench.keep_hearing(100, (1, STANDBY))
    claim = bench.service.promise
    assert bench.stands_in(State.CLAIMING)
    bench.give(inp.FreeswitchExited())
    assert bench.rows[-1] == "T209"
    assert bench.service.release == Release(0, claim, 1)


def test_f4_no_release_while_an_older_term_is_not_confirmed_over() -> None:
    bench = Bench().after_hold_down()
    bench.keep_hearing(100, (1, STANDBY))
    bench.service.fence_closed = False
    bench.give(inp.FreeswitchExited())
    assert bench.rows[-1] == "T209"
    assert bench.service.release is None


def test_f4_the_owners_own_new_claim_is_what_it_releases() -> None:
    bench = Bench()
    bench.own()
    stray = Identity(bench.service.identity.epoch + 3, 2, 5)
    bench.pass_ms(151, tick=False)
    bench.node.services[0].lease_until_us = bench.now_us + 90_000
    bench.hear(1, entry(bench.service.identity, lease_seq=bench.node.seq))
    bench.hear(2, entry(stray))
    assert bench.rows[-1] == "T409"
    renewed = bench.service.promise
    assert renewed != bench.service.identity
    bench.give(inp.FreeswitchExited())
    assert bench.rows[-1] == "T701"
    assert bench.service.release is not None
    assert bench.service.release.identity == renewed


def test_f4_a_voter_that_missed_the_later_claim_catches_up_with_its_release() -> None:
    bench = supporting()
    bench.hear(OWNER.node, entry(LATER), releases=(Release(0, LATER, 2),))
    assert bench.service.promise == LATER
    assert bench.rows[-2:] == ["V1", "V7"]
    assert claims(bench, Identity(6, 2, 1))


@pytest.mark.parametrize(
    ("sender", "identity"),
    [(2, LATER), (2, Identity(5, 2, 9)), (1, Identity(2, 1, 9))],
    ids=["told by another", "not of the promised node", "of an older term"],
)
def test_f4_only_the_promised_node_itself_is_caught_up_with(
    sender: int, identity: Identity
) -> None:
    bench = supporting()
    bench.hear(sender, STANDBY, releases=(Release(0, identity, 0),))
    assert bench.service.promise == OWNER
    assert bench.service.release is None


def test_f4_catching_up_is_a_grant_and_keeps_the_rules_of_grants() -> None:
    bench = supporting()
    word = entry(LATER)
    bench.hear(1, word, releases=(Release(0, LATER, 2),), two_way=False)
    assert bench.service.promise == OWNER
    bench.hear(1, word, releases=(Release(0, LATER, 2),), config_hash=1)
    assert bench.service.promise == OWNER
    young = Bench(ready=False)
    young.give(inp.Restored((OWNER,)))
    young.hear(1, word, releases=(Release(0, LATER, 2),))
    assert young.service.promise == OWNER


def test_f4_a_claim_elsewhere_still_needs_the_silence() -> None:
    bench = supporting()
    assert not claims(bench, CLAIM)
