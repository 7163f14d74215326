"""A recovery that is given up in the middle, because another node has the service by now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fixtures.freeswitch.fake_recovery import Switch, calls
from tests.unit.sync_cluster import until
from tests.unit.test_recovery import recovering

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def switch(tmp_path: Path) -> AsyncIterator[Switch]:
    fake = Switch(tmp_path / "core.db")
    await fake.listen()
    yield fake
    await fake.close()


def lifting() -> list[str]:
    tasks = (repr(task.get_coro()) for task in asyncio.all_tasks())
    return [shown for shown in tasks if "lift_standby" in shown]


async def test_nobody_lifts_standby_for_a_recovery_that_was_given_up(switch: Switch) -> None:
    """The next profile would take calls on a slave, behind whoever has put it into standby."""
    for profile in ("pa", "pb"):
        switch.api[f"sofia profile {profile} recover"] = lambda _: None  # it takes its time
    async with recovering(switch) as recovery:
        await recovery._watch.wait_up(2000)
        work = asyncio.create_task(recovery.recover("east", ["pa", "pb"], calls(1)))
        await until(lambda: bool(lifting()))
        await asyncio.sleep(0.05)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert work.cancelled()
        assert lifting() == []
