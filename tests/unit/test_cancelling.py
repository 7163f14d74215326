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
from haclusterd.agent import child
from haclusterd.sensors.program import Program
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
    found = [path.name for path in root.glob("agent/*.py") if "wait_for(" in path.read_text()]
    assert found == ["daemon.py"], "where it ends itself, which nobody cancels"


class Dying:
    """A process that ends when it is told to."""

    pid, returncode, stdin = 2**22 + 1, None, None  # no such process: nothing is killed

    def __init__(self) -> None:
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        self.returncode = await asyncio.shield(self.over)
        return self.returncode


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("way", ["mover", "hook"])
async def test_who_runs_programs_stops_also_in_the_moment_in_which_one_ends(
    monkeypatch: pytest.MonkeyPatch, way: str, turns: int
) -> None:
    """A mover that lost its order to stop goes on to fetch packets for another node's service."""
    made: list[Dying] = []

    async def start(*words: object, **options: object) -> Dying:
        made.append(Dying())
        return made[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    program = Program(["check"], {})

    async def work() -> None:
        while True:
            await (program.run(5) if way == "mover" else child.run(["hook"], b"", 5, {}))

    task = asyncio.ensure_future(work())
    while not made:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    made[-1].over.set_result(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    for one in made:
        if not one.over.done():
            one.over.set_result(0)
    done, _ = await asyncio.wait({task}, timeout=1)
    for one in made:
        if not one.over.done():
            one.over.set_result(0)
    task.cancel()
    assert done, "it goes on"
