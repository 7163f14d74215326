"""A limit holds in the whole cluster, also across a takeover: a real FreeSWITCH on every node."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.run import endure, ready_cluster
from haclusterd.lab.traffic import Callers
from tests.freeswitch.bridged import BridgedCallers, bridge_target, telephone
from tests.freeswitch.test_registrations_real import _REASON, PLAN, api

pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

LINE = "6001"  # two places in the cluster
SETTLED_S = 1.0  # a count goes to the other agents in 0.1 s, and from there to mod_hash in 0.1 s


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    with ready_cluster(PLAN, None, print) as made:
        time.sleep(2)
        yield made


def call(lab: Laboratory, service: int, tag: str) -> Callers:
    plan = lab.plan.services[service]
    where = lab.topology.client, lab.directory
    callers = Callers(lab.plan, plan, *where, 1, tag, extension=LINE)
    lab.callers[f"{plan.name}.{tag}"] = callers
    return callers


def usage(lab: Laboratory, node: str) -> int:
    lines = [line.split("/") for line in api(lab, node, "hash_dump limit").splitlines()]
    return next((int(parts[2]) for parts in lines if parts[1:2] == ["cluster_line"]), 0)


def one_more(lab: Laboratory, node: str) -> str:
    """What a call at a node is told; it is over at once if it was let in."""
    answer = api(lab, node, f"originate loopback/{LINE}/public &park")
    if answer.startswith("+OK"):
        before = usage(lab, node)
        api(lab, node, f"uuid_kill {answer.split()[1]}")
        lab.wait(lambda: usage(lab, node) == before - 1, 5, "it to be over")
    return answer.split()[0] if answer.startswith("+OK") else answer


def refused(lab: Laboratory, *nodes: str) -> bool:
    return all(one_more(lab, node) == "-ERR USER_BUSY" for node in nodes)


def test_b12_the_cluster_has_two_places_whoever_owns_what(lab: Laboratory) -> None:
    for node in lab.nodes:
        lab.wait(lambda node=node: "haclusterd\t\t\tUp" in api(lab, node, "hash_remote list"), 10,
                 "mod_hash to be connected")  # fmt: skip
    assert one_more(lab, "fs-b") == "+OK"
    time.sleep(SETTLED_S)
    at_a, at_b = call(lab, 0, "1"), call(lab, 1, "1")
    lab.wait(lambda: (usage(lab, "fs-a"), usage(lab, "fs-b")) == (1, 1), 20, "a call at A and B")
    time.sleep(SETTLED_S)
    assert refused(lab, "fs-a", "fs-b", "fs-c")
    lab.wait(lambda: not lab.at_risk(), 10, "both calls to be replicated", lab.at_risk)

    endure(lab, "freeswitch", print, victims=("fs-a",))
    lab.wait(lambda: usage(lab, "fs-c") == 1, 10, "A's call to be counted at C")
    assert refused(lab, "fs-b", "fs-c"), "a place was free though both calls are up"
    time.sleep(SETTLED_S)
    assert refused(lab, "fs-b", "fs-c")
    assert (usage(lab, "fs-b"), usage(lab, "fs-c")) == (1, 1)

    at_a.hang_up(at_a.call_ids)
    lab.wait(lambda: usage(lab, "fs-c") == 0, 10, "A's call to end")
    lab.wait(lambda: one_more(lab, "fs-b") == "+OK", 5, "A's place to be free at B")
    at_b.hang_up(at_b.call_ids)
    assert at_a.wait(10)
    assert at_b.wait(10)
    lab.wait(lambda: usage(lab, "fs-b") == 0, 10, "B's call to end")


def test_b12_the_place_of_a_call_that_is_lost_in_a_takeover_is_free_with_its_end(
    lab: Laboratory,
) -> None:
    """Two calls hold both places; the phone of one dies with its master and says nothing.

    Until the new owner ends it (`orphan_timeout_ms`), it may still be there, so it counts.
    """
    stays, goes = call(lab, 0, "1"), call(lab, 0, "2")
    lab.wait(lambda: usage(lab, "fs-a") == 2, 20, "two calls at A")
    time.sleep(SETTLED_S)
    assert refused(lab, "fs-b", "fs-c")
    lab.wait(lambda: not lab.at_risk(), 10, "both calls to be replicated", lab.at_risk)
    goes.stop()  # says nothing: A counts it until it is lost
    del lab.callers["east1.2"]
    endure(lab, "freeswitch", print, victims=("fs-a",))
    lost_at = time.monotonic()
    lab.wait(lambda: usage(lab, "fs-c") == 2, 5, "both calls to be counted at C")
    time.sleep(SETTLED_S)
    assert refused(lab, "fs-b", "fs-c"), "nobody is let in while the second may be there"
    lab.wait(lambda: usage(lab, "fs-c") == 1, 25, "the second to be ended at C")
    ended_at = time.monotonic()
    lab.wait(lambda: one_more(lab, "fs-b") == "+OK", 5, "the other place to be free at B")
    print(f"ended {ended_at - lost_at:.1f} s after the takeover was over,"
          f" free at B {time.monotonic() - ended_at:.1f} s later")  # fmt: skip
    assert usage(lab, "fs-c") == 1
    extra = api(lab, "fs-b", f"originate loopback/{LINE}/public &park")
    assert extra.startswith("+OK"), extra
    time.sleep(SETTLED_S)
    assert refused(lab, "fs-b", "fs-c"), "both places are taken again, and no more than both"
    api(lab, "fs-b", f"uuid_kill {extra.split()[1]}")
    lab.wait(lambda: usage(lab, "fs-b") == 0, 5, "it to be over")
    stays.hang_up(stays.call_ids)
    assert stays.wait(10)
    lab.wait(lambda: usage(lab, "fs-c") == 0, 10, "the call to end")
    time.sleep(SETTLED_S)
    assert one_more(lab, "fs-c") == "+OK"


def test_b12_a_bridged_call_is_counted_again_though_its_dialplan_is_not_run_again() -> None:
    plan = replace(PLAN, bridge_target=bridge_target(PLAN))
    with ready_cluster(plan, None, print) as lab, telephone(lab, 1):
        time.sleep(2)
        service = lab.plan.services[0]
        where = lab.topology.client, lab.directory
        callers = BridgedCallers(lab.plan, service, *where, 1, extension="5000")
        lab.callers[f"{service.name}.1"] = callers
        lab.wait(lambda: usage(lab, "fs-a") == 1, 10, "the call at A")
        lab.wait(lambda: lab.nodes["fs-a"].api("calls", limit=0)["total"] == 2, 10, "both legs")
        lab.wait(lambda: not lab.at_risk(), 10, "both legs to be replicated", lab.at_risk)
        endure(lab, "freeswitch", print, victims=("fs-a",))
        lab.wait(lambda: usage(lab, "fs-c") == 1, 10, "the call to be counted at C")
        callers.hang_up(callers.call_ids)
        lab.wait(lambda: usage(lab, "fs-c") == 0, 10, "its place to be free")
