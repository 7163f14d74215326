"""The whole product with a real FreeSWITCH on every node: faults, and what became of the calls.

Judged from the wire alone, as the client lives it: `outcome.problems` is empty only if no call was
lost, none of another service was touched, every BYE (half of them from FreeSWITCH) was answered
and no address had two holders.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from dataclasses import replace

import pytest

from haclusterd.lab import netns
from haclusterd.lab.demo import is_slave
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.outcome import Outcome
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import bring_calls, conclude, endure, measure, ready_cluster
from tests.freeswitch.bridged import BridgedCallers, bridge_target, telephone
from tests.freeswitch.obstacle import obstacle

_REASON = obstacle()
pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

PLAN = LabPlan(masters=1, slaves=2, freeswitch="real")
CALLS = 10
SLAVE_AGAIN_S = 60.0
LOOKED_ON_S = 2.0
AT_ONCE_MS = 10
QUIET_GAP_MS = 100  # on a busy machine: what a call hears of a takeover that is not its own
TRIES = 3


def good(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        first = outcome.first_reinvite_ms
        print(f"{outcome.line()}, first re-INVITE {'none' if first is None else f'{first:.1f} ms'}")
    assert [problem for outcome in outcomes for problem in outcome.problems] == []
    assert {outcome.holders for outcome in outcomes} == {1}


def reinvites(outcome: Outcome) -> set[int]:
    return {verdict.reinvites for verdict in outcome.verdicts}


def channels(lab: Laboratory, node: str) -> int:
    """Live sessions in the FreeSWITCH of a node. Not `show channels`, which lags behind."""
    switch = lab.nodes[node].switch
    assert switch is not None
    with switch.esl() as esl:
        lines = esl.api("status").splitlines()
    return int(next(line for line in lines if "session(s) - peak" in line).split()[0])


def come_back(lab: Laboratory, node: str) -> None:
    """Wait until a node that lost its services is a slave, and its calls are at home elsewhere."""
    lab.wait(lambda: is_slave(lab, node), SLAVE_AGAIN_S, f"{node} to be a slave again")
    assert channels(lab, node) == 0
    lab.wait_replicated()


def messages(lab: Laboratory) -> dict[str, Counter[str]]:
    """What the service's side has sent so far in each call."""
    return {
        call_id: Counter(m.what for m in call.messages if m.sent_by_service)
        for call_id, call in lab.observe().calls.items()
    }


@pytest.mark.parametrize("calls", [1, CALLS, 100])
@pytest.mark.parametrize("fault", ["freeswitch", "node", "switchover", "freeze-heart"])
def test_calls_move_once_and_live_on(fault: str, calls: int) -> None:
    with ready_cluster(PLAN, None, print) as lab:
        outcome = measure(lab, fault, print, calls=calls)
    good([outcome])
    assert len(outcome.verdicts) == calls
    assert outcome.owners == {"east1": "fs-b"}
    assert reinvites(outcome) == {1}
    told = outcome.report["calls"]
    assert (told["recovered"], told["partial"], told["lost"]) == (calls, 0, 0)


@pytest.mark.parametrize("calls", [1, CALLS, 100])
def test_calls_hear_nothing_of_a_lost_agent_or_an_upgrade(calls: int) -> None:
    with ready_cluster(PLAN, None, print) as lab:
        bring_calls(lab, {"east1": calls}, print)
        phases = [endure(lab, fault, print) for fault in ("upgrade", "kill-agent", "freeze-agent")]
        outcomes = conclude(lab, phases)
    good(outcomes)
    for outcome in outcomes:
        assert (outcome.rtp_lost, outcome.rtp_restarts) == (0, 0)
        assert len(outcome.verdicts) == calls
        assert outcome.owners == {"east1": "fs-a"}
        assert reinvites(outcome) == {0}


@pytest.mark.parametrize("fault", ["freeswitch", "switchover", "freeze-heart"])
def test_the_old_master_comes_back_as_a_slave_and_nothing_moves(fault: str) -> None:
    with ready_cluster(PLAN, None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        phases = [endure(lab, fault, print)]
        come_back(lab, "fs-a")
        before = messages(lab)
        time.sleep(LOOKED_ON_S)
        assert messages(lab) == before, "somebody said something in a call"
        assert lab.holder(lab.plan.services[0].ip) == "fs-b"
        assert [channels(lab, node) for node in ("fs-a", "fs-b", "fs-c")] == [0, CALLS, 0]
        # What the old master still has in its tables must not come to life a second time.
        phases.append(endure(lab, "switchover", print, victims=("fs-b",)))
        come_back(lab, "fs-b")
        outcomes = conclude(lab, phases)
    good(outcomes)
    assert [reinvites(outcome) for outcome in outcomes] == [{1}, {1}]
    assert [len(outcome.verdicts) for outcome in outcomes] == [CALLS, CALLS]


def test_the_same_calls_go_from_a_to_b_to_c() -> None:
    with ready_cluster(PLAN, None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        phases = [endure(lab, "node", print)]
        lab.wait_replicated()
        phases.append(endure(lab, "freeswitch", print, victims=("fs-b",)))
        outcomes = conclude(lab, phases)
    good(outcomes)
    assert [outcome.owners["east1"] for outcome in outcomes] == ["fs-b", "fs-c"]
    assert [reinvites(outcome) for outcome in outcomes] == [{1}, {1}]


@pytest.mark.parametrize("fault", ["freeswitch", "switchover"])
def test_bridged_calls_keep_both_sides(fault: str) -> None:
    plan = replace(PLAN, bridge_target=bridge_target(PLAN))
    with ready_cluster(plan, None, print) as lab, telephone(lab, CALLS):
        where = lab.topology.client, lab.directory
        callers = BridgedCallers(plan, plan.services[0], *where, CALLS)
        lab.callers["east1.1"] = callers
        try:
            lab.wait(lambda: _replicated(lab, 2 * CALLS), 20, "both sides of all calls replicated")
            phases = [endure(lab, fault, print)]
            kept = channels(lab, "fs-b")
            outcome = conclude(lab, phases)[0]
        finally:
            callers.stop()
    good([outcome])
    assert kept == 2 * CALLS
    assert len(outcome.verdicts) == 2 * CALLS
    assert outcome.owners == {"east1": "fs-b"}
    assert reinvites(outcome) == {1}


def test_a_slave_that_serves_takes_a_second_service() -> None:
    with ready_cluster(replace(PLAN, masters=2, slaves=1), None, print) as lab:
        bring_calls(lab, {"east1": CALLS, "east2": CALLS}, print)
        phases = [endure(lab, "node", print, victims=("fs-a",))]
        lab.wait_replicated()
        phases.append(endure(lab, "freeswitch", print, victims=("fs-b",)))
        kept = channels(lab, "fs-c")
        outcomes = conclude(lab, phases)
    good(outcomes)
    assert outcomes[0].owners == {"east1": "fs-c", "east2": "fs-b"}
    assert outcomes[1].owners == {"east1": "fs-c", "east2": "fs-c"}
    assert kept == 2 * CALLS
    assert [reinvites(outcome) for outcome in outcomes] == [{1}, {1}]
    assert [len(outcome.foreign) for outcome in outcomes] == [CALLS, CALLS]


@pytest.mark.parametrize("fault", ["freeswitch", "node"])
def test_eg2_eg25_two_masters_lost_within_10_ms_go_to_one_slave_each(fault: str) -> None:
    for _ in range(TRIES):
        spread_ms = two_masters_lost(fault)
        if spread_ms < AT_ONCE_MS:
            return
        print(f"again: the scheduler put {spread_ms:.1f} ms between the two faults")
    pytest.fail(f"never two {fault} faults within {AT_ONCE_MS} ms in {TRIES} runs")


def two_masters_lost(fault: str) -> float:
    """One run, all of it asserted but how far apart the faults were: that is returned, in ms."""
    with ready_cluster(replace(PLAN, masters=3, slaves=2), None, print) as lab:
        bring_calls(lab, {service.name: CALLS for service in lab.plan.services}, print)
        third = lab.nodes["fs-c"].switch
        assert third is not None
        before = third.recovery_rows()
        phase = endure(lab, fault, print, victims=("fs-a", "fs-b"))
        kept = {node: channels(lab, node) for node in ("fs-c", "fs-d", "fs-e")}
        after = third.recovery_rows()
        outcome = conclude(lab, [phase])[0]
    good([outcome])
    assert {outcome.owners["east1"], outcome.owners["east2"]} == {"fs-d", "fs-e"}
    assert outcome.owners["east3"] == "fs-c"
    assert kept == {"fs-c": CALLS, "fs-d": CALLS, "fs-e": CALLS}
    assert len(before) == CALLS
    assert after == before
    assert len(outcome.verdicts) == 2 * CALLS
    assert reinvites(outcome) == {1}
    assert len(outcome.foreign) == CALLS
    assert not any(v.reinvites or v.rtp_lost or v.rtp_restarts for v in outcome.foreign)
    assert max(verdict.gap_ms for verdict in outcome.foreign) < QUIET_GAP_MS
    return phase.spread_ms


@pytest.mark.parametrize("fault", ["stun-heart", "stun-switch"])
def test_a_stun_costs_silence_for_its_time_and_no_call(fault: str) -> None:
    with ready_cluster(PLAN, None, print) as lab:
        outcome = measure(lab, fault, print, calls=CALLS)
    good([outcome])
    assert len(outcome.verdicts) == CALLS
    assert outcome.rtp_lost >= CALLS
    # The owner that was kept has the same calls, and says nothing in them.
    assert reinvites(outcome) == {int(outcome.moved)}
    assert {verdict.rtp_restarts for verdict in outcome.verdicts} == {int(outcome.moved)}


def test_new_calls_share_no_port_with_recovered_ones() -> None:
    """FREESWITCH.md section 12: FreeSWITCH's allocator does not know of recovered calls' ports."""
    few_ports = (16384, 16384 + 20 * CALLS)  # 100 pairs for 60 calls: chance cannot pass this
    recovered, new = 2 * CALLS, 4 * CALLS
    with ready_cluster(replace(PLAN, rtp_ports=few_ports), None, print) as lab:
        bring_calls(lab, {"east1": recovered}, print)
        phases = [endure(lab, "freeswitch", print)]
        bring_calls(lab, {"east1": new}, print, tag="2")
        media = Counter(call.media for call in lab.observe().calls.values())
        bound = _bound(lab, "fs-b", lab.plan.services[0].ip)
        outcomes = conclude(lab, phases)
    good(outcomes)
    assert len(media) == recovered + new
    assert set(media.values()) == {1}
    assert {port: times for port, times in bound.items() if times > 1} == {}
    assert {media_port.rpartition(":")[2] for media_port in media} <= set(bound)


def _replicated(lab: Laboratory, wanted: int) -> bool:
    found = lab.nodes["fs-a"].api("calls", limit=0)
    talking = sum(stream.packets > 10 for stream in lab.observe().streams.values())
    return bool(found["total"] == wanted and not found["at_risk"] and talking == wanted)


def _bound(lab: Laboratory, node: str, address: str) -> Counter[str]:
    """UDP ports that are bound to `address` on a node, and how often."""
    with netns.inside(lab.nodes[node].namespace):
        listed = subprocess.run(["ss", "-Hlnu"], capture_output=True, text=True, check=True)
    ends = [line.split()[3].rpartition(":") for line in listed.stdout.splitlines()]
    return Counter(port for host, _, port in ends if host == address)
