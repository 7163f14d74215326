"""A recovery whose service another node owns by now goes no further, whoever says so first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from haclusterd.agent.switch import SwitchError
from tests.fixtures.agent_parts import record, view
from tests.unit.test_agent_services import Bench, recover

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    made.replication.known = [record("u1"), record("u2")]
    yield made
    await made.services.stop()


async def test_e2_an_owner_whose_freeswitch_died_leaves_the_calls_to_its_successor(
    bench: Bench,
) -> None:
    """Heart gives no order: there is no call to end. It recovered them once more, without an
    address, and told everybody that they were lost while they were up at the next owner."""
    bench.switch.hold.clear()
    bench.services.recover(recover())
    await asyncio.sleep(0.02)
    for word in (view({}), view({"east": ("fs-a", 7)}), view({"east": ("fs-b", 6)})):
        bench.services.observe(word)
        assert bench.services.busy("east") == "recovering its calls"
    bench.services.observe(view({"east": ("fs-b", 8)}))
    await asyncio.sleep(0.02)
    await bench.services.freeswitch_replaced()
    bench.services.freeswitch_connected()
    bench.switch.hold.set()
    await bench.settle()
    assert not [done for done in bench.switch.done if done[0] == "recover"]
    assert bench.replication.appended == [], "no call is buried"
    assert bench.reports.find("last").calls.lost == 0
    assert [d for d in bench.history.last() if d.row == "A8"] == []
    assert not bench.work.recovering


async def test_what_could_not_be_recovered_here_is_not_tried_again(bench: Bench) -> None:
    bench.switch.fail = SwitchError("FreeSWITCH died")
    bench.services.recover(recover())
    await asyncio.sleep(1.2)
    assert "east" in bench.work.pending
    bench.services.observe(view({"east": ("fs-b", 8)}))
    bench.switch.fail = None
    bench.services.freeswitch_connected()
    await bench.settle()
    assert not [done for done in bench.switch.done if done[0] == "recover"]
    assert ("own", "east", 7, False) in bench.replication.told
    assert [one for one in bench.replication.told if one[0] == "own"] == [("own", "east", 7, False)]
