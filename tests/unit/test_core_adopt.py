"""core.adoption: the memory of a node in the numbers of the next set of voters."""

from __future__ import annotations

import msgspec

from haclusterd.core import inputs as inp
from haclusterd.core.adoption import adopt
from haclusterd.core.model import NOBODY, Identity, Release, State
from haclusterd.core.state import NEVER, Claim, Deferred, Mark, Node
from tests.unit.core_bench import STANDBY, Bench, entry, spec_of
from tests.unit.test_core_reconfigure import FOUR, TWO, at_revision_2, owner_of


def in_full(bench: Bench) -> Node:
    """Something in every place that holds a number of a node."""
    bench.own()
    bench.hear(1, revision=2, releases=(Release(0, Identity(3, 2, 4), 1),))
    service = bench.service
    service.claim = Claim(Identity(9, 0, 1), bench.now_us, 0b101)
    service.deferred = Deferred(Identity(8, 2, 1), bench.now_us + 9)
    service.release = Release(0, Identity(7, 2, 1), 2)
    service.moving_to, service.from_node = 2, 1
    service.passed_on = (Identity(6, 2, 1), Identity(5, 1, 1))
    return bench.node


def test_the_memory_of_a_node_is_put_into_the_new_numbers() -> None:
    bench = at_revision_2()
    node = in_full(bench)
    heard_us = node.services[0].voter_sent_us[1]
    lease_us, silence_us = node.services[0].lease_until_us, node.services[0].silence_us
    turned = msgspec.structs.replace(
        FOUR, me=3, nodes=(FOUR.nodes[3], FOUR.nodes[2], FOUR.nodes[1], FOUR.nodes[0])
    )
    adopt(node, turned, bench.now_us)
    service = node.services[0]
    assert service.identity.node == service.promise.node == 3
    assert service.voter_sent_us[2] == heard_us
    assert (service.lease_until_us, service.silence_us) == (lease_us, silence_us)
    assert service.claim is not None
    assert (service.claim.identity.node, service.claim.granted) == (3, 0b1010)
    assert service.deferred is not None
    assert service.deferred.identity == Identity(8, 1, 1)
    assert service.release == Release(0, Identity(7, 1, 1), 1)
    assert (service.moving_to, service.from_node) == (1, 2)
    assert service.passed_on == (Identity(6, 1, 1), Identity(5, 2, 1))
    assert node.peers[2].releases == (Release(0, Identity(3, 1, 4), 2),)
    assert node.peers[2].alive
    assert not node.peers[0].alive
    assert node.roll.kin == (2,)
    assert (node.roll.known, node.roll.staged, node.dialect) == (3, 0, 2)


def test_what_a_removed_node_had_is_nobodys_and_still_not_free() -> None:
    """Its lease may not have run out: the silence is waited for as for anybody's."""
    bench = at_revision_2().after_hold_down()
    gone = Identity(4, 2, 9)
    bench.hear(2, entry(gone, State.OWNED), **owner_of(2))
    bench.service.deferred = Deferred(Identity(5, 2, 1), bench.now_us)
    bench.service.passed_on = (gone,)
    adopt(bench.node, TWO, bench.now_us)
    bench.spec = TWO
    assert bench.service.promise == Identity(4, -1, 9)
    assert not bench.node.services[0].passed_on
    deferred: Deferred | None = bench.node.services[0].deferred
    assert deferred is None
    claim = Identity(5, 1, 3)
    bench.hear(1, entry(claim, State.CLAIMING), **owner_of(3))
    assert bench.service.promise == Identity(4, -1, 9), "not yet"
    bench.pass_ms(200)
    bench.hear(1, entry(claim, State.CLAIMING), **owner_of(3))
    assert bench.service.promise == claim


def test_what_is_known_of_later_sets_stays_known() -> None:
    bench = at_revision_2()
    bench.give(inp.Overheard(6, 66))
    adopt(bench.node, TWO, bench.now_us)
    assert (bench.node.roll.known, bench.node.roll.known_hash) == (6, 66)
    assert bench.node.roll.floor == 5


def test_a_removed_nodes_release_counts_and_has_a_name() -> None:
    bench = at_revision_2().after_hold_down()
    gone = Identity(4, -1, 9)
    bench.service.promise = gone
    bench.hear(1, releases=(Release(0, gone, -1),), **owner_of(2))
    assert any("a node that was removed released s0" in w.text for w in bench.said)


def test_a_node_claims_after_the_silence_of_a_removed_one() -> None:
    bench = at_revision_2(TWO).after_hold_down()
    bench.service.promise = Identity(4, -1, 9)
    bench.service.silence_us = bench.now_us
    bench.keep_hearing(400, (1, STANDBY))
    (said,) = [w.text for w in bench.said if w.row == "T101"][:1]
    assert "a node that was removed silent" in said


def test_marks_follow_their_nodes_and_go_with_them() -> None:
    bench = at_revision_2()
    node = bench.node
    node.marks = [Mark(1, 5, "olga", 9), Mark(2, 5, "olga", 9)]
    node.marked = node.unvoting = frozenset({1, 2})
    turned = msgspec.structs.replace(TWO, me=1, nodes=(TWO.nodes[1], TWO.nodes[0]))
    adopt(node, turned, bench.now_us)
    assert node.marks == [Mark(0, 5, "olga", 9)]
    assert node.marked == node.unvoting == frozenset({0})


def test_a_service_that_was_not_there_before_begins_anew() -> None:
    """A set that was in force before this node came back, in a file with other services by now."""
    bench = at_revision_2(spec_of(services=2, revision=2, config_hash=2))
    node = bench.node
    node.services[1].promise = Identity(4, 1, 9)
    _, second = bench.spec.services
    new = msgspec.structs.replace(second, name="new")
    adopt(
        node,
        msgspec.structs.replace(bench.spec, revision=3, config_hash=3, services=(new, second)),
        bench.now_us,
    )
    assert node.services[0] is not node.services[1]
    assert [s.promise for s in node.services] == [NOBODY, Identity(4, 1, 9)]
    assert node.services[0].silence_us == bench.now_us


def test_a_service_with_other_addresses_begins_anew() -> None:
    """F39: who served it under that name may not be who answers there now."""
    bench = at_revision_2(spec_of(services=2, revision=2, config_hash=2))
    node = bench.node
    node.services[0].promise = Identity(4, 1, 9)
    one, other = bench.spec.services
    swapped = (
        msgspec.structs.replace(one, addresses=other.addresses),
        msgspec.structs.replace(other, addresses=one.addresses),
    )
    new = msgspec.structs.replace(bench.spec, revision=3, config_hash=3, services=swapped)
    adopt(node, new, bench.now_us)
    assert [s.promise for s in node.services] == [NOBODY, NOBODY]


def test_no_lease_goes_on_by_other_times_and_it_listens_for_the_longer() -> None:
    """F39: who stood by it did so by the old ones. What it promised stays."""
    bench = at_revision_2(spec_of(services=2, revision=2, config_hash=2))
    node = in_full(bench)
    mine = node.services[0].identity
    node.services[1].claim = None
    shorter = msgspec.structs.replace(bench.spec.timing, lease_us=99_000)
    new = msgspec.structs.replace(bench.spec, revision=3, config_hash=3, timing=shorter)
    adopt(node, new, bench.now_us)
    service, other = node.services
    assert (service.promise, service.lease_until_us) == (mine, NEVER)
    assert other.claim is None
    assert set(service.voter_sent_us) == {NEVER}
    assert service.deferred is None
    assert service.claim is not None
    assert service.claim.granted == 0b1
    assert node.roll.listens_us == bench.now_us + bench.spec.timing.hold_down_us
