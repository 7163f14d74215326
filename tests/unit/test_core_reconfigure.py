"""core.reconfigure and core.dialect: one node's part in a change of voters, and what it seals."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core import reconfigure
from haclusterd.core.model import (
    NOBODY,
    AddressSpec,
    ClusterSpec,
    Flag,
    Identity,
    NodeSpec,
    Quorum,
    ServiceSpec,
    State,
)
from haclusterd.core.state import FAR, Deferred
from haclusterd.core.view import view
from tests.unit.core_bench import LAN, Bench, entry, kinds, spec_of

READS_2 = int(Flag.READS_2)
THREE = spec_of(revision=2, config_hash=2)
FOUR = msgspec.structs.replace(
    THREE, nodes=(*THREE.nodes, NodeSpec("n3", ("10.1.0.4", "10.2.0.4"))), revision=3, config_hash=3
)
TWO = msgspec.structs.replace(THREE, nodes=THREE.nodes[:2], revision=3, config_hash=4)
WITHOUT_ME = msgspec.structs.replace(THREE, nodes=THREE.nodes[1:], revision=3, me=-1, config_hash=5)


def at_revision_2(spec: ClusterSpec = THREE, **begun: Any) -> Bench:
    bench = Bench(spec)
    reconfigure.begin(bench.node, **{"proven": True, "kin": (1,), **begun})
    return bench


def say(bench: Bench, sender: int, staged: ClusterSpec | None = None, **changes: Any) -> None:
    words = {"flags": READS_2, "revision": 2, **changes}
    if staged is not None:
        words |= {"staged": staged.revision, "staged_hash": staged.config_hash}
    bench.hear(sender, **words)


def stage(bench: Bench, spec: ClusterSpec, **how: Any) -> act.Answered:
    (answer,) = kinds(bench.give(inp.StageRequested(7, spec, **how)), act.Answered)
    assert answer.request == 7
    return answer


# staging --------------------------------------------------------------------------------------


def test_a_staged_set_is_said_in_every_beat() -> None:
    bench = at_revision_2().after_hold_down()
    answer = stage(bench, FOUR)
    assert (answer.ok, answer.text) == (True, "n0 has staged revision 3")
    beat = kinds(bench.asked, act.SendBeat)[-1].beats[0]
    assert (beat.revision, beat.staged, beat.staged_hash) == (2, 3, 3)
    assert bench.rows[-1] == "M31"
    bench.forget()
    assert stage(bench, FOUR).ok
    assert bench.rows == [], "said once"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"revision": 4}, "set it to 3"),
        ({"name": "other"}, "keep the name"),
        ({"timing": msgspec.structs.replace(LAN, lease_us=99_000)}, "[timing]"),
        ({"quorum": Quorum.WITNESS}, "quorum"),
        ({"freeswitch": False}, "[freeswitch]"),
        ({"services": (ServiceSpec("s1", ()),)}, "services have changed"),
        ({"nodes": (*THREE.nodes[:2], *FOUR.nodes[3:])}, "n3 is new, n2 is gone"),
        (
            {"nodes": (*THREE.nodes[:2], NodeSpec("n2", ("10.9.0.3", "10.2.0.3")))},
            "node n2: links or witness",
        ),
    ],
)
def test_what_may_not_change_is_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    bench = at_revision_2()
    answer = stage(bench, msgspec.structs.replace(FOUR, **changes))
    assert not answer.ok
    assert reason in answer.text
    assert bench.node.roll.staged == 0


def test_all_reasons_come_at_once_and_preferred_may_follow_a_node_that_goes() -> None:
    wrong = msgspec.structs.replace(FOUR, revision=9, name="other")
    answer = stage(at_revision_2(), wrong)
    assert "set it to 3" in answer.text
    assert "keep the name" in answer.text
    service = ServiceSpec("s0", THREE.services[0].addresses, ("p0",), 1, 10)
    assert reconfigure.objections(THREE, msgspec.structs.replace(FOUR, services=(service,))) == []
    moved = ServiceSpec("s0", (AddressSpec("203.0.113.9", 24, "eth0"),), ("p0",), -1, 10)
    assert reconfigure.objections(THREE, msgspec.structs.replace(FOUR, services=(moved,))) != []


def test_a_staged_set_is_never_replaced_by_another_of_the_same_revision() -> None:
    bench = at_revision_2()
    stage(bench, FOUR)
    answer = stage(bench, TWO)
    assert not answer.ok
    assert "has staged another file as revision 3" in answer.text
    # Unless another one of that revision is in force: this one can never be.
    say(bench, 1, revision=3, config_hash=TWO.config_hash)
    assert stage(bench, TWO).ok


def test_nothing_is_staged_while_this_node_is_behind_or_does_not_know() -> None:
    bench = at_revision_2()
    bench.give(inp.Overheard(5, 99))
    assert "revision 5 is in force elsewhere" in stage(bench, FOUR).text
    learner = at_revision_2(proven=False)
    assert "does not know yet" in stage(learner, FOUR).text
    plain = Bench(msgspec.structs.replace(THREE, revision=1))
    wanted = msgspec.structs.replace(FOUR, revision=2)
    assert "try again in a few seconds" in stage(plain, wanted).text
    plain.hear(1, flags=0)
    assert "upgrade it first" in stage(plain, wanted).text


def test_a_file_that_was_only_known_becomes_a_vote() -> None:
    bench = at_revision_2().after_hold_down()
    assert stage(bench, FOUR, voted=False).ok
    since_us = bench.node.roll.staged_us
    bench.pass_ms(10)
    assert stage(bench, FOUR).ok
    assert bench.node.roll.voted
    assert bench.node.roll.staged_us == since_us


def test_what_was_staged_before_a_restart_is_not_judged_again() -> None:
    bench = Bench(msgspec.structs.replace(THREE, revision=1))
    wanted = msgspec.structs.replace(FOUR, revision=2)
    assert stage(bench, wanted, kept=True).ok
    assert bench.node.roll.voted
    assert not stage(at_revision_2(), THREE, kept=True).ok, "older than what is in force"


# the decision -----------------------------------------------------------------------------------


def decided(bench: Bench) -> bool:
    return bench.node.roll.due_us != FAR


def flips(bench: Bench, ms: float) -> list[act.Flip]:
    return kinds(bench.pass_ms(ms), act.Flip)


def test_a_majority_of_the_present_set_decides_and_dead_ms_later_it_is_taken_up() -> None:
    bench = at_revision_2().after_hold_down()
    say(bench, 1)
    stage(bench, FOUR)
    bench.pass_ms(30)
    assert not decided(bench)
    say(bench, 1, FOUR)
    bench.pass_ms(27)
    assert decided(bench)
    assert bench.rows.count("M35") == 1
    assert flips(bench, 120) == []
    (flip,) = flips(bench, 40)
    assert flip == act.Flip(3, 3, True)
    assert flips(bench, 1_500) == []
    assert len(flips(bench, 1_000)) == 1, "an upgrade that did not come about is tried again"


def turn(bench: Bench) -> str:
    return reconfigure.whose_turn(bench.node, bench.now_us)


def test_new_hearts_come_one_after_the_other_and_owners_last() -> None:
    """A new agent knows no copies yet: two at once, and the owner's loss costs its calls."""
    bench = at_revision_2().after_hold_down()
    assert turn(bench) == "", "nothing is decided"
    stage(bench, FOUR)
    say(bench, 1, FOUR)
    say(bench, 2, FOUR)
    bench.pass_ms(27)
    assert decided(bench)
    assert turn(bench) == "", "no owner is known, and it is the first"
    bench.node.services[0].promise = Identity(1, 0, 5)
    assert turn(bench) == "n1"
    peers = bench.node.peers
    up, syncing = int(Flag.AGENT_UP), int(Flag.SYNCING)
    for flags in (0, syncing, up | syncing):
        peers[1].revision, peers[1].flags = 3, flags
        assert turn(bench) == "n1", "its new agent is not in sync"
    peers[1].flags = up
    assert turn(bench) == "n2"
    peers[2].alive = False
    assert turn(bench) == "", "nobody waits for the dead"
    peers[2].alive, bench.node.services[0].promise = True, Identity(1, 2, 5)
    assert turn(bench) == "", "the owner comes after it"
    bench.node.services[0].promise = Identity(1, 0, 5)
    bench.node.roll.decided_us = bench.now_us - reconfigure.TURNS_US
    assert turn(bench) == "", "not for ever"


def test_others_files_and_the_dead_are_no_votes() -> None:
    bench = at_revision_2().after_hold_down()
    stage(bench, FOUR)
    say(bench, 1, msgspec.structs.replace(FOUR, config_hash=77))
    bench.pass_ms(30)
    assert not decided(bench)
    say(bench, 1, FOUR)
    bench.node.peers[1].alive = False
    assert not reconfigure.is_decided(bench.node)


def test_a_set_that_is_in_force_elsewhere_is_decided_without_a_vote_here() -> None:
    """A node that was away finds a file two revisions newer, and hears that it is in force."""
    bench = at_revision_2().after_hold_down()
    later = msgspec.structs.replace(FOUR, revision=4, config_hash=44)
    assert stage(bench, later, voted=False).ok
    bench.pass_ms(30)
    assert not decided(bench)
    assert kinds(bench.asked, act.SendBeat)[-1].beats[0].staged == 0
    bench.give(inp.Overheard(4, 44))
    bench.pass_ms(0.1)
    assert decided(bench)
    assert not stage(bench, THREE, voted=False).ok


def test_who_is_not_in_the_decided_set_leaves() -> None:
    bench = at_revision_2().after_hold_down()
    say(bench, 1)
    assert stage(bench, WITHOUT_ME).ok
    assert bench.node.roll.stays is False
    beat = kinds(bench.asked, act.SendBeat)[-1].beats[0]
    assert beat.flags & Flag.LEAVING, "no candidate any more"
    say(bench, 1, WITHOUT_ME)
    found = bench.pass_ms(200)
    assert kinds(found, act.Flip) == [act.Flip(3, 5, False)]
    assert kinds(found, act.InForce) == [act.InForce(3)]


def test_who_is_to_leave_hands_its_services_over() -> None:
    bench = at_revision_2()
    bench.own()
    stage(bench, WITHOUT_ME)
    bench.hear(1, entry(bench.service.identity, lease_seq=bench.node.seq), revision=2)
    bench.pass_ms(27)
    assert "T405" in bench.rows


# older sets -------------------------------------------------------------------------------------

OWNER = Identity(4, 1, 9)


def owner_of(revision: int) -> dict[str, Any]:
    return {"revision": revision, "flags": READS_2}


def test_a_neighbour_is_served_and_who_was_left_behind_is_not() -> None:
    bench = at_revision_2().after_hold_down()
    bench.hear(1, entry(OWNER, State.OWNED), **owner_of(1))
    assert bench.service.promise == OWNER
    assert bench.service.lease_seq >= 0
    stage(bench, FOUR)
    before = bench.service.lease_seq
    bench.hear(1, entry(OWNER, State.OWNED), **owner_of(1))
    assert bench.service.lease_seq == before, "no echo"
    bench.hear(1, entry(OWNER, State.OWNED), **owner_of(2))
    assert bench.service.lease_seq > before


def test_a_claim_of_who_was_left_behind_is_not_granted_not_even_later() -> None:
    bench = at_revision_2().after_hold_down()
    claim = Identity(5, 1, 3)
    bench.hear(1, **owner_of(1))
    bench.node.roll.floor = 2
    bench.hear(1, entry(claim, State.CLAIMING), **owner_of(1))
    assert bench.service.promise == NOBODY
    bench.service.deferred = Deferred(claim, bench.now_us)
    bench.give(inp.Tick())
    assert bench.service.promise == NOBODY
    bench.hear(1, entry(claim, State.CLAIMING), **owner_of(2))
    bench.hear(1, entry(claim, State.CLAIMING), **owner_of(3))
    assert bench.service.promise == claim


def test_a_file_on_the_host_displaces_nothing_that_was_agreed_to() -> None:
    """Else the node would agree to two sets of one revision, which two majorities may decide."""
    bench = at_revision_2().after_hold_down()
    assert stage(bench, FOUR).ok
    later = msgspec.structs.replace(FOUR, revision=4, config_hash=44)
    assert not stage(bench, later, voted=False).ok
    roll = bench.node.roll
    assert (roll.staged, roll.staged_hash, roll.voted) == (3, FOUR.config_hash, True)
    other = msgspec.structs.replace(FOUR, config_hash=33)
    assert "another file as revision 3" in stage(bench, other).text
    bench.give(inp.Overheard(4, 44))
    assert stage(bench, later).ok, "what is in force ends it"
    assert reconfigure.is_decided(bench.node)


def test_the_floor_never_falls() -> None:
    bench = at_revision_2()
    stage(bench, FOUR)
    assert bench.node.roll.floor == 2
    stage(bench, msgspec.structs.replace(FOUR, revision=5, config_hash=55), voted=False)
    assert bench.node.roll.floor == 2
    bench.give(inp.Overheard(7, 1))
    assert bench.node.roll.floor == 6


def test_nobody_claims_by_a_set_that_others_have_left_behind() -> None:
    bench = at_revision_2().after_hold_down()
    assert reconfigure.may_claim(bench.node)
    bench.give(inp.Overheard(3, FOUR.config_hash))
    assert not reconfigure.may_claim(bench.node)
    bench.hear(1, revision=2)
    bench.pass_ms(300)
    assert "T101" not in bench.rows
    assert stage(bench, FOUR).ok
    assert reconfigure.may_claim(bench.node), "it takes it up itself in a moment"


def test_a_word_older_than_what_is_known_changes_nothing() -> None:
    bench = at_revision_2()
    bench.give(inp.Overheard(2, 55))
    assert (bench.node.roll.known, bench.node.roll.known_hash) == (2, 0)


# a node that joins ------------------------------------------------------------------------------


def test_a_new_node_neither_votes_nor_claims_before_its_set_is_in_force() -> None:
    bench = at_revision_2(proven=False)
    bench.pass_ms(300)
    beat = kinds(bench.asked, act.SendBeat)[-1].beats[0]
    assert beat.revision == 0
    assert beat.flags & Flag.STARTING
    bench.hear(1, entry(OWNER, State.OWNED), **owner_of(0))
    assert bench.service.promise == NOBODY
    assert bench.service.lease_seq == -1
    bench.hear(1, entry(OWNER, State.OWNED), config_hash=77, **owner_of(2))
    assert not bench.node.roll.proven, "another file of that revision"
    bench.hear(1, two_way=False, **owner_of(2))
    assert not bench.node.roll.proven, "it may be a recording of long ago"


def test_a_new_node_joins_once_it_hears_that_its_set_is_in_force() -> None:
    bench = at_revision_2(proven=False)
    bench.pass_ms(300)
    bench.hear(1, entry(OWNER, State.OWNED), **owner_of(2))
    assert bench.node.roll.proven
    assert kinds(bench.asked, act.InForce) == [act.InForce(2)]
    assert "M33" in bench.rows
    bench.hear(1, entry(OWNER, State.OWNED), **owner_of(2))
    assert bench.service.promise == OWNER


# what people see --------------------------------------------------------------------------------


def alarms(bench: Bench) -> list[str]:
    return [a.text for a in view(bench.node, bench.now_us).alarms if a.name == "revision"]


def test_a_set_that_stays_staged_names_who_lacks_it() -> None:
    bench = at_revision_2().after_hold_down()
    stage(bench, FOUR)
    say(bench, 1, msgspec.structs.replace(FOUR, config_hash=8))
    seen = view(bench.node, bench.now_us).revision
    assert (seen.active, seen.staged, seen.lacking) == (2, 3, ("n1", "n2"))
    assert seen.others[0].staged_hash == 8
    assert alarms(bench) == []
    bench.pass_ms(61_000)
    (text,) = alarms(bench)
    assert "missing on n1, n2" in text


def test_alarms_say_what_to_do_for_a_node_that_is_behind_or_new() -> None:
    behind = at_revision_2()
    assert alarms(behind) == []
    behind.give(inp.Overheard(5, 1))
    assert "run `haclusterctl reload` there" in alarms(behind)[0]
    assert "set cluster.revision to 1" in alarms(at_revision_2(proven=False))[0]
