"""One question to the daemon's Unix socket, or a stream of its events."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from haclusterd.agent.schema import PARTLY, RESPONSE_BYTES_MAX, USAGE

CONNECT_S = 2.0
ANSWER_S = 60.0
SILENT_S = 20.0  # of a stream of events: a keepalive comes every 5 s
_NEXT = (
    "one that hangs is replaced within a minute or two: ask again then, or on another node, and "
    "see its log (journalctl -u haclusterd)"
)


class NotReachable(Exception):
    """No daemon answers at the socket; the message says what to do. `asked`: the question had been
    sent."""

    def __init__(self, message: str, asked: bool = False) -> None:
        super().__init__(message)
        self.asked = asked


class Refused(Exception):
    """The daemon said no; `partly` if some of it was done."""

    def __init__(self, message: str, partly: bool = False) -> None:
        super().__init__(message)
        self.partly = partly


class Misused(Refused):
    """No state of the cluster could grant it: words that do not belong together, unknown names."""


class Client:
    """The daemon behind `path`. `answer_s`: how long an answer is waited for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer_s = ANSWER_S

    def ask(self, method: str, **params: Any) -> Any:
        """The result of one command. Raises NotReachable, Refused."""
        with self._connect() as connection:
            self._send(connection, method, params)
            with connection.makefile("rb") as answers:
                return _result(self._line(answers, self.answer_s))

    def events(self, **params: Any) -> Iterator[dict[str, Any]]:
        """Events as they come. Raises NotReachable when the daemon goes away, or falls silent."""
        with self._connect() as connection:
            self._send(connection, "events", params)
            with connection.makefile("rb") as answers:
                _result(self._line(answers, self.answer_s))
                connection.settimeout(SILENT_S)
                while True:
                    yield _result(self._line(answers, SILENT_S, answered=True))

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_S)
        try:
            connection.connect(str(self.path))
        except OSError as error:
            connection.close()
            raise NotReachable(self._explain(error)) from None
        connection.settimeout(self.answer_s)
        return connection

    def _explain(self, error: OSError) -> str:
        if isinstance(error, BlockingIOError):  # too many wait for it to accept them
            return f"{self.path}: the agent does not answer, and many wait for it: {_NEXT}"
        if isinstance(error, ConnectionRefusedError) and not self.path.is_socket():
            return f"{self.path}: is no socket: name the daemon's with --socket"
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            fix = "is haclusterd running? (systemctl status haclusterd), or name its --socket"
        elif isinstance(error, PermissionError):
            fix = "run this as root or as a member of the socket's group"
        else:
            fix = "name the right --socket"
        return f"{self.path}: {_reason(error)}: {fix}"

    def _send(self, connection: socket.socket, method: str, params: dict[str, Any]) -> None:
        try:
            connection.sendall(json.dumps({"method": method, "params": params}).encode() + b"\n")
        except OSError as error:
            text = f"{self.path}: the agent ended before it was asked ({_reason(error)}): {_NEXT}"
            raise NotReachable(text) from None

    def _line(self, answers: Any, waited_s: float, answered: bool = False) -> bytes:
        began = time.monotonic()
        try:
            line: bytes = answers.readline(RESPONSE_BYTES_MAX + 1)  # and the end of the line
        except TimeoutError:
            text = f"{self.path}: the agent does not answer (no answer within {waited_s:.0f} s)"
            raise NotReachable(f"{text}: {_NEXT}", True) from None
        except OSError as error:
            raise self._gone(_reason(error), began, answered) from None
        if not line.endswith(b"\n"):
            raise self._gone("it closed the connection", began, answered)
        return line

    def _gone(self, how: str, began: float, answered: bool) -> NotReachable:
        if answered:  # a stream: it was stopped, or renewed
            return NotReachable(f"{self.path}: the daemon ended ({how})", True)
        waited_s = time.monotonic() - began
        text = f"{self.path}: the agent did not answer and ended after {waited_s:.0f} s ({how})"
        return NotReachable(f"{text}: {_NEXT}", True)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _result(line: bytes) -> Any:
    try:
        answer = json.loads(line)
        if answer["ok"]:
            return answer["result"]
        error = answer["error"]
        if error["code"] == USAGE:
            raise Misused(str(error["message"]))
        raise Refused(str(error["message"]), error["code"] == PARTLY)
    except (ValueError, KeyError, TypeError):
        raise NotReachable("what answers there is no haclusterd of this version") from None
