"""The agent of a master dies and its FreeSWITCH with it, and nobody else is ready to take over.

Then only the standbys know the calls, and the new agent finds its service owned and its FreeSWITCH
another one: it asks them, brings the calls back in place, and lets them forget nothing before.
"""

from __future__ import annotations

import os
import shutil
import signal
from typing import Any

import pytest

from haclusterd.lab import netns
from haclusterd.lab.calls import badly_ended, has_media
from haclusterd.lab.clock import now_ns
from haclusterd.lab.ending import end_calls, living_twice, still_there
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import bring_calls, ready_cluster

REASON = netns.why_not() or ("" if shutil.which("sipp") else "sipp is missing: sip-tester")
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(REASON), reason=REASON or "ready"),
    pytest.mark.timeout(120),
]

CALLS = int(os.environ.get("LAB_CALLS", "10"))
BACK_S = 30.0
MEDIA_S = 15.0
OWNER, STANDBYS = "fs-a", ("fs-b", "fs-c")


def kept(lab: Laboratory, node: str) -> tuple[int, int]:
    """Calls of the first service that this standby could recover now, and in how many streams."""
    name = lab.plan.services[0].name
    store = lab.nodes[node].api("sync")["store"]
    return next((int(row["live"]), int(row["copies"])) for row in store if row["service"] == name)


def is_back(lab: Laboratory, fewest: dict[str, int]) -> bool:
    """Whether the new agent has reported; notes how few calls each standby had until then."""
    for node in STANDBYS:
        fewest[node] = min(fewest[node], kept(lab, node)[0])
    try:
        report = lab.nodes[OWNER].api("report", which="last")
    except (OSError, ValueError, netns.LabError):
        return False  # there is no agent, or no report of its own yet
    return bool(report["done"] and report["cause"] == "FreeSWITCH came back")


def silent(lab: Laboratory) -> list[str]:
    seen = lab.observe()
    calls = seen.calls.items()
    return [call_id for call_id, call in calls if not has_media(call, seen.streams, seen.at_ns)]


def test_s9_e2_calls_whose_agent_and_freeswitch_died_together_come_back_in_place() -> None:
    both_die(LabPlan(masters=1, slaves=2))


def both_die(plan: LabPlan) -> None:
    with ready_cluster(plan, None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        for node in STANDBYS:
            assert lab.nodes[node].ctl("maintenance", "on").returncode == 0
            lab.wait(lambda id_=node: lab.role(id_) == "maintenance", 5, f"{node} in maintenance")
        owner = lab.nodes[OWNER]
        assert owner.switch is not None
        assert owner.switch.pid is not None
        assert [kept(lab, node) for node in STANDBYS] == [(CALLS, 1)] * 2
        fewest = dict.fromkeys(STANDBYS, CALLS)
        lost_ns = now_ns()
        owner.send([*owner.haclusterd_pids()[1], owner.switch.pid], signal.SIGKILL)
        lab.wait(lambda: is_back(lab, fewest), BACK_S, "the calls to be recovered in place")
        assert fewest == dict.fromkeys(STANDBYS, CALLS)
        report: dict[str, Any] = owner.api("report", which="last")
        assert (report["from"], report["to"]) == (OWNER, OWNER)
        found = report["calls"]
        assert (found["replicated"], found["recovered"], found["lost"]) == (CALLS, CALLS, 0)
        lab.wait(lambda: not silent(lab), MEDIA_S, "media of all calls", lambda: silent(lab))
        for node in STANDBYS:  # what the agent before had told is forgotten, the calls are not
            lab.wait(lambda id_=node: kept(lab, id_)[1] == 1, 5, f"{node} to have the new stream")
            assert kept(lab, node)[0] == CALLS
        assert lab.holder(lab.plan.services[0].ip) == OWNER
        assert living_twice(lab) == []
        ending_ns = now_ns()
        by_switch, failed = end_calls(lab)
        assert failed + still_there(lab) == []
        after = lab.observe()
        assert badly_ended(after.calls, ending_ns, by_switch) == {}
        again = [
            sum(m.what == "INVITE" and m.sent_by_service and m.at_ns > lost_ns for m in c.messages)
            for c in after.calls.values()
        ]
        assert again == [1] * CALLS
        for node in STANDBYS:
            lab.wait(lambda id_=node: kept(lab, id_) == (0, 1), 5, f"{node} to hear of their ends")
