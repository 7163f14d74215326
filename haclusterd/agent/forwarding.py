"""Brings the events of the other nodes here, over the replication mesh, as they are published.

Each node asks each other one for what comes after its own position, and the answer waits until
there is something. Events of a node that is not connected are asked of all others, so that what
any of them has heard of it is everywhere. The order is fixed by the numbers; nothing is guessed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Protocol

import msgspec

from haclusterd.agent.events import Book, Event, Position, Ring
from haclusterd.lasting import unending
from haclusterd.sync.rpc import Answer, RequestFailed

log = logging.getLogger(__name__)

METHOD = "events"
WAIT_S = 2.0  # an answer waits that long for something to tell
ANSWER_MS = 5000
AGAIN_S = 0.2
AGAIN_MAX_S = 5.0


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A piece of one run; `last` is how far the run is."""

    origin: str
    run: int
    last: int
    events: list[Event]


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """By origin: the position (run, sequence) after which to tell; (0, 0): from the beginning."""

    after: dict[str, Position]


class Told(msgspec.Struct, frozen=True, array_like=True):
    """The answer. `run` is the teller's own present run; `finals`: where runs ended, by origin."""

    run: int
    parts: list[Part]
    finals: dict[str, dict[int, int]]


class Mesh(Protocol):
    """What is needed of the replicator here."""

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes: ...
    def register(self, method: str, answer: Answer) -> None: ...


class Forwarding:
    """Both ends. `connected()` names the nodes that can be asked now."""

    def __init__(
        self, book: Book, nodes: Sequence[str], mesh: Mesh, connected: Callable[[], Collection[str]]
    ) -> None:
        self._book, self._mesh = book, mesh
        self._nodes = [node for node in nodes if node != book.me]
        self._connected = connected
        self._tasks: list[asyncio.Task[None]] = []
        mesh.register(METHOD, self._asked)

    async def start(self) -> None:
        self._tasks = [
            unending(partial(self._follow, node), f"events of {node}") for node in self._nodes
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- asking --

    async def _follow(self, node: str) -> None:
        pause_s = AGAIN_S
        while True:
            try:
                told = await self._ask(node)
            except (RequestFailed, msgspec.DecodeError, UnicodeDecodeError) as error:
                log.debug("events of %s: %s", node, error)
                self._book.current.pop(node, None)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, AGAIN_MAX_S) if node in self._connected() else AGAIN_S
                continue
            pause_s = AGAIN_S
            self._take(node, told)

    async def _ask(self, node: str) -> Told:
        connected = self._connected()
        about = [node, *(n for n in self._nodes if n != node and n not in connected)]
        wanted = Wanted({origin: self._position(origin) for origin in about})
        packed = msgspec.msgpack.encode(wanted)
        answer = await self._mesh.request(node, METHOD, packed, ANSWER_MS)
        return msgspec.msgpack.decode(answer, type=Told)

    def _position(self, origin: str) -> Position:
        rings = self._book.rings.get(origin)
        return Position(rings[-1].run, rings[-1].last) if rings else Position(0, 0)

    def _take(self, node: str, told: Told) -> None:
        for origin, finals in told.finals.items():
            for ring in self._book.rings.get(origin, []) if origin in self._nodes else ():
                ring.final = finals.get(ring.run, ring.final)
        for part in told.parts:
            if part.origin in self._nodes:
                self._merge(part)
        self._book.current[node] = told.run
        self._book.wake()

    def _merge(self, part: Part) -> None:
        ring = self._book.ring(part.origin, part.run)
        if ring is None:
            first = part.events[0].sequence if part.events else part.last + 1
            ring = Ring(part.run, max(1, first), part.last)
            self._book.place(part.origin, ring)
        for event in part.events:
            if (event.origin, event.run) == (part.origin, part.run):
                ring.add(msgspec.structs.replace(event, forwarded=True))

    # -- answering --

    async def _asked(self, peer: str, payload: bytes) -> bytes:
        try:
            wanted = msgspec.msgpack.decode(payload, type=Wanted)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(str(error)) from None
        book, woken = self._book, asyncio.Event()
        book.waiters.add(woken)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_S):
                    while not (parts := self._parts(wanted)):
                        woken.clear()
                        await woken.wait()
        finally:
            book.waiters.discard(woken)
        finals = {
            origin: {r.run: r.final for r in book.rings.get(origin, []) if r.final is not None}
            for origin in wanted.after
        }
        return msgspec.msgpack.encode(Told(book.own.run, parts, finals))

    def _parts(self, wanted: Wanted) -> list[Part]:
        """What is new of these; of one origin at most one piece of one run, so that it fits."""
        room = 1
        parts: list[Part] = []
        for origin, at in wanted.after.items():
            part = self._part(origin, at) if room > 0 else None
            if part is not None:
                parts.append(part)
                room -= 1
        return parts

    def _part(self, origin: str, at: Position) -> Part | None:
        rings = self._book.rings.get(origin, [])
        index = next((k for k, ring in enumerate(rings) if ring.run == at.run), -1)
        if index < 0 and (not rings or (at.run > rings[0].run and origin != self._book.me)):
            # An asker of a newer run knows more than this node, but of this node itself it does
            # not: runs are named by the wall clock, which may have been set back since.
            return None
        for ring in rings[max(0, index) :]:
            is_known = ring.run == at.run
            events = ring.after(at.sequence if is_known else 0)
            # A run that is new to the asker is told at once, so that it knows where it joined.
            if events or (not is_known and ring is rings[-1]):
                return Part(origin, ring.run, ring.last, events)
        return None
