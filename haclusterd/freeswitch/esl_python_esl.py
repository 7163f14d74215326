"""Backend python-esl: FreeSWITCH's own C library (module ESL), in a thread of its own.

The library waits without end where FreeSWITCH is silent, so its socket is shut down from outside
to bring it back. What it fails is in docs/esl-backends.md.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import deque
from typing import Any, ClassVar

import ESL

from . import esl_protocol as wire
from .esl_errors import EslDown
from .esl_thread import Order, ThreadLink

EVENTS_IN_A_ROW = 200  # before commands get their turn
_ENDED = "the ESL connection ended"


class PythonEslLink(ThreadLink):
    """See the module."""

    style: ClassVar[str] = "json"

    _socket: socket.socket | None = None  # a duplicate of the library's, to shut it down
    _bell: int = -1

    def run(self) -> str:
        settings = self.settings
        heard, self._bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            connection = ESL.ESLconnection(settings.host, str(settings.port), settings.password)
            if not connection.connected():
                self.refused(EslDown(_no_login(settings.host, settings.port)))
                return _ENDED
            self._socket = socket.socket(fileno=os.dup(connection.socketDescriptor()))
            if self.ending:
                return _ENDED
            self.opened()
            self._carry(connection, heard)
        finally:
            with self.gate:
                bell, self._bell = self._bell, -1
                os.close(bell)
                os.close(heard)
                if self._socket is not None:
                    self._socket.close()
                    self._socket = None
        return _ENDED

    def _carry(self, connection: Any, heard: int) -> None:
        asked: deque[Order] = deque()  # what FreeSWITCH has not answered yet; it keeps the order
        while not self.ending and connection.connected():
            while self.orders:
                # Not `sendRecv`: until its answer comes that puts every event behind all others by
                # walking along them, which took 15 s for 50,000 and 65 s for 100,000.
                order = self.orders.popleft()
                asked.append(order)
                connection.send(order.text)
            more = self._take(connection, asked)
            if not more and not self.orders and connection.connected():
                select.select([connection.socketDescriptor(), heard], [], [])
                with contextlib.suppress(BlockingIOError):
                    os.read(heard, 4096)

    def _take(self, connection: Any, asked: deque[Order]) -> bool:
        """Hand over what has come; True if there may be more."""
        for _ in range(EVENTS_IN_A_ROW):
            event = connection.recvEventTimed(1)
            if event is None:
                return False
            if event.getHeader("Event-Name") != "SOCKET_DATA":
                text: str = event.serialize("json")
                self.told(wire.parse_json_event(text.encode("utf-8", "surrogateescape")))
                continue
            kind = event.getHeader("Content-Type")
            if kind == "api/response" and asked:
                self.answered(asked.popleft(), wire.ApiResponse(event.getBody() or ""))
            elif kind == "command/reply" and asked:
                reply = wire.CommandReply(event.getHeader("Reply-Text") or "", {})
                self.answered(asked.popleft(), reply)
        return True

    def wake(self) -> None:
        with self.gate, contextlib.suppress(BlockingIOError):  # it rings already
            if self._bell >= 0:
                os.write(self._bell, b".")

    def abort(self) -> None:
        with self.gate, contextlib.suppress(OSError):  # the peer has closed it already
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)
        self.wake()


def _no_login(host: str, port: int) -> str:
    return (
        f"python-esl cannot log in at {host}:{port}, and its library does not say why: see that "
        "FreeSWITCH runs with mod_event_socket there, that apply-inbound-acl lets us in, and that "
        'esl_password_file in [freeswitch] is right; esl_backend = "native" tells which it is'
    )
