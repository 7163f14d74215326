"""A takeover in a rig with the product's own recovery, and with whatever options a test wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from haclusterd.core.records import CallRecord, CallVerdict
from haclusterd.freeswitch.calls import CallSource
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.freeswitch.recovery import Recovery
from haclusterd.lab.freeswitch import FreeswitchInstance
from tests.freeswitch.rig import EAST, Rig
from tests.freeswitch.test_esl_real import Collector, factory, inside, until


def varied(node: FreeswitchInstance, *params: tuple[str, str]) -> None:
    """Start a node's FreeSWITCH anew with other parameters of its profiles."""
    node.kill()
    node.options = replace(node.options, profile_params=params)
    node.start()
    node.wait_ready()


def watched(
    node: FreeswitchInstance, count: int, *, positions: bool = False, settle_s: float = 0.6,
    during: Callable[[], None] = lambda: None,
) -> dict[str, CallRecord]:  # fmt: skip
    """Records of `count` legs on `node` as a slave would hold them, after `during` was done."""

    async def work() -> dict[str, CallRecord]:
        held = Collector()
        source = CallSource(
            node.core_db, {"east": "east"}, held.take, esl_factory=factory(node),
            positions=positions,
        )  # fmt: skip
        await source.start()
        try:
            await until(lambda: source.problem == "")
            await asyncio.to_thread(during)
            await until(lambda: len(held.records) == count, 15)
            await asyncio.sleep(settle_s)
        finally:
            await source.stop()
        return held.records

    return inside(node, work)


def recovered(
    node: FreeswitchInstance,
    records: dict[str, CallRecord],
    options: RecoveryOptions,
    epoch: int = 1,
) -> dict[str, CallVerdict]:
    """The verdict of each leg."""

    async def work() -> dict[str, CallVerdict]:
        recovery = Recovery(factory(node), node.core_db, options=options)
        await recovery.start()
        try:
            await until(lambda: recovery.problem == "")
            await asyncio.sleep(0.3)  # where profiles have their media is asked at login
            found = await recovery.recover("east", ["east"], list(records.values()), epoch=epoch)
        finally:
            await recovery.stop()
        return {verdict.uuid: verdict for verdict in found}

    return inside(node, work)


def moved(
    rig: Rig, records: dict[str, CallRecord], options: RecoveryOptions,
    source: FreeswitchInstance | None = None, target: FreeswitchInstance | None = None,
) -> tuple[float, list[CallVerdict]]:  # fmt: skip
    """Kill the one (A), take over with the other (B): monotonic time of the death, and verdicts."""
    source, target = source or rig.a, target or rig.b
    source.kill()
    died_s = time.monotonic()
    rig.own(target, EAST)
    return died_s, list(recovered(target, records, options).values())
