"""`haclusterctl events`: lines for people, JSON for programs, where to go on."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from haclusterd.cli import client
from haclusterd.cli.main import main
from tests.unit.test_cli import EVENTS, FakeDaemon, Printed, Terminal, daemon

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


def test_a_stream_that_falls_silent_says_how_long_it_was_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.setattr(client, "SILENT_S", 1.0)
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()

        def say_that_events_follow_and_nothing_more() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b'{"ok": true, "result": "events follow"}\n')
                over.wait(10)

        teller = threading.Thread(target=say_that_events_follow_and_nothing_more)
        teller.start()
        assert main(["--socket", str(tmp_path / "s.sock"), "events"]) == 3
        over.set()
        teller.join()
    assert "no answer within 1 s" in capsys.readouterr().err


def test_the_longest_answer_is_read_whole(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps({"ok": True, "result": "x" * 100}).encode()
    monkeypatch.setattr(client, "RESPONSE_BYTES_MAX", len(text))
    daemon.raw = text + b"\n"
    assert client.Client(Path(daemon.listener.getsockname())).ask("status") == "x" * 100


def test_watch_outlives_a_daemon_that_starts_again(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers before heart has told it anything."""
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt

    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("haclusterd.cli.remote.time.sleep", sleep)
    daemon.refuse = {"code": "refused", "message": "heart has not told its view yet"}
    assert main(["watch"]) == 130
    assert looks == 3
    assert "heart has not told its view yet" in out.getvalue()
