"""A FreeSWITCH without time to reply: its rows prove answers, its silence proves nothing (E2)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.core.records import CallRecord, CallVerdict, Tombstone
from haclusterd.freeswitch import mends, metadata, proving
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.freeswitch.recovery import Recovery
from haclusterd.freeswitch.verify import Verification
from tests.fixtures.freeswitch import fake_recovery
from tests.fixtures.freeswitch.fake_recovery import Switch, calls, quick_switch, record

pytestmark = pytest.mark.timeout(30)
DEADLINE_MS = 300


@pytest.fixture
async def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Switch]:
    monkeypatch.setattr(proving, "ANSWER_MS", 100)
    monkeypatch.setattr(proving, "TOLD_S", 0.2)
    async with quick_switch(tmp_path, monkeypatch) as fake:
        yield fake


def recovering(
    switch: Switch, later: list[CallVerdict] | None = None
) -> contextlib.AbstractAsyncContextManager[Recovery]:
    told = [] if later is None else later
    options = RecoveryOptions(4, DEADLINE_MS, orphan_timeout_ms=5000)
    return fake_recovery.recovering(
        switch, options, settled=lambda service, verdict: told.append(verdict)
    )


async def test_e2_rows_prove_what_freeswitch_has_no_time_to_say(switch: Switch) -> None:
    """Half of them are answered; of the others nobody can say that they were not."""
    switch.api["uuid_getvar"] = lambda line: None
    switch.api["json"] = lambda line: None
    later: list[CallVerdict] = []
    legs = calls(60)
    rows = [msgspec.structs.replace(leg, sip_cseq="124000", version=9) for leg in legs[:30]]
    async with recovering(switch, later) as recovery:
        began = asyncio.get_running_loop().time()
        task = asyncio.create_task(recovery.recover("east", ["pa"], legs, epoch=1))
        async with asyncio.timeout(5):
            while len(switch.channels) < len(legs):
                await asyncio.sleep(0.01)
        recovery.tracked([*rows, legs[40], Tombstone("east", "call-50", 9)])
        found = {v.uuid: (v.verdict, v.reason) for v in await task}
        took_s = asyncio.get_running_loop().time() - began
        recovery.tracked([msgspec.structs.replace(legs[59], sip_cseq="124000", version=9)])
        switch.api["uuid_getvar"] = switch.getvar
        async with asyncio.timeout(5):
            while not any(v.uuid == "call-59" for v in later):
                await asyncio.sleep(0.01)
    unknown = f"FreeSWITCH did not tell of an answer within {DEADLINE_MS} ms"
    assert {found[leg.uuid] for leg in legs[:30]} == {("recovered", "re-INVITE answered")}
    assert {found[leg.uuid] for leg in legs[30:]} == {("lost", unknown)}
    assert took_s < 2, "a round of questions does not outlive the deadline"
    assert next(v for v in later if v.uuid == "call-59").verdict == "recovered"


def written(uuid: str, flow: str, cseq: str = "124000") -> CallRecord:
    leg = record(uuid)
    text = metadata.set_variable(leg.metadata, mends.FLOW, flow)
    return msgspec.structs.replace(leg, metadata=text, sip_cseq=cseq, version=9)


def test_e2_a_row_tells_a_provisional_answer_from_a_final_one() -> None:
    check = Verification([record(uuid) for uuid in "abcd"])
    for uuid in "abc":
        check.take_row(written(uuid, mends.UNANSWERED), 1.0)
        check.take_cseq(uuid, "124000", 1.1)  # the same, from the event socket
    check.take_row(written("b", "sendrecv"), 2.0)
    check.take_cseq("d", "124000", 2.0)
    check.heard("d", 5)
    check.take_row(written("d", mends.UNANSWERED), 2.1)  # it speaks: whatever it said counts
    assert not check.open
    check.drop_suspects()
    found = {v.uuid: v.verdict for v in check.verdicts(3000, None)}
    assert found == {"a": "lost", "b": "recovered", "c": "lost", "d": "recovered"}
    assert [one.uuid for one, _ in check.unanswered()] == ["a", "c"]


async def test_e2_what_freeswitch_says_of_an_answer_counts_more_than_an_older_row(
    switch: Switch,
) -> None:
    """The first of the two rows of an answer is there, the second is not; the phone sends no RTP.

    The other phone has only rung, as both say.
    """
    rows = [written(f"call-{n}", mends.UNANSWERED, "123000") for n in range(2)]
    switch.ringing = {"call-1"}
    async with recovering(switch) as recovery:

        def silent(line: str) -> str:
            recovery.tracked(rows)
            return '{"response": {"audio": {"in_packet_count": 0}}}'

        switch.api["json"] = silent
        found = await recovery.recover("east", ["pa"], calls(2), epoch=1)
    assert [(v.verdict, v.reason) for v in found] == [
        ("recovered", "re-INVITE answered, no RTP from the phone yet"),
        ("lost", "no answer to the re-INVITE but a provisional one"),
    ]


async def test_e2_a_freeswitch_that_falls_silent_does_not_keep_the_verdicts_back(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All phones are mute, so that all are asked about."""
    monkeypatch.setattr(proving, "CONFIRM_S", 0.05)
    legs = calls(4 * proving.ASK_AT_ONCE)
    switch.packets = dict.fromkeys((leg.uuid for leg in legs), 0)
    switch.api["uuid_getvar"] = lambda line: (
        None if line.endswith(mends.FLOW) else switch.getvar(line)
    )
    async with recovering(switch) as recovery:
        found = await recovery.recover("east", ["pa"], legs, epoch=1)
    asked = [line for line in switch.received if line.endswith(mends.FLOW)]
    assert 0 < len(asked) <= proving.ASK_AT_ONCE
    assert {v.verdict for v in found} == {"recovered"}


def test_e2_who_was_told_of_just_before_the_deadline_has_not_answered() -> None:
    check = Verification([record("a"), record("b"), record("c")])
    check.silence_from = 10.0
    check.take_cseq("a", "1", 10.5)
    check.take_cseq("b", "1", 9.5)
    assert [v.reason for v in check.verdicts(3000, None)] == [
        "no answer to the re-INVITE within 3000 ms",
        "FreeSWITCH did not tell of an answer within 3000 ms",
        "FreeSWITCH did not tell of an answer within 3000 ms",
    ]
