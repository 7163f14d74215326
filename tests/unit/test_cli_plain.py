"""What an operator may get wrong, and what is shown: refused by name, and nothing misleading."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from haclusterd.agent import facts
from haclusterd.cli import tables
from haclusterd.cli.main import main
from haclusterd.cli.show import plain, show
from tests.unit.config_example import GOOD
from tests.unit.test_cli import ANSWERS, REPORT, STATUS, FakeDaemon, Printed, Terminal, daemon

pytestmark = pytest.mark.timeout(20)
__all__ = ["daemon"]


def said(capsys: Printed, words: list[str], code: int = 1) -> str:
    assert main(words) == code
    return capsys.readouterr().err


def test_a_configuration_that_is_named_is_the_one_that_is_meant(
    tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the default socket would be asked, maybe of another cluster."""
    monkeypatch.delenv("HACLUSTERD_SOCKET", raising=False)
    missing = tmp_path / "missing.toml"
    assert f"{missing}: is no file" in said(capsys, ["--config", str(missing), "status"])
    path = tmp_path / "haclusterd.toml"
    path.write_text(GOOD)
    words = ["--config", str(path), "--node", "fs-x", "status"]
    assert "is no node of this file" in said(capsys, words)
    path.write_text(GOOD.replace("/run/haclusterd/", f"{tmp_path}/{{node}}/"))
    assert "none of the configured link" in said(capsys, ["--config", str(path), "status"])
    assert "fs-a/haclusterd.sock" in said(
        capsys, ["--config", str(path), "--node", "fs-a", "status"], 3
    )


def test_what_is_no_socket_is_said_to_be_none(tmp_path: Path, capsys: Printed) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"{file}: is no socket" in said(capsys, ["--socket", str(file), "status"], 3)


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--domain", "evil domain"], "no domain"), (["--domain", "a..b"], "no domain"),
     (["--group", "-5"], "not a number from 1"), (["--port", "0"], "is not a port")],
)  # fmt: skip
def test_an_export_that_nobody_could_read_is_refused(
    words: list[str], reason: str, capsys: Printed
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", "upstream", "--format", "dns", *words])
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_failover_to_nobody_is_refused(daemon: FakeDaemon, capsys: Printed) -> None:
    assert main(["failover", "east", "--to", "", "--yes"]) == 2
    assert "--to is empty" in capsys.readouterr().err
    assert daemon.requests == []


def test_who_released_a_service_is_not_called_dead(daemon: FakeDaemon, capsys: Printed) -> None:
    moments = [{"at_ms": 0.0, "event": "dead"}, {"at_ms": 1.0, "event": "claimed"}]
    for cause, word in (("fs-b released it", "released"), ("fs-b silent on 2/2 links", "dead")):
        shown = plain(tables.report({**REPORT, "cause": cause, "timeline": moments}))
        assert f"0.0 ms  {word} " in shown
    assert main(["report", "east", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["timeline"] == REPORT["timeline"]
    assert daemon.requests[-1] == {"method": "report", "params": {"which": "east"}}


@pytest.mark.parametrize(
    ("words", "word"), [(["switchover", "east"], "is carried out all the same"), (["events"], "")]
)
def test_ctrl_c_says_what_becomes_of_an_order(
    words: list[str], word: str, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("haclusterd.cli.remote.run", interrupted)
    shown = said(capsys, ["--socket", "/none", *words], 130)
    assert word in shown
    assert bool(shown) == bool(word)


def test_a_drain_is_told_once() -> None:
    alarms = [{"name": "drained", "text": "east takes no new calls"},
              {"name": "maintenance", "text": "fs-a is in maintenance"}]  # fmt: skip
    drain = {"kind": "service", "name": "east", "by": "anna on fs-a", "services": ["east"],
             "calls": 4, "moves_s": None, "left_s": 60}  # fmt: skip
    shown = plain(tables.status({**STATUS, "alarms": alarms, "drains": [drain]}))
    assert shown.count("takes no new calls") == 0
    assert "drain of service east by anna on fs-a" in shown
    assert "ALARM maintenance" in shown
    assert "takes no new calls" in plain(tables.status({**STATUS, "alarms": alarms}))


def test_what_a_dead_node_said_last_is_not_shown_as_so() -> None:
    node = {**STATUS["nodes"][0], "id": "fs-d", "calls": 77, "health": 88}
    for role, there in (("dead", False), ("left", False), ("failed", True)):
        for watched in (False, True):
            found = {**STATUS, "nodes": [{**node, "role": role}]}
            shown = "\n".join(plain([part]) for part in tables.status(found, watched))
            assert ("77/1000" in shown) is there
    assert "88" not in plain(tables.status({**STATUS, "nodes": [{**node, "role": "dead"}]}))


def test_own_services_are_not_listed_as_held_for_others() -> None:
    row = {"service": "east", "data": "calls", "origin": "", "epoch": 0, "state": "none", "have": 0,
           "want": 0, "percent": 0, "eta_ms": None, "lag_ms": 0}  # fmt: skip
    found: dict[str, Any] = {**ANSWERS["sync"], "incoming": [row, {**row, "service": "west"}]}
    held = plain(tables.sync(found)).partition("held:")[2]
    assert "west" in held
    assert "east" not in held


def test_calls_of_a_freeswitch_that_is_gone_are_not_counted() -> None:
    up, gone = SimpleNamespace(calls=7, up=True), SimpleNamespace(calls=7, up=False)
    seen: list[tuple[Any, Any, int]] = [(None, up, 7), (object(), gone, 7), (None, gone, 0)]
    for process, switch, calls in seen:
        life: Any = SimpleNamespace(process=process, switch=switch)
        assert facts._calls(life) == calls
    assert facts._calls(None) == 0


UUID = "6f1c1c1e-1111-4222-8333-944444444444"


@pytest.mark.parametrize(
    ("columns", "left_out"),
    [(60, {"answered", "direction"}), (80, {"answered", "direction"}), (100, {"answered"}),
     (120, set())],
)  # fmt: skip
def test_the_uuid_of_a_call_is_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: int, left_out: set[str]
) -> None:
    """One copies it; what else there is makes room."""
    monkeypatch.setenv("COLUMNS", str(columns))
    call = {"uuid": UUID, "service": "maintenance-east1", "here": "copy", "direction": "outbound",
            "answered": "2026-11-28T18:54:02Z", "at_risk": True,
            "why": ["no copy at any other node", "its media is not of this cluster"]}  # fmt: skip
    report = json.loads(json.dumps(REPORT))
    report["calls"]["verdicts"] = [
        {"uuid": UUID, "verdict": "recovered", "gap_ms": 160, "reason": "a phone is gone " * 5}
    ]
    calls = {"total": 1, "at_risk": 1, "calls": [call]}
    legs, verdicts = Terminal(), Terminal()
    show(tables.calls(calls, at_risk=False), legs)
    show(tables.report(report), verdicts)
    assert UUID in legs.getvalue()
    assert UUID in verdicts.getvalue()
    assert {name for name in ("answered", "direction") if name not in legs.getvalue()} == left_out


def test_a_call_that_is_named_by_a_novel_leaves_room_for_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    call = {"uuid": "u" * 300, "service": "east", "here": "own", "direction": "inbound",
            "answered": None, "at_risk": True, "why": ["unsaid"]}  # fmt: skip
    out = Terminal()
    show(tables.calls({"total": 1, "at_risk": 1, "calls": [call]}, at_risk=True), out)
    assert "unsaid" in out.getvalue()


def test_reports_of_several_nodes_say_whose_number_it_is() -> None:
    assert "on the node in `to`" not in plain(tables.reports([REPORT, REPORT]))
    assert "on the node in `to`" in plain(tables.reports([REPORT, {**REPORT, "to": "fs-c"}]))
