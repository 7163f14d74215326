"""What was decided, newest last: a bounded ring, and those who follow it live."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator

from haclusterd.agent.clock import now_us, wall_text
from haclusterd.agent.schema import Decision

log = logging.getLogger(__name__)

OWN_ROWS = "A"
KEPT = 1000
FOLLOWERS_MAX = 32
FOLLOWER_QUEUE = 256


class TooMany(Exception):
    """No room for another follower; the message says what to do."""


class History:
    """The ring. A follower that does not keep up loses the oldest of what it has not read."""

    def __init__(self, kept: int = KEPT) -> None:
        self._ring: deque[Decision] = deque(maxlen=kept)
        self._followers: list[Follower] = []
        self.total = 0

    def add(
        self,
        row: str,
        text: str,
        at_us: int | None = None,
        service: str | None = None,
        epoch: int | None = None,
    ) -> Decision:
        """Keep one sentence; `at_us` None means now."""
        at_us = now_us() if at_us is None else at_us
        if row.startswith(OWN_ROWS):
            log.info("%s %s", row, text)  # heart's sentences are in its own log already
        decision = Decision(wall_text(at_us), at_us, row, text, service, epoch or None)
        self._ring.append(decision)
        self.total += 1
        for follower in self._followers:
            follower.put(decision)
        return decision

    def last(self, count: int = KEPT) -> list[Decision]:
        """The newest `count`, oldest of them first."""
        return list(self._ring)[-count:] if count > 0 else []

    def follow(self) -> Follower:
        """Start following. Raises TooMany."""
        if len(self._followers) >= FOLLOWERS_MAX:
            raise TooMany(f"{FOLLOWERS_MAX} clients follow events already; end one of them")
        follower = Follower(self._followers)
        self._followers.append(follower)
        return follower

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._ring)


class Follower:
    """One who reads along; `close` when done."""

    def __init__(self, among: list[Follower]) -> None:
        self._among = among
        self._queue: deque[Decision] = deque(maxlen=FOLLOWER_QUEUE)
        self._news = asyncio.Event()

    def put(self, decision: Decision) -> None:
        self._queue.append(decision)
        self._news.set()

    async def next(self) -> Decision:
        """The next decision, as soon as there is one."""
        while not self._queue:
            self._news.clear()
            await self._news.wait()
        return self._queue.popleft()

    def close(self) -> None:
        if self in self._among:
            self._among.remove(self)
