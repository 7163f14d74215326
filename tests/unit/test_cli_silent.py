"""An agent that stands still: its socket is there, and nobody is behind it who accepts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from haclusterd.cli import client
from haclusterd.cli.main import main
from tests.unit.test_cli import Printed

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s.sock"))
        made.listen(0)
        yield made


def status_of(listener: socket.socket, capsys: Printed) -> str:
    """What `status` says, which has to end as with a daemon that is not there."""
    path = listener.getsockname()
    assert main(["--socket", path, "status"]) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"haclusterctl: {path}: the agent d")
    assert "one that hangs is replaced" in said
    assert "ask again then, or on another node" in said
    assert "journalctl -u haclusterd" in said
    assert "--socket" not in said, "it is the right one"
    return said


def test_an_agent_that_stands_still_is_said_not_to_answer(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.setattr(client, "ANSWER_S", 1.0)
    assert "the agent does not answer (no answer within 1 s): " in status_of(listener, capsys)


def test_an_agent_that_is_replaced_while_it_is_asked(
    listener: socket.socket, capsys: Printed
) -> None:
    """Heart kills one that says nothing for 15 s; all that was told was `Connection reset`."""
    path = listener.getsockname()
    killer = threading.Timer(1.0, listener.close)
    killer.start()
    assert main(["--socket", path, "status"]) == 3
    killer.join()
    said = capsys.readouterr().err
    assert "the agent did not answer and ended after 1 s (" in said
    assert "one that hangs is replaced" in said


def test_so_many_wait_for_it_that_no_more_are_let_in(
    listener: socket.socket, capsys: Printed
) -> None:
    with socket.socket(socket.AF_UNIX) as before:
        before.connect(listener.getsockname())
        assert "does not answer, and many wait for it" in status_of(listener, capsys)


def test_an_agent_that_ends_between_hello_and_question(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    def gone(_socket: socket.socket, _data: bytes) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(socket.socket, "sendall", gone)
    path = listener.getsockname()
    assert main(["--socket", path, "status"]) == 3
    said = capsys.readouterr().err
    assert "the agent ended before it was asked (Broken pipe): one that hangs" in said
    assert "--socket" not in said
