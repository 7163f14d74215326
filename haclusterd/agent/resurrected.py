"""Calls that had ended before the loss, as another node tells only after they were injected.

All living nodes are asked before anything is injected, but for at most `recoveries.COLLECT_MS`:
what one tells later ends the call again, at once. Without that it would live on (S8).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from haclusterd.agent import latecomers
from haclusterd.agent.replication import Replication

LOOK_S = 0.01
LOOK_MAX_S = 0.1


async def watch(
    replication: Replication,
    service: str,
    without: Collection[str],
    injected: Collection[str],
    end: Callable[[list[str]], Awaitable[None]],
) -> None:
    """Until all living nodes but `without` have told; `injected` grows meanwhile."""
    loop = asyncio.get_running_loop()
    until, pause_s, done = loop.time() + latecomers.GIVE_UP_S, LOOK_S, set[str]()
    while True:
        last = not replication.unasked(service, without) or loop.time() >= until
        ended = replication.ended(service, injected) - done
        if ended:
            done |= ended
            await end(sorted(ended))
        if last:
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.2, LOOK_MAX_S)
