"""What the two daemons of a node cost: CPU and memory, idle and with many replicated calls.

Five nodes with two heartbeat NICs, three masters and two slaves. The calls carry no sound (echo at
both ends): it is their state that is kept, and 1,000 tones would leave no CPU to measure with.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import ready_cluster
from haclusterd.lab.traffic import Callers

SECONDS = 30.0
CALLS = 1000
_ECHO_EXTENSION = "9196"
_CALM_S = 5.0
_REPLICATED_S = 120.0

Say = Callable[[str], None]


def run(
    base: LabPlan,
    prefix: str | None,
    entries: list[dict[str, Any]],
    say: Say,
    *,
    calls: int = CALLS,
    seconds: float = SECONDS,
) -> None:
    """Add one entry per node without calls, and one with `calls` on the first master.

    The instruments of the laboratory ask every millisecond; they are closed first.
    """
    plan = replace(base, masters=3, slaves=2, nics=2)
    with ready_cluster(plan, prefix, say) as lab:
        owner = lab.plan.services[0]
        lab.probe.close()
        _entries(lab, entries, 0, seconds, say)
        say(f"bringing up {calls} calls on {owner.preferred}")
        callers = Callers(
            plan, owner, lab.topology.client, lab.directory, calls, extension=_ECHO_EXTENSION
        )
        try:
            lab.wait(
                lambda: _replicated(lab, owner.preferred, calls), _REPLICATED_S,
                f"{calls} calls to be replicated",
            )  # fmt: skip
            _entries(lab, entries, calls, seconds, say)
        finally:
            callers.stop()


def use(pids: Iterable[int]) -> tuple[float, float, float]:
    """(CPU seconds so far, PSS, RSS in MiB now) of these together; the dead count nothing."""
    cpu_ns, kib = 0, {"Pss": 0, "Rss": 0}
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                cpu_ns += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in kib:
                    kib[name] += int(value.split()[0])
    return cpu_ns / 1e9, kib["Pss"] / 1024, kib["Rss"] / 1024


def _entries(
    lab: Laboratory, entries: list[dict[str, Any]], calls: int, seconds: float, say: Say
) -> None:
    time.sleep(min(_CALM_S, seconds))
    found = {node.id: node.haclusterd_pids() for node in lab.nodes.values()}
    masters = {service.preferred for service in lab.plan.services}
    before = {node: [use(pids)[0] for pids in both] for node, both in found.items()}
    began = time.monotonic()
    time.sleep(seconds)
    passed_s = time.monotonic() - began
    for node, both in found.items():
        costs = []
        for pids, cpu_before in zip(both, before[node], strict=True):
            cpu_s, pss_mib, rss_mib = use(pids)
            costs.append(
                {
                    "cpu_percent": round(100 * (cpu_s - cpu_before) / passed_s, 2),
                    "pss_mib": round(pss_mib, 1),
                    "rss_mib": round(rss_mib, 1),
                }
            )
        entry = {
            "node": node,
            "role": "master" if node in masters else "slave",
            "calls": calls,
            "seconds": seconds,
            "load": round(os.getloadavg()[0], 2),
            "heart": costs[0],
            "agent": costs[1],
        }
        entries.append(entry)
        say(f"{node} with {calls} calls: heart {costs[0]}, agent {costs[1]}")


def _replicated(lab: Laboratory, node: str, calls: int) -> bool:
    """Asked seldom: each answer costs the agent that is to be measured."""
    time.sleep(1.0)
    answer = lab.nodes[node].api("calls", limit=0)
    return bool(answer["total"] >= calls and not answer["at_risk"])
