"""Feeds open status pages: one word for all of them, at once when something changes.

Nothing is made while nobody looks. A page that reads slowly misses words, never delays others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from haclusterd.agent.operators import OperatorError
from haclusterd.lasting import lasting

log = logging.getLogger(__name__)

FOLLOWERS_MAX = 16
LOOK_S = 0.1  # how soon a change is seen
WORD_S = 1.0  # and how often a page hears of us at least


class TooMany(Exception):
    """No room for another page."""


class Feed:
    """`essence()` changes when the pages should hear at once; `make()` makes the word.

    Both may raise OperatorError: then there is nothing to tell yet.
    """

    def __init__(self, essence: Callable[[], Any], make: Callable[[], bytes]) -> None:
        self._essence = essence
        self._make = make
        self._followers = 0
        self._news = asyncio.Condition()
        self._word = b""
        self._task: asyncio.Task[None] | None = None

    @property
    def followers(self) -> int:
        """How many pages are open."""
        return self._followers

    def enter(self) -> None:
        """Count a page in; it has to `leave`. Raises TooMany."""
        if self._followers >= FOLLOWERS_MAX:
            raise TooMany
        self._followers += 1
        if self._task is None:
            self._word = b""
            self._task = lasting(self._look(), "page feed")

    async def words(self) -> AsyncGenerator[bytes, None]:
        """The newest word, and each that follows."""
        seen = b""
        while True:
            async with self._news:
                while self._word in (b"", seen):
                    await self._news.wait()
                seen = self._word
            yield seen

    def leave(self) -> None:
        """A page is gone; with the last one the looking ends."""
        self._followers -= 1
        if not self._followers and self._task is not None:
            self._task.cancel()
            self._task = None

    async def stop(self) -> None:
        """Stop looking, whoever is there."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        last: Any = None
        due = 0.0
        while True:
            try:
                essence = self._essence()
                if essence != last or loop.time() >= due:
                    last, due = essence, loop.time() + WORD_S
                    word = self._make()
                    async with self._news:
                        self._word = word
                        self._news.notify_all()
            except OperatorError:
                pass  # there is nothing to tell yet
            except Exception:
                log.exception("a word for open pages")  # the next one may do
            await asyncio.sleep(LOOK_S)
