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
TRIES = 30  # a FreeSWITCH that ends nothing does not hold a recovery up


async def watch(
    replication: Replication,
    service: str,
    without: Collection[str],
    injected: Collection[str],
    end: Callable[[list[str]], Awaitable[bool]],
    whole: asyncio.Event,
) -> set[str]:
    """Until all living nodes but `without` have told; which were ended. `injected` grows
    meanwhile; `whole` is set once all are in it that were known then.

    `end` says whether it is done; if not, it is tried again.
    """
    loop = asyncio.get_running_loop()
    until, pause_s, done, tries = loop.time() + latecomers.GIVE_UP_S, LOOK_S, set[str](), 0
    while True:
        late, named = loop.time() >= until, whole.is_set()
        told = late or not replication.unasked(service, without)
        ended = replication.ended(service, injected) - done
        if ended:
            tries += 1
            if await end(sorted(ended)) or tries >= TRIES:
                done |= ended
                ended, tries = set(), 0
        if late or (told and named and not ended):
            return done
        if told and not ended:
            await whole.wait()
            continue
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.2, LOOK_MAX_S)
