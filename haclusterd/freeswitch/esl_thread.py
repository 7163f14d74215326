"""A link of a library that blocks: it lives in a thread of its own, this carries between the two.

What the library cannot do stays undone (docs/esl-backends.md); here is only what keeps its faults
out of the agent: nothing is handed over without a bound, and a thread that ends closes the link.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from . import esl_protocol as wire
from .esl_errors import EslDown
from .esl_link import COMMANDS_PENDING_MAX, EslSettings, EventItem, EventsLost, Link, Reply

log = logging.getLogger(__name__)

THREADS_MAX = 32  # of all links together; one may hang in a library until FreeSWITCH is gone

Waiter = asyncio.Future[Reply]
_running: set[threading.Thread] = set()


class Order(NamedTuple):
    """One command on its way to the thread."""

    waiter: Waiter
    text: str


def _settle(waiter: asyncio.Future[Any], value: object) -> None:
    if not waiter.done():
        waiter.set_result(value)


class ThreadLink:
    """The asyncio side of a `Link`. A library's adapter fills in the three methods at the end."""

    def __init__(
        self,
        settings: EslSettings,
        on_event: Callable[[EventItem], None],
        on_close: Callable[[Link, str], None],
    ) -> None:
        self.settings = settings
        self._on_event = on_event
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._waiting: set[Waiter] = set()
        self.gate = threading.Lock()  # of what wakes the thread, which it closes at its end
        self._lock = threading.Lock()  # of the two below
        self._events: deque[wire.Event] = deque()
        self._dropped = 0
        self.orders: deque[Order] = deque()
        self.ending = False  # read by the thread

    @property
    def reached(self) -> bool:
        """No library tells; TCP to the local host is connected at once or refused at once."""
        return True

    async def open(self) -> None:
        _running.intersection_update([t for t in _running if t.is_alive()])
        if len(_running) >= THREADS_MAX:
            raise EslDown(
                f"{THREADS_MAX} threads of {self.settings.backend} hang already: FreeSWITCH does "
                'not answer; esl_backend = "native" in [freeswitch] needs no threads'
            )
        thread = threading.Thread(target=self._main, name=self.settings.backend, daemon=True)
        _running.add(thread)
        thread.start()
        await self._opened

    def send(self, data: bytes) -> asyncio.Future[Reply]:
        if self.closed.done():
            raise EslDown("not connected")
        if len(self._waiting) >= COMMANDS_PENDING_MAX:
            raise EslDown(f"{COMMANDS_PENDING_MAX} commands wait for an answer already")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            what = f"{self.settings.backend} sends UTF-8 only, not {data[:60]!r}"
            raise wire.EslArgumentError(what) from None
        waiter: Waiter = self._loop.create_future()
        self._waiting.add(waiter)
        waiter.add_done_callback(self._waiting.discard)
        self.orders.append(Order(waiter, text))
        self.wake()
        return waiter

    def close(self, reason: str) -> None:
        self.ending = True
        if not self.closed.done():
            self.closed.set_result(reason)
            self._on_close(self, reason)
        for waiter in list(self._waiting):
            self._fail(waiter, EslDown(reason))
        self._fail(self._opened, EslDown(reason))
        self.abort()

    @staticmethod
    def _fail(waiter: asyncio.Future[Any], error: Exception) -> None:
        if not waiter.done():
            waiter.set_exception(error)
            waiter.exception()  # mark as seen: the caller may have given up already

    # -- called in the thread --

    def _main(self) -> None:
        try:
            reason = self.run()
        except Exception as error:
            log.exception("%s failed", self.settings.backend)
            reason = f"{self.settings.backend} failed: {error}"
        self._soon(self.close, reason)

    def _soon(self, what: Callable[..., object], *values: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(what, *values)

    def opened(self) -> None:
        """The library is logged in."""
        self._soon(_settle, self._opened, None)

    def refused(self, error: Exception) -> None:
        """The library could not connect or log in: an OSError or EslDown."""
        self._soon(self._fail, self._opened, error)

    def answered(self, order: Order, reply: Reply) -> None:
        """The answer to one command."""
        self._soon(_settle, order.waiter, reply)

    def told(self, event: wire.Event) -> None:
        """One event. What the agent has not fetched in time is counted and given up."""
        with self._lock:
            first = not self._events
            if len(self._events) >= self.settings.event_queue_max:
                self._dropped += len(self._events)
                self._events.clear()
            self._events.append(event)
        if first:
            self._soon(self._fetch)

    def _fetch(self) -> None:
        with self._lock:
            events, self._events = self._events, deque()
            dropped, self._dropped = self._dropped, 0
        if self.closed.done():
            return  # the marker of the next connection stands for them
        if dropped:
            self._on_event(EventsLost("event queue overflow", dropped))
        for event in events:
            self._on_event(event)

    # -- of the library; `run` is the thread, the others are called outside of it --

    def run(self) -> str:
        """Connect, then carry until the end; why it ended."""
        raise NotImplementedError

    def wake(self) -> None:
        """There are new `orders`."""
        raise NotImplementedError

    def abort(self) -> None:
        """Make `run` return, wherever it is; also when it has returned or not begun."""
        raise NotImplementedError
