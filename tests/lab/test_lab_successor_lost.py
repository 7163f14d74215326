"""The new owner is lost as well, while it recovers: the calls go on to the one after it.

Which calls the second takeover finds is told by two streams then: the copies of the first owner's,
and whatever of them the second had logged before it died.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from typing import Any

import pytest

from haclusterd.lab import netns
from haclusterd.lab.calls import badly_ended, has_media
from haclusterd.lab.clock import now_ns
from haclusterd.lab.ending import end_calls, living_twice, still_there
from haclusterd.lab.faults import Injector, strike
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import bring_calls, ready_cluster

REASON = netns.why_not() or ("" if shutil.which("sipp") else "sipp is missing: sip-tester")
pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.skipif(bool(REASON), reason=REASON or "ready"),
    pytest.mark.timeout(180),
]

CALLS = int(os.environ.get("LAB_CALLS", "20"))
MOVED_S = 10.0
MEDIA_S = 15.0


def held_by(lab: Laboratory, *not_by: str) -> str:
    """The node that answers for the first service, once it is none of these."""
    ip = lab.plan.services[0].ip
    lab.wait(lambda: lab.holder(ip) not in ("", *not_by), MOVED_S, "the takeover")
    return lab.holder(ip)


def silent(lab: Laboratory) -> list[str]:
    """Calls without media, or with a BYE that nobody here has asked for."""
    seen = lab.observe()
    return [
        call_id
        for call_id, call in seen.calls.items()
        if not has_media(call, seen.streams, seen.at_ns)
        or any(m.what == "BYE" for m in call.messages)
    ]


def told(lab: Laboratory, node: str, origin: str) -> dict[str, Any]:
    """The calls in the finished report of `node` about what it took from `origin`."""

    def last() -> dict[str, Any]:
        report: dict[str, Any] = lab.nodes[node].api("report", which="last")
        return report if report["done"] and report["from"] == origin else {}

    lab.wait(last, MOVED_S, f"the report of {node}")
    calls: dict[str, Any] = last()["calls"]
    return calls


def lose(lab: Laboratory, node: str, fault: str) -> None:
    (injection,) = strike([Injector(lab.topology, lab.nodes[node], fault, "")])
    injection.complete()


@pytest.mark.parametrize("fault", ["freeswitch", "node"])
@pytest.mark.parametrize("after_ms", [0, 40, 150, 600])
def test_e1_s8_the_new_owner_is_lost_during_its_recovery(fault: str, after_ms: int) -> None:
    """At each moment of its recovery; every call is up at the third, once."""
    with ready_cluster(LabPlan(masters=1, slaves=3), None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        first = lab.holder(lab.plan.services[0].ip)
        lose(lab, first, "freeswitch")
        second = held_by(lab, first)
        time.sleep(after_ms / 1000)
        lose(lab, second, fault)
        lost_ns = now_ns()
        third = held_by(lab, second)
        print(f"{first} -> {second} -> {third}, {fault} {after_ms} ms after it had the address")
        time.sleep(1.0)
        lab.wait(lambda: not silent(lab), MEDIA_S, "media of all calls", lambda: silent(lab))
        assert living_twice(lab) == []
        found = told(lab, third, second)
        assert (found["replicated"], found["recovered"]) == (CALLS, CALLS), found
        ending_ns = now_ns()
        by_switch, failed = end_calls(lab)
        assert failed + still_there(lab) == []
        after = lab.observe()
        assert badly_ended(after.calls, ending_ns, by_switch) == {}
        again = {
            call_id: sum(
                m.what == "INVITE" and m.sent_by_service and m.at_ns > lost_ns
                for m in call.messages
            )
            for call_id, call in after.calls.items()
        }
        assert len(again) == CALLS
        assert min(again.values()) >= 1


def test_e1_a_slave_that_joins_during_the_takeover_has_all_calls() -> None:
    """Its agent was away while the owner died; then the new owner is lost, too."""
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        first = lab.holder(lab.plan.services[0].ip)
        agents = {n: lab.nodes[n].haclusterd_pids()[1] for n in ("fs-b", "fs-c")}
        lab.nodes["fs-c"].send(agents["fs-c"], signal.SIGKILL)
        lose(lab, first, "freeswitch")
        second = held_by(lab, first)
        assert second == "fs-b", "the slave without an agent is no candidate"
        lab.wait_replicated()
        lab.wait(lambda: not silent(lab), MEDIA_S, "media of all calls")
        lose(lab, second, "node")
        third = held_by(lab, second)
        lab.wait(lambda: not silent(lab), MEDIA_S, "media of all calls", lambda: silent(lab))
        found = told(lab, third, second)
        assert (found["replicated"], found["recovered"]) == (CALLS, CALLS), (third, found)
        assert living_twice(lab) == []
        assert end_calls(lab)[1] + still_there(lab) == []
