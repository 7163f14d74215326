"""`haclusterctl drain|failover|maintenance --drain|keys rotate`: what reaches the daemon."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from haclusterd import rotation
from haclusterd.cli.main import main
from haclusterd.cli.tables import status as table_of
from haclusterd.cli.upstream import Wanted, export, targets
from haclusterd.config import load
from haclusterd.keys import create
from tests.unit.config_example import GOOD
from tests.unit.test_cli import ANSWERS, STATUS, FakeDaemon, Printed, Terminal, daemon

pytestmark = pytest.mark.timeout(20)
__all__ = ["daemon"]

DRAIN = {
    "kind": "node", "name": "fs-a", "by": "anna on fs-b", "left_s": 3600, "moves_s": 90,
    "services": ["east"], "calls": 12, "problem": "",
}  # fmt: skip


@pytest.fixture(autouse=True)
def anna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haclusterd.cli.ordered.user", lambda: "anna")
    monkeypatch.setattr("haclusterd.cli.remote.user", lambda: "anna")
    for method in ("drain", "undrain", "failover", "keys_rotate", "keys_abort", "maintenance"):
        monkeypatch.setitem(ANSWERS, method, {"text": "done"})
    monkeypatch.setitem(ANSWERS, "failover_check", {"text": "east would move: calls may be lost"})


def asked(daemon: FakeDaemon) -> list[tuple[str, Any]]:
    return [(r["method"], r["params"]) for r in daemon.requests]


def test_b7_orders_reach_the_daemon(daemon: FakeDaemon) -> None:
    assert main(["drain", "east"]) == 0
    assert main(["drain", "fs-a", "--for", "20m", "--json"]) == 0
    assert main(["drain", "off", "east"]) == 0
    assert main(["maintenance", "on", "fs-a", "--drain", "20m", "--for", "1h"]) == 0
    assert main(["keys", "rotate"]) == 0
    assert main(["keys", "rotate", "--abort"]) == 0
    assert asked(daemon) == [
        ("drain", {"target": "east", "by": "anna"}),
        ("drain", {"target": "fs-a", "for_s": 1200, "by": "anna"}),
        ("undrain", {"target": "east", "by": "anna"}),
        (
            "maintenance",
            {"on": True, "node": "fs-a", "for_s": 3600, "by": "anna", "drain_s": 1200},
        ),
        ("keys_rotate", {"by": "anna"}),
        ("keys_abort", {"by": "anna"}),
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["drain", "off"], "name one service or node"),
        (["drain", "east", "west"], "name one service or node"),
        (["drain", "off", "east", "--for", "5m"], "--for belongs to `drain SERVICE|NODE`"),
        (["maintenance", "off", "--drain", "5m"], "--drain belongs to `maintenance on`"),
        (["maintenance", "off", "--for", "5m"], "--for belongs to `maintenance on`"),
        (["keys", "status", "--abort"], "--abort belongs to `keys rotate`"),
    ],
)
def test_wrong_use_is_refused_before_the_daemon_is_asked(
    daemon: FakeDaemon, capsys: Printed, words: list[str], text: str
) -> None:
    assert main(words) == 2
    assert text in capsys.readouterr().err
    assert daemon.requests == []


def test_a_failover_warns_and_asks_first(
    daemon: FakeDaemon, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("east\n"))
    assert main(["failover", "east", "--to", "fs-c"]) == 1
    assert "say --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", Terminal("yes\n"))
    assert main(["failover", "east", "--to", "fs-c"]) == 1
    printed = capsys.readouterr().err
    assert "calls may be lost" in printed
    assert "nothing was done" in printed
    assert {method for method, _ in asked(daemon)} == {"failover_check"}
    monkeypatch.setattr(sys, "stdin", Terminal("east\n"))
    assert main(["failover", "east", "--to", "fs-c"]) == 0
    assert main(["failover", "east", "--yes"]) == 0
    assert [a for a in asked(daemon) if a[0] == "failover"] == [
        ("failover", {"service": "east", "to": "fs-c", "by": "anna"}),
        ("failover", {"service": "east", "to": "", "by": "anna"}),
    ]


def test_ctrl_c_at_the_question_does_nothing(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str, question: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("haclusterd.cli.remote.confirm", interrupted)
    assert main(["failover", "east"]) == 130
    assert {method for method, _ in asked(daemon)} == {"failover_check"}


def test_where_the_keys_stand_is_a_table(
    daemon: FakeDaemon, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [{"node": "fs-a", "phase": "new keys used", "ring": [2, 1], "by": "anna on fs-a",
              "problem": ""}]  # fmt: skip
    monkeypatch.setitem(ANSWERS, "keys_status", found)
    assert main(["keys", "status"]) == 0
    printed = capsys.readouterr().out
    assert "new keys used" in printed
    assert "2, 1" in printed
    assert main(["keys", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_status_shows_how_far_a_drain_is() -> None:
    lines = table_of({**STATUS, "drains": [DRAIN]})
    assert (
        "drain of node fs-a by anna on fs-b: east, 12 call legs left, moved in 90 s, ends in 3600 s"
    ) in lines
    idle = {**DRAIN, "services": [], "calls": 0, "left_s": None}
    assert "serves nothing, 0 call legs left" in str(table_of({**STATUS, "drains": [idle]})[1])
    moving = {**DRAIN, "moves_s": 0, "left_s": None}
    assert "12 call legs left, moving" in str(table_of({**STATUS, "drains": [moving]})[1])


def test_e10_what_takes_no_new_calls_is_not_exported() -> None:
    services = [
        {"name": name, "addresses": [f"203.0.113.{n}/24 dev eth0"]}
        for n, name in enumerate(("east", "west"), start=10)
    ]
    services[0]["closed"] = "drained by anna"
    found = {"cluster": "voice1", "services": services}
    assert [t.service for t in targets(found)] == ["west"]
    text = export("kamailio", found, Wanted(5060, "udp", "weight", "", 1))
    assert "left out, because they take no new calls now: east" in text
    assert "203.0.113.10" not in text


def test_25_no_keys_are_created_while_they_are_rotated(tmp_path: Path, capsys: Printed) -> None:
    path = tmp_path / "haclusterd.toml"
    path.write_text(GOOD)
    config = load(path, node="fs-a", run_dir=tmp_path)
    create(config)
    rotation.enter(config, rotation.begin(config, "anna"), rotation.KNOWN)
    assert main(["--config", str(path), "keys", "create"]) == 1
    assert "are being rotated" in capsys.readouterr().err
    assert main(["--config", str(path), "keys", "create", "--abort"]) == 1
    assert "belongs to `keys rotate`" in capsys.readouterr().err
