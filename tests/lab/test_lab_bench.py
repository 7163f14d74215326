"""The bench as `make bench` runs it, once and small: real runs, real processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as bench
from bench import busy, footprint
from bench.tables import busy_line
from haclusterd.lab import netns
from haclusterd.lab.plan import LabPlan

_REASON = netns.why_not() or ("" if shutil.which("sipp") else "sipp is missing: sip-tester")
pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(120),
]


def test_a_run_of_the_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    words = ["--only", "stun-heart", "upgrade", "--repeat", "1", "--calls", "5"]
    assert bench.main([*words, "--json", str(path)]) == bench.DONE
    runs = {run["fault"]: run for run in json.loads(path.read_text())["runs"]}
    assert runs["stun-heart"]["stun_ms"] >= 120
    assert runs["stun-heart"]["calls"]["total"] == 0
    assert (runs["upgrade"]["calls"]["recovered"], runs["upgrade"]["rtp_lost"]) == (5, 0)
    said = capsys.readouterr().out
    assert "| upgrade | 1 | 5/5 |" in said
    assert "| stun-heart | 1 |" in said


def test_the_cost_of_every_node_idle_and_with_calls() -> None:
    entries: list[dict[str, Any]] = []
    footprint.run(LabPlan(), None, entries, print, calls=5, seconds=1.0)
    assert [(entry["node"], entry["calls"]) for entry in entries] == [
        (f"fs-{letter}", calls) for calls in (0, 5) for letter in "abcde"
    ]
    for entry in entries:
        for process in ("heart", "agent"):
            assert 0 < entry[process]["cpu_percent"] < 100
            assert 1 < entry[process]["pss_mib"] <= entry[process]["rss_mib"]


def test_nothing_moves_on_a_busy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = busy.run(LabPlan(), None, print, minutes=0.1, calls=3)
    assert found["problems"] == []
    assert (found["moved"], found["heard"], found["calls"]) == (0, 6, 6)
    assert "0 services moved, 6/6 calls heard" in busy_line(found)
    capsys.readouterr()


def test_what_moved_on_a_busy_machine_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([{"east1": ("fs-a", 1), "east2": ("fs-b", 1)}])
    monkeypatch.setattr(
        busy, "_owners", lambda lab: next(said, {"east1": ("fs-c", 2), "east2": ("fs-b", 1)})
    )
    found = busy.run(LabPlan(), None, print, minutes=0.01, loops=1, calls=0)
    assert found["problems"] == ["east1: fs-a at epoch 1 before, fs-c at 2 after"]
    assert found["moved"] == 1
