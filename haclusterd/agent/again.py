"""When to try again what FreeSWITCH could not do although it is there, such as a full disk.

Often while phones still wait, then seldom, for as long as it is wanted: a profile stays in standby
until its recovery has succeeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from haclusterd.agent.latecomers import GIVE_UP_S

AGAIN_S = 3.0
SELDOM_S = 30.0  # once phones that heard nothing have mostly hung up


class Again:
    """`repeat(service)` is called some time after `failed(service)`, unless it is forgotten."""

    def __init__(self, repeat: Callable[[str], None]) -> None:
        self._repeat = repeat
        self._since: dict[str, float] = {}  # loop time of the first failure
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def failed(self, service: str) -> None:
        loop = asyncio.get_running_loop()
        late_s = loop.time() - self._since.setdefault(service, loop.time())
        self._cancel(service)
        pause_s = AGAIN_S if late_s < GIVE_UP_S else SELDOM_S
        self._timers[service] = loop.call_later(pause_s, self._repeat, service)

    def forget(self, service: str) -> None:
        """It is done, or nobody's concern here any more."""
        self._cancel(service)
        self._since.pop(service, None)

    def stop(self) -> None:
        for service in list(self._timers):
            self.forget(service)

    def _cancel(self, service: str) -> None:
        timer = self._timers.pop(service, None)
        if timer is not None:
            timer.cancel()
