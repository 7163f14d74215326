"""Events over HTTP: `/events` as server-sent events, `/events.json` for those who poll.

Both take `after` (ids with commas between, or `begin`) and `own=1` (no events of other nodes). The
`id` of each server-sent event is the position in all origins, so that a browser's own reconnect
(`Last-Event-ID`), also at another node, misses nothing in silence.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple
from urllib.parse import parse_qs

import msgspec

from haclusterd.agent.encoding import encoded
from haclusterd.agent.events import Book, Event, Positions, parse, start_of
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.schema import USAGE

STREAM, POLL = "/events", "/events.json"
PARAMETERS_MAX = 8


class Start(NamedTuple):
    """Where a client wants to begin, and whether only with this node's own events."""

    after: Positions | None
    own_only: bool


class Batch(msgspec.Struct, frozen=True):
    """`/events.json`: ask with `after=` this `cursor` for what comes next."""

    events: list[Event]
    cursor: str


def start(target: str, last_id: str = "") -> Start:
    """What a request asks for. Raises OperatorError."""
    try:
        query = parse_qs(target.partition("?")[2], max_num_fields=PARAMETERS_MAX)
    except ValueError:
        fix = f"at most {PARAMETERS_MAX}; there are `after` and `own`"
        raise OperatorError(f"too many parameters: {fix}", USAGE) from None
    own_only = query.get("own", [""])[-1] in ("1", "true", "yes")
    after = parse(last_id) if last_id else start_of(query.get("after", [""])[-1])
    return Start(after, own_only)


def batch(book: Book, target: str) -> Batch:
    """What is there after a position; all that is kept without one. Raises OperatorError."""
    wanted = start(target)
    reader = book.read(wanted.after or {}, wanted.own_only)
    try:
        return Batch(reader.take(), reader.cursor)
    finally:
        reader.close()


async def follow(book: Book, wanted: Start) -> AsyncGenerator[bytes, None]:
    """Server-sent events, after an empty word: there is room. Raises TooManyReaders."""
    reader = book.read(wanted.after, wanted.own_only)
    try:
        yield b""
        while True:
            events = await reader.next()
            lines = [b"data: " + encoded(event) + b"\n\n" for event in events]
            # The position only with the last one: whoever is cut off before it gets them again.
            lines[-1] = b"id: " + reader.cursor.encode() + b"\n" + lines[-1]
            yield b"".join(lines)
    finally:
        reader.close()
