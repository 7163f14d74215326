"""A blocking ESL connection into a namespace, for tests and the laboratory.

Deliberately not the client of `haclusterd.freeswitch`: what checks the product must not share its
mistakes. It knows `auth`, `api`, `event plain` and `sendevent` and nothing else (FREESWITCH.md 2.4,
7).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from types import TracebackType
from urllib.parse import unquote

from haclusterd.lab import netns

_BODY_MAX = 16 << 20


class EslRefused(Exception):
    """FreeSWITCH closed the connection or did not accept it; the text says at which step."""


class BlockingEsl:
    """One authenticated connection. Every wait is bounded by `timeout_s`.

    OSError (TimeoutError among them) when nobody answers, EslRefused when the answer is no.
    """

    def __init__(
        self,
        port: int,
        password: str,
        *,
        namespace: str = "",
        host: str = "127.0.0.1",
        timeout_s: float = 5.0,
    ) -> None:
        with netns.inside(namespace) if namespace else contextlib.nullcontext():
            self._socket = socket.create_connection((host, port), timeout=timeout_s)
        self._timeout_s = timeout_s
        self._received = b""  # not a file object: that is of no use after its first timeout
        self._events: list[dict[str, str]] = []
        try:
            self._authenticate(password)
        except BaseException:
            self.close()
            raise

    def api(self, command: str) -> str:
        """The answer to `api COMMAND`, without trailing newlines; `-ERR ...` is returned as is."""
        self._send(f"api {command}")
        return self._until("api/response")[1].decode(errors="replace").rstrip("\n")

    def subscribe(self, events: str) -> None:
        """`event plain EVENTS`: afterwards `events()` yields them."""
        self._send(f"event plain {events}")
        self._until("command/reply")

    def events(self, timeout_s: float) -> Iterator[dict[str, str]]:
        """Events as they come, decoded; ends when none came for `timeout_s`."""
        while True:
            while self._events:
                yield self._events.pop(0)
            self._socket.settimeout(timeout_s)
            try:
                headers, body = self._frame()
            except TimeoutError:
                return
            finally:
                self._socket.settimeout(self._timeout_s)
            self._keep(headers, body)

    def sendevent(self, name: str, headers: Mapping[str, str]) -> str:
        """Fire an event; what FreeSWITCH answers."""
        lines = [f"sendevent {name}", *(f"{key}: {value}" for key, value in headers.items())]
        self._send("\n".join(lines))
        return self._until("command/reply")[0].get("Reply-Text", "")

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> BlockingEsl:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _authenticate(self, password: str) -> None:
        self._until("auth/request")
        self._send(f"auth {password}")
        headers, _ = self._until("command/reply")
        if not headers.get("Reply-Text", "").startswith("+OK"):
            raise EslRefused(f"auth: {headers.get('Reply-Text', 'no reply text')}")

    def _send(self, command: str) -> None:
        self._socket.sendall(f"{command}\n\n".encode())

    def _until(self, content_type: str) -> tuple[dict[str, str], bytes]:
        while True:
            headers, body = self._frame()
            if headers.get("Content-Type") == content_type:
                return headers, body
            self._keep(headers, body)

    def _keep(self, headers: dict[str, str], body: bytes) -> None:
        if headers.get("Content-Type") == "text/event-plain":
            self._events.append(_headers(body.decode(errors="replace").splitlines()))

    def _frame(self) -> tuple[dict[str, str], bytes]:
        while (end := self._received.find(b"\n\n")) < 0:
            self._receive()
        headers = _headers(self._received[:end].decode(errors="replace").split("\n"))
        length = int(headers.get("Content-Length", "0"))
        if not 0 <= length <= _BODY_MAX:
            raise EslRefused(f"a body of {length} bytes")
        end += 2
        while len(self._received) < end + length:
            self._receive()
        body = self._received[end : end + length]
        self._received = self._received[end + length :]
        return headers, body

    def _receive(self) -> None:
        """Add what has come to `_received`; a timeout leaves a partial frame where it is."""
        chunk = self._socket.recv(65536)
        if not chunk:
            raise EslRefused("FreeSWITCH closed the ESL connection")
        self._received += chunk


def _headers(lines: list[str]) -> dict[str, str]:
    """`Name: url%20encoded` lines up to the first empty one."""
    found: dict[str, str] = {}
    for line in lines:
        if not line:
            break
        name, _, value = line.partition(":")
        found[name] = unquote(value.strip())
    return found
