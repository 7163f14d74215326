"""The remote that mod_hash asks: as much of an event socket server as `hash_remote` needs.

mod_hash connects, logs in, and sends `api hash_dump limit` several times a second. Nothing else is
answered. Loopback only, and the password is the one of FreeSWITCH's own event socket.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable
from typing import cast

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
CLIENTS_MAX = 8
COMMAND_BYTES_MAX = 1024
LOGIN_S = 5.0
SILENT_S = 60.0
_DUMP = b"api hash_dump limit"
_END = b"\n\n"


class LimitServer:
    """Listens on loopback; `dump()` is the present answer. `problem` names why it cannot.

    `alone()` is called when the last connection has ended: mod_hash forgets what it was told.
    """

    def __init__(
        self,
        port: int,
        password: str,
        dump: Callable[[], bytes],
        alone: Callable[[], None] = lambda: None,
    ) -> None:
        self.port = port
        self.problem = ""
        self.password = password.encode()
        self.dump = dump
        self.alone = alone
        self.clients: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> bool:
        """False, and `problem` says why, where the port cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _Client(self), HOST, self.port)
        except OSError as error:
            self.problem = (
                f"limits are not counted cluster-wide: {HOST} port {self.port}: {error.strerror}: "
                f"see `ss -ltnp`, or set limits_port in [freeswitch] (0: off) and in hash.conf.xml"
            )
            return False
        self.problem = ""
        return True

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for transport in list(self.clients):
            transport.abort()


class _Client(asyncio.Protocol):
    """One connection. A protocol, not streams: it is woken several times a second for ever."""

    def __init__(self, server: LimitServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._known = False
        self._heard = True
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The greeting."""
        self._transport = made = cast(asyncio.Transport, transport)
        if len(self._server.clients) >= CLIENTS_MAX:
            made.abort()
            return
        self._server.clients.add(made)
        self._timer = asyncio.get_running_loop().call_later(LOGIN_S, self._judge)
        made.write(b"Content-Type: auth/request\n\n")

    def connection_lost(self, error: Exception | None) -> None:
        """The end, for whatever reason."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._server.clients.discard(self._transport)
            if not self._server.clients:
                self._server.alone()

    def pause_writing(self) -> None:
        """It asks and does not read."""
        self._abort()

    def data_received(self, received: bytes) -> None:
        """Commands, or parts of them; each ends with an empty line."""
        self._heard = True
        self._buffer += received
        while (at := self._buffer.find(_END)) >= 0:
            command, self._buffer = self._buffer[:at], self._buffer[at + 2 :].lstrip(b"\n")
            self._answer(command.split(b"\n", 1)[0].strip())
        if len(self._buffer) > COMMAND_BYTES_MAX:
            self._abort()

    def _answer(self, command: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if not self._known:
            given = command.removeprefix(b"auth ")
            self._known = hmac.compare_digest(given, self._server.password)
            said = b"+OK accepted" if self._known else b"-ERR invalid"
            self._transport.write(b"Content-Type: command/reply\nReply-Text: " + said + _END)
            if not self._known:
                self._transport.close()
        elif command == _DUMP:
            body = self._server.dump()
            head = b"Content-Type: api/response\nContent-Length: %d\n\n" % len(body)
            self._transport.write(head + body)
        elif command == b"exit":
            self._transport.close()
        else:
            reply = b"Content-Type: command/reply\nReply-Text: -ERR command not found\n\n"
            self._transport.write(reply)

    def _judge(self) -> None:
        """Who has not logged in, or says nothing any more, goes."""
        if not self._known or not self._heard:
            self._abort()
            return
        self._heard = False
        self._timer = asyncio.get_running_loop().call_later(SILENT_S, self._judge)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
