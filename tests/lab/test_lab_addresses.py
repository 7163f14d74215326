"""Addresses move, and never have two holders: real daemons in namespaces, no FreeSWITCH.

Bounds are the issue's figures for `lan` widened for a busy machine: half a second where it says
180 ms. What is exact is exact: one holder, and the node that owns the address afterwards.
"""

from __future__ import annotations

import pytest

from haclusterd.lab import netns, oom
from haclusterd.lab.faults import STUN_MS
from haclusterd.lab.outcome import Outcome
from haclusterd.lab.overlap import THAW_MS, admitted_ms
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import measure, ready_cluster
from haclusterd.lab.topology import Topology

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(120),
]

MOVED_MS = 500.0
# These `make test` plays with calls (test_lab_calls.py); without them they are in `make test-long`.
LOST = [pytest.param(fault, marks=pytest.mark.long) for fault in ("node", "freeze-heart", "links")]
STAYING = [
    pytest.param(fault, marks=pytest.mark.long)
    for fault in ("stun-heart", "kill-agent", "freeze-agent", "upgrade")
]
needs_oom = pytest.mark.skipif(bool(oom.why_not()), reason=oom.why_not())


def strike(
    fault: str, freeswitch: str = "none", nics: int = 2, *, kernel_fence: bool = True
) -> Outcome:
    plan = LabPlan(masters=1, slaves=2, nics=nics, freeswitch=freeswitch, kernel_fence=kernel_fence)
    with ready_cluster(plan, None, print) as lab:
        for node in lab.nodes.values():
            assert ("overlap_bound_ms" in str(node.status())) is not kernel_fence
        outcome = measure(lab, fault, print)
    print(outcome.line())
    assert outcome.problems == []
    assert outcome.holders == 1
    return outcome


@pytest.mark.parametrize("fault", [*LOST, "freeze-node", "kill-heart"])
def test_a_lost_owner_is_replaced_once(fault: str) -> None:
    outcome = strike(fault)
    assert outcome.owners == {"east1": "fs-b"}
    assert outcome.outage_ms < MOVED_MS


@needs_oom
def test_a_heart_killed_for_want_of_memory_is_replaced_once() -> None:
    outcome = strike("oom-heart")
    assert outcome.owners == {"east1": "fs-b"}
    assert outcome.outage_ms < MOVED_MS


@needs_oom
def test_a_freeswitch_killed_for_want_of_memory_moves_at_once() -> None:
    outcome = strike("oom-freeswitch", freeswitch="process")
    assert outcome.owners == {"east1": "fs-b"}
    assert outcome.exit_visible_ms is not None
    assert outcome.outage_ms < 100


@needs_oom
def test_an_agent_killed_for_want_of_memory_moves_nothing() -> None:
    outcome = strike("oom-agent")
    assert not outcome.moved
    assert outcome.outage_ms < 60


@pytest.mark.parametrize("fault", ["freeze-heart", "freeze-both", "links"])
def test_without_nf_tables_the_watchdog_leaves_one_holder(fault: str) -> None:
    outcome = strike(fault, kernel_fence=False)
    assert outcome.owners == {"east1": "fs-b"}
    assert outcome.outage_ms < MOVED_MS


def test_without_nf_tables_a_stopped_node_overlaps_no_longer_than_status_says() -> None:
    """The watchdog stands still as well: two holders are what `overlap_bound_ms` is there for."""
    plan = LabPlan(masters=1, slaves=2, freeswitch="none", kernel_fence=False)
    with ready_cluster(plan, None, print) as lab:
        said = {admitted_ms(node.status()) for node in lab.nodes.values()}
        outcome = measure(lab, "freeze-node", print)
    print(outcome.line())
    assert outcome.problems == []
    assert said == {outcome.overlap_bound_ms}
    assert outcome.holders == 2, "nothing was measured"
    assert MOVED_MS < outcome.overlap.end_ms <= outcome.overlap_bound_ms
    assert outcome.overlap.thaw_ms <= THAW_MS
    assert outcome.owners == {"east1": "fs-b"}
    assert outcome.outage_ms < MOVED_MS


def test_without_nf_tables_an_upgrade_moves_nothing() -> None:
    outcome = strike("upgrade", kernel_fence=False)
    assert not outcome.moved
    assert outcome.outage_ms < 60


def test_the_death_of_the_watched_process_moves_the_address_at_once() -> None:
    outcome = strike("freeswitch", freeswitch="process")
    assert outcome.owners == {"east1": "fs-b"}
    assert outcome.exit_visible_ms is not None
    # No silence of 150 ms had to be waited for.
    assert outcome.outage_ms < 100


@pytest.mark.parametrize("fault", [*STAYING, "nic"])
def test_what_is_no_loss_moves_nothing(fault: str) -> None:
    outcome = strike(fault)
    assert not outcome.moved
    if fault != "stun-heart":
        assert outcome.outage_ms < 60  # less than the fence: it never closed


def test_a_short_outage_of_the_switch_has_one_holder() -> None:
    """Who owns it afterwards is a matter of 40 ms, on a busy machine of chance; that it is one is
    not."""
    outcome = strike("stun-switch")
    assert outcome.stun_ms is not None
    assert outcome.stun_ms >= STUN_MS
    assert outcome.owners["east1"] in ("fs-a", "fs-b")
    assert outcome.outage_ms < MOVED_MS


def test_switchover_of_addresses() -> None:
    outcome = strike("switchover", nics=3)
    assert outcome.owners == {"east1": "fs-b"}
    assert outcome.outage_ms < 100


def test_laboratories_do_not_meet_and_left_overs_go() -> None:
    plan = LabPlan(masters=1, slaves=1, freeswitch="none")
    with Topology(plan) as one, Topology(plan) as other:
        assert one.name != other.name
        assert not set(one.namespaces) & set(other.namespaces)
        # A laboratory of a process that is no more: same form, but nobody started then.
        stale = f"{netns.PREFIX}-1-1-0"
        netns.ip("netns", "add", f"{stale}-sw")
        (netns.base_dir() / stale).mkdir()
        assert stale in netns.remove_left_overs()
        present = netns.laboratories()
        assert stale not in present
        assert one.name in present
        assert other.name in present
    assert one.name not in netns.laboratories()
    assert not one.directory.exists()
