"""Every checker can fire: each is shown a world, or a word, that breaks its invariant."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

import msgspec
import pytest

from haclusterd.core.actions import EndCalls, KillFreeswitch, Recover
from haclusterd.core.inputs import SwitchoverRequested
from haclusterd.core.model import NOBODY, Identity, LastResort, Release, State
from haclusterd.core.state import NEVER, Alien
from tests.sim import liveness
from tests.sim.checkers import CLAIMS_MAX, Checkers
from tests.sim.dramas import begin, owners_of
from tests.sim.kernel import Kernel
from tests.sim.nemesis import Plan
from tests.sim.world import World

FIRST, SECOND = Identity(1, 0, 5), Identity(1, 1, 6)


@pytest.fixture
def checkers() -> Checkers:
    return Checkers(3, 2)


@pytest.fixture
def world() -> World:
    """Three nodes at rest; n0 owns the service."""
    return begin(1, 3)[0]


def stood_by(checkers: Checkers, identity: Identity, *nodes: int) -> None:
    for node in nodes:
        checkers.promise(0, node, 0, identity)


def test_s1_two_holders(checkers: Checkers) -> None:
    checkers.may_emit(0, 0, 0, 100_000)
    checkers.may_emit(50_000, 1, 1, 100_000)
    checkers.may_emit(100_000, 0, 1, 200_000)
    assert checkers.violations == []
    checkers.may_emit(150_000, 0, 0, 200_000)
    assert "S1: n0 and n1 both hold s0" in checkers.violations[-1]


def test_s2_two_owners_of_one_epoch(checkers: Checkers) -> None:
    stood_by(checkers, FIRST, 0, 2)
    stood_by(checkers, SECOND, 1, 2)
    checkers.won(1, 0, FIRST, [])
    checkers.won(2, 0, SECOND, [])
    assert "S2" in checkers.violations[-1]


def test_s2_the_elder_of_two_may_be_carried_out_last(checkers: Checkers) -> None:
    """Its voter forgot, and stood by the other one then: seed 606 of ten minutes."""
    stood_by(checkers, SECOND, 1)
    stood_by(checkers, FIRST, 0, 2)
    checkers.won(1, 0, FIRST, [])
    checkers.won(2, 0, SECOND, [])
    assert checkers.violations == []


def test_s4_of_two_winners_of_one_epoch_the_elder_may_take_up_last(checkers: Checkers) -> None:
    """It stood still in between, and its voter forgot: seed 2321 of ten minutes."""
    stood_by(checkers, FIRST, 0, 2)
    checkers.won(1, 0, FIRST, [])
    checkers.forget(2)
    checkers.won(2, 0, SECOND, [])
    checkers.recovered(3, FIRST.node, 0, FIRST, again=False)
    assert checkers.violations == []
    checkers.recovered(4, FIRST.node, 0, Identity(1, FIRST.node, 99), again=False)
    assert "which it did not win" in checkers.violations[-1]


def test_s4_an_end_of_freeswitch_that_waits_to_be_heard_is_no_loss_yet(world: World) -> None:
    """It was killed for a hang in the turn in which its node had the service back: seed 3400."""
    host = world.hosts[0]
    assert host.telephony.has(0)
    host.telephony.exit()
    assert host.telephony.has(0)
    host.run(world.now, host.life)
    assert not host.telephony.has(0)


def test_s4_of_what_only_the_dead_know_nobody_can_be_told(checkers: Checkers) -> None:
    """An owner was frozen while another had its calls, and all others died since: seed 2781."""
    stood_by(checkers, SECOND, 1, 2)
    checkers.won(1, 0, SECOND, [])
    checkers.recovered(1, 1, 0, SECOND, again=False)
    checkers.serves(1, 1, 0, SECOND, here=True)
    checkers.gone = {1, 2}
    checkers.serves(2, 0, 0, Identity(5, 0, 1), here=True)
    assert checkers.violations == []
    checkers.server[0], checkers.gone = SECOND, {2}
    checkers.carries[0, 0] = 0
    checkers.serves(3, 0, 0, Identity(6, 0, 1), here=True)
    assert "n1 had them" in checkers.violations[-1]


def test_s10_a_freeswitch_that_ended_meanwhile_may_be_given_its_calls_twice(world: World) -> None:
    """The first time was decided before it ended, and carried out after: seed 1709."""
    host = world.hosts[0]
    assert host.node is not None
    identity = host.node.services[0].identity
    world.checkers.given_up.add((0, identity))
    host.telephony.exit()
    host.telephony.up = True
    host.now_us = host.telephony.exited_us - 1  # its turn stood still since
    host.telephony.recover(Recover(0, identity, -1, "", {}))
    world.checkers.given_up.add((0, identity))
    host.now_us = host.telephony.exited_us + 1
    host.telephony.recover(Recover(0, identity, -1, "", {}))
    assert world.checkers.violations == []
    world.checkers.given_up.add((0, identity))
    host.telephony.recover(Recover(0, identity, -1, "", {}))  # to an agent that started meanwhile
    assert world.checkers.violations == []
    later = Identity(identity.epoch + 1, identity.node, 1)
    world.checkers.won_ever.add((0, later))
    host.telephony.recover(Recover(0, later, -1, "", {}))
    assert "beside themselves" in world.checkers.violations[-1]


def test_s2_an_epoch_may_repeat_where_the_shared_voter_forgot(checkers: Checkers) -> None:
    stood_by(checkers, FIRST, 0, 2)
    checkers.won(1, 0, FIRST, [])
    checkers.forget(2)
    checkers.won(2, 0, SECOND, [])
    assert checkers.violations == []


def test_s2_epochs_that_go_back(world: World) -> None:
    checkers = Checkers(3, 1)
    stood_by(checkers, Identity(7, 0, 1), 0, 1)
    checkers.won(1, 0, Identity(7, 0, 1), [world.hosts[0]])
    checkers.won(2, 0, Identity(6, 0, 2), [world.hosts[0]])
    assert "S2: s0 went from epoch 7 to 6" in checkers.violations[-1]


def test_s3_two_promises(checkers: Checkers) -> None:
    checkers.promise(1, 2, 0, FIRST)
    checkers.promise(1, 2, 0, SECOND)
    assert "S3" in checkers.violations[-1]


def test_s3_across_a_restart(checkers: Checkers) -> None:
    """What was on the disk binds; what was not is forgiven, for the hold-down makes up for it."""
    checkers.promise(1, 2, 0, FIRST)
    checkers.restart(2, (FIRST, NOBODY))
    checkers.promise(1, 2, 0, SECOND)
    assert "S3" in checkers.violations[-1]
    checkers.violations.clear()
    checkers.restart(2, (NOBODY, NOBODY))
    checkers.promise(1, 2, 0, FIRST)
    assert checkers.violations == []


def test_s5_a_winner_beside_a_valid_lease(world: World) -> None:
    owner = owners_of(world)[0]
    other = (owner + 1) % 3
    world.checkers.won(world.now, 0, Identity(9, other, 1), world.hosts)
    assert f"S5: n{other} won s0 while n{owner} has a lease" in world.checkers.violations[-1]


def test_s4_calls_taken_up_by_somebody_else(checkers: Checkers) -> None:
    checkers.won(1, 0, FIRST, [])
    checkers.recovered(2, 1, 0, FIRST, False)
    assert "S4" in checkers.violations[-1]


def test_s4_a_service_without_its_calls(checkers: Checkers) -> None:
    served_in_turn(checkers)
    assert checkers.violations == []
    checkers.restart(2, (FIRST, NOBODY))
    checkers.serves(4, 0, 0, Identity(3, 0, 7), True)
    assert "S4: n0 serves s0 at epoch 3 without its calls: n1 had them" in checkers.violations[-1]
    checkers.serves(5, 0, 0, Identity(4, 0, 8), False)
    assert "they are gone" in checkers.violations[-1]


def served_in_turn(checkers: Checkers) -> None:
    """n0, and then n1 by the votes of all three."""
    for identity in (FIRST, Identity(2, 1, 6)):
        stood_by(checkers, identity, 0, 1, 2)
        checkers.won(1, 0, identity, [])
        checkers.recovered(2, identity.node, 0, identity, False)
        checkers.serves(3, identity.node, 0, identity, True)


def test_s4_who_asks_a_majority_that_forgot_cannot_know(checkers: Checkers) -> None:
    served_in_turn(checkers)
    checkers.restart(2, (FIRST, NOBODY))
    checkers.forget(0)
    checkers.serves(4, 0, 0, Identity(3, 0, 7), True)
    assert checkers.violations == []


def test_s7_calls_of_an_owned_service_are_ended(world: World) -> None:
    host = world.hosts[owners_of(world)[0]]
    host.telephony.end_calls(EndCalls(0, FIRST))
    assert "S7" in world.checkers.violations[-1]
    world.checkers.violations.clear()
    host.telephony.calls.add(0)
    host.telephony.killed(KillFreeswitch("s1 is owned elsewhere"))
    assert "S7" in world.checkers.violations[-1]


def test_s10_taken_up_twice(checkers: Checkers) -> None:
    checkers.won(1, 0, FIRST, [])
    checkers.recovered(2, 0, 0, FIRST, False)
    checkers.recovered(3, 0, 0, FIRST, False)
    assert "S10" in checkers.violations[-1]


def test_s10_a_recovery_that_failed_may_be_tried_again_once(checkers: Checkers) -> None:
    checkers.won(1, 0, FIRST, [])
    checkers.recovered(2, 0, 0, FIRST, False)
    checkers.given_up.add((0, FIRST))
    checkers.recovered(3, 0, 0, FIRST, False)
    assert checkers.violations == []
    checkers.recovered(4, 0, 0, FIRST, False)
    assert "S10" in checkers.violations[-1]


def test_s10_beside_the_same_calls(checkers: Checkers) -> None:
    checkers.won(1, 0, FIRST, [])
    checkers.recovered(2, 0, 0, FIRST, True)
    assert "S10" in checkers.violations[-1]


@pytest.mark.parametrize("what", ["sent_us", "aliens", "times", "releases"])
def test_s13_bounds(world: World, what: str) -> None:
    node = world.hosts[0].node
    assert node is not None
    many = {i: i for i in range(600)}
    if what == "sent_us":
        node.sent_us = many
    elif what == "aliens":
        node.aliens = dict.fromkeys(map(str, many), Alien("", 0, 0))
    elif what == "times":
        node.services[0].times = {str(i): i for i in many}
    else:
        node.peers[1].releases = (Release(0, FIRST, 1),) * len(many)
    world.checkers.bounds(1, 0, node)
    assert f"S13: {what} of n0" in world.checkers.violations[-1]


def test_v5_a_claim_too_soon_and_too_many(checkers: Checkers) -> None:
    checkers.claim(0, 1, 1, 0)
    checkers.claim(100_000, 2, 1, 0)
    assert checkers.violations == []
    checkers.claim(140_000, 1, 1, 0)
    assert "V5: n1 claims s0 again after 140.0 ms" in checkers.violations[-1]
    checkers.violations.clear()
    for i in range(CLAIMS_MAX + 1):
        checkers.claim(1_000_000 + i, i % 3, 100 + i, 0)
    assert "V5" in checkers.violations[-1]


def test_v5_an_owner_that_answers_each_claim_by_renewing_is_no_second_claimant(
    checkers: Checkers,
) -> None:
    for i in range(CLAIMS_MAX // 2 + 10):
        claimed_us = 150_000 * i
        checkers.claim(claimed_us, 2, 1, 0)
        checkers.claim(claimed_us + 60_000, 1, 1, 0, renews=True)
    assert checkers.violations == []
    checkers.claim(claimed_us + 100_000, 1, 1, 0, renews=True)
    assert "V5: n1 claims s0 again after 40.0 ms" in checkers.violations[-1]


def test_v1_the_silent_taken_for_alive(world: World) -> None:
    world.outside = {2}
    assert all("V1: n2 is silent" in text for text in liveness.silent_are_dead(world))
    assert len(liveness.silent_are_dead(world)) == 2


def test_v3_no_owner_and_other_promises(world: World) -> None:
    assert liveness.what_is_not_whole(world) == []
    node = world.hosts[1].node
    assert node is not None
    node.rank_hash ^= 1
    node.services[0].promise = Identity(7, 1, 1)
    found = liveness.what_is_not_whole(world)
    assert any("V3: n1 stands by" in text for text in found)
    assert any("different rankings" in text for text in found)
    owner = world.hosts[owners_of(world)[0]].node
    assert owner is not None
    owner.services[0].state = State.LAPSED
    assert any("V3: s0 is owned by []" in text for text in liveness.what_is_not_whole(world))


def test_v4_a_node_that_does_not_come_to_rest(world: World) -> None:
    node = world.hosts[2].node
    assert node is not None
    node.services[0].state = State.CLAIMING
    assert any("V4: n2 is not at rest" in text for text in liveness.what_is_not_whole(world))
    world.hosts[2].kill(world.now, power=True)
    assert liveness.what_is_not_whole(world) == ["V4: n2 does not run"]


def test_v6_a_request_without_an_answer(world: World) -> None:
    host = world.hosts[0]
    host.give(world.now, SwitchoverRequested(8, 0, 0))
    assert host.asked == set()
    host.asked.add(9)
    assert liveness.what_is_not_whole(world) == ["V6: n0 never answered request 9"]


def test_v7_a_minority_that_does_not_say_so(world: World) -> None:
    object.__setattr__(world.swarm, "ending", "minority")
    found = liveness.what_is_not_whole(world)
    assert sum("V7" in text for text in found) == 3
    assert any("S1" in text for text in found)
    liveness.prepare(world, random.Random(1))
    world.play_until(world.now + 1_000_000)
    assert liveness.what_is_not_whole(world) == []


def test_an_upgrade_that_loses_something_is_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of a node travels as msgpack (DESIGN 3); what cannot is lost on the way."""
    host = world.hosts[0]
    assert host.upgrade(world.now, 1000)
    assert world.checkers.violations == []
    true = msgspec.msgpack.decode

    def forgetful(data: bytes, type: object) -> object:
        node = true(data, type=type)
        node.services[0].lease_until_us = NEVER
        return node

    world.play_until(world.now + 100_000)
    monkeypatch.setattr(msgspec.msgpack, "decode", forgetful)
    world.hosts[owners_of(world)[0]].upgrade(world.now, 1000)
    assert "upgrade" in world.checkers.violations[-1]


def test_v7_a_service_that_nobody_may_own_is_unserved_and_everybody_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seed 1359: a witness and one node are left for two services, masters are no last resort."""
    world = World(1359, plan=Plan((), ()))
    assert world.run(0.5) == []
    assert [h.me for h in liveness.insiders(world)] == [1, 2]
    monkeypatch.setattr(liveness, "view", lambda node, now_us: SimpleNamespace(alarms=()))
    said = "does not say that nobody serves s0: set()"
    assert liveness.what_is_not_whole(world) == [f"V7: n{n} {said}" for n in (1, 2)]


def test_v3_nobody_is_excused_from_a_service_that_there_is_room_for() -> None:
    world = World(1359, plan=Plan((), ()))
    world.run(0.5)
    world.swarm = dataclasses.replace(world.swarm, last_resort=LastResort.MASTERS)
    assert "V3: s0 is owned by []" in liveness.what_is_not_whole(world)[0]


def test_without_its_address_an_open_fence_lets_out_what_is_bound() -> None:
    """As IPv6 sockets do: whoever takes an address off must still wait for its fence."""
    kernel = Kernel(1, 0)
    assert kernel.arm(0, 1_000)
    assert kernel.renew(0, 0, 60_000)
    assert kernel.add(0, 0) == ""
    assert kernel.remove(10, 0)
    assert kernel.emits_until(0) >= 60_000
    kernel.fence_fails_until = 100
    assert not kernel.close(50, 0)
    assert kernel.emits_until(0) >= 60_000, "what was not closed runs out by itself"
    assert kernel.close(100, 0)
    assert kernel.emits_until(0) == 0
