"""Each fault of docs/figures.md, several runs of each, every run from scratch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from haclusterd.lab.netns import LabError
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import measure, ready_cluster

WITH_CALLS = ("freeswitch", "freeze-freeswitch", "node", "switchover", "upgrade", "kill-agent")
ADDRESSES = ("freeze-heart", "freeze-agent", "freeze-both", "stun-switch", "stun-heart")
FAULTS = (*WITH_CALLS, *ADDRESSES)

Say = Callable[[str], None]


def plan_of(base: LabPlan, prefix: str | None) -> LabPlan:
    """One master, two slaves, as everything in docs/figures.md."""
    return replace(base, masters=1, slaves=2, freeswitch="real" if prefix else "emulator")


def run(
    plan: LabPlan,
    chosen: Sequence[str],
    repeat: int,
    calls: int,
    prefix: str | None,
    runs: list[dict[str, Any]],
    say: Say,
) -> bool:
    """Add one entry to `runs` for each; False if one failed (its `problems` say why).

    Round by round and not fault by fault: what else the machine does meets all faults alike.
    """
    for number in range(1, repeat + 1):
        for fault in chosen:
            entry = _one_run(plan, fault, calls if fault in WITH_CALLS else 0, prefix)
            runs.append(entry)
            say(f"{number}/{repeat} {entry['line']}")
            for problem in entry["problems"]:
                say(f"  {problem}")
    return not any(entry["problems"] for entry in runs)


def _one_run(plan: LabPlan, fault: str, calls: int, prefix: str | None) -> dict[str, Any]:
    """The contract's JSON of a run, and `line`, `load`, `problems`."""
    alone = plan if calls else replace(plan, freeswitch="none")
    load = round(os.getloadavg()[0], 2)
    try:
        with ready_cluster(alone, prefix, _silent) as lab:
            outcome = measure(lab, fault, _silent, calls=calls)
    except LabError as error:
        return {"fault": fault, "load": load, "line": f"{fault}: no run", "problems": [str(error)]}
    return {
        **outcome.as_json(),
        "line": outcome.line(),
        "load": load,
        "late_ms": round(outcome.late_ms, 1),
        "problems": outcome.problems,
    }


def _silent(_text: str) -> None:
    """A run is told in one line, when it is over."""
