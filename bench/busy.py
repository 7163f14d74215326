"""Minutes with more busy loops than CPUs: does anything move that nobody asked to move?

Two masters and a slave with live calls, and loops at the priority of an ordinary process beside
them. What counts is that every service keeps its owner and its epoch, and every call its sound.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from haclusterd.lab.calls import has_media, was_up
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import bring_calls, ready_cluster

LOOPS = 4
MINUTES = 10.0
CALLS = 10  # on each master
_TOLD_EVERY_S = 60.0

Say = Callable[[str], None]


def run(
    base: LabPlan,
    prefix: str | None,
    say: Say,
    *,
    minutes: float = MINUTES,
    loops: int = LOOPS,
    calls: int = CALLS,
) -> dict[str, Any]:
    """`problems` is empty when nothing moved and every call was heard at the end."""
    plan = replace(base, masters=2, slaves=1, freeswitch="real" if prefix else "emulator")
    with ready_cluster(plan, prefix, say) as lab:
        bring_calls(lab, {service.name: calls for service in plan.services}, say)
        before = _owners(lab)
        lab.arm()
        with _busy(loops):
            _wait(minutes * 60, say)
            probed = lab.probe.ask("report")
            heard, wanted = _heard(lab), calls * len(plan.services)
            after = _owners(lab)
    silent_ms = {s.name: round(probed[s.ip]["longest_ms"], 1) for s in plan.services}
    problems = [
        f"{name}: {owner[0]} at epoch {owner[1]} before, {after[name][0]} at {after[name][1]} after"
        for name, owner in before.items()
        if after[name] != owner
    ]
    if heard < wanted:
        problems.append(f"{heard} of {wanted} calls are heard at the end")
    return {
        "loops": loops, "minutes": minutes, "nice": plan.nice, "calls": wanted, "heard": heard,
        "moved": sum(after[name] != owner for name, owner in before.items()),
        "address_silent_ms": silent_ms, "problems": problems,
    }  # fmt: skip


def _owners(lab: Laboratory) -> dict[str, tuple[str, int]]:
    """{service: (owner, epoch)}. An epoch never comes back: nothing that moved and returned hides.

    Asked until a node answers: one may be slow to, here.
    """
    for _try in range(20):
        for node in lab.nodes.values():
            if (status := node.status()) is not None:
                return {s["name"]: (s["owner"], s["epoch"]) for s in status["services"]}
        time.sleep(0.5)
    return {service.name: ("nobody answers", -1) for service in lab.plan.services}


def _heard(lab: Laboratory) -> int:
    seen = lab.observe()
    return sum(
        was_up(call, seen.at_ns) and has_media(call, seen.streams, seen.at_ns)
        for call in seen.calls.values()
    )


@contextmanager
def _busy(loops: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def _wait(seconds: float, say: Say) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _TOLD_EVERY_S))
        say(f"busy: {max(0.0, end - time.monotonic()):.0f} s to go")
