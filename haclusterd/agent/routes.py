"""What each path of the HTTP interface answers; who asks and how is `http`'s business.

The roles answer 200 or 503, so that any load balancer can use them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from haclusterd.agent import http_events, metrics, page
from haclusterd.agent.commands import Source, best_nodes
from haclusterd.agent.encoding import encoded
from haclusterd.agent.events import TooManyReaders
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.schema import BestNode, Status
from haclusterd.core.text import printable

HISTORY_SHOWN = 200
FEED = "/page.events"

_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"


class Page(NamedTuple):
    """One response."""

    status: int
    type: str
    body: bytes


class Routes:
    """The read-only answers of one node's `source`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._table: dict[str, Callable[[], Page]] = {
            "/status": lambda: as_json(self._status()),
            "/history": lambda: as_json(self._source.history.last(HISTORY_SHOWN)),
            "/metrics": self._metrics,
            "/live": lambda: said(200, "alive"),
            "/ready": self._is_ready,
            "/master": lambda: self._has_role("master"),
            "/slave": lambda: self._has_role("slave"),
            "/primary-slave": self._is_primary,
            "/best-node": lambda: as_json(self._best_node()),
            "/page.json": lambda: Page(200, _JSON, self.word()),
        }

    def answer(self, target: str) -> Page:
        """The response to GET `target`. Never raises."""
        path = target.partition("?")[0]
        if path == http_events.POLL:
            return self._poll(target)
        file = page.files().get(path)
        if file is not None:
            return Page(200, file.type, file.body)
        route = self._table.get(path)
        try:
            if route is not None:
                return route()
            if path.startswith("/services/"):
                return self._service(unquote(path.removeprefix("/services/")))
        except OperatorError as error:
            return said(503, str(error))
        events = (http_events.STREAM, http_events.POLL)
        known = " ".join(["/", *self._table, *events, "/services/NAME"])
        return said(404, f"there is: {known}")

    def word(self) -> bytes:
        """All that the status page draws. Raises OperatorError."""
        return as_json(page.overview(self._source)).body

    def essence(self) -> Any:
        """Changes when an open page should hear at once. Raises OperatorError."""
        source, view = self._source, self._source.view()
        return (
            [(s.owner, s.epoch, s.state, s.successors) for s in view.services],
            [(n.role, n.rank, [link.up for link in n.links]) for n in view.nodes],
            view.alarms,
            view.quorate,
            source.history.total,
            bool(source.heart_silent()),
            [(r.number, r.to, len(r.timeline), r.done) for r in source.known_reports()],
        )

    # -- routes --

    def _poll(self, target: str) -> Page:
        try:
            return as_json(http_events.batch(self._source.events, target))
        except OperatorError as error:
            return said(400, str(error))
        except TooManyReaders as error:
            return said(503, str(error))

    def _status(self) -> Status:
        return self._source.status()

    def _metrics(self) -> Page:
        source = self._source
        body = metrics.render(
            self._status(),
            metrics.Inside(
                source.view(), source.about(), source.reports.all(), source.counters(),
                len(source.at_risk()), source.spec, source.certificate_ends(),
            ),
            source.outside(),
        )  # fmt: skip
        return Page(200, _METRICS, body)

    def _best_node(self) -> BestNode:
        return best_nodes(self._source)[0]

    def _is_ready(self) -> Page:
        reason = self._source.not_ready()
        return said(503, reason) if reason else said(200, "ready")

    def _role(self) -> tuple[str, int | None]:
        if silent := self._source.heart_silent():
            raise OperatorError(silent)
        status = self._status()
        return next(((n.role, n.rank) for n in status.nodes if n.id == status.node), ("", None))

    def _has_role(self, wanted: str) -> Page:
        role, _ = self._role()
        return said(200 if role == wanted else 503, role)

    def _is_primary(self) -> Page:
        role, rank = self._role()
        place = "none" if rank is None else str(rank)
        return said(200 if rank == 0 else 503, f"{role} rank {place}")

    def _service(self, name: str) -> Page:
        status = self._status()
        for service in status.services:
            if service.name == name:
                here = service.owner == status.node and service.state == "owned"
                silent = bool(self._source.heart_silent())
                service = msgspec.structs.replace(service, stale=status.stale or silent)
                here = here and not service.closed and not silent
                return Page(200 if here else 503, _JSON, encoded(service) + b"\n")
        known = ", ".join(s.name for s in status.services)
        return said(404, f"no such service; known: {known}")


def said(code: int, text: str) -> Page:
    """One line; reasons hold words of FreeSWITCH and peers, and curl shows them on a terminal."""
    return Page(code, _TEXT, f"{printable(text)}\n".encode())


def as_json(value: object) -> Page:
    """JSON on one line that is safe on a terminal, too."""
    text = encoded(value).decode()
    if not text.isprintable():
        text = json.dumps(json.loads(text))  # all but ASCII as numbers: curl shows it, too
    return Page(200, _JSON, f"{text}\n".encode())
