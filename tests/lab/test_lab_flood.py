"""Forged heartbeats as fast as one process can send them, from the address of a node."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time

import pytest

from haclusterd import datagram, wire
from haclusterd.config import load_cluster
from haclusterd.lab import netns
from haclusterd.lab.clock import preferred
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import ready_cluster
from tests.lab.test_lab_policies import alarms, one_holder, owner

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(120),
]

FLOOD_S = 4
RATE_MIN = 2_000  # per second, or the machine was too busy to say anything
GAP_MS_MAX = 90.0  # a busy machine; a takeover takes 150
_SENDER = """
import os, socket, struct, sys, time
seconds, head, source, *targets = sys.argv[1:]
head, to = bytes.fromhex(head), [(target, 7800) for target in targets]
flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
flood.bind((source, 0))
count, end = 0, time.monotonic() + float(seconds)
while time.monotonic() < end:
    for _ in range(200):
        # Another incarnation each time: a key has to be derived before the seal proves wrong.
        forged = head + os.urandom(8) + struct.pack(">Q", count) + os.urandom(260)
        for target in to:
            flood.sendto(forged, target)
            count += 1
print(count)
"""


def header(lab: Laboratory, sender: str) -> bytes:
    """All of a true header of `sender` on its first link, but for incarnation and seq."""
    config = load_cluster(lab.directory / "haclusterd.toml")
    number = [node.id for node in config.nodes].index(sender)
    tag = hashlib.sha256(wire._CONTEXT + b"\0" + config.name.encode()).digest()[:4]
    return datagram.HEADER.pack(datagram.MAGIC, 2, 1, tag, number, 0, 0, 0)[:-16]


def test_24_forged_heartbeats_move_nothing() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2, freeswitch="none"), None, print) as lab:
        master = owner(lab, "east1")
        first, second = (n for n in lab.nodes if n != master)
        links = {
            node.id: node.links for node in load_cluster(lab.directory / "haclusterd.toml").nodes
        }
        lab.arm()
        with netns.inside(lab.nodes[first].namespace):
            flood = subprocess.Popen(
                # As eager as the nodes: beside other work it would be no flood.
                [*preferred(lab.plan.nice), sys.executable, "-c", _SENDER, str(FLOOD_S),
                 header(lab, first).hex(), links[first][0], links[master][0], links[second][0]],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        rate = int(flood.communicate()[0]) / FLOOD_S
        time.sleep(1)
        longest_ms = max(
            asked["longest_ms"] - asked["late_ms"] for asked in lab.probe.ask("report").values()
        )
        print(f"{rate:.0f} forged datagrams a second, longest silence {longest_ms:.1f} ms")
        assert rate > RATE_MIN
        assert longest_ms < GAP_MS_MAX
        assert owner(lab, "east1") == master
        status = lab.nodes[master].status() or {}
        assert status["services"][0]["epoch"] == 1
        assert status["quorum"]["reachable"] == 3
        assert "unreadable_peer" not in alarms(lab, master)  # its true beats are read all the while
        one_holder(lab)
