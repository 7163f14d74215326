"""What operators do to a cluster that serves: drains, maintenance, failover, rotation of keys."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import threading
import time
from typing import Any

import pytest

from haclusterd.lab import netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import SIP_PORT, LabPlan
from haclusterd.lab.run import bring_calls, ready_cluster

_REASON = netns.why_not() or ("" if shutil.which("sipp") else "sipp is missing: sip-tester")
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

SOON_S = 20.0
CALLS = 6
GAP_MS_MAX = 90.0  # a busy machine; a takeover takes 150


def options(lab: Laboratory, service: str) -> int:
    """What the profile of a service answers to OPTIONS: 200, 503, or 0 for nothing."""
    ip, here = lab.plan.service(service).ip, lab.plan.client_ip
    with netns.inside(lab.topology.client):
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        asking.bind((here, 0))
        asking.settimeout(1)
        port = asking.getsockname()[1]
        mark = f"{time.monotonic_ns()}"
        request = (
            f"OPTIONS sip:{ip} SIP/2.0\r\nVia: SIP/2.0/UDP {here}:{port};branch=z9hG4bK{mark}\r\n"
            f"From: <sip:x@{here}>;tag=x\r\nTo: <sip:{ip}>\r\nCall-ID: {mark}\r\n"
            "CSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
        )
        asking.sendto(request.encode(), (ip, SIP_PORT))
        try:
            return int(asking.recv(4096).split()[1])
        except TimeoutError:
            return 0


def done(lab: Laboratory, node: str, *words: str) -> str:
    ended = lab.nodes[node].ctl(*words)
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return str(json.loads(ended.stdout)["text"])


def refused(lab: Laboratory, node: str, *words: str) -> str:
    ended = lab.nodes[node].ctl(*words)
    assert ended.returncode == 1, (words, ended.stdout, ended.stderr)
    return ended.stderr


def status(lab: Laboratory, node: str) -> dict[str, Any]:
    return lab.nodes[node].status() or {"services": [], "drains": [], "alarms": [], "nodes": []}


def owner(lab: Laboratory, service: str) -> str:
    return lab.holder(lab.plan.service(service).ip)


def comes(lab: Laboratory, what: str, condition: Any) -> None:
    lab.wait(condition, SOON_S, what, lambda: [json.dumps(status(lab, n)) for n in lab.nodes])


def unopened(lab: Laboratory, node: str) -> int:
    """Beats that the node could not open for want of a key."""
    with netns.inside(lab.nodes[node].namespace):
        asking = http.client.HTTPConnection("127.0.0.1", 7802, timeout=5)
        asking.connect()
    asking.request("GET", "/metrics")
    text = asking.getresponse().read().decode()
    asking.close()
    counts = re.findall(r'link_received\S*outcome="(?:unknown key|bad mac)"} (\d+)', text)
    return sum(map(int, counts))


def talking(lab: Laboratory) -> int:
    ids = {call_id for callers in lab.callers.values() for call_id in callers.call_ids}
    return lab._talking(ids)


def one_holder(lab: Laboratory) -> None:
    seen: dict[str, list[tuple[int, int, str]]] = {}
    for span in lab.observe().spans:
        seen.setdefault(span.address, []).append((span.first_ns, span.last_ns, span.mac))
    for spans in seen.values():
        for (_, last, mac), (first, _, other) in zip(
            sorted(spans), sorted(spans)[1:], strict=False
        ):
            assert mac == other or first >= last, spans


def test_b7_e10_maintenance_drains_then_moves_and_loses_no_call() -> None:
    plan = LabPlan(masters=2, slaves=1, maintenance_service="east2")
    with ready_cluster(plan, None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        lab.arm()
        comes(lab, "east2 to take no calls yet", lambda: options(lab, "east2") == 503)
        assert options(lab, "east1") == 200
        said = done(lab, "fs-b", "maintenance", "on", "fs-a", "--drain", "12s", "--for", "1h")
        assert "12s at the latest" in said
        comes(lab, "the maintenance service on the slave", lambda: owner(lab, "east2") == "fs-b")
        comes(lab, "new calls there", lambda: options(lab, "east2") == 200)
        comes(lab, "no new calls on east1", lambda: options(lab, "east1") == 503)
        assert owner(lab, "east1") == "fs-a"
        shown = status(lab, "fs-c")
        (drain,) = shown["drains"]
        assert (drain["kind"], drain["name"], drain["services"]) == ("node", "fs-a", ["east1"])
        assert 0 < drain["moves_s"] <= 12
        assert {s["name"]: s.get("closed", "") != "" for s in shown["services"]} == {
            "east1": True, "east2": False,
        }  # fmt: skip
        best = lab.nodes["fs-b"].api("best_node")
        assert [(n["node"], n["services"]) for n in best] == [("fs-b", ["east2"])]
        exported = lab.nodes["fs-a"].ctl("export", "upstream", "--format", "kamailio")
        assert {t["service"] for t in json.loads(exported.stdout)} == {"east2"}
        assert talking(lab) == CALLS
        comes(lab, "east1 to move", lambda: owner(lab, "east1") == "fs-c")
        comes(lab, "new calls on east1", lambda: options(lab, "east1") == 200)
        comes(lab, "no more on east2", lambda: options(lab, "east2") == 503)
        time.sleep(1)
        assert talking(lab) == CALLS
        assert "takes new calls again" in done(lab, "fs-c", "maintenance", "off", "fs-a")
        assert status(lab, "fs-b")["drains"] == []
        comes(lab, "the maintenance service to go home", lambda: owner(lab, "east2") == "fs-c")
        comes(lab, "fs-b to be a slave", lambda: lab.role("fs-b") == "slave")
        one_holder(lab)


def test_b7_an_aborted_drain_leaves_everything_where_it_was() -> None:
    plan = LabPlan(masters=2, slaves=0, maintenance_service="east2")
    with ready_cluster(plan, None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        done(lab, "fs-a", "maintenance", "on", "--drain", "5m")
        comes(lab, "no new calls on east1", lambda: options(lab, "east1") == 503)
        comes(lab, "the maintenance service on the slave", lambda: owner(lab, "east2") == "fs-b")
        for pid in lab.nodes["fs-a"].haclusterd_pids()[1]:
            lab.nodes["fs-a"].send([pid], signal.SIGKILL)  # the agent that carries it out
        time.sleep(3)
        assert options(lab, "east1") == 503
        assert owner(lab, "east1") == "fs-a"
        comes(lab, "fs-a to answer", lambda: lab.nodes["fs-a"].status() is not None)
        done(lab, "fs-b", "maintenance", "off", "fs-a")
        comes(lab, "new calls on east1", lambda: options(lab, "east1") == 200)
        comes(lab, "the slave to be one again", lambda: owner(lab, "east2") == "fs-a")
        comes(lab, "fs-b to be a slave", lambda: lab.role("fs-b") == "slave")
        assert owner(lab, "east1") == "fs-a"
        assert talking(lab) == CALLS


def test_b7_a_drained_node_moves_as_soon_as_it_is_empty() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        bring_calls(lab, {"east1": 2}, print)
        done(lab, "fs-a", "maintenance", "on", "--drain", "10m")
        time.sleep(4)
        assert owner(lab, "east1") == "fs-a"
        for callers in lab.callers.values():
            callers.hang_up(callers.call_ids)
        comes(lab, "east1 to move", lambda: owner(lab, "east1") == "fs-b")
        comes(lab, "new calls there", lambda: options(lab, "east1") == 200)


def test_a_drained_service_refuses_calls_until_undone_whoever_owns_it() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        bring_calls(lab, {"east1": 2}, print)
        assert "until `drain off`" in done(lab, "fs-c", "drain", "east1")
        comes(lab, "no new calls", lambda: options(lab, "east1") == 503)
        done(lab, "fs-b", "switchover", "east1")
        comes(lab, "east1 to move", lambda: owner(lab, "east1") == "fs-b")
        comes(lab, "no new calls there either", lambda: options(lab, "east1") == 503)
        assert talking(lab) == 2
        done(lab, "fs-a", "drain", "off", "east1")
        comes(lab, "new calls", lambda: options(lab, "east1") == 200)
        assert "is not drained" in refused(lab, "fs-a", "drain", "off", "east1")


def test_an_agent_that_dies_in_a_switchover_leaves_no_service_without_new_calls() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        bring_calls(lab, {"east1": 2}, print)
        node = lab.nodes["fs-a"]
        agents = node.haclusterd_pids()[1]
        order = threading.Thread(target=lambda: node.ctl("switchover", "east1"))
        order.start()
        comes(lab, "no new calls", lambda: options(lab, "east1") == 503)
        node.send(agents, signal.SIGKILL)
        order.join()
        comes(lab, "new calls", lambda: options(lab, "east1") == 200)
        assert talking(lab) == 2


def test_failover_is_not_a_switchover() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        said = refused(lab, "fs-c", "failover", "east1", "--yes")
        assert "`haclusterctl switchover east1`" in said
        switch = lab.nodes["fs-a"].switch
        assert switch is not None
        agents = lab.nodes["fs-a"].haclusterd_pids()[1]
        lab.nodes["fs-a"].send(agents, signal.SIGSTOP)
        try:
            said = refused(lab, "fs-c", "failover", "east1", "--yes")
        finally:
            lab.nodes["fs-a"].send(agents, signal.SIGCONT)
        assert "systemctl stop haclusterd" in said
        assert owner(lab, "east1") == "fs-a"


def own_folders(lab: Laboratory) -> None:
    """Every node restarts with a copy of configuration and keys of its own."""
    for name, node in lab.nodes.items():
        folder = node.directory / "etc"
        folder.mkdir()
        for file in lab.directory.iterdir():
            if file.is_file() and file.suffix in (".toml", ".key", ".crt", ".password"):
                shutil.copy2(file, folder)
        for pids in node.haclusterd_pids():
            node.send(pids, signal.SIGKILL)
        lab.wait(lambda n=node: n.status() is None, SOON_S, f"{name} to be gone")
        node.start_haclusterd(folder / "haclusterd.toml")
        lab.wait(lambda n=name: lab.role(n) in ("slave", "master"), SOON_S, f"{name} back")
    for name in lab.nodes:
        comes(
            lab, "all to be in touch",
            lambda n=name: len(status(lab, n)["nodes"]) == 3
            and all(seen["version"] for seen in status(lab, n)["nodes"]),
        )  # fmt: skip


def test_25_keys_are_rotated_while_the_cluster_serves() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2, freeswitch="none"), None, print) as lab:
        said = refused(lab, "fs-a", "keys", "rotate")
        assert "folder of its own" in said  # the lab's nodes share one
        assert "as before" in said
        own_folders(lab)
        before = owner(lab, "east1")
        lab.arm()
        old = (lab.nodes["fs-b"].directory / "etc" / "cluster.key").read_text()
        assert "3 nodes have new keys" in done(lab, "fs-b", "keys", "rotate")
        new = {(n.directory / "etc" / "cluster.key").read_text() for n in lab.nodes.values()}
        assert len(new) == 1
        assert new != {old}
        where = json.loads(lab.nodes["fs-a"].ctl("keys", "status").stdout)
        assert {(k["phase"], *k["ring"]) for k in where} == {("done", 2)}
        time.sleep(1)
        assert owner(lab, "east1") == before
        for name in lab.nodes:
            seen = status(lab, name)
            assert seen["quorum"]["reachable"] == 3
            assert not [a for a in seen["alarms"] if a["name"].startswith(("keys", "unread"))]
            rows = [d["row"] for d in lab.nodes[name].api("history", count=40)]
            last = rows[rows.index("A47") :]
            assert last.count("A47") == 3
            assert not [row for row in last if row.startswith("T")]  # nothing lapsed, nothing moved
            assert unopened(lab, name) == 0
        for asked in lab.probe.ask("report").values():
            assert asked["longest_ms"] - asked["late_ms"] < GAP_MS_MAX, asked
        # The agents' new certificates: a new connection is made with them.
        agents = lab.nodes["fs-c"].haclusterd_pids()[1]
        lab.nodes["fs-c"].send(agents, signal.SIGKILL)
        comes(
            lab, "fs-c to be in touch",
            lambda: all(n["version"] for n in status(lab, "fs-c")["nodes"]),
        )  # fmt: skip
        one_holder(lab)


def test_25_a_master_dies_while_keys_are_rotated() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2, freeswitch="none"), None, print) as lab:
        own_folders(lab)
        master = owner(lab, "east1")
        conductor, other = (n for n in lab.nodes if n != master)
        ended: list[Any] = []
        rotation = threading.Thread(
            target=lambda: ended.append(lab.nodes[conductor].ctl("keys", "rotate"))
        )
        lab.arm()
        rotation.start()
        comes(
            lab, "the new keys to be known",
            lambda: len(ring(lab, master)) == 2,
        )  # fmt: skip
        lab.topology.cut(master)
        for pids in lab.nodes[master].haclusterd_pids():
            lab.nodes[master].send(pids, signal.SIGKILL)
        comes(lab, "a takeover", lambda: owner(lab, "east1") in (conductor, other))
        rotation.join()
        assert ended[0].returncode in (1, 4), ended[0]
        assert master in ended[0].stderr
        lab.topology.plug(master)
        folder = lab.nodes[master].directory / "etc"
        lab.nodes[master].start_haclusterd(folder / "haclusterd.toml")
        lab.wait(lambda: lab.role(master) == "slave", SOON_S, f"{master} to be a slave")
        for name in lab.nodes:
            comes(lab, "touch", lambda n=name: all(x["version"] for x in status(lab, n)["nodes"]))
        again = lab.nodes[conductor].ctl("keys", "rotate")
        assert again.returncode == 0, again.stderr
        assert {tuple(ring(lab, name)) for name in lab.nodes} == {(2,)}
        one_holder(lab)


def ring(lab: Laboratory, node: str) -> list[int]:
    """The ids of the keys in a node's file, the one that seals first."""
    file = lab.nodes[node].directory / "etc" / "cluster.key"
    return [int(line.split()[1]) for line in file.read_text().splitlines()[1:]]
