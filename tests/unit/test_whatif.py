"""What-if: the model settles into the present, and its answer is what then happens."""

from __future__ import annotations

import msgspec
import pytest

from haclusterd.core.state import Node
from haclusterd.whatif import Answer, Failure, WhatIfError, what_if
from tests.fixtures.recorded import Recordings, recorded
from tests.scenarios.player import Player

CALM = ["cluster masters=2 slaves=2", "boot all", "run 3000ms"]


def seen(recordings: Recordings, me: int) -> tuple[Node, int]:
    """A node's state as `simulate` gets it: through a file."""
    segment = recordings.trace(me, whole=False).segments[-1]
    return segment.node, segment.began_us


def ask(recordings: Recordings, me: int, failure: Failure) -> Answer:
    return what_if(*seen(recordings, me), failure)


def where(answer: Answer) -> dict[str, str | None]:
    return {fate.service: fate.owner for fate in answer.services}


def cluster(*commands: str) -> Recordings:
    with recorded() as (player, recordings):
        player.play([*(commands or CALM)])
    return recordings


@pytest.fixture(scope="module")
def calm() -> Recordings:
    return cluster()


@pytest.mark.parametrize("me", range(4))
def test_whoever_is_asked_answers_alike(calm: Recordings, me: int) -> None:
    answer = ask(calm, me, Failure(nodes=(0,)))
    lost, kept = answer.services
    assert (lost.was, lost.owner, lost.outcome) == ("n0", "n2", "moved")
    assert lost.after_ms is not None
    assert 130 < lost.after_ms[0] < lost.after_ms[1] < 175
    assert (kept.owner, kept.outcome, kept.after_ms) == ("n1", "kept", None)
    assert any(s.row == "T101" and s.text.startswith("n2 claims s0") for s in answer.sentences)


@pytest.mark.parametrize(
    ("failure", "commands"),
    [
        (Failure(nodes=(0,)), ["kill n0"]),
        (Failure(nodes=(2,)), ["kill n2"]),
        (Failure(freeswitches=(0,)), ["freeswitch-dies n0"]),
        (Failure(stops=(1,)), ["stop n1"]),
        (Failure(nodes=(0, 1)), ["kill n0 n1"]),
    ],
)
def test_the_answer_is_what_then_happens(failure: Failure, commands: list[str]) -> None:
    with recorded() as (player, recordings):
        player.play(CALM)
        answer = ask(recordings, 3, failure)
        player.play([*commands, "run 900ms"])
        happened = {f"s{k}": _owner(player, k) for k in range(2)}
    assert where(answer) == happened


def test_two_at_once_go_to_two_slaves(calm: Recordings) -> None:
    """Which of them takes which hangs on microseconds that no model knows."""
    answer = ask(calm, 3, Failure(freeswitches=(0, 1)))
    assert sorted(str(owner) for owner in where(answer).values()) == ["n2", "n3"]


def _owner(player: Player, k: int) -> str | None:
    owners = player.owners(k)
    return f"n{owners[0]}" if owners else None


def test_asking_changes_nothing(calm: Recordings) -> None:
    node, at_us = seen(calm, 1)
    before = msgspec.msgpack.encode(node)
    what_if(node, at_us, Failure(nodes=(0,), links=(1,)))
    assert msgspec.msgpack.encode(node) == before


def test_one_heartbeat_nic_is_spared_all_are_not(calm: Recordings) -> None:
    assert where(ask(calm, 2, Failure(links=(1,)))) == {"s0": "n0", "s1": "n1"}
    answer = ask(calm, 2, Failure(links=(0, 1)))
    assert {f.outcome for f in answer.services} == {"unserved"}
    reason = answer.services[0].reason
    assert reason == "no quorum: at most 1 of 4 voters reach each other, 3 are needed"


def test_no_quorum_is_named(calm: Recordings) -> None:
    answer = ask(calm, 3, Failure(nodes=(0, 1)))
    assert [f.owner for f in answer.services] == [None, None]
    assert "2 of 4 voters" in answer.services[1].reason


def test_nobody_ready_is_named_node_by_node(calm: Recordings) -> None:
    answer = ask(calm, 3, Failure(freeswitches=(0, 1, 2, 3)))
    reason = answer.services[0].reason
    assert reason.startswith("nobody can take it: n0 is not ready")
    assert "; n3 is not ready" in reason


def test_last_resort_none_is_named() -> None:
    recordings = cluster("cluster masters=2 slaves=1 last_resort=none", *CALM[1:])
    answer = ask(recordings, 1, Failure(freeswitches=(0, 2)))
    fate = answer.services[0]
    assert (fate.outcome, fate.was) == ("unserved", "n0")
    assert 'n1 owns another service, and last_resort = "none"' in fate.reason


def test_lack_of_capacity_is_named() -> None:
    recordings = cluster("cluster masters=2 slaves=1", *CALM[1:], "calls n0 s0 600",
                         "calls n1 s1 700", "run 300ms")  # fmt: skip
    fate = ask(recordings, 1, Failure(freeswitches=(0, 2))).services[0]
    assert fate.outcome == "unserved"
    assert "n1 has 700 calls of 1000 already: no room for 600" in fate.reason


def test_maintenance_and_what_is_down_already_count() -> None:
    recordings = cluster(*CALM, "maintenance n2 on", "run 300ms")
    assert where(ask(recordings, 1, Failure(nodes=(0,))))["s0"] == "n3"
    recordings = cluster("cluster masters=2 slaves=3", *CALM[1:], "kill n2", "run 500ms")
    assert where(ask(recordings, 1, Failure(nodes=(0,))))["s0"] == "n3"


ALL_IN_MAINTENANCE = ["maintenance n1 on", "maintenance n2 on", "run 300ms"]


def test_an_owner_without_a_freeswitch_keeps_a_service_that_nobody_can_take() -> None:
    """`kept`, and nothing else, read as if no call was lost."""
    recordings = cluster("cluster masters=1 slaves=2", *CALM[1:], *ALL_IN_MAINTENANCE)
    fate = ask(recordings, 1, Failure(freeswitches=(0,))).services[0]
    assert (fate.outcome, fate.owner) == ("kept", "n0")
    assert fate.reason == (
        "no FreeSWITCH runs on n0: the service has no calls until one does; "
        "nobody can take it: n1 is maintenance; n2 is maintenance"
    )
    assert ask(recordings, 1, Failure(links=(1,))).services[0].reason == ""


def test_a_lone_survivor_by_marks_may_lose_its_freeswitch_too() -> None:
    lost = ["kill n0 n1", "run 1000ms", "mark-dead n0 n2", "mark-dead n1 n2", "run 1500ms"]
    recordings = cluster("cluster masters=1 slaves=2", *CALM[1:], *lost)
    fate = ask(recordings, 2, Failure(freeswitches=(2,))).services[0]
    assert (fate.outcome, fate.owner) == ("kept", "n2")
    assert fate.reason.startswith("no FreeSWITCH runs on n2: ")
    assert fate.reason.endswith("nobody can take it: n0 is lost; n1 is lost")


def test_a_freeswitch_that_is_gone_already_is_named_as_well() -> None:
    gone = ["freeswitch-dies n0", "run 300ms"]
    recordings = cluster("cluster masters=1 slaves=2", *CALM[1:], *ALL_IN_MAINTENANCE, *gone)
    for me in (0, 1):
        fate = ask(recordings, me, Failure(nodes=(2,))).services[0]
        assert (fate.outcome, fate.owner) == ("kept", "n0")
        assert fate.reason.startswith("no FreeSWITCH runs on n0: ")


def test_a_link_that_is_down_already_is_down_in_the_model() -> None:
    recordings = cluster(*CALM, "run 100ms")
    node, at_us = seen(recordings, 3)
    for peer in node.peers:
        peer.links[0].up = False
    answer = what_if(node, at_us, Failure(links=(1,)))
    assert {f.outcome for f in answer.services} == {"unserved"}


def test_a_cluster_in_motion_is_not_simulated() -> None:
    recordings = cluster("cluster masters=1 slaves=2", *CALM[1:])
    node, at_us = seen(recordings, 0)
    for peer in node.peers[1:]:
        peer.alive = False
    with pytest.raises(WhatIfError, match=r"in motion.*s0 is at n0 here, in it nobody"):
        what_if(node, at_us, Failure(nodes=(1,)))


def test_availability_may_overlap() -> None:
    recordings = cluster("cluster masters=1 slaves=1 quorum=availability", *CALM[1:])
    fate = ask(recordings, 1, Failure(links=(0, 1))).services[0]
    assert fate.outcome == "overlapping"
    assert fate.also == ("n1",)


def test_a_pause_is_simulated_with_the_rest_and_named() -> None:
    recordings = cluster(*CALM, "pause n1", "run 900ms")
    fate = ask(recordings, 2, Failure(nodes=(0,))).services[0]
    assert (fate.outcome, fate.owner) == ("unserved", None)
    assert fate.reason == "the cluster is paused by an operator: nothing moves by itself"
    stopped = ask(recordings, 2, Failure(stops=(0,))).services[0]
    assert (stopped.outcome, stopped.owner) == ("moved", "n2")


def test_a_node_marked_dead_has_no_vote_in_what_if_either() -> None:
    recordings = cluster(*CALM, "kill n0", "run 1000ms", "mark-dead n0 n1", "run 1000ms")
    answer = ask(recordings, 1, Failure(nodes=(2,)))  # two of three
    assert {fate.owner for fate in answer.services} <= {"n1", "n3"}
    answer = ask(recordings, 1, Failure(nodes=(2, 3)))
    assert "1 of 3 voters reach each other, 2 are needed" in answer.services[0].reason
