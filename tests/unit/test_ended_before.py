"""Calls that had ended before they were injected are ended again, whenever that is told (S8)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from haclusterd.core.records import CallRecord, CallVerdict
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.freeswitch.recovery import ENDED_BEFORE, Recovery
from haclusterd.freeswitch.rest import Rest
from tests.fixtures.freeswitch import fake_recovery
from tests.fixtures.freeswitch.fake_recovery import Switch, calls, quick_switch

pytestmark = pytest.mark.timeout(30)
KILLED = "uuid_kill call-0 NORMAL_CLEARING"


@pytest.fixture
async def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Switch]:
    async with quick_switch(tmp_path, monkeypatch) as fake:
        yield fake


def recovering(
    switch: Switch, later: list[CallVerdict] | None = None
) -> contextlib.AbstractAsyncContextManager[Recovery]:
    told = [] if later is None else later
    options = RecoveryOptions(2, 150, orphan_timeout_ms=300)
    return fake_recovery.recovering(
        switch, options, settled=lambda service, verdict: told.append(verdict)
    )


async def until_killed(switch: Switch) -> None:
    async with asyncio.timeout(5):
        while not switch.killed:
            await asyncio.sleep(0.005)


async def test_s8_a_call_of_the_head_is_ended_while_the_rest_is_still_awaited(
    switch: Switch,
) -> None:
    rest: asyncio.Future[list[CallRecord]] = asyncio.get_running_loop().create_future()
    later: list[CallVerdict] = []
    async with recovering(switch, later) as recovery:
        work = recovery.recover("east", ["pa"], calls(2), epoch=1, rest=Rest(lambda: rest))
        task = asyncio.create_task(work)
        async with asyncio.timeout(5):
            while len(switch.channels) < 2:
                await asyncio.sleep(0.005)
        await recovery.end_resurrected("east", ["call-0"])
        assert switch.killed == [KILLED]
        rest.set_result(calls(3))
        verdicts = {v.uuid: (v.verdict, v.reason) for v in await task}
    assert verdicts["call-0"] == ("lost", ENDED_BEFORE)
    assert {verdicts[f"call-{n}"][0] for n in (1, 2)} == {"recovered"}
    assert later == []


async def test_s8_a_row_that_waits_is_taken_back_and_a_channel_that_comes_up_is_ended(
    switch: Switch,
) -> None:
    """FreeSWITCH may have read the row already."""
    launched = asyncio.Event()
    recover = switch.api["sofia profile"]
    assert callable(recover)
    rows: list[list[tuple[str, str, str]]] = []

    async def told(recovery: Recovery) -> None:
        async with asyncio.timeout(5):
            while not switch.rows():
                await asyncio.sleep(0.002)
        await recovery.end_resurrected("east", ["call-0"])
        rows.append(switch.rows())
        switch.killed.clear()
        launched.set()
        switch.channels["call-0"] = "124000"
        switch.event("CHANNEL_CREATE", "call-0")

    switch.api["sofia profile"] = lambda line: recover(line) if launched.is_set() else None
    async with recovering(switch) as recovery:
        task = asyncio.create_task(recovery.recover("east", ["pa"], calls(2), epoch=1))
        await told(recovery)
        await until_killed(switch)
        assert switch.killed == [KILLED]
        assert [row[2] for row in rows[0]] == ["call-1"]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_s8_a_first_call_that_is_not_true_any_more_is_taken_back_unseen(
    switch: Switch,
) -> None:
    """call-0 has ended, call-1 has a newer row; both rows were there before anybody told."""
    newer = msgspec.structs.replace(calls(2)[1], version=6)
    before: list[str] = []

    async def still_true(records: Sequence[CallRecord]) -> Sequence[CallRecord]:
        before.extend(uuid for _, _, uuid in switch.rows())
        assert switch.lines == [], "no command before"
        return [record for record in records if record.uuid == "call-2"]

    async def others() -> list[CallRecord]:
        return [newer]

    async with recovering(switch) as recovery:
        rest = Rest(others, still_true)
        found = await recovery.recover("east", ["pa"], calls(3), epoch=1, rest=rest)
    assert before == ["call-0", "call-1", "call-2"]
    assert {v.uuid: v.verdict for v in found} == {"call-1": "recovered", "call-2": "recovered"}
    assert [row[0] for row in switch.recovered_rows] == ["call-2", "call-1"]
    assert switch.killed == []


async def test_s8_after_the_verdicts_the_last_one_is_told_anew(switch: Switch) -> None:
    later: list[CallVerdict] = []
    async with recovering(switch, later) as recovery:
        await recovery.recover("east", ["pa"], calls(2), epoch=1)
        await recovery.end_resurrected("east", ["call-0"])
    assert switch.killed == [KILLED]
    assert later == [CallVerdict("call-0", "lost", ENDED_BEFORE)]


async def test_s8_an_orphan_that_had_ended_is_no_orphan_any_more(switch: Switch) -> None:
    switch.silent = {"call-0"}
    switch.packets["call-0"] = 0
    later: list[CallVerdict] = []
    async with recovering(switch, later) as recovery:
        await recovery.recover("east", ["pa"], calls(1), epoch=1)
        assert recovery.aftercare.orphans == 1
        await recovery.end_resurrected("east", ["call-0"])
        assert recovery.aftercare.orphans == 0
        await asyncio.sleep(0.5)
    assert (switch.killed, len(later)) == ([KILLED], 1)


async def test_s8_a_uuid_that_is_more_than_a_word_ends_nobody_elses_call(switch: Switch) -> None:
    """It was never taken up; in the command its first word would name another call."""
    async with recovering(switch) as recovery:
        await recovery.recover("east", ["pa"], calls(2), epoch=1)
        await recovery.end_resurrected("east", ["call-1 x", "call-0"])
    assert switch.killed == [KILLED]
