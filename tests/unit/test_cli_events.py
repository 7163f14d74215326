"""`haclusterctl events`: lines for people, JSON for programs, where to go on."""

from __future__ import annotations

import json

from haclusterd.cli.main import main
from tests.unit.test_cli import EVENTS, FakeDaemon, Printed, daemon

__all__ = ["daemon"]


def test_events_end_when_the_daemon_goes(daemon: FakeDaemon, capsys: Printed) -> None:
    assert main(["events"]) == 3
    printed = capsys.readouterr()
    shown = printed.out.splitlines()
    assert len(shown) == 4, "keepalives are for programs"
    assert shown[0].startswith("fs-a:9:4  ")
    for line, text in zip(shown, ("T201  fs-a won east", "call  east u1 live",
                                  "call  east u1 lost: 481", "GAP   events of fs-b"),
                          strict=True):  # fmt: skip
        assert text in line
    assert "closed the connection" in printed.err
    main(["--json", "events", "--after", "fs-a:9:3", "--own"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == EVENTS
    assert daemon.requests[-1]["params"] == {"after": "fs-a:9:3", "own": True}
    main(["events", "--all"])
    assert daemon.requests[-1]["params"] == {"after": "begin", "own": False}
