"""Before a takeover injects calls: what do the other standbys know better? (RELIABILITY 33, 34)

One round trip: the asker sends a digest per bucket of calls, each peer answers with the items of
the buckets that differ. Late answers still go into the store.

The asker also says how far its copies are. A peer that has been cut off from the origin for longer
than tombstones are kept has calls as live of which the asker has forgotten that they ended; it does
not tell these of a stream of which the asker has more (S8). That goes as a request, so that the
wire format stays as it is: a peer of an older version refuses it, and is asked without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from haclusterd.core.replication import (
    BUCKETS,
    CHUNK_BYTES,
    CHUNK_ITEMS,
    GRAVE_MS,
    GRAVES_MAX,
    Item,
    ItemSet,
    StreamId,
)
from haclusterd.core.standby import ServiceCopies, StreamCopy, differing, in_buckets
from haclusterd.sync.codec import Found, Malformed, Message, Want
from haclusterd.sync.rpc import RequestFailed, Requests
from haclusterd.sync.session import Session, Source

METHOD = "collect"
ROUNDS_MAX = 32  # open collects of this node
ANSWERS_MAX = ROUNDS_MAX  # open answers to one peer; beyond it the answer is empty
ASK_MS = 30_000  # how long a peer may take to say that it does not know METHOD
HOLDS_MAX = 64  # streams of one service that are looked at in a question

Merge = Callable[[str, list[Item]], object]


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """`Want`, and up to which sequence number the asker holds streams of the service."""

    number: int
    service: str
    marks: list[int]
    holds: list[tuple[StreamId, int]]


def holds(copies: ServiceCopies | None) -> list[tuple[StreamId, int]]:
    """How far this node's copies of a service are."""
    found = [] if copies is None else copies.copies.values()
    return [(copy.stream, copy.position) for copy in found]


def outlived(
    copies: ServiceCopies | None, held: Iterable[tuple[StreamId, int]], now_ms: int
) -> list[StreamCopy]:
    """Copies here that are so far behind what the asker holds that it may have forgotten ends.

    With half of what tombstones are kept for, as its clock and its burials are not those here.
    Within it the asker's tombstones speak, and what it lost of a copy can be had here.
    """
    if copies is None:
        return []
    positions = dict(held)
    return [c for c in copies.copies.values() if _outlived(c, positions.get(c.stream), now_ms)]


def _outlived(copy: StreamCopy, position: int | None, now_ms: int) -> bool:
    if position is None or copy.reached >= position:
        return False
    if copy.caught_up_ms is None or now_ms - copy.caught_up_ms > GRAVE_MS // 2:
        return True
    return position - copy.reached > GRAVES_MAX // 2


def tellable(items: Iterable[Item], old: Sequence[StreamCopy]) -> list[Item]:
    """Without the live ones that only copies which are outlived know."""
    return [i for i in items if i.dead or all(c.items.items.get(i.uuid) is not i for c in old)]


def known(
    own: ItemSet | None, copies: ServiceCopies | None
) -> tuple[list[int], Mapping[str, Item]]:
    """All that this node knows of a service, as owner and as standby: its digest, its items."""
    if copies is None or not copies.union():
        own = own or ItemSet()
        return own.marks, own.items
    if own is None or not own.items:
        return copies.marks(), copies.union()
    view = ItemSet()
    for items in (copies.union(), own.items):
        for item in items.values():
            view.merge(item, 0)
    return view.marks, view.items


class Collector:
    """The asker's end of the exchange. `merge(service, items)` takes what was found."""

    def __init__(self, merge: Merge, requests: Requests) -> None:
        self._merge = merge
        self._requests = requests
        self._asking: set[asyncio.Task[None]] = set()
        self._rounds: dict[int, tuple[str, set[Session], asyncio.Future[None]]] = {}
        self._number = 0
        self._told: dict[str, set[str]] = {}  # by service: peers whose whole answer came
        self._alive: frozenset[str] | None = None

    def observe(self, alive: frozenset[str]) -> None:
        """Heart's view: only these nodes can answer, also what was asked before."""
        self._alive = alive
        for number, (_, sessions, _) in list(self._rounds.items()):
            for session in [s for s in sessions if s.peer not in alive]:
                self._answered(session, number)

    def begin(self, service: str) -> None:
        """Nobody has told anything yet of this service, as it is inherited now."""
        self._told[service] = set()

    def told(self, service: str) -> frozenset[str]:
        """Peers that have told all they know since `begin`, also late."""
        return frozenset(self._told.get(service, ()))

    def asked(self, service: str) -> frozenset[str]:
        """Peers whose answer is still under way."""
        rounds = [sessions for name, sessions, _ in self._rounds.values() if name == service]
        return frozenset(session.peer for sessions in rounds for session in sessions)

    async def ask(
        self,
        service: str,
        copies: ServiceCopies | None,
        sessions: Iterable[Session],
        timeout_ms: int,
    ) -> bool:
        """Ask all living peers what they know better than `copies`; True if every one answered
        within the time."""
        marks, _ = known(None, copies)
        alive = self._alive
        open_sessions = {s for s in sessions if alive is None or s.peer in alive}
        if not open_sessions:
            return True
        self._number += 1
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rounds[self._number] = (service, open_sessions, done)
        while len(self._rounds) > ROUNDS_MAX:
            del self._rounds[next(iter(self._rounds))]
        question = Asked(self._number, service, marks, holds(copies))
        for session in list(open_sessions):
            task = asyncio.create_task(self._ask(session, question), name=f"collect {service}")
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        await asyncio.wait([done], timeout=timeout_ms / 1000)
        return done.done()

    async def _ask(self, session: Session, question: Asked) -> None:
        packed = msgspec.msgpack.encode(question)
        try:
            await self._requests.ask(session, METHOD, packed, ASK_MS)
        except RequestFailed:
            # Refused, or too much is asked here: without an answer it would not be asked again.
            session.send(Want(question.number, question.service, question.marks))

    def found(self, session: Session, message: Found) -> None:
        """A part of an answer came."""
        current = self._rounds.get(message.number)
        if current is None or session not in current[1]:
            return
        self._merge(current[0], message.items)
        if message.last:
            self._told.setdefault(current[0], set()).add(session.peer)
            self._answered(session, message.number)

    def lost(self, session: Session) -> None:
        """A peer that went away will not answer."""
        for number, (_, sessions, _) in list(self._rounds.items()):
            if session in sessions:
                self._answered(session, number)

    def _answered(self, session: Session, number: int) -> None:
        _, sessions, done = self._rounds[number]
        sessions.discard(session)
        if not sessions:
            del self._rounds[number]
            if not done.done():
                done.set_result(None)


def asked(payload: bytes) -> Asked:
    """The question in a request. Raises ValueError."""
    try:
        question = msgspec.msgpack.decode(payload, type=Asked)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None
    if len(question.marks) != BUCKETS or len(question.holds) > HOLDS_MAX:
        raise ValueError(f"{len(question.marks)} buckets, {len(question.holds)} streams")
    return question


def answer(
    session: Session,
    want: Want | Asked,
    marks: list[int],
    items: Iterable[Item],
    old: Sequence[StreamCopy] = (),
) -> None:
    """Answer a peer at its pace. Raises Malformed on a digest that is none."""
    if len(want.marks) != BUCKETS:
        raise Malformed(f"digest of {len(want.marks)} buckets")
    buckets = differing(marks, want.marks)
    better = in_buckets(items, buckets) if buckets else []
    better = tellable(better, old) if old else better
    if not better:
        session.send(Found(want.number, [], True))
        return
    if sum(getattr(s, "collects", False) for s in session.sources) >= ANSWERS_MAX:
        session.send(Found(want.number, [], True))
        return
    session.sources.append(_Answer(session, want.number, better))
    session.wake()


class _Answer:
    """A source that gives the found items in small messages and then goes away."""

    collects = True

    def __init__(self, session: Session, number: int, items: list[Item]) -> None:
        self._session = session
        self._number = number
        self._items = items
        self._at = 0

    def __call__(self) -> Message | None:
        part: list[Item] = []
        size = 0
        while self._at < len(self._items) and size < CHUNK_BYTES and len(part) < CHUNK_ITEMS:
            part.append(self._items[self._at])
            size += len(part[-1].blob)
            self._at += 1
        last = self._at >= len(self._items)
        if last:
            source: Source = self
            self._session.sources.remove(source)
        return Found(self._number, part, last)
