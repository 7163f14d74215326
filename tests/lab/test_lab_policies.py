"""Quorum policies and operators' orders with real daemons in namespaces, addresses only."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from haclusterd.lab import netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import ready_cluster

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

MOVED_S = 20.0
STAYS_S = 1.5  # ten times what a takeover needs


def entry(lab: Laboratory, seen_from: str, node: str) -> dict[str, Any]:
    status = lab.nodes[seen_from].status() or {"nodes": []}
    return next((n for n in status["nodes"] if n["id"] == node), {})


def alarms(lab: Laboratory, node: str) -> set[str]:
    return {alarm["name"] for alarm in (lab.nodes[node].status() or {"alarms": []})["alarms"]}


def owner(lab: Laboratory, service: str) -> str:
    return lab.holder(lab.plan.service(service).ip)


def moves_to(lab: Laboratory, service: str, node: str) -> None:
    lab.wait(lambda: owner(lab, service) == node, MOVED_S, f"{service} to be {node}'s")


def loses(lab: Laboratory, node: str) -> None:
    lab.topology.cut(node)
    lab.nodes[node].send(lab.nodes[node].pids(), signal.SIGKILL)


def ordered(lab: Laboratory, node: str, *words: str, code: int = 0) -> str:
    done = lab.nodes[node].ctl(*words)
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return str(json.loads(done.stdout)["text"]) if code == 0 else done.stderr


def connected(lab: Laboratory, node: str) -> bool:
    """Its agent can tell all others an order at once; those it cannot reach hear it later."""
    done = lab.nodes[node].ctl("sync")
    peers = json.loads(done.stdout)["peers"] if done.returncode == 0 else []
    return bool(peers) and all(peer["connected"] for peer in peers)


def one_holder(lab: Laboratory) -> None:
    """At no time did two nodes answer for, or emit from, one address."""
    seen: dict[str, list[tuple[int, int, str]]] = {}
    for span in lab.observe().spans:
        seen.setdefault(span.address, []).append((span.first_ns, span.last_ns, span.mac))
    for address, spans in seen.items():
        for (_, last, mac), (first, _, other) in zip(
            sorted(spans), sorted(spans)[1:], strict=False
        ):
            assert mac == other or first >= last, (address, spans)


def test_ml16_two_masters_and_a_witness() -> None:
    with ready_cluster(LabPlan(masters=2, slaves=0, freeswitch="none"), None, print) as lab:
        lab.arm()
        for node in lab.nodes:
            shown = entry(lab, node, "witness")
            assert (shown["witness"], shown["role"], shown["rank"]) == (True, "maintenance", None)
        lab.topology.cut("fs-a", lab.plan.heartbeat_nics)  # both links of a master
        moves_to(lab, "east1", "fs-b")
        assert owner(lab, "east2") == "fs-b"
        lab.topology.plug("fs-a", lab.plan.heartbeat_nics)
        lab.wait(lambda: lab.role("fs-a") == "slave", MOVED_S, "fs-a to be a slave again")
        loses(lab, "witness")
        time.sleep(STAYS_S)
        assert {owner(lab, "east1"), owner(lab, "east2")} == {"fs-b"}
        loses(lab, "fs-a")
        time.sleep(STAYS_S)  # one of three: nobody may serve
        assert {owner(lab, "east1"), owner(lab, "east2")} == {""}
        assert "no_quorum" in alarms(lab, "fs-b")
        one_holder(lab)


def test_ml16_a_master_dies_and_the_witness_votes() -> None:
    with ready_cluster(LabPlan(masters=2, slaves=0, freeswitch="none"), None, print) as lab:
        lab.arm()
        loses(lab, "fs-b")
        moves_to(lab, "east2", "fs-a")
        assert owner(lab, "east1") == "fs-a"
        one_holder(lab)


def test_ml10_pause_and_maintenance_outlive_their_daemons() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2, freeswitch="none"), None, print) as lab:
        lab.arm()
        for node in ("fs-a", "fs-c"):
            lab.wait(lambda n=node: connected(lab, n), MOVED_S, f"{node} to reach all agents")
        assert "paused for 1h" in ordered(lab, "fs-c", "pause", "--for", "1h")
        assert "in maintenance" in ordered(lab, "fs-a", "maintenance", "on", "fs-c", "--for", "1h")
        for node in lab.nodes:
            assert "paused" in alarms(lab, node)
        for node in ("fs-b", "fs-c"):
            for pids in lab.nodes[node].haclusterd_pids():
                lab.nodes[node].send(pids, signal.SIGKILL)
            lab.wait(lambda n=node: lab.nodes[n].status() is None, MOVED_S, f"{node} to be gone")
            lab.nodes[node].start_haclusterd()
        lab.wait(lambda: lab.role("fs-b") == "slave", MOVED_S, "fs-b to be a slave again")
        lab.wait(lambda: lab.role("fs-c") == "maintenance", MOVED_S, "fs-c to be back")
        for node in ("fs-b", "fs-c"):
            lab.wait(lambda n=node: "paused" in alarms(lab, n), MOVED_S, f"{node} to be paused")
        status = lab.nodes["fs-c"].status() or {}
        assert status["paused"]["by"].endswith("on fs-c")
        assert 3500 < status["paused"]["left_s"] <= 3600
        loses(lab, "fs-a")
        time.sleep(STAYS_S)
        assert owner(lab, "east1") == ""
        assert "unserved" in alarms(lab, "fs-b")
        said = ordered(lab, "fs-c", "resume")
        assert "the cluster is resumed" in said
        moves_to(lab, "east1", "fs-b")
        assert "maintenance" in alarms(lab, "fs-b")
        assert "out of maintenance" in ordered(lab, "fs-b", "maintenance", "off", "fs-c")
        one_holder(lab)


def test_b7_maintenance_is_ended_while_its_node_is_dead() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2, freeswitch="none"), None, print) as lab:
        lab.wait(lambda: connected(lab, "fs-a"), MOVED_S, "fs-a to reach all agents")
        assert "in maintenance" in ordered(lab, "fs-a", "maintenance", "on", "fs-c")
        for pids in lab.nodes["fs-c"].haclusterd_pids():
            lab.nodes["fs-c"].send(pids, signal.SIGKILL)
        lab.wait(lambda: lab.role("fs-c") == "dead", MOVED_S, "fs-c to be dead")
        said = ordered(lab, "fs-a", "maintenance", "off", "fs-c")
        assert "out of maintenance as soon as it is back" in said
        loses(lab, "fs-a")  # who took the order is lost, and has told it
        lab.nodes["fs-c"].start_haclusterd()
        lab.wait(
            lambda: entry(lab, "fs-b", "fs-c").get("role") == "slave", MOVED_S, "fs-c to be a slave"
        )
        history = json.loads(lab.nodes["fs-c"].ctl("history").stdout)
        assert any("ended it while this node was away" in d["text"] for d in history)


def test_ml18_the_last_of_three_serves_on_an_operators_word() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2, freeswitch="none"), None, print) as lab:
        lab.arm()
        mark = ("node", "mark-dead", "fs-a", "--verified-by", "ben", "--yes")
        assert "hears fs-a" in ordered(lab, "fs-c", *mark, code=1)
        loses(lab, "fs-a")
        loses(lab, "fs-b")
        time.sleep(STAYS_S)
        assert owner(lab, "east1") == ""
        assert "marked dead, verified by ben" in ordered(lab, "fs-c", *mark)
        time.sleep(STAYS_S)
        assert owner(lab, "east1") == ""  # one of two
        ordered(lab, "fs-c", "node", "mark-dead", "fs-b", "--verified-by", "ben", "--yes")
        moves_to(lab, "east1", "fs-c")
        status = lab.nodes["fs-c"].status() or {}
        assert status["quorum"]["voters"] == 1
        assert [m["node"] for m in status["marked_dead"]] == ["fs-a", "fs-b"]
        lab.topology.plug("fs-a")  # repaired
        lab.nodes["fs-a"].start_haclusterd()
        lab.nodes["fs-a"].start_echo()
        lab.wait(lambda: lab.role("fs-a") == "slave", MOVED_S, "fs-a to be a slave")
        status = lab.nodes["fs-c"].status() or {}
        assert [m["node"] for m in status["marked_dead"]] == ["fs-b"]
        assert owner(lab, "east1") == "fs-c"
        one_holder(lab)


def test_ml15_availability_acts_alone_and_is_one_again() -> None:
    plan = LabPlan(masters=1, slaves=1, freeswitch="none", quorum="availability")
    with ready_cluster(plan, None, print) as lab:
        lab.topology.cut("fs-b", plan.heartbeat_nics)  # both live, and hear each other no more
        time.sleep(STAYS_S)
        for node in ("fs-a", "fs-b"):
            assert "east1" in entry(lab, node, node)["services"]  # as the policy says
        lab.topology.plug("fs-b", plan.heartbeat_nics)
        lab.wait(lambda: len(owners_seen(lab, "east1")) == 1, MOVED_S, "east1 to have one owner")
        time.sleep(STAYS_S)
        (kept,) = owners_seen(lab, "east1")
        assert owner(lab, "east1") == kept
        other = "fs-b" if kept == "fs-a" else "fs-a"
        loses(lab, kept)
        moves_to(lab, "east1", other)  # alone, without anybody's vote


def owners_seen(lab: Laboratory, service: str) -> set[str]:
    """Who says of itself that it serves."""
    return {n for n in lab.nodes if service in entry(lab, n, n).get("services", [])}


def test_last_resort_none_leaves_a_service_unserved() -> None:
    plan = LabPlan(masters=2, slaves=0, freeswitch="none", last_resort="none")
    with ready_cluster(plan, None, print) as lab:
        lab.arm()
        loses(lab, "fs-a")
        time.sleep(STAYS_S)
        assert owner(lab, "east1") == ""
        assert owner(lab, "east2") == "fs-b"
        assert "unserved" in alarms(lab, "fs-b")
        one_holder(lab)
