"""Events of all nodes, in order and without silent gaps: what was decided, and what befell calls.

Each agent run numbers its own events 1, 2, 3, ...; an event is named by origin, run and sequence.
A node keeps the newest of every origin (`forwarding` brings those of the others), so that whoever
follows may come back here or at another node and say what came last. What is no longer there is
told as a gap, never left out in silence. Events are published after what they tell of is in force.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from haclusterd.agent.clock import now_us, wall_text
from haclusterd.agent.encoding import encodable
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.schema import USAGE, Decision
from haclusterd.core.records import CallVerdict

KEPT = 5000  # events of one run
RUNS_KEPT = 3  # of one origin
READERS_MAX = 32
CLOCKS_APART_MS = 2000  # of two nodes, as far as they are tolerated
BATCH = 200
BATCH_BYTES = 96 * 1024  # half of what an answer between agents may have
TEXT_CHARS_MAX = 2000
HELD_MAX = 1000  # decisions that wait for the view that shows them
KEEPALIVE_S = 5.0
CURSOR_CHARS_MAX = 4096
BEGIN = "begin"  # instead of positions: all that is kept


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record of the stream. `id` is `origin:run:sequence`, what to resume after.

    `kind`: decision (a sentence of history), verdict and call (`uuid`; a call is `live` or
    `ended`), gap (events `from`..`to` of that run are not to be had here; `to` 0: nobody knows
    how many), keepalive (`cursor`: all positions). `at` is wall clock, `at_us` CLOCK_BOOTTIME,
    both of the origin.
    """

    id: str
    kind: str
    origin: str
    run: int
    sequence: int
    at: str = ""
    at_us: int = 0
    forwarded: bool = False
    row: str = ""
    text: str = ""
    service: str | None = None
    epoch: int | None = None
    uuid: str | None = None
    state: str = ""
    verdict: str = ""
    gap_ms: int | None = None
    from_: int | None = msgspec.field(name="from", default=None)
    to: int | None = None
    cursor: str = ""


class Position(NamedTuple):
    """What came last of one origin."""

    run: int
    sequence: int


Positions = dict[str, Position]


class TooManyReaders(Exception):
    """No room for another one; the message says what to do."""


def parse(text: str) -> Positions:
    """`origin:run:sequence`, several with commas between. Raises OperatorError."""
    found: Positions = {}
    for word in filter(None, text[:CURSOR_CHARS_MAX].split(",")):
        parts = word.strip().rsplit(":", 2)
        numbers = [p for p in parts[1:] if p.isascii() and p.isdigit() and len(p) < 16]
        if len(numbers) != 2 or not parts[0] or not parts[0].isprintable():
            fix = "give ids of events, like fs-a:1790000000000:17, with commas between"
            raise OperatorError(f"{word[:80]!r} is no event: {fix}", USAGE)
        found[parts[0]] = Position(int(numbers[0]), int(numbers[1]))
    return found


def start_of(text: str) -> Positions | None:
    """`begin`, ids, or nothing: what comes from now on. Raises OperatorError."""
    return {} if text == BEGIN else parse(text) or None


def written(positions: Mapping[str, Position]) -> str:
    """As `parse` reads it."""
    return ",".join(f"{origin}:{at.run}:{at.sequence}" for origin, at in sorted(positions.items()))


class Ring:
    """The newest events of one run of one origin, without a hole between `first` and `last`."""

    def __init__(self, run: int, first: int = 1, joined: int = 0) -> None:
        self.run = run
        self.first = first
        self.last = first - 1
        self.joined = joined  # how far it was when this node first heard of it
        self.final: int | None = None  # where it ended, if its successor knows
        self._events: dict[int, Event] = {}

    @property
    def closed(self) -> bool:
        """All there will ever be is here."""
        return self.final is not None and self.last >= self.final

    def add(self, event: Event) -> bool:
        """Keep the next event; one that leaves a hole drops all before it."""
        if event.sequence <= self.last:
            return False
        if event.sequence != self.last + 1:
            self._events.clear()
            self.first = event.sequence
        self.last = event.sequence
        self._events[event.sequence] = event
        if len(self._events) > KEPT:
            del self._events[self.first]
            self.first += 1
        return True

    def after(self, sequence: int, count: int = BATCH) -> list[Event]:
        """The next few events after `sequence`."""
        found: list[Event] = []
        size = 0
        for number in range(max(sequence + 1, self.first), self.last + 1):
            event = self._events[number]
            found.append(event)
            size += len(event.text.encode(errors="replace")) + 400
            if len(found) >= count or size >= BATCH_BYTES:
                break
        return found

    def all(self) -> list[Event]:
        """Everything that is kept."""
        return list(self._events.values())


class Book:
    """All rings of all origins; `me` publishes here."""

    def __init__(self, me: str, run: int) -> None:
        self.me = me
        self.own = Ring(run)
        self.rings: dict[str, list[Ring]] = {me: [self.own]}
        self.current: dict[str, int] = {me: run}  # the present run of origins that are in contact
        self.waiters: set[asyncio.Event] = set()  # set when there may be something to read
        self._readers: set[Reader] = set()
        self._held: list[Decision] = []

    # -- publishing --

    def publish(self, kind: str, at_us: int | None = None, **said: Any) -> None:
        """The next own event. What it tells of must be in force already."""
        at_us = now_us() if at_us is None else at_us
        number = self.own.last + 1
        said["text"] = encodable(str(said.get("text", ""))[:TEXT_CHARS_MAX])
        event = Event(
            f"{self.me}:{self.own.run}:{number}", kind, self.me, self.own.run, number,
            wall_text(at_us), at_us, **said,
        )  # fmt: skip
        self.own.add(event)
        self.wake()

    def decided(self, decision: Decision) -> None:
        """A sentence of history. Heart's wait for the view in which they can be seen."""
        if decision.row.startswith("A"):
            self._tell(decision)
            return
        self._held.append(decision)
        while len(self._held) > HELD_MAX:
            self._tell(self._held.pop(0))

    def seen(self, at_us: int) -> None:
        """The view of that time is what status answers from now on."""
        held, self._held = self._held, []
        for decision in held:
            if decision.at_us <= at_us:
                self._tell(decision)
            else:
                self._held.append(decision)

    def judged(self, service: str, epoch: int, verdicts: Iterable[CallVerdict]) -> None:
        """What became of calls in a takeover."""
        for one in verdicts:
            gap_ms = one.gap_ms if one.gap_ms >= 0 else None
            self.publish(
                "verdict", service=service, epoch=epoch, uuid=one.uuid, verdict=one.verdict,
                text=one.reason, gap_ms=gap_ms,
            )  # fmt: skip

    def call(self, service: str, epoch: int, uuid: str, live: bool) -> None:
        """A call of an own service came or went; `calls` shows it so already."""
        state = "live" if live else "ended"
        self.publish("call", service=service, epoch=epoch, uuid=uuid, state=state)

    def _tell(self, decision: Decision) -> None:
        self.publish(
            "decision", decision.at_us, row=decision.row, text=decision.text,
            service=decision.service, epoch=decision.epoch,
        )  # fmt: skip

    # -- events of others --

    def ring(self, origin: str, run: int) -> Ring | None:
        """The ring of one run."""
        return next((r for r in self.rings.get(origin, ()) if r.run == run), None)

    def place(self, origin: str, ring: Ring) -> None:
        """A run that is new here: the newest of its origin."""
        rings = self.rings.setdefault(origin, [])
        rings.append(ring)
        del rings[:-RUNS_KEPT]

    def resumed(self, ring: Ring) -> None:
        """What the agent before this one published, before anything is published here."""
        ring.final = ring.last
        self.own = Ring(max(self.own.run, ring.run + 1))
        self.rings[self.me] = [ring, self.own]
        self.current[self.me] = self.own.run

    def wake(self) -> None:
        """There may be something to read."""
        for waiter in self.waiters:
            waiter.set()

    # -- reading --

    def read(self, after: Positions | None = None, own_only: bool = False) -> Reader:
        """Start to read: after these positions, or (None) what comes from now on.

        Raises TooManyReaders; `close` it.
        """
        if len(self._readers) >= READERS_MAX:
            raise TooManyReaders(f"{READERS_MAX} clients follow events already; end one of them")
        reader = Reader(self, after, own_only)
        self._readers.add(reader)
        self.waiters.add(reader.woken)
        return reader

    def leave(self, reader: Reader) -> None:
        """It reads no more."""
        self._readers.discard(reader)
        self.waiters.discard(reader.woken)


class Reader:
    """One who follows. Holds positions, no events: who is slow falls behind and is told of it."""

    def __init__(self, book: Book, after: Positions | None, own_only: bool) -> None:
        self.woken = asyncio.Event()
        self.at: Positions = dict(after or {})
        self._book = book
        self._whole = after is not None  # an origin that was not named is read from its beginning
        self._own_only = own_only
        self._began_ms = time.time_ns() // 1_000_000
        if after is None:
            for origin, rings in book.rings.items():
                self.at[origin] = Position(rings[-1].run, rings[-1].last)

    def close(self) -> None:
        self._book.leave(self)

    @property
    def cursor(self) -> str:
        """All positions: what to resume after."""
        return written(self.at)

    async def next(self, keepalive_s: float = KEEPALIVE_S) -> list[Event]:
        """What comes next, at once or as soon as there is something; a keepalive after a while."""
        try:
            async with asyncio.timeout(keepalive_s):
                while not (found := self.take()):
                    self.woken.clear()
                    await self.woken.wait()
                return found
        except TimeoutError:
            return [self.keepalive()]

    def keepalive(self) -> Event:
        """Nothing has happened."""
        book = self._book
        at = Position(book.own.run, book.own.last)
        name = f"{book.me}:{at.run}:{at.sequence}"
        wall = wall_text()
        return Event(name, "keepalive", book.me, *at, wall, now_us(), cursor=self.cursor)

    def take(self) -> list[Event]:
        """What is there, a few of each origin."""
        origins = [self._book.me] if self._own_only else sorted(self._book.rings)
        return [event for origin in origins for event in self._of(origin)]

    def _of(self, origin: str) -> list[Event]:
        rings = self._book.rings[origin]
        found: list[Event] = []
        at = self.at.get(origin)
        if at is None:
            at = self._first_of(rings)
        index = next((k for k, ring in enumerate(rings) if ring.run == at.run), -1)
        if index < 0:
            contact = origin in self._book.current
            if at.run > max(ring.run for ring in rings) and not contact:
                return []  # a run that this node has not heard of yet
            found.append(self._gap(origin, at.run, at.sequence + 1, 0))
            index, at = 0, Position(rings[0].run, rings[0].first - 1)
        while True:
            ring = rings[index]
            if at.sequence < ring.first - 1:
                found.append(self._gap(origin, ring.run, at.sequence + 1, ring.first - 1))
                at = Position(ring.run, ring.first - 1)
            events = ring.after(at.sequence)
            found += events
            if events:
                at = Position(ring.run, events[-1].sequence)
            if events or index + 1 == len(rings):
                break
            if not ring.closed:
                first_missing = max(at.sequence, ring.last) + 1
                found.append(self._gap(origin, ring.run, first_missing, 0))
            index += 1
            at = Position(rings[index].run, 0)
        self.at[origin] = at
        return found

    def _first_of(self, rings: list[Ring]) -> Position:
        """Where to begin with an origin that was not known here when this reader began.

        What a run told before this node met it is the past, unless it has begun since: runs are
        named by the wall clock.
        """
        if self._whole:
            return Position(rings[0].run, 0)
        since_ms = self._began_ms - CLOCKS_APART_MS
        later = next((ring for ring in rings if ring.run >= since_ms), None)
        if later is not None:
            return Position(later.run, 0)
        return Position(rings[-1].run, rings[-1].joined)

    def _gap(self, origin: str, run: int, first: int, last: int) -> Event:
        number = last or first - 1
        text = f"events of {origin} are not to be had here: {first} to {last or 'nobody knows'}"
        return Event(
            f"{origin}:{run}:{number}", "gap", origin, run, number, wall_text(), now_us(),
            origin != self._book.me, text=text, from_=first, to=last,
        )  # fmt: skip
