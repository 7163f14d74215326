"""Read-only HTTP: status for people, 200 or 503 by role for load balancers (DESIGN section 8).

`/` page, `/status`, `/history`, `/metrics`, `/live`, `/ready`, `/master`, `/slave`,
`/primary-slave`, `/services/NAME`. Nothing can be changed over it. Sizes, times and clients are
bounded; every response closes its connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import NamedTuple

import h11
import msgspec

from haclusterd.agent import metrics, page
from haclusterd.agent.commands import Source
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.schema import Status
from haclusterd.core.text import printable

log = logging.getLogger(__name__)

CLIENTS_MAX = 64
REQUEST_BYTES_MAX = 16 * 1024
BODY_BYTES_MAX = 4 * 1024
REQUEST_S = 5.0
WRITE_S = 10.0
HISTORY_SHOWN = 200

_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"
_HTML = "text/html; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_SECURITY = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'none'",
    ),
]


class Page(NamedTuple):
    """One response."""

    status: int
    type: str
    body: bytes


class HttpError(Exception):
    """HTTP cannot be offered; the message names the address and the fix."""


class Http:
    """The server of one node's `source`."""

    def __init__(self, host: str, port: int, source: Source) -> None:
        self._host, self._port = host, port
        self._source = source
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._routes: dict[str, Callable[[], Page]] = {
            "/": self._index,
            "/status": lambda: _json(self._status()),
            "/history": lambda: _json(self._source.history.last(HISTORY_SHOWN)),
            "/metrics": self._metrics,
            "/live": lambda: Page(200, _TEXT, b"alive\n"),
            "/ready": self._is_ready,
            "/master": lambda: self._has_role("master"),
            "/slave": lambda: self._has_role("slave"),
            "/primary-slave": self._is_primary,
        }

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

    def answer(self, target: str) -> Page:
        """The response to GET `target`. Never raises."""
        path = target.partition("?")[0]
        route = self._routes.get(path)
        try:
            if route is not None:
                return route()
            if path.startswith("/services/"):
                return self._service(path.removeprefix("/services/"))
        except OperatorError as error:
            return _said(503, str(error))
        known = " ".join([*self._routes, "/services/NAME"])
        return Page(404, _TEXT, f"there is: {known}\n".encode())

    # -- routes --

    def _status(self) -> Status:
        return self._source.status()

    def _index(self) -> Page:
        body = page.render(self._status(), self._source.history.last(30))
        return Page(200, _HTML, body.encode())

    def _metrics(self) -> Page:
        source = self._source
        body = metrics.render(
            self._status(), source.view(), source.reports.all(), source.counters(),
            len(source.at_risk()),
        )  # fmt: skip
        return Page(200, _METRICS, body)

    def _is_ready(self) -> Page:
        reason = self._source.not_ready()
        return _said(503, reason) if reason else _said(200, "ready")

    def _role(self) -> tuple[str, int | None]:
        status = self._status()
        return next(((n.role, n.rank) for n in status.nodes if n.id == status.node), ("", None))

    def _has_role(self, wanted: str) -> Page:
        role, _ = self._role()
        return Page(200 if role == wanted else 503, _TEXT, f"{role}\n".encode())

    def _is_primary(self) -> Page:
        role, rank = self._role()
        place = "none" if rank is None else str(rank)
        return Page(200 if rank == 0 else 503, _TEXT, f"{role} rank {place}\n".encode())

    def _service(self, name: str) -> Page:
        status = self._status()
        for service in status.services:
            if service.name == name:
                here = service.owner == status.node and service.state == "owned"
                return Page(200 if here else 503, _JSON, msgspec.json.encode(service) + b"\n")
        known = ", ".join(s.name for s in status.services)
        return Page(404, _TEXT, f"no such service; known: {known}\n".encode())

    # -- connections --

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= CLIENTS_MAX:
            writer.close()
            return
        self._clients.add(task)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES_MAX)
        try:
            answer, head = await asyncio.wait_for(self._take(connection, reader), REQUEST_S)
            await self._reply(connection, writer, answer, head)
        except (TimeoutError, h11.ProtocolError, OSError) as error:
            log.debug("HTTP client: %s", error)
        finally:
            self._clients.discard(task)
            writer.close()

    async def _take(
        self, connection: h11.Connection, reader: asyncio.StreamReader
    ) -> tuple[Page, bool]:
        """Read one request; its answer, and whether only the head of it is wanted."""
        answer, head = Page(400, _TEXT, b"no request\n"), False
        body = 0
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                return Page(error.error_status_hint, _TEXT, b"not a request\n"), False
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(4096))
            elif isinstance(event, h11.Request):
                head = event.method == b"HEAD"
                if event.method in (b"GET", b"HEAD"):
                    answer = self.answer(event.target.decode("latin-1"))
                else:
                    answer = Page(405, _TEXT, b"this interface only reads: GET or HEAD\n")
            elif isinstance(event, h11.Data):
                body += len(event.data)
                if body > BODY_BYTES_MAX:
                    return Page(413, _TEXT, b"no body is expected here\n"), False
            elif isinstance(event, h11.EndOfMessage):
                return answer, head
            else:
                raise ConnectionAbortedError("the client went away")

    async def _reply(
        self, connection: h11.Connection, writer: asyncio.StreamWriter, answer: Page, head: bool
    ) -> None:
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = [
            ("Content-Type", answer.type),
            ("Content-Length", str(len(answer.body))),
            ("Connection", "close"),
            *_SECURITY,
        ]
        if answer.status == 405:
            headers.append(("Allow", "GET, HEAD"))
        response = h11.Response(status_code=answer.status, headers=headers)
        writer.write(connection.send(response) or b"")
        if not head:
            writer.write(connection.send(h11.Data(data=answer.body)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await asyncio.wait_for(writer.drain(), WRITE_S)


def _said(code: int, text: str) -> Page:
    """One line; reasons hold words of FreeSWITCH and peers, and curl shows them on a terminal."""
    return Page(code, _TEXT, f"{printable(text)}\n".encode())


def _json(value: object) -> Page:
    text = msgspec.json.encode(value).decode()
    if not text.isprintable():
        text = json.dumps(json.loads(text))  # all but ASCII as numbers: curl shows it, too
    return Page(200, _JSON, f"{text}\n".encode())
