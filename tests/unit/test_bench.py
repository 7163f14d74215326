"""The bench's own judgement: medians, ratios, what fails a run, and what it says it skipped."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as bench
from bench import faults, footprint, peers
from bench.tables import fault_tables, footprint_table, peers_table, spread
from haclusterd.lab.outcome import Outcome
from haclusterd.lab.overlap import Overlap
from haclusterd.lab.plan import LabPlan

HARNESS = """
import json, os, pathlib, sys
results = pathlib.Path(os.environ["PEERS_RESULTS"]); results.mkdir()
pathlib.Path("RESULTS.md").write_text("refreshed")
words = dict(zip(sys.argv[2::2], sys.argv[3::2]))
for number, system in enumerate(words["--systems"].split(","), start=1):
    trial = {"fault_to_address_ms": 90.0, "outage_ms": 100.0 * number, "moved": True}
    trial["dual_holder_ms"] = 0.0
    path = results / f"outage.{system}.crash.json"
    path.write_text(json.dumps({"trials": [trial] * int(words["--trials"]), "error": None}))
"""


def entry(fault: str, **changed: Any) -> dict[str, Any]:
    outcome = Outcome(
        fault=fault, preset="lan", victims={"east1": "fs-a"}, owners={"east1": "fs-b"},
        outage_ms=4.0, exit_visible_ms=None, holders=1, overlap=Overlap(0.0, 0.0, 0.0, ()),
        overlap_bound_ms=0, late_ms=0.0,
    )  # fmt: skip
    return {**outcome.as_json(), "line": fault, "problems": [], **changed}


def calls(total: int, lost: int = 0) -> dict[str, int]:
    return {"total": total, "recovered": total - lost, "lost": lost, "foreign_touched": 0}


def test_a_table_has_medians_and_maxima_of_what_was_measured() -> None:
    runs = [
        entry("node", calls=calls(100), address_outage_ms=140.0, media_gap_ms={"p50": 300.0,
              "max": 420.0}, first_reinvite_ms=170.0),
        entry("node", calls=calls(100, 1), address_outage_ms=150.0, media_gap_ms={"p50": 310.0,
              "max": 430.0}, first_reinvite_ms=180.0, holders_max=2),
        entry("freeze-both", owner_kept=True),
        {"fault": "freeze-both", "line": "no run", "problems": ["did not form"]},
        {"fault": "stun-heart", "line": "no run", "problems": ["did not form"]},
    ]  # fmt: skip
    with_calls, addresses = fault_tables(runs)
    row = "| node | 2 | 199/200 | 145 / 150 | 175 / 180 | 305 / 310 | 425 / 430 | 0 / 0 | 2 |"
    assert f"{row} moved 2/2 |" in with_calls
    assert "| freeze-both | 1 of 2 | 4 / 4 | none | 1 | kept 1/1 |" in addresses
    assert "| stun-heart | 0 of 1 | - | - | - | - |" in addresses


def test_what_there_is_not_has_no_median() -> None:
    assert spread([]) == spread([None]) == "none"
    assert spread([1.26, None, 3.0]) == "2.1 / 3"


def test_a_ratio_is_of_medians_and_of_the_new_holder_where_the_old_one_answers_on() -> None:
    def row(system: str, fault: str, *outage_ms: float) -> dict[str, Any]:
        zeros = [0.0] * len(outage_ms)
        return {"fault": fault, "system": system, "outage_ms": list(outage_ms), "moved": 1,
                "new_holder_ms": [10 * ms for ms in outage_ms],
                "dual_holder_ms": zeros}  # fmt: skip

    text = peers_table([
        row("haclusterd-lan", "crash", 100.0, 140.0, 120.0),
        row("keepalived-1s", "crash", 2400.0, 3600.0),
        row("keepalived-1s", "service", 300.0),
        row("haclusterd-lan", "freeze", 97.0),
        row("keepalived-1s", "freeze", 194.0),
    ])  # fmt: skip
    assert "| crash | keepalived-1s | 2 | 1/2 | 3000 / 3600 | 30000 / 36000 | 25.0 |" in text
    assert "| service | keepalived-1s | 1 | 1/1 | 300 / 300 | 3000 / 3000 | - |" in text
    assert "| freeze | keepalived-1s | 1 | 1/1 | 194 / 194 | 1940 / 1940 | 2.0 |" in text


def test_the_cost_of_a_node_is_the_sum_of_both_processes() -> None:
    heart, agent = (
        {"cpu_percent": 2.25, "pss_mib": 16.5, "rss_mib": 30.0},
        {"cpu_percent": 1.5, "pss_mib": 23.0, "rss_mib": 45.0},
    )
    row = {"node": "fs-a", "role": "master", "calls": 0, "seconds": 30.0}
    text = footprint_table([{**row, "heart": heart, "agent": agent}])
    assert "| fs-a (master) | 0 | 2.2 | 1.5 | 3.8 | 16.5 | 23.0 | 39.5 | 75.0 |" in text
    assert "over 30 s" in text


def test_the_use_of_a_process_is_read_and_the_dead_count_nothing() -> None:
    cpu_s, pss_mib, rss_mib = footprint.use([os.getpid(), 1 << 22])
    assert cpu_s > 0
    assert 1 < pss_mib <= rss_mib
    assert footprint.use([1 << 22]) == (0, 0, 0)


def test_without_the_harness_its_part_says_why_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(peers.VARIABLE, raising=False)
    assert "PEERS_DIR is not set" in peers.why_not()
    monkeypatch.setenv(peers.VARIABLE, str(tmp_path))
    assert "has no bench.py" in peers.why_not()
    (tmp_path / "bench.py").touch()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "apt-get install keepalived" in peers.why_not()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert peers.why_not() == ""


def test_the_harness_runs_as_a_copy_and_its_results_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bench.py").write_text(HARNESS)
    monkeypatch.setenv(peers.VARIABLE, str(tmp_path))
    found: list[dict[str, Any]] = []
    peers.run(2, found, print, systems=("haclusterd-lan", "keepalived-1s"))
    assert [(e["system"], e["outage_ms"], e["moved"]) for e in found] == [
        ("haclusterd-lan", [100.0, 100.0], 2),
        ("keepalived-1s", [200.0, 200.0], 2),
    ]
    assert found[0]["new_holder_ms"] == [90.0, 90.0]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.py"]


def bench_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **changed: Any) -> tuple[int, Any]:
    """Exit code and JSON of a bench of which every run is as given."""
    monkeypatch.setattr(faults, "_one_run", lambda _plan, fault, *_: entry(fault, **changed))
    path = tmp_path / "results.json"
    code = bench.main(["--only", "node", "stun-heart", "--repeat", "2", "--json", str(path)])
    return code, json.loads(path.read_text())


def test_runs_go_round_by_round_and_all_of_them_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, written = bench_of(monkeypatch, tmp_path)
    assert code == bench.DONE
    names = [run["fault"] for run in written["runs"]]
    assert names == ["node", "stun-heart", "node", "stun-heart"]
    assert (written["freeswitch"], written["nice"]) == ("emulator", LabPlan.nice)
    assert "footprint" not in written
    assert "peers_skipped" not in written


def test_one_bad_run_fails_the_bench(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, written = bench_of(monkeypatch, tmp_path, problems=["2 nodes held an address at once"])
    assert code == bench.FAILED
    assert len(written["runs"]) == 4
    assert "2 nodes held an address at once" in capsys.readouterr().err


def test_a_part_that_was_asked_for_and_cannot_run_fails_the_bench(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(peers.VARIABLE, raising=False)
    path = tmp_path / "results.json"
    assert bench.main(["--peers", "--json", str(path)]) == bench.FAILED
    assert "PEERS_DIR" in json.loads(path.read_text())["peers_skipped"]
    assert "PEERS_DIR" in capsys.readouterr().out


def test_a_number_that_makes_no_sense_is_said_and_not_thrown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--nice", "40", "--json", str(tmp_path / "results.json")]
    assert bench.main(words) == bench.FAILED
    assert "--nice must be -20 to 19" in capsys.readouterr().err


def test_what_was_measured_before_an_interrupt_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = iter([entry("node")])

    def one_run(*_: Any) -> dict[str, Any]:
        try:
            return next(done)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(faults, "_one_run", one_run)
    path = tmp_path / "results.json"
    assert bench.main(["--only", "node", "--json", str(path)]) == bench.FAILED
    assert len(json.loads(path.read_text())["runs"]) == 1
