"""`hand-over`, before FreeSWITCH is stopped: whole, bounded, and it says what stays."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from haclusterd.cli.main import main

pytestmark = pytest.mark.timeout(20)

Printed = pytest.CaptureFixture[str]


class Agent(threading.Thread):
    """Owns some services; `refuses` and `ignores` name those that cannot be moved."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.owner = {"east": "fs-a", "north": "fs-b", "west": "fs-a"}
        self.refuses: set[str] = set()
        self.ignores: set[str] = set()
        self.moved: list[str] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # Who gave up waiting has closed its end.
        with suppress(ConnectionError), client, client.makefile("rb") as lines:
            for line in lines:
                client.sendall(json.dumps(self._answer(json.loads(line))).encode() + b"\n")

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["method"] == "status":
            services = [{"name": name, "owner": owner} for name, owner in self.owner.items()]
            return {"ok": True, "result": {"node": "fs-a", "services": services}}
        assert request["method"] == "switchover"
        service = request["params"]["service"]
        if service in self.ignores:
            time.sleep(10)
        if service in self.refuses:
            return {"ok": False, "error": {"code": "refused", "message": "no node is ready"}}
        self.moved.append(service)
        return {"ok": True, "result": {"text": f"{service} moved"}}


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    made = Agent(tmp_path / "s.sock")
    made.start()
    monkeypatch.setenv("HACLUSTERD_SOCKET", str(tmp_path / "s.sock"))
    yield made
    made.listener.close()


def test_everything_of_this_node_moves_and_nothing_else(agent: Agent, capsys: Printed) -> None:
    assert main(["hand-over"]) == 0
    assert agent.moved == ["east", "west"]
    assert capsys.readouterr().out == "east moved\nwest moved\n"


def test_a_node_that_serves_nothing_is_done_at_once(agent: Agent, capsys: Printed) -> None:
    agent.owner = {"north": "fs-b"}
    assert main(["--json", "hand-over"]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": "fs-a serves nothing", "moved": []}


def test_what_cannot_move_is_told_and_keeps_nothing_else(agent: Agent, capsys: Printed) -> None:
    agent.refuses = {"east"}
    assert main(["hand-over"]) == 4
    assert agent.moved == ["west"]
    assert "east stays: no node is ready" in capsys.readouterr().err
    agent.refuses = {"east", "west"}
    assert main(["hand-over"]) == 1


def test_the_time_is_a_bound_whatever_hangs(agent: Agent, capsys: Printed) -> None:
    agent.ignores = {"east"}
    began = time.monotonic()
    assert main(["hand-over", "--within", "0.5"]) == 1
    assert time.monotonic() - began < 2
    said = capsys.readouterr().err
    assert "east stays" in said
    assert "west stays: 0.5 s were over" in said


def test_without_a_daemon_it_ends_at_once(tmp_path: Path, capsys: Printed) -> None:
    began = time.monotonic()
    assert main(["--socket", str(tmp_path / "none"), "hand-over"]) == 3
    assert time.monotonic() - began < 2
