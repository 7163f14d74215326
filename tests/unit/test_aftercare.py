"""Verdicts of calls that are neither back nor gone, and what becomes of them (E2, M13)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.core.records import CallVerdict
from haclusterd.freeswitch import aftercare
from haclusterd.freeswitch.esl import EslConnection, EslSettings
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.freeswitch.recovery import Recovery
from haclusterd.freeswitch.verify import Verification
from tests.fixtures.freeswitch.fake_recovery import Switch, calls, quick_switch, record, recovery_of

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Switch]:
    async with quick_switch(tmp_path, monkeypatch) as fake:
        yield fake


class Bench:
    """A recovery that remembers which verdicts changed."""

    def __init__(self, switch: Switch) -> None:
        self.later: list[tuple[str, CallVerdict]] = []
        self.recovery = recovery_of(
            switch,
            RecoveryOptions(4, 150, orphan_timeout_ms=300),
            settled=lambda service, verdict: self.later.append((service, verdict)),
        )

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.later) < count:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def bench_of(switch: Switch) -> AsyncIterator[Bench]:
    bench = Bench(switch)
    await bench.recovery.start()
    try:
        yield bench
    finally:
        await bench.recovery.stop()


def by_uuid(verdicts: list[CallVerdict]) -> dict[str, tuple[str, str]]:
    return {v.uuid: (v.verdict, v.reason) for v in verdicts}


async def test_e2_a_verdict_says_whether_rtp_flows(switch: Switch) -> None:
    switch.packets = {"call-1": 0}
    async with bench_of(switch) as bench:
        found = by_uuid(await bench.recovery.recover("east", ["pa"], calls(2)))
    assert found == {
        "call-0": ("recovered", "re-INVITE answered, RTP flows"),
        "call-1": ("recovered", "re-INVITE answered, no RTP from the phone yet"),
    }


async def test_a_freeswitch_without_media_stats_costs_no_verdict(switch: Switch) -> None:
    del switch.api["json"]
    async with bench_of(switch) as bench:
        found = by_uuid(await bench.recovery.recover("east", ["pa"], calls(1)))
    assert found == {"call-0": ("recovered", "re-INVITE answered")}


async def test_m13_an_orphan_is_counted_then_ended(switch: Switch) -> None:
    """Long before FreeSWITCH's own 32 s."""
    switch.silent = {"call-0"}
    switch.packets = {"call-0": 0}
    async with bench_of(switch) as bench:
        found = by_uuid(await bench.recovery.recover("east", ["pa"], calls(2)))
        assert found["call-0"] == ("lost", "no answer to the re-INVITE within 150 ms")
        assert bench.recovery.aftercare.orphans == 1
        await bench.until(1)
        assert bench.recovery.aftercare.orphans == 0
    assert switch.killed == ["uuid_kill call-0 RECOVERY_ON_TIMER_EXPIRE"]
    service, late = bench.later[0]
    assert (service, late.uuid, late.verdict) == ("east", "call-0", "lost")
    assert "no signalling and no RTP for" in late.reason


async def test_a_late_answer_mends_the_verdict(switch: Switch) -> None:
    switch.silent = {"call-0"}
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], calls(1), outage_began=0.0)
        switch.channels["call-0"] = "124000"
        await bench.until(1)
    assert bench.later[0][1].verdict == "recovered"
    assert bench.later[0][1].gap_ms > 0
    assert switch.killed == []


async def test_e2_a_call_that_is_gone_is_not_back_because_its_row_had_changed(
    switch: Switch,
) -> None:
    """A provisional answer changes `sip_cseq` in the row, too; then FreeSWITCH ended the call."""
    switch.silent = {"call-0"}
    async with bench_of(switch) as bench:
        found = await bench.recovery.recover("east", ["pa"], calls(1))
        assert [v.verdict for v in found] == ["lost"]
        switch.channels.clear()
        bench.recovery.aftercare.tracked("call-0", "124000")
        async with asyncio.timeout(5):
            while bench.recovery.aftercare.orphans:
                await asyncio.sleep(0.01)
    assert bench.later == []


async def test_a_phone_that_goes_on_sending_rtp_is_left_to_freeswitch(switch: Switch) -> None:
    switch.silent = {"call-0"}
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], calls(1))
        for count in range(50):
            switch.packets["call-0"] = 8 + count
            await asyncio.sleep(0.01)
        assert switch.killed == []
        assert bench.recovery.aftercare.orphans == 1
        bench.recovery.aftercare.forget("east")
        assert bench.recovery.aftercare.orphans == 0


async def test_m13_a_half_call_is_ended_once_the_other_leg_is_gone(switch: Switch) -> None:
    switch.refused = {"b"}
    pair = [record("a", "b"), record("b", "a")]
    async with bench_of(switch) as bench:
        found = by_uuid(await bench.recovery.recover("east", ["pa"], pair))
        assert (found["a"][0], found["b"][0]) == ("partial", "lost")
        assert bench.recovery.aftercare.orphans == 0
        await bench.until(1)
    assert switch.killed == ["uuid_kill a DESTINATION_OUT_OF_ORDER"]
    assert bench.later[0][1].verdict == "partial"


async def test_a_half_call_whose_other_leg_another_service_brought_stays(switch: Switch) -> None:
    switch.channels["b"] = "55"
    switch.api["uuid_getvar a bridge_uuid"] = "b"
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], [record("a", "b")])
        await asyncio.sleep(0.2)
    assert switch.killed == []


async def test_limits_of_bridged_calls_are_counted_again(switch: Switch) -> None:
    log = '<app_log>\n    <application app_name="limit" app_data="hash out trunk 5"></application>'
    pair = [record("a", "b"), record("b", "a")]
    text = pair[0].metadata.replace("<app_log>", log, 1)
    pair[0] = msgspec.structs.replace(pair[0], metadata=text)
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], pair)
    assert switch.limited == ["uuid_limit a hash out trunk"]


async def test_a_limit_without_its_module_is_not_asked_for(switch: Switch) -> None:
    """FreeSWITCH would transfer the call to `limit_exceeded`."""
    log = '<app_log>\n    <application app_name="limit" app_data="db out trunk 5"></application>'
    pair = [record("a", "b"), record("b", "a")]
    text = pair[0].metadata.replace("<app_log>", log, 1)
    pair[0] = msgspec.structs.replace(pair[0], metadata=text)
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], pair)
    assert switch.limited == []


def test_a_second_run_takes_the_injected_cseq_for_the_proof() -> None:
    """A silent phone is none the better for an agent that died (the row still has its old CSeq)."""
    check = Verification([record("a"), record("b")])
    check.launched(["a", "b"])
    check.injected({"a": "1", "b": "1"})
    check.take_cseq("a", "1", 1.0)
    check.take_cseq("b", "123000", 1.0)
    assert [v.verdict for v in check.verdicts(1, None)] == ["lost", "recovered"]
    assert [(r.uuid, sign.before) for r, sign in check.unanswered()] == [("a", "1")]


async def test_s8_a_recovered_call_that_hangs_up_before_its_row_is_told(switch: Switch) -> None:
    """FreeSWITCH writes its own row 0.1 to 0.2 s later: nobody else tells the end of it."""
    told: list[tuple[str, str, int]] = []
    settings = EslSettings("127.0.0.1", switch.port, "ClueCon", backoff_first_ms=5)
    recovery = Recovery(
        lambda **given: EslConnection(settings, **given), switch.path,
        options=RecoveryOptions(4, 150), ended=lambda *what: told.append(what),
    )  # fmt: skip
    await recovery.start()
    try:
        await recovery.recover("east", ["pa"], calls(3))
        for uuid in ("call-0", "call-0", "stranger", "call-1"):
            switch.event("CHANNEL_HANGUP", uuid, cause="NORMAL_CLEARING")
        async with asyncio.timeout(5):
            while len(told) < 2:
                await asyncio.sleep(0.01)
        assert told == [("east", "call-0", 5), ("east", "call-1", 5)]
        recovery.forget("east")
        switch.event("CHANNEL_HANGUP", "call-2", cause="NORMAL_CLEARING")
        await asyncio.sleep(0.1)
        assert len(told) == 2
    finally:
        await recovery.stop()


async def test_verdicts_are_told_but_no_hostile_name(switch: Switch) -> None:
    settings = EslSettings("127.0.0.1", switch.port, "ClueCon", backoff_first_ms=5)
    esl = EslConnection(settings)
    await esl.start()
    await esl.wait_up(2000)
    bad = CallVerdict("a\n\napi hupall", "lost", "")
    good = CallVerdict("u1", "lost", "no\nanswer", 7)
    await aftercare.tell_verdicts(esl, "east", 3, [bad, good])
    await esl.stop()
    (sent,) = [text for text in switch.received if text.startswith("sendevent")]
    assert "Event-Subclass: haclusterd::verdict" in sent
    assert "HA-Reason: no answer" in sent
    assert not any("hupall" in text for text in switch.received)
