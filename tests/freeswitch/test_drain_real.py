"""Drains with a real FreeSWITCH: new calls get 503, calls that are up do not notice (B7)."""

from __future__ import annotations

import time

import pytest

from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import bring_calls, ready_cluster
from tests.freeswitch.obstacle import obstacle
from tests.lab.test_lab_upkeep import comes, done, one_holder, options, owner, talking

_REASON = obstacle()
pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

CALLS = 10


def test_b7_maintenance_drains_then_moves_and_loses_no_call() -> None:
    plan = LabPlan(masters=2, slaves=1, freeswitch="real", maintenance_service="east2")
    with ready_cluster(plan, None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        lab.arm()
        comes(lab, "east2 to take no calls yet", lambda: options(lab, "east2") == 503)
        assert options(lab, "east1") == 200
        done(lab, "fs-c", "maintenance", "on", "fs-a", "--drain", "10s")
        comes(lab, "new calls on the slave", lambda: options(lab, "east2") == 200)
        comes(lab, "no new calls on east1", lambda: options(lab, "east1") == 503)
        comes(lab, "it there for good", lambda: owner(lab, "east2") == "fs-b")
        assert owner(lab, "east1") == "fs-a"
        assert talking(lab) == CALLS
        comes(lab, "east1 to move", lambda: owner(lab, "east1") == "fs-c")
        comes(lab, "new calls on east1", lambda: options(lab, "east1") == 200)
        time.sleep(1)
        assert talking(lab) == CALLS
        done(lab, "fs-c", "maintenance", "off", "fs-a")
        one_holder(lab)


def test_b7_a_drain_is_undone_and_a_call_outlives_it() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2, freeswitch="real"), None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        for _ in range(3):
            done(lab, "fs-b", "drain", "fs-a")
            comes(lab, "no new calls", lambda: options(lab, "east1") == 503)
            done(lab, "fs-b", "drain", "off", "fs-a")
            comes(lab, "new calls", lambda: options(lab, "east1") == 200)
        assert talking(lab) == CALLS
        assert lab.nodes["fs-a"].api("status")["nodes"][0]["calls"] == CALLS
