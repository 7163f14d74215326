"""Backend greenswitch: its gevent hub in a thread of its own, never in the agent's event loop.

The library is used as it is, except where its fault would hurt the agent: at an EOF within a frame
it would spin for ever. The rest of what it fails is in docs/esl-backends.md.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gevent
import gevent.event
from greenswitch.esl import InboundESL, NotConnectedError

from . import esl_protocol as wire
from .esl_errors import EslDown, acl_problem, password_problem
from .esl_thread import Order, ThreadLink

REFUSAL_S = 0.1  # for the library to say why it was refused, when the connection has ended
_ENDED = "the ESL connection ended"


class _Inbound(InboundESL):  # type: ignore[misc]
    """InboundESL whose reader ends with the connection and tells so."""

    def __init__(self, link: GreenswitchLink, *words: Any) -> None:
        super().__init__(*words)
        self._link = link

    def start_event_handlers(self) -> None:
        super().start_event_handlers()
        self._receive_events_greenlet.link(lambda _: self._link.stopping.set())

    @staticmethod
    def _read_socket(sock: Any, length: int) -> str:
        data: bytes = sock.read(length)
        if len(data) < length:
            raise EOFError("the connection ended within a frame")
        return data.decode()


class GreenswitchLink(ThreadLink):
    """See the module."""

    style: ClassVar[str] = "plain"
    stopping: Any = None  # an Event of the thread's hub

    _watcher: Any = None

    def run(self) -> str:
        hub = gevent.get_hub()
        hub.exception_stream = None  # its tracebacks would go to stderr past the log
        self.stopping = gevent.event.Event()
        watcher = hub.loop.async_()
        watcher.start(self._look)
        self._watcher = watcher
        settings = self.settings
        timeout_s = settings.connect_timeout_ms / 1000
        esl = _Inbound(self, settings.host, settings.port, settings.password, timeout_s)
        esl.register_handle("*", self._event)
        esl.register_handle("DISCONNECT", lambda _: self.stopping.set())
        opening = gevent.spawn(self._connect, esl)
        self._esl = esl
        self._greenlets = [opening]
        if not self.ending:
            self.stopping.wait()
        opening.join(REFUSAL_S)
        with self.gate:
            self._watcher = None
        found = (esl._receive_events_greenlet, esl._process_events_greenlet)
        gevent.killall([*self._greenlets, *(one for one in found if one is not None)], timeout=1)
        if hasattr(esl, "sock"):
            esl.sock.close()
        watcher.close()
        hub.destroy(destroy_loop=True)
        return _ENDED

    def _connect(self, esl: _Inbound) -> None:
        host, port = self.settings.host, self.settings.port
        try:
            esl.connect()
        except ValueError:
            self.refused(EslDown(password_problem(host, port)))
        except NotConnectedError as error:
            self.refused(EslDown(acl_problem(host, port, str(error))))
        except OSError as error:
            self.refused(error)
        else:
            self.opened()
            return
        self.stopping.set()

    def _look(self) -> None:
        """In the hub: somebody called `wake` or `abort`."""
        if self.ending:
            self.stopping.set()
        while self.orders:
            self._greenlets = [one for one in self._greenlets if not one.dead]
            self._greenlets.append(gevent.spawn(self._ask, self.orders.popleft()))

    def _ask(self, order: Order) -> None:
        try:
            # It adds the blank line itself, after a body too, where FreeSWITCH skips it.
            event = self._esl.send(order.text.removesuffix("\n\n"))
        except (NotConnectedError, OSError):
            self.stopping.set()
            return
        if event.headers.get("Content-Type") == "api/response":
            self.answered(order, wire.ApiResponse(event.data))
        else:
            self.answered(order, wire.CommandReply(event.data, event.headers))

    def _event(self, event: Any) -> None:
        if event.headers.get("Content-Type") == "text/event-plain":
            self.told(wire.Event(event.headers))

    def wake(self) -> None:
        with self.gate:
            if self._watcher is not None:
                self._watcher.send()

    def abort(self) -> None:
        self.wake()
