"""Many calls and phones on one master while calls come and go: `python -m bench.load`. Root.

1,000 calls, 5,000 registrations and 40 new calls a second (as many end) on the emulators of a
laboratory, for each source of call state. Figures: how long a call is unprotected (from its answer
to the acknowledgement of a standby, as the agent counts it), how late FreeSWITCH's own rows are
(the emulator's, to be held against FREESWITCH's 114/205/227 ms), the CPU of the agents, and whether
the slaves have the same as the master once it is quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.callers import Callers
from bench.registrations import Phones
from haclusterd.lab import netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import ready_cluster

GOAL_P99_MS = 250
GOAL_CPU = 0.25
SOURCES = ("core_db", "esl")
_QUIET_S = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")
Say = Callable[[str], None]


class RowDelays(threading.Thread):
    """How long after the answer FreeSWITCH's row of a call can be read. A reader of its own: not
    while CPU is measured."""

    def __init__(self, core_db: Path) -> None:
        super().__init__(daemon=True)
        self._path = core_db
        self._end = threading.Event()
        self.found_ms: list[float] = []

    def run(self) -> None:
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=5)) as db:
            (seen,) = db.execute("SELECT max(rowid) FROM recovery").fetchone()
            seen = seen or 0
            while not self._end.wait(0.003):
                rows = db.execute(
                    "SELECT rowid, metadata FROM recovery WHERE rowid > ?", (seen,)
                ).fetchall()
                now = time.time()
                for rowid, text in rows:
                    seen = max(seen, rowid)
                    stamp = text.partition("<answered_time>")[2].partition("<")[0]
                    self.found_ms.append(now * 1000 - int(stamp) / 1000)

    def stop(self) -> dict[str, float]:
        self._end.set()
        self.join()
        found = sorted(self.found_ms) or [0.0]
        at = {"p50": 0.5, "p95": 0.95, "max": 1.0}
        return {k: round(found[min(len(found) - 1, int(q * len(found)))]) for k, q in at.items()}


class Stalls(threading.Thread):
    """How late a thread of the machine wakes up: what nobody here can make up for."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._end = threading.Event()
        self._late_ms: list[float] = []

    def run(self) -> None:
        while not self._end.is_set():
            due = time.monotonic() + 0.005
            time.sleep(0.005)
            self._late_ms.append((time.monotonic() - due) * 1000)

    def stop(self) -> dict[str, float]:
        self._end.set()
        self.join()
        late = sorted(self._late_ms) or [0.0]
        return {"p99": round(late[len(late) * 99 // 100], 1), "max": round(late[-1], 1)}


def cpu_s(pid: int) -> float:
    """User and system time of a process until now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def measure(source: str, calls: int, phones: int, per_s: float, seconds: float, say: Say
            ) -> dict[str, Any]:  # fmt: skip
    """One source of call state."""
    plan = LabPlan(masters=1, slaves=2, call_source=source, media_pps=1)
    os.setpriority(os.PRIO_PROCESS, 0, plan.nice)  # the callers are here: a late ACK is a late row
    with ready_cluster(plan, None, say) as lab:
        time.sleep(2)
        service = plan.services[0]
        master = lab.nodes[lab.holder(service.ip)]
        assert master.switch is not None
        took_s = Phones(lab, phones).register(service.ip, 7200)
        say(f"{phones} phones registered in {took_s:.1f} s")
        callers = Callers(lab, service.ip, per_s)
        callers.start()
        try:
            rows = RowDelays(master.switch.core_db)
            rows.start()
            netns.wait_for(lambda: callers.up >= calls, 120 + calls / per_s, f"{calls} calls")
            late = rows.stop()
            callers.keep(calls)
            say(f"{callers.up} calls are up; rows are {late} ms late")
            time.sleep(3)
            found = _steady(lab, master.id, callers, seconds)
        finally:
            callers.stop_churn()
        found |= {"source": source, "rows_ms": late, "failed": callers.failed}
        found["same_after_s"] = _same(lab, master.id, say)
        found["calls"] = callers.up
        callers.close()
        return found


def _steady(lab: Laboratory, master: str, callers: Callers, seconds: float) -> dict[str, Any]:
    """What the churn costs, and the newest calls' time without protection."""
    pids = {node: int(lab.nodes[node].api("about")["pid"]) for node in lab.nodes}
    before, began = {node: cpu_s(pid) for node, pid in pids.items()}, time.monotonic()
    counted, started = lab.nodes[master].api("sync")["protected"], callers.started
    stalls = Stalls()
    stalls.start()
    time.sleep(seconds)
    late = stalls.stop()
    took_s = time.monotonic() - began
    used = {node: (cpu_s(pid) - before[node]) / took_s for node, pid in pids.items()}
    sync = lab.nodes[master].api("sync")
    return {
        "calls_per_s": round((callers.started - started) / took_s, 1),
        "machine_late_ms": late,
        "protected": sync["protected"] - counted,
        "protected_ms": {"p50": sync["protected_ms_p50"], "p99": sync["protected_ms_p99"]},
        "ack_ms": {"p50": sync["ack_ms_p50"], "p99": sync["ack_ms_p99"]},
        "agent_cpu": {
            "master": round(used.pop(master), 3), "slaves": [round(u, 3) for u in used.values()],
        },
    }  # fmt: skip


def _same(lab: Laboratory, master: str, say: Say) -> float:
    """Seconds of quiet until both slaves have what the master has. LabError if they never do."""
    began = time.monotonic()
    while time.monotonic() - began < _QUIET_S:
        time.sleep(0.1)
        sync = lab.nodes[master].api("sync")
        own = {
            (peer["node"], row["service"]): row["digest"]
            for peer in sync["peers"]
            for row in peer["outgoing"]
        }
        copies = {
            (node, row["service"]): row["digest"]
            for node in lab.nodes
            if node != master
            for row in lab.nodes[node].api("sync")["store"]
            if (node, row["service"]) in own
        }
        if own and copies == own and not sync["waiting"] and not sync["at_risk"]:
            say(f"{len(own)} copies are the same")
            return round(time.monotonic() - began, 1)
    raise netns.LabError(f"copies differ after {_QUIET_S:g} s: {own} {copies}")


def good(found: dict[str, Any]) -> bool:
    """Whether the goals are met."""
    return bool(
        found["protected_ms"]["p99"] <= GOAL_P99_MS
        and found["agent_cpu"]["master"] <= GOAL_CPU
        and not found["failed"]
        and found["protected"] > 0
    )


def main(argv: Sequence[str] | None = None) -> int:
    """0 if the goals are met, 1 if not or if it could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--phones", type=int, default=5000)
    parser.add_argument("--per-s", type=float, default=40.0)
    parser.add_argument("--seconds", type=float, default=30.0, help="that are measured")
    parser.add_argument("--source", choices=SOURCES, action="append", help="default: both")
    parser.add_argument("--json", type=Path, help="write all of it there")
    given = parser.parse_args(argv)
    if not (1 <= given.calls <= 2500 and 1 <= given.phones <= 50_000 and 0 < given.per_s <= 200):
        parser.error("--calls 1..2500 --phones 1..50000 --per-s up to 200")
    results = []
    for source in given.source or SOURCES:
        try:
            results.append(
                measure(source, given.calls, given.phones, given.per_s, given.seconds,
                        lambda text: print(text, file=sys.stderr))
            )  # fmt: skip
        except netns.LabError as error:
            print(f"bench: {source}: {error}", file=sys.stderr)
            return 1
        print(json.dumps(results[-1]), file=sys.stderr)
    text = json.dumps(results, indent=1)
    if given.json is not None:
        given.json.write_text(text + "\n")
    print(text)
    return 0 if all(good(found) for found in results) else 1


if __name__ == "__main__":
    sys.exit(main())
