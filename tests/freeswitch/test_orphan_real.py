"""Phones that say nothing any more after a takeover: counted, then cleared, all by default (M13).

The whole product with a real FreeSWITCH. The phones are there, so that nothing refuses the
re-INVITE, but frozen: no signalling, no RTP.
"""

from __future__ import annotations

import signal
import time
import urllib.request

import pytest

from haclusterd.config.recovering import RecoverySection
from haclusterd.lab import netns
from haclusterd.lab.faults import Injector, strike
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import ready_cluster
from haclusterd.lab.traffic import Callers
from tests.freeswitch.obstacle import obstacle
from tests.freeswitch.test_cluster_real import channels

_REASON = obstacle()
pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

PLAN = LabPlan(masters=1, slaves=2, freeswitch="real")
TALKING, SILENT = 3, 2
TIMEOUT_S = RecoverySection().orphan_timeout_ms / 1000
FREESWITCH_ALONE_S = 32.0


def counted(lab: Laboratory, node: str) -> tuple[int, int]:
    """Orphans, as status says and as a collector of metrics reads."""
    with netns.inside(lab.nodes[node].namespace):
        answer = urllib.request.urlopen("http://127.0.0.1:7802/metrics", timeout=5)
    lines = answer.read().decode().splitlines()
    metric = next(line for line in lines if line.startswith("haclusterd_orphans "))
    return int(lab.nodes[node].api("status")["orphans"]), int(float(metric.split()[1]))


def test_m13_orphans_are_counted_until_they_are_cleared() -> None:
    with ready_cluster(PLAN, None, print) as lab:
        service = lab.plan.services[0]
        groups = [
            Callers(lab.plan, service, lab.topology.client, lab.directory, count, tag)
            for count, tag in ((TALKING, "1"), (SILENT, "2"))
        ]
        lab.wait(
            lambda: lab.nodes["fs-a"].api("calls")["total"] == TALKING + SILENT, 20, "the calls"
        )
        lab.wait_replicated()
        groups[1]._process.send_signal(signal.SIGSTOP)
        (injection,) = strike(
            [Injector(lab.topology, lab.nodes["fs-a"], "freeswitch", service.name)]
        )
        injection.complete()
        lab.wait(lambda: lab.holder(service.ip) == "fs-b", 10, "the takeover")
        lab.wait(lambda: counted(lab, "fs-b") == (SILENT, SILENT), 15, "orphans in the count")
        began_s = time.monotonic()
        assert channels(lab, "fs-b") == TALKING + SILENT
        lab.wait(lambda: counted(lab, "fs-b") == (0, 0), 30, "the end of the orphans")
        took_s = time.monotonic() - began_s
        lab.wait(lambda: channels(lab, "fs-b") == TALKING, 5, "the end of their channels")
        verdicts = lab.nodes["fs-b"].api("report", which="last")["calls"]["verdicts"]
        for callers in groups:
            callers.stop()
    print(f"{SILENT} orphans cleared {took_s:.1f} s after they were first counted")
    assert TIMEOUT_S - 3 < took_s < FREESWITCH_ALONE_S - 10
    reasons = [v["reason"] for v in verdicts if v["verdict"] == "lost"]
    assert len(reasons) == SILENT
    assert all(reason.startswith("no signalling and no RTP for 1") for reason in reasons), reasons
