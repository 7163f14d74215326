"""Keeps what the local FreeSWITCH can do up to date: at login, on its events, and now and then.

On a connection of its own: a dialplan from a slow source must not hold up a takeover's commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from haclusterd.lasting import unending

from .capabilities import Capabilities, read
from .esl import Esl, EslFactory, EventItem
from .esl_errors import EslError
from .profiles import ProfileError

log = logging.getLogger(__name__)

EVENTS = ("MODULE_LOAD", "MODULE_UNLOAD", "RELOADXML")
EVERY_S = 30.0
PAUSE_S = 1.0  # one module makes many events; nothing is asked more often


class CapabilityWatch:
    """`found` is None before the first look; `on_change(found)` is called when it changes."""

    def __init__(
        self,
        esl_factory: EslFactory,
        profiles: Sequence[str],
        on_change: Callable[[Capabilities], None],
        *,
        every_s: float = EVERY_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._esl: Esl = esl_factory(name="capabilities", events=EVENTS, on_event=self._event)
        self._profiles = list(profiles)
        self._on_change = on_change
        self._every_s = every_s
        self._pause_s = pause_s
        self._look = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.found: Capabilities | None = None

    async def start(self) -> None:
        await self._esl.start()
        self._task = unending(self._watch, "capabilities")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._esl.stop()

    async def _event(self, _: EventItem) -> None:
        """Something was loaded, or we have just logged in."""
        self._look.set()

    async def _watch(self) -> None:
        wait_s = self._every_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):  # wait_for of 3.11 can swallow a cancellation
                    await self._look.wait()
            # FreeSWITCH's list of modules lags behind its events and its start by some 100 ms.
            wait_s = self._pause_s if self._look.is_set() else min(wait_s * 2, self._every_s)
            self._look.clear()
            try:
                found = await read(self._esl, self._profiles)
            except (EslError, ProfileError) as error:
                log.info("what FreeSWITCH can do was not read: %s", error)
            else:
                if found != self.found:
                    self.found = found
                    self._on_change(found)
            await asyncio.sleep(self._pause_s)
