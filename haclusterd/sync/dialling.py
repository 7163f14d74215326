"""Which link the connection with one peer goes over, and when it moves to another one.

Heart's beats tell within a few of them that a link is silent; TCP needs a second or more. So the
side that dials follows heart's news: when its link falls silent and another one carries beats, it
connects over that one beside the old connection, which the new one replaces as soon as it stands;
where it does not come about, nothing was given up. Nothing moves back by itself, a link that comes
and goes is the last choice, and moves keep a distance: links that flap cost little.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from haclusterd.sync.session import Session, SyncTiming

log = logging.getLogger(__name__)

MOVE_PAUSE_S = 0.5  # between two attempts to move
STEADY_S = 1.0  # how long a link carries beats before it is as good as one that never was silent
LOOK_S = 0.1  # how often a link is looked at that is not steady yet
_LONG_AGO = float("-inf")


class LinksHeard:
    """What heart says of the links to one peer. Before its first word all are as good."""

    def __init__(self, count: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._up = [True] * count
        self._silent_s = [_LONG_AGO] * count  # when it was silent last, or could not be dialled
        self._fell_s = [_LONG_AGO] * count  # when it fell silent
        self.news = asyncio.Event()

    def hear(self, up: Sequence[bool]) -> None:
        """Heart's newest word, one per link."""
        now_s = self._clock()
        for link, carries in enumerate(up[: len(self._up)]):
            if self._up[link] and not carries:
                self._fell_s[link] = now_s
            if not (self._up[link] and carries):
                self._silent_s[link] = now_s
            if self._up[link] != carries:
                self._up[link] = carries
                self.news.set()

    def failed(self, link: int) -> None:
        """It carries beats, and no connection came about over it."""
        self._silent_s[link] = self._clock()

    def order(self, first: int) -> list[int]:
        """All links as they should be tried: those that carry beats first, from `first` on."""
        count = len(self._up)
        return sorted(((first + k) % count for k in range(count)), key=lambda k: not self._up[k])

    def is_silent(self, link: int) -> bool:
        """Heart hears nothing over this one, and something over another."""
        return not self._up[link] and any(self._up)

    def better(self, link: int) -> int | None:
        """Where to go from a silent link; None where it is not, or nowhere yet.

        After a fault of all links one comes back a moment before the others: that is no reason.
        """
        if not self.is_silent(link):
            return None
        now_s = self._clock()
        steady = [
            other
            for other in range(len(self._up))
            if self._up[other]
            and (
                self._silent_s[other] < self._fell_s[link]
                or now_s - self._silent_s[other] >= STEADY_S
            )
        ]
        return min(steady, key=lambda other: (self._silent_s[other], other), default=None)


class Dialler:
    """Keeps a session with one peer. `dial(link)` makes one attempt over one link."""

    def __init__(
        self, peer: str, links: int, timing: SyncTiming,
        dial: Callable[[int], Awaitable[Session | None]], moved: Callable[[], None],
    ) -> None:  # fmt: skip
        self._peer, self._count, self._timing = peer, links, timing
        self._dial, self._moved = dial, moved
        self._now_s = asyncio.get_running_loop().time
        self.heard = LinksHeard(links, self._now_s)
        self._link = 0
        self._tried_s = _LONG_AGO

    async def run(self) -> None:
        """For ever."""
        backoff_ms = self._timing.backoff_ms_min
        while True:
            began_s = self._now_s()
            session = await self._connect()
            if session is not None:
                await self._keep(session)
                self._link = (self._link + 1) % self._count
            if self._now_s() - began_s > 5:
                backoff_ms = self._timing.backoff_ms_min
            await self._pause(backoff_ms * random.uniform(0.5, 1.0) / 1000)
            backoff_ms = min(2 * backoff_ms, self._timing.backoff_ms_max)

    async def _connect(self) -> Session | None:
        for link in self.heard.order(self._link):
            session = await self._dial(link)
            if session is not None:
                self._link = link
                return session
        return None

    async def _pause(self, seconds: float) -> None:
        """Shorter where heart hears something new: a link may carry again."""
        least_s = min(seconds, self._timing.backoff_ms_min / 1000)
        self.heard.news.clear()
        await asyncio.sleep(least_s)
        if seconds > least_s:
            await self._first([self.heard.news.wait()], seconds - least_s)

    async def _keep(self, session: Session) -> None:
        """Until the connection is lost, over whichever link it goes by then."""
        while not session.closed.done():
            self.heard.news.clear()
            link = self.heard.better(self._link)
            early_s = self._tried_s + MOVE_PAUSE_S - self._now_s()
            if link is None:
                look_s = LOOK_S if self.heard.is_silent(self._link) else None
                await self._first([session.closed, self.heard.news.wait()], look_s)
            elif early_s > 0:
                await self._first([session.closed], early_s)
            else:
                session = await self._move(session, link)

    async def _move(self, session: Session, link: int) -> Session:
        self._tried_s = self._now_s()
        log.info(
            "replication with %s moves from link %d to link %d: no beats come over link %d",
            self._peer, self._link + 1, link + 1, self._link + 1,
        )  # fmt: skip
        new = await self._dial(link)
        if new is None:
            self.heard.failed(link)
            return session
        self._link = link
        self._moved()
        return new

    @staticmethod
    async def _first(events: Sequence[Awaitable[object]], timeout_s: float | None = None) -> None:
        """Wait for the first of these, or for the time to pass; leave no task behind."""
        tasks = [asyncio.ensure_future(event) for event in events]
        mine = [t for t, event in zip(tasks, events, strict=True) if t is not event]
        try:
            await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in mine:
                task.cancel()
