"""Nodes that had not told what they know of a service's calls when its recovery began.

The agent may have just started: its own store is empty then and nobody is connected, while every
call is known to the others. They forget it once this node settles the service, so that waits for
each of them, but not for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from haclusterd.agent.replication import Replication
from haclusterd.agent.reports import Account, Chronicle
from haclusterd.core.records import CallRecord, CallVerdict

WAIT_S = 3.0  # then the report is closed without them
GIVE_UP_S = 30.0  # phones that heard nothing for so long have mostly hung up
ASK_MS = 200
PAUSE_S = 0.02
PAUSE_MAX_S = 0.5


async def hear_all(
    replication: Replication,
    told: Chronicle,
    service: str,
    without: Collection[str],
    recover: Callable[[list[CallRecord], Account], Awaitable[list[CallVerdict]]],
) -> list[str]:
    """Ask all living nodes but `without`; `recover` what they tell; gives who never answered."""
    loop = asyncio.get_running_loop()
    began, pause_s = loop.time(), PAUSE_S
    while True:
        unasked = replication.unasked(service, without)
        late_s = loop.time() - began
        final = not unasked or late_s >= WAIT_S
        known = {verdict.uuid for verdict in told.verdicts}
        records = await replication.inherited(service, known)
        if not final:
            records = whole(records, known)
        if records:
            account = told.account()
            account.replicated += len(records)
            told.judged(await recover(records, account))
        if not unasked or late_s >= GIVE_UP_S:
            return unasked
        if late_s >= WAIT_S:
            pause_s = PAUSE_MAX_S
            told.close(unasked)
        await replication.ask(service, ASK_MS, without)
        if replication.unasked(service, without):
            await asyncio.sleep(pause_s)


def whole(records: list[CallRecord], known: Collection[str]) -> list[CallRecord]:
    """Not the legs whose other leg nobody has told of yet: bridged ones go together."""
    there = {record.uuid for record in records}.union(known)
    return [record for record in records if not record.partner or record.partner in there]
