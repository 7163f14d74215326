"""Work that nobody waits for: when it fails, that is said, for nobody would ask."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

AGAIN_S = 1.0
AGAIN_MAX_S = 60.0


def lasting(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task whose failure is a line of the log at once, and not when the agent ends."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(say_why)
    return task


def unending(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
    """A loop whose duty nobody else has: after a failure, which is said, `work` begins again.

    One that fails at once each time begins later and later. It may end by itself.
    """
    return lasting(until_done(work, name), name)


async def until_done(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """`work` from its beginning, after each failure again, until it ends without one."""
    loop = asyncio.get_running_loop()
    pause_s = AGAIN_S
    while True:
        began = loop.time()
        try:
            await work()
        except Exception:  # whatever it is: a duty that nobody does any more is worse
            if loop.time() - began > AGAIN_MAX_S:
                pause_s = AGAIN_S
            log.exception("%s failed and begins again in %.0f s", name, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_MAX_S)
        else:
            return


def say_why(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed", task.get_name(), exc_info=error)
