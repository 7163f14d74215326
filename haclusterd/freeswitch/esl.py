"""One ESL connection that keeps itself up: connect, authenticate, commands, events, reconnect.

Only the asyncio side belongs here; bytes are cut and built in `esl_protocol`. Rules: nothing waits
without a deadline, nothing is queued without a bound, the reader never stalls (FreeSWITCH kills a
slow listener, FREESWITCH.md 2.4), and an EOF means reconnect, never that FreeSWITCH is dead
(FREESWITCH.md 12).
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from . import esl_protocol as wire
from .esl_backends import link_class
from .esl_errors import EslDown, EslError, EslTimeout, connect_problem, silent_problem
from .esl_link import EslSettings, EventItem, EventsLost, Link, Missed, Reply

__all__ = ["Esl", "EslConnection", "EslFactory", "EslSettings", "EventItem", "EventsLost"]

log = logging.getLogger(__name__)

JOBS_PENDING_MAX = 256
STEADY_AFTER_S = 5.0


EventSink = Callable[[EventItem], Awaitable[None]]


class Esl(Protocol):
    """What the rest of this package needs of an ESL connection; other backends implement it."""

    @property
    def up(self) -> bool: ...
    @property
    def problem(self) -> str: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def wait_up(self, timeout_ms: int) -> None: ...
    async def api(
        self, line: str, timeout_ms: int | None = None, *, drop_on_timeout: bool = True
    ) -> str: ...
    async def sendevent(self, name: str, headers: Mapping[str, str], body: str = "") -> str: ...


EslFactory = Callable[..., Esl]
"""`factory(name=..., events=(...), filters=(...), on_event=...)`; the connection is not started."""


class EslConnection:
    """A self-healing ESL connection.

    `events` are event names and CUSTOM subclasses (never `all`), `filters` pairs of header and
    value. `on_event` is awaited for one item at a time, in order; after every (re)connect and
    after an overflow it gets `EventsLost` first. `on_up()` and `on_down(reason)` are plain calls.
    """

    def __init__(
        self,
        settings: EslSettings,
        *,
        name: str = "esl",
        events: Sequence[str] = (),
        filters: Sequence[tuple[str, str]] = (),
        on_event: EventSink | None = None,
        on_up: Callable[[], None] | None = None,
        on_down: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self.name = name
        self._make_link = link_class(settings.backend)
        self._setup = [wire.subscribe(events, self._make_link.style)] if events else []
        self._setup += [wire.event_filter(header, value) for header, value in filters]
        self._on_event = on_event
        self._on_up = on_up
        self._on_down = on_down
        self._link: Link | None = None
        self._problem = "not started"
        self._up = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._items: deque[EventItem] = deque()
        self._items_bytes = 0
        self._item_ready = asyncio.Event()
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self.events_dropped = 0
        self.logins = 0

    @property
    def up(self) -> bool:
        return self._up.is_set()

    @property
    def problem(self) -> str:
        """Why the connection is down, with the fix; empty while it is up."""
        return self._problem

    async def start(self) -> None:
        """Begin connecting in the background; never fails."""
        if self._tasks:
            return
        self._problem = "connecting"
        self._tasks.append(asyncio.create_task(self._keep_up(), name=f"{self.name}-connect"))
        if self._on_event is not None:
            self._tasks.append(asyncio.create_task(self._pump(), name=f"{self.name}-events"))

    async def stop(self) -> None:
        """Close and forget; pending commands fail with EslDown."""
        tasks, self._tasks = self._tasks, []
        if self._link is not None:
            self._link.close("stopped")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._went_down("stopped")

    async def wait_up(self, timeout_ms: int) -> None:
        """Return once authenticated; raises EslDown with the present problem after the time."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._up.wait()
        except TimeoutError:
            raise EslDown(self._problem) from None

    async def api(
        self, line: str, timeout_ms: int | None = None, *, drop_on_timeout: bool = True
    ) -> str:
        """Run one API command and return its whole output (which may be a `-ERR ...` text).

        Raises EslDown, EslTimeout, EslArgumentError. A command that times out leaves the order of
        answers intact only while the connection stands, so by default the connection is replaced.
        """
        reply = await self._run(wire.api(line), timeout_ms, drop_on_timeout)
        return reply.text

    async def command(self, line: str, timeout_ms: int | None = None) -> str:
        """Run one ESL command other than `api`; returns its Reply-Text."""
        return (await self._run(wire.command(line), timeout_ms, True)).text

    async def sendevent(self, name: str, headers: Mapping[str, str], body: str = "") -> str:
        """Inject an event into FreeSWITCH; payload belongs in `body` (FREESWITCH.md 2.4)."""
        return (await self._run(wire.sendevent(name, headers, body), None, True)).text

    async def bgapi(self, line: str, timeout_ms: int = 60_000) -> str:
        """Run an API command in FreeSWITCH's background and wait for its output.

        Needs BACKGROUND_JOB among `events`. Raises EslDown, EslTimeout, EslArgumentError.
        """
        if len(self._jobs) >= JOBS_PENDING_MAX:
            raise EslDown(f"{JOBS_PENDING_MAX} background jobs are open already")
        job = str(uuid.uuid4())
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._jobs[job] = done
        try:
            reply = await self._run(wire.bgapi(line, job), None, True)
            if reply.text.startswith("-ERR"):
                return reply.text
            async with asyncio.timeout(timeout_ms / 1000):
                return await done
        except TimeoutError:
            raise EslTimeout(f"no result of background job {line!r} in {timeout_ms} ms") from None
        finally:
            self._jobs.pop(job, None)

    async def _run(self, data: bytes, timeout_ms: int | None, drop_on_timeout: bool) -> Reply:
        link = self._link
        if link is None or not self._up.is_set():
            raise EslDown(self._problem)
        return await self._ask(link, data, timeout_ms, drop_on_timeout)

    async def _ask(
        self, link: Link, data: bytes, timeout_ms: int | None, drop_on_timeout: bool
    ) -> Reply:
        patience_ms = self.settings.command_timeout_ms if timeout_ms is None else timeout_ms
        waiter = link.send(data)
        try:
            async with asyncio.timeout(patience_ms / 1000):
                return await waiter
        except TimeoutError:
            verb = data.split(b"\n", 1)[0].decode(errors="replace")
            problem = f"FreeSWITCH did not answer {verb!r} within {patience_ms} ms"
            if drop_on_timeout:
                link.close(problem)
            raise EslTimeout(problem) from None

    # connecting

    async def _keep_up(self) -> None:
        loop = asyncio.get_running_loop()
        delay_ms = self.settings.backoff_first_ms
        while True:
            steady_since = None
            try:
                link = await self._connect()
                steady_since = loop.time()
                reason = await link.closed
            except (EslError, wire.EslArgumentError) as error:
                reason = str(error)
            except Exception as error:  # whatever it is: a connection that nobody keeps up is worse
                log.exception("%s: the connection is made again", self.name)
                reason = f"the connection failed: {error}"
            self._went_down(reason)
            if steady_since is not None and loop.time() - steady_since > STEADY_AFTER_S:
                delay_ms = self.settings.backoff_first_ms
            await asyncio.sleep(delay_ms / 1000 * random.uniform(0.8, 1.2))
            delay_ms = min(delay_ms * 2, self.settings.backoff_max_ms)

    async def _connect(self) -> Link:
        settings = self.settings
        link = self._make_link(settings, self._enqueue, self._closed)
        try:
            async with asyncio.timeout(settings.connect_timeout_ms / 1000):
                await link.open()
                await self._set_up(link)
        except OSError as error:  # TimeoutError is one
            if isinstance(error, TimeoutError) and link.reached:
                problem = silent_problem(settings.host, settings.port, settings.connect_timeout_ms)
            else:
                problem = connect_problem(settings.host, settings.port, error)
            link.close(problem)
            raise EslDown(problem) from None
        except BaseException:
            link.close("login failed")
            raise
        try:
            self._came_up(link)
        except Exception:
            link.close("the login could not be followed up")
            raise
        return link

    async def _set_up(self, link: Link) -> None:
        for line in self._setup:
            reply = await link.send(line)
            if reply.text.startswith("-ERR"):
                said = line.decode(errors="replace").strip()
                raise EslDown(f"FreeSWITCH refused {said!r}: {reply.text[:120]}")

    def _came_up(self, link: Link) -> None:
        self._link = link
        self._problem = ""
        self.logins += 1
        self._up.set()
        self._put(EventsLost("connected"), first=True)
        if self._on_up is not None:
            self._on_up()

    def _closed(self, link: Link, reason: str) -> None:
        """At once, so that nobody takes a dead connection for one that is up."""
        if link is self._link:
            self._went_down(reason)

    def _went_down(self, reason: str) -> None:
        was_up = self._up.is_set()
        self._up.clear()
        self._link = None
        for job in self._jobs.values():
            if not job.done():
                job.set_exception(EslDown(reason))
        if (was_up or reason != self._problem) and self._on_down is not None:
            self._on_down(reason)
        self._problem = reason

    # events

    def _enqueue(self, event: EventItem | Missed) -> None:
        if isinstance(event, Missed):
            self.events_dropped += 1
            log.info("%s: %s", self.name, event.reason)
            return
        if isinstance(event, EventsLost):
            self.events_dropped += event.dropped
        elif event.name == "BACKGROUND_JOB" and self._jobs:
            done = self._jobs.get(event.get("Job-UUID"))
            if done is not None and not done.done():
                done.set_result(event.body)
                return
        if self._on_event is not None:
            self._put(event)

    def _put(self, item: EventItem, *, first: bool = False) -> None:
        if self._on_event is None:
            return
        size = item.size if isinstance(item, wire.Event) else 0
        full = self._items_bytes + size > self.settings.event_queue_bytes_max
        if (full and self._items) or len(self._items) >= self.settings.event_queue_max:
            self.events_dropped += len(self._items)
            self._items.clear()
            self._items_bytes = 0
            self._items.append(EventsLost("event queue overflow"))
        self._items_bytes += size
        # events that came between subscription and login's end belong behind the marker
        self._items.appendleft(item) if first else self._items.append(item)
        self._item_ready.set()

    async def _pump(self) -> None:
        sink = self._on_event
        while sink is not None:
            while self._items:
                item = self._items.popleft()
                self._items_bytes -= item.size if isinstance(item, wire.Event) else 0
                await self._deliver(sink, item)
            self._item_ready.clear()
            if not self._items:
                await self._item_ready.wait()

    async def _deliver(self, sink: EventSink, item: EventItem) -> None:
        try:
            await sink(item)
        except EslError as error:
            log.debug("%s: an event could not be followed up: %s", self.name, error)
        except Exception:
            log.exception("%s: the event consumer failed; the next event goes on", self.name)
