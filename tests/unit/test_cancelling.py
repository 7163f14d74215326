"""Who waits for news ends when it is told to, also in the moment in which news come.

`asyncio.wait_for` of Python 3.11 (Debian 12) takes the news then and loses the cancellation: the
task goes on for ever, and with it whoever stops it and waits. The agent then writes no hand-over.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import haclusterd
from tests.unit.test_drains import Bench

pytestmark = pytest.mark.timeout(20)


async def test_drains_stop_also_in_the_moment_of_news() -> None:
    bench = Bench()
    bench.drains.start()
    await asyncio.sleep(0.5)  # it waits
    bench.drains.poke()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await bench.drains.stop()


def test_nobody_waits_for_an_event_with_wait_for() -> None:
    """`asyncio.timeout` around the same wait passes the cancellation on."""
    root = Path(haclusterd.__file__).parent
    found = [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*.py"))
        if re.search(r"wait_for\(\s*self\.\w+\.wait\(\)", path.read_text(encoding="utf-8"))
    ]
    assert found == []
