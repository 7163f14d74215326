"""`haclusterctl pause|resume|maintenance|node`: what reaches the daemon, what asks back first."""

from __future__ import annotations

import io
import sys

import pytest

from haclusterd.cli.main import main
from tests.unit.test_cli import ANSWERS, STATUS, FakeDaemon, Printed, Terminal, daemon

pytestmark = pytest.mark.timeout(20)
__all__ = ["daemon"]


def test_orders_for_the_cluster_reach_the_daemon(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.cli.ordered.user", lambda: "anna")
    monkeypatch.setitem(ANSWERS, "pause", {"text": "the cluster is paused"})
    for method in ("resume", "mark_dead", "unmark"):
        monkeypatch.setitem(ANSWERS, method, {"text": "done"})
    assert main(["pause", "--for", "2h", "--json"]) == 0
    assert main(["pause"]) == 0
    assert main(["resume"]) == 0
    assert main(["node", "mark-dead", "fs-c", "--verified-by", "ben", "--yes"]) == 0
    assert main(["node", "unmark", "fs-c"]) == 0
    assert main(["maintenance", "on", "fs-c", "--for", "90s"]) == 0
    assert [(r["method"], r["params"]) for r in daemon.requests] == [
        ("pause", {"for_s": 7200, "by": "anna"}),
        ("pause", {"by": "anna"}),
        ("resume", {"by": "anna"}),
        ("mark_dead", {"node": "fs-c", "verified_by": "ben"}),
        ("unmark", {"node": "fs-c", "by": "anna"}),
        ("maintenance", {"on": True, "node": "fs-c", "for_s": 90, "by": "anna"}),
    ]


def test_ml18_marking_a_node_dead_asks_on_a_terminal(
    daemon: FakeDaemon, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANSWERS, "mark_dead", {"text": "done"})
    words = ["node", "mark-dead", "fs-c", "--verified-by", "ben"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("fs-c\n"))
    assert main(words) == 1
    assert "say --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert main(words) == 1
    assert "nothing was done" in capsys.readouterr().err
    assert main(words[:3]) == 2
    assert "--verified-by NAME" in capsys.readouterr().err
    assert daemon.requests == []
    monkeypatch.setattr(sys, "stdin", Terminal("fs-c\n"))
    assert main(words) == 0
    assert "two nodes may serve one address" in " ".join(capsys.readouterr().err.split())
    assert len(daemon.requests) == 1


@pytest.mark.parametrize("time", ["", "5", "0s", "-3m", "1w", "99999999h", "31d", "¹h"])
def test_a_time_that_is_none_is_a_usage_error(daemon: FakeDaemon, time: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["pause", "--for", time])
    assert caught.value.code == 2
    assert main(["maintenance", "off", "--for", "5m"]) == 2


def test_a_witness_is_shown_as_one(
    daemon: FakeDaemon, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {**STATUS["nodes"][0], "role": "maintenance", "witness": True}
    monkeypatch.setitem(ANSWERS, "status", {**STATUS, "nodes": [node]})
    assert main(["status"]) == 0
    assert "witness" in capsys.readouterr().out


def test_an_order_without_an_answer_may_be_carried_out_all_the_same(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """Another order goes first, or the agent was killed: no answer does not mean not done."""
    monkeypatch.setattr("haclusterd.cli.client.ANSWER_S", 0.2)
    daemon.raw = b""
    assert main(["switchover", "east"]) == 3
    assert "may be carried out all the same" in capsys.readouterr().err
    for question in (["status"], ["keys", "status"]):
        assert main(question) == 3
        assert "may be carried out" not in capsys.readouterr().err
