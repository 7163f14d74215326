"""Several faults at once, each of which alone is nothing new: real daemons and calls."""

from __future__ import annotations

import shutil
import signal
import time

import pytest

from haclusterd.lab import netns
from haclusterd.lab.faults import Injector, strike
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import bring_calls, ready_cluster
from tests.lab.test_lab_policies import one_holder, owner

_REASON = netns.why_not() or ("" if shutil.which("sipp") else "sipp is missing: sip-tester")
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

CALLS = 10
SOON_S = 20.0
OUTAGE_MS_MAX = 1000.0  # a busy machine; who waits for a better copy waits for three seconds
NIC_BEFORE_S = (1.4, 1.8)  # when the connections over a dead NIC are given up


def talking(lab: Laboratory) -> int:
    ids = {call_id for callers in lab.callers.values() for call_id in callers.call_ids}
    return lab._talking(ids)


def successors(lab: Laboratory, node: str) -> list[str]:
    status = lab.nodes[node].status() or {}
    return list(status["services"][0]["successors"])


def outage_ms(lab: Laboratory, seen_from: str) -> float:
    return float(lab.nodes[seen_from].api("report", which="last")["outage_ms"])


def moves_away(lab: Laboratory, node: str) -> str:
    lab.wait(lambda: owner(lab, "east1") not in ("", node), SOON_S, "a takeover")
    return owner(lab, "east1")


@pytest.mark.parametrize("before_s", NIC_BEFORE_S)
def test_15_2_a_nic_dies_and_then_its_host(before_s: float) -> None:
    """For the moment in which connections are made anew over the other NIC, copies still count."""
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        lab.arm()
        master = owner(lab, "east1")
        lab.topology.cut(master, lab.plan.heartbeat_nics[:1])
        injector = Injector(lab.topology, lab.nodes[master], "node")
        time.sleep(before_s)
        for injection in strike([injector]):
            injection.complete()
        heir = moves_away(lab, master)
        time.sleep(3)
        assert talking(lab) == CALLS
        assert outage_ms(lab, heir) < OUTAGE_MS_MAX
        one_holder(lab)


def test_31_4_the_primary_slave_freezes_as_it_takes_over() -> None:
    """It has claimed, or not yet; the next one serves, and who thaws stands by."""
    with ready_cluster(LabPlan(masters=1, slaves=4), None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        lab.arm()
        master = owner(lab, "east1")
        primary = successors(lab, master)[0]
        pids = lab.nodes[primary].pids()
        injector = Injector(lab.topology, lab.nodes[master], "node")
        injections = strike([injector])
        time.sleep(0.15)
        lab.nodes[primary].send(pids, signal.SIGSTOP)
        for injection in injections:
            injection.complete()
        lab.wait(
            lambda: owner(lab, "east1") not in ("", master, primary), SOON_S, "another takeover"
        )
        heir = owner(lab, "east1")
        time.sleep(2)
        assert talking(lab) == CALLS
        lab.nodes[primary].send(pids, signal.SIGCONT)
        lab.wait(lambda: lab.role(primary) == "slave", SOON_S, f"{primary} to be a slave")
        time.sleep(1)
        assert owner(lab, "east1") == heir
        assert talking(lab) == CALLS
        one_holder(lab)


def test_48_52_a_switchover_passes_a_frozen_agent_over() -> None:
    """Its heart is well and says for some seconds that it is ready; nobody would take up calls."""
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        lab.arm()
        master = owner(lab, "east1")
        first, second = successors(lab, master)
        agents = lab.nodes[first].haclusterd_pids()[1]
        lab.nodes[first].send(agents, signal.SIGSTOP)
        try:
            named = lab.nodes[second].ctl("switchover", "east1", "--to", first)
            assert named.returncode == 1, named.stdout
            assert owner(lab, "east1") == master
            assert talking(lab) == CALLS
            moved = lab.nodes[second].ctl("switchover", "east1")
            assert moved.returncode == 0, moved.stderr
        finally:
            lab.nodes[first].send(agents, signal.SIGCONT)
        lab.wait(lambda: owner(lab, "east1") == second, SOON_S, f"{second} to answer")
        lab.wait(lambda: talking(lab) == CALLS, SOON_S, "all calls to talk")
        one_holder(lab)
