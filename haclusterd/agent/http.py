"""Read-only HTTP: status for people, 200 or 503 by role for load balancers (DESIGN section 8).

`routes` knows the answers. GET and HEAD; OPTIONS answers with the code that GET would have, because
that is what some load balancers ask by. Nothing can be changed over it. Sizes, times and clients
are bounded (`http_gate`); every response closes its connection, but for the feed of an open page
and `/events`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Collection

import h11

from haclusterd.agent import http_events
from haclusterd.agent.commands import Source
from haclusterd.agent.events import TooManyReaders
from haclusterd.agent.feed import Feed, TooMany
from haclusterd.agent.http_gate import Gate, is_ours
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.routes import FEED, Page, Routes, said
from haclusterd.core.text import brief

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 16 * 1024
BODY_BYTES_MAX = 4 * 1024
REQUEST_S = 3.0  # from the first byte of a connection to the last one of its request
WRITE_S = 10.0
METHODS = "GET, HEAD, OPTIONS"

_SECURITY = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'",
    ),
]


Stream = Callable[[], AsyncGenerator[bytes, None]]  # what does not end by itself


class HttpError(Exception):
    """HTTP cannot be offered; the message names the address and the fix."""


class Http:
    """The server of one node's `source`."""

    def __init__(self, host: str, port: int, source: Source, names: Collection[str] = ()) -> None:
        """`names`: under which it may be asked for, beside its address and `host`."""
        self._host, self._port = host, port
        self._names = {name.lower().removesuffix(".") for name in (host, *names)}
        self.gate = Gate()
        self._events = source.events
        self.routes = Routes(source)
        self.feed = Feed(self.routes.essence, self.routes.word)
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises HttpError."""
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self._port, limit=REQUEST_BYTES_MAX
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise HttpError(
                f"HTTP on {self._host} port {self._port}: {reason}: free the port (`ss -ltnp`), "
                'or change api.http ("" turns it off)'
            ) from None

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.sockets[0].getsockname()[1]) if self._server else self._port

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self.feed.stop()

    # -- connections --

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        peer = writer.get_extra_info("peername")
        place = self.gate.enter(str(peer[0]) if peer else "", writer.transport.abort)
        if task is None or not place:
            self.gate.leave(place)
            writer.transport.abort()
            return
        self._clients.add(task)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES_MAX)
        try:
            async with asyncio.timeout(REQUEST_S):
                answer, method = await self._take(connection, reader)
            if isinstance(answer, Page):
                await _reply(connection, writer, answer, method)
            else:
                self.gate.keep(place)
                await _stream(connection, writer, answer)
            writer.close()
            # With what is still to be sent it would be open, and counted by nobody.
            async with asyncio.timeout(WRITE_S):
                await writer.wait_closed()
        except (TimeoutError, h11.ProtocolError, OSError) as error:
            log.debug("HTTP client: %s", error)
        finally:
            self._clients.discard(task)
            self.gate.leave(place)
            writer.transport.abort()

    async def _take(
        self, connection: h11.Connection, reader: asyncio.StreamReader
    ) -> tuple[Page | Stream, bytes]:
        """Read one request; its answer and its method."""
        answer: Page | Stream = said(400, "no request")
        method = b"GET"
        body = 0
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                return said(error.error_status_hint, "not a request"), b"GET"
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(4096))
            elif isinstance(event, h11.Request):
                method = bytes(event.method)
                last_id = dict(event.headers).get(b"last-event-id", b"").decode("latin-1")
                answer = self._refusal(event) or self._answer(
                    method, event.target.decode("latin-1"), last_id
                )
            elif isinstance(event, h11.Data):
                body += len(event.data)
                if body > BODY_BYTES_MAX:
                    return said(413, "no body is expected here"), b"GET"
            elif isinstance(event, h11.EndOfMessage):
                return answer, method
            else:
                raise ConnectionAbortedError("the client went away")

    def _refusal(self, request: h11.Request) -> Page | None:
        """For those who mean another server. HTTP/1.0 need not say whom it means."""
        for key, value in request.headers:
            if key == b"host" and not is_ours(host := value.decode("latin-1"), self._names):
                return said(
                    421,
                    f'this is not "{brief(host)}": ask by address, or add that name to hosts in '
                    "[api] of haclusterd's configuration",
                )
        return None

    def _answer(self, method: bytes, target: str, last_id: str) -> Page | Stream:
        if method == b"OPTIONS" and target == "*":
            return said(200, METHODS)
        if method not in (b"GET", b"HEAD", b"OPTIONS"):
            return said(405, f"this interface only reads: {METHODS}")
        path = target.partition("?")[0]
        if path in (FEED, http_events.STREAM) and method != b"GET":
            return said(200, "GET is answered by a stream")
        if path == http_events.STREAM:
            try:
                wanted = http_events.start(target, last_id)
            except OperatorError as error:
                return said(400, str(error))
            return lambda: http_events.follow(self._events, wanted)
        return self._words if path == FEED else self.routes.answer(target)

    async def _words(self) -> AsyncGenerator[bytes, None]:
        """What feeds an open page, after an empty word. Raises TooMany."""
        self.feed.enter()
        words = self.feed.words()
        try:
            yield b""
            async with contextlib.aclosing(words):
                async for word in words:
                    yield b"data: " + word.rstrip(b"\n") + b"\n\n"
        finally:
            self.feed.leave()


async def _stream(connection: h11.Connection, writer: asyncio.StreamWriter, stream: Stream) -> None:
    """Server-sent events until the client goes away."""
    words = stream()
    async with contextlib.aclosing(words):
        try:
            await anext(words)
        except (TooMany, TooManyReaders) as error:
            why = str(error) or "too many pages are open"
            await _reply(connection, writer, said(503, why), b"GET")
            return
        headers = [("Content-Type", "text/event-stream"), ("Connection", "close"), *_SECURITY]
        writer.write(connection.send(h11.Response(status_code=200, headers=headers)) or b"")
        async for word in words:
            writer.write(connection.send(h11.Data(data=word)) or b"")
            async with asyncio.timeout(WRITE_S):
                await writer.drain()


async def _reply(
    connection: h11.Connection, writer: asyncio.StreamWriter, answer: Page, method: bytes
) -> None:
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    body = b"" if method == b"OPTIONS" else answer.body
    headers = [
        ("Content-Type", answer.type),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        *_SECURITY,
    ]
    if answer.status == 405 or method == b"OPTIONS":
        headers.append(("Allow", METHODS))
    response = h11.Response(status_code=answer.status, headers=headers)
    writer.write(connection.send(response) or b"")
    if method != b"HEAD":
        writer.write(connection.send(h11.Data(data=body)) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    async with asyncio.timeout(WRITE_S):
        await writer.drain()
