"""The native backend: one TCP connection, frames in, answers matched to commands in order.

Only what lives and dies with a single connection belongs here; reconnecting and the event queue
are in `esl`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from . import esl_protocol as wire
from .esl_errors import EslDown, EslError, acl_problem, password_problem
from .esl_link import COMMANDS_PENDING_MAX, EslSettings, EventItem, Link, Missed, Reply

UNSENT_BYTES_MAX = 32 * 1024 * 1024


def _fail(waiter: asyncio.Future[Any], reason: str) -> None:
    if not waiter.done():
        waiter.set_exception(EslDown(reason))
        waiter.exception()  # mark as seen: the caller may have given up already


class EslSocket(asyncio.Protocol):
    """A `Link` of our own protocol code, in the event loop of the agent."""

    style: ClassVar[str] = "json"

    def __init__(
        self,
        settings: EslSettings,
        on_event: Callable[[EventItem | Missed], None],
        on_close: Callable[[Link, str], None],
    ) -> None:
        self._settings = settings
        self._protocol = wire.EslProtocol()
        self._on_event = on_event
        self._on_close = on_close
        self._pending: deque[asyncio.Future[Reply]] = deque()
        loop = asyncio.get_running_loop()
        self.greeting: asyncio.Future[wire.AuthRequest | wire.RudeRejection] = loop.create_future()
        self.closed: asyncio.Future[str] = loop.create_future()
        self._transport: asyncio.Transport | None = None

    @property
    def reached(self) -> bool:
        return self._transport is not None

    async def open(self) -> None:
        host, port = self._settings.host, self._settings.port
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, host, port)
        greeting = await self.greeting
        if isinstance(greeting, wire.RudeRejection):
            raise EslDown(acl_problem(host, port, greeting.text))
        reply = await self.send(wire.auth(self._settings.password))
        if reply.text.startswith("-ERR"):
            raise EslDown(password_problem(host, port))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._protocol.receive_data(data)
        except wire.EslProtocolError as error:
            self.close(f"broken ESL frame from FreeSWITCH: {error}")
            return
        for frame in frames:
            self._take(frame)

    def _take(self, frame: wire.Frame) -> None:
        if isinstance(frame, wire.Event):
            self._on_event(frame)
        elif isinstance(frame, wire.CommandReply | wire.ApiResponse):
            if not self._pending:
                self.close("FreeSWITCH answered a command that was never sent")
                return
            waiter = self._pending.popleft()
            if not waiter.done():
                waiter.set_result(frame)
        elif isinstance(frame, wire.TooLarge):
            self._go_without(frame)
        elif isinstance(frame, wire.AuthRequest | wire.RudeRejection):
            if not self.greeting.done():
                self.greeting.set_result(frame)
        elif isinstance(frame, wire.Disconnect):
            self.close("FreeSWITCH closed the event socket")

    def _go_without(self, frame: wire.TooLarge) -> None:
        problem = f"{frame.content_type} of {frame.length} bytes, which is too large"
        if frame.content_type.startswith("text/event"):
            self._on_event(Missed(problem))
        elif self._pending:
            waiter = self._pending.popleft()
            if not waiter.done():
                waiter.set_exception(EslError(f"FreeSWITCH answered with {problem}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(f"the ESL connection broke: {exc}" if exc else "the ESL connection ended")

    def close(self, reason: str) -> None:
        """End the connection; everything that waits on it fails with `reason` now."""
        if not self.closed.done():
            self.closed.set_result(reason)
            self._on_close(self, reason)
        if self._transport is not None:
            self._transport.abort()
        for waiter in self._pending:
            _fail(waiter, reason)
        self._pending.clear()
        _fail(self.greeting, reason)

    def send(self, data: bytes) -> asyncio.Future[Reply]:
        if self.closed.done() or self._transport is None:
            raise EslDown("not connected")
        if len(self._pending) >= COMMANDS_PENDING_MAX:
            raise EslDown(f"{COMMANDS_PENDING_MAX} commands wait for an answer already")
        if self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            raise EslDown("FreeSWITCH does not read what is sent to it")
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._pending.append(waiter)
        self._transport.write(data)
        return waiter
