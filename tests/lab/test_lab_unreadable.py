"""Datagrams that do not open: real daemons count them and name their sender, and nothing moves."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from haclusterd.config import cluster_spec, load
from haclusterd.core.model import Beat, Echo
from haclusterd.keys import load_cluster_key
from haclusterd.lab import netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.node import LabNode
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import ready_cluster
from haclusterd.wire import Wire

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(120),
]

_PORT = 7800
_SOON_S = 20.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    """fs-a owns the service, fs-b and fs-c stand by."""
    with ready_cluster(LabPlan(masters=1, slaves=2, freeswitch="none"), None, print) as running:
        yield running


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _SOON_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def received(node: LabNode) -> dict[str, int]:
    """Datagrams by outcome, all links together, as /metrics of this node has them."""
    with netns.inside(node.namespace):
        answer = urllib.request.urlopen("http://127.0.0.1:7802/metrics", timeout=5)
    lines = re.findall(
        r'^haclusterd_link_received_total\{.*outcome="(\w+)"\} (\S+)', answer.read().decode(), re.M
    )
    found: dict[str, int] = {}
    for outcome, count in lines:
        found[outcome] = found.get(outcome, 0) + int(float(count))
    return found


def standing(node: LabNode) -> tuple[Any, ...]:
    """What must not change: who owns, who is what, and what is wrong.

    Not the epoch: on a busy machine an owner may lapse and reclaim by itself.
    """
    status = node.status()
    assert status is not None
    return (
        [(s["owner"], s["state"]) for s in status["services"]],
        [(n["id"], n["role"], n["rank"]) for n in status["nodes"]],
        status["quorum"],
        status["alarms"],
    )


def unreadable(node: LabNode) -> list[str]:
    status = node.status() or {"alarms": []}
    return [a["text"] for a in status["alarms"] if a["name"] == "unreadable_peer"]


def _has_unreadable(node: LabNode, links: int) -> bool:
    return len(unreadable(node)) == links


def own_beat(lab: Laboratory, node: LabNode) -> Beat:
    """Well-formed, but sealed under whatever the test likes."""
    spec = cluster_spec(load(lab.directory / "haclusterd.toml", node=node.id))
    echoes = (Echo(0, 0, 0),) * len(spec.nodes)
    return Beat(spec.me, 0, 7, 1, 0, False, 0, 0, 0, 0, 0, 0, echoes, (), ())


def overheard(node: LabNode, peer: str) -> bytes:
    """A real beat of `node` to `peer`, off the wire."""
    with netns.inside(node.namespace):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    with tap:
        tap.settimeout(5)
        while True:
            packet = tap.recv(2000)
            head = (packet[0] & 15) * 4
            to = socket.inet_ntoa(packet[16:20])
            port = int.from_bytes(packet[head + 2 : head + 4], "big")
            if packet[9] == socket.IPPROTO_UDP and (to, port) == (peer, _PORT):
                return packet[head + 8 :]


def test_garbage_replays_and_foreign_clusters_change_counters_only(lab: Laboratory) -> None:
    here, there = lab.nodes["fs-a"], lab.nodes["fs-c"]
    target, source = here.plan.links[0], there.plan.links[0]
    until(lambda: standing(here)[3] == [], "the cluster is well")
    before, counted = standing(here), received(here)
    spec = cluster_spec(load(lab.directory / "haclusterd.toml", node="fs-c"))
    ring = load_cluster_key(lab.directory / "cluster.key")
    foreign = Wire(msgspec.structs.replace(spec, name="other"), ring, 7).seal(own_beat(lab, there))
    replay = overheard(there, target)
    forged = replay[:-1] + bytes([replay[-1] ^ 1])
    version = replay[:2] + b"\x09" + replay[3:]
    with netns.inside(there.namespace):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.bind((source, 0))
        for _ in range(50):
            for data in (b"garbage", foreign, replay, forged, version, b"x" * 1300):
                sender.sendto(data, (target, _PORT))
            time.sleep(0.1)
    time.sleep(1.2)  # the counters are published once a second
    until(lambda: standing(here) == before, "nothing has changed")
    assert "none can be read" not in here.log.read_text()
    now = received(here)
    grown = {o for o in now if now[o] - counted[o] >= 50}
    # A forged seq that was seen is a replay before anybody looks at its MAC.
    assert grown >= {"malformed", "foreign", "replay", "version", "oversize", "ok"}


def test_a_wrong_key_is_named_by_the_others_and_by_doctor(lab: Laboratory) -> None:
    others, odd = [lab.nodes["fs-a"], lab.nodes["fs-b"]], lab.nodes["fs-c"]
    services = standing(others[0])[0]
    folder = lab.directory / "odd"
    folder.mkdir()
    for path in lab.directory.iterdir():
        if path.is_file():
            shutil.copy2(path, folder)
    key = folder / "cluster.key"
    key.write_text(re.sub(r"[0-9a-f]{64}", "5" * 64, key.read_text()))
    restart(odd, folder / "haclusterd.toml")
    for node in others:
        until(partial(_has_unreadable, node, 2), "an alarm for each link")
        assert all("fs-c on link" in text and "sha256sum" in text for text in unreadable(node))
        assert standing(node)[0] == services, "the others go on"
        assert standing(node)[2]["reachable"] == 2
    until(partial(_has_unreadable, odd, 4), "the odd one hears nobody, either")
    assert "this node's own key file" in unreadable(odd)[0]
    found = doctored(lab, others[0])
    assert found["peer fs-b"]["state"] == "ok"
    assert found["peer fs-c"]["state"] == "failed"
    assert "bad mac" in found["peer fs-c"]["text"]
    assert "sha256sum" in found["peer fs-c"]["fix"]
    assert found["alarm unreadable_peer"]["state"] == "failed"
    assert len(re.findall("none can be read", others[0].log.read_text())) == 2, "said once a link"

    restart(odd, lab.directory / "haclusterd.toml")
    until(lambda: not unreadable(others[0]), "the alarm goes when beats can be read again")
    until(lambda: standing(others[0])[2]["reachable"] == 3, "the node is back")
    assert standing(others[0])[0] == services
    assert doctored(lab, others[0])["peer fs-c"]["state"] == "ok"


def restart(node: LabNode, config: Path) -> None:
    """The node's haclusterd anew, with that configuration."""
    hearts, _ = node.haclusterd_pids()
    node.send(hearts, signal.SIGTERM)
    until(lambda: node.haclusterd_pids() == ([], []), "haclusterd ends")
    node.start_haclusterd(config)


def doctored(lab: Laboratory, node: LabNode) -> dict[str, dict[str, str]]:
    config = str(lab.directory / "haclusterd.toml")
    done = node.ctl("--config", config, "--node", node.id, "doctor")
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}
