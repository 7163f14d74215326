"""May this node take a service over, and if not why: the word that heart ranks by."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from haclusterd.agent.pid import Process
from haclusterd.agent.standing import Facts, judge, profile_reasons
from haclusterd.core.standby import Freshness
from tests.fixtures.agent_parts import spec

IN_SYNC = Freshness("in-sync", 20, 20, 3)
SLAVE = Facts(
    freeswitch=True,
    watched=True,
    process=Process(4711, 99),
    esl_up=True,
    problem="",
    calls=0,
    owners={"east": ("fs-b", 7), "west": ("fs-c", 2)},
    freshness={"east": IN_SYNC, "west": IN_SYNC},
    profiles={"east": "", "west": ""},
)


def east(facts: Facts) -> tuple[bool, str]:
    word = judge(spec(), facts).services[0]
    return word.ready, word.reason


def test_a_slave_in_sync_is_ready_for_everything() -> None:
    report = judge(spec(), SLAVE)
    assert [s.ready for s in report.services] == [True, True]
    assert (report.freeswitch_up, report.pid, report.pid_start) == (True, 4711, 99)
    assert (report.health, report.load, report.syncing) == (100, 0, False)
    assert report.services[0].calls == 20, "the calls it would get count for its capacity"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"process": None, "esl_up": False}, "FreeSWITCH does not run here"),
        ({"health_state": "hung"}, "FreeSWITCH hangs"),
        ({"esl_up": False, "problem": "refused the ESL password"}, "refused the ESL password"),
        ({"problem": "core.db: no such file"}, "core.db: no such file"),
        ({"profiles": {}}, "not looked at yet"),
        ({"profiles": {"east": "SIP profile 'east' does not run"}}, "does not run"),
        ({"busy": {"east": "ending its calls"}}, "busy: ending its calls"),
        ({"freshness": {}}, "has not come yet from fs-b"),
        ({"freshness": {}, "replicating": "cannot listen on 10.1.0.1"}, "cannot listen"),
        ({"freshness": {"east": Freshness("syncing", 3, 20, 50)}}, "syncing: 3 of 20, 50 ms"),
    ],
)
def test_what_is_missing_is_said(change: dict[str, object], reason: str) -> None:
    ready, said = east(replace(SLAVE, **change))  # type: ignore[arg-type]
    assert not ready
    assert reason in said


def test_the_owner_is_ready_whatever_its_copies_are() -> None:
    facts = replace(SLAVE, owners={"east": ("fs-a", 7)}, freshness={}, own_calls={"east": 9})
    assert east(facts) == (True, "")
    assert judge(spec(), facts).services[0].calls == 9


def test_a_cold_start_needs_no_copy() -> None:
    assert east(replace(SLAVE, owners={"east": ("", 0)}, freshness={})) == (True, "")


def test_without_any_copy_an_orphan_is_taken_only_after_those_who_have_one_could() -> None:
    facts = replace(SLAVE, owners={"east": ("", 7)}, freshness={})
    assert not east(replace(facts, orphaned_s={"east": 1.0}))[0]
    assert east(replace(facts, orphaned_s={"east": 3.1}))[0]


def test_a_lost_connection_is_not_a_dead_freeswitch() -> None:
    report = judge(spec(), replace(SLAVE, esl_up=False, problem="connection refused"))
    assert report.freeswitch_up
    assert report.health == 40


def test_load_and_syncing_travel() -> None:
    facts = replace(SLAVE, calls=250, freshness={"east": Freshness("syncing", 0, 1, 0)})
    report = judge(spec(), facts)
    assert report.load == 2
    assert report.syncing
    assert judge(spec(), replace(SLAVE, calls=5000)).load == 10


def test_addresses_only_is_always_ready() -> None:
    facts = Facts(False, False, None, False, "")
    report = judge(spec(freeswitch=False), facts)
    assert all(s.ready for s in report.services)
    assert (report.freeswitch_up, report.health) == (True, 100)


def test_process_supervision_alone_needs_no_copies() -> None:
    facts = Facts(True, False, Process(5, 6), False, "", owners={"east": ("fs-b", 3)})
    assert east(facts) == (True, "")


def test_a_witness_takes_nothing() -> None:
    cluster = spec()
    nodes = (msgspec.structs.replace(cluster.nodes[0], witness=True), *cluster.nodes[1:])
    report = judge(msgspec.structs.replace(cluster, nodes=nodes), SLAVE)
    assert [s.reason for s in report.services] == ["a witness only votes"] * 2


def test_one_bad_profile_spoils_its_service_only() -> None:
    found = profile_reasons([("east", ("e1", "e2")), ("west", ("w",))], {"e2": ["e2 is down"]})
    assert found == {"east": "e2 is down", "west": ""}
