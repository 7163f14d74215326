"""Recovery against a scripted FreeSWITCH: verdicts, idempotence, losses, stale rows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.core.records import CallRecord, CallVerdict
from haclusterd.freeswitch import proving
from haclusterd.freeswitch.changelog import CoreDbError
from haclusterd.freeswitch.esl import EslConnection, EslSettings
from haclusterd.freeswitch.esl_protocol import Event
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.freeswitch.recovery import Recovery, RecoveryInterrupted
from haclusterd.freeswitch.rest import Rest
from haclusterd.freeswitch.verify import Verification
from tests.fixtures.freeswitch import fake_recovery
from tests.fixtures.freeswitch.fake_recovery import TONE, Switch, calls, record
from tests.unit.sync_cluster import until

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def switch(tmp_path: Path) -> AsyncIterator[Switch]:
    fake = Switch(tmp_path / "core.db")
    await fake.listen()
    yield fake
    await fake.close()


def recovering(
    switch: Switch, deadline_ms: int = 250
) -> contextlib.AbstractAsyncContextManager[Recovery]:
    return fake_recovery.recovering(switch, RecoveryOptions(4, deadline_ms, orphan_timeout_ms=400))


def short(verdicts: list[CallVerdict]) -> dict[str, str]:
    return {verdict.uuid: verdict.verdict for verdict in verdicts}


async def test_one_call_needs_one_command(switch: Switch) -> None:
    stages: list[str] = []
    async with recovering(switch) as recovery:
        loop = asyncio.get_running_loop()
        verdicts = await recovery.recover(
            "east", ["pa"], calls(1), lambda stage, *_: stages.append(stage),
            outage_began=loop.time() - 1,
        )  # fmt: skip
    assert [v.verdict for v in verdicts] == ["recovered"]
    assert 1000 <= verdicts[0].gap_ms < 3000
    assert switch.lines == ["sofia profile pa recover"]
    assert stages == ["injected", "first_answer", "verified", "recovered"]


async def test_the_head_does_not_wait_for_the_rest(switch: Switch) -> None:
    moments: list[tuple[str, float]] = []
    rest: asyncio.Future[list[CallRecord]] = asyncio.get_running_loop().create_future()
    async with recovering(switch) as recovery:
        began = asyncio.get_running_loop().time()
        under_way = asyncio.create_task(
            recovery.recover(
                "east",
                ["pb", "pa"],
                calls(3)[:2],
                lambda stage, _, at: moments.append((stage, at - began)),
                epoch=3,
                rest=Rest(lambda: rest),
            )
        )
        both = ["sofia profile pa recover", "sofia profile pb recover"]
        await until(lambda: switch.lines == both and len(switch.channels) == 2)
        assert set(switch.channels) == {"call-0", "call-1"}
        await asyncio.sleep(0.1)  # a stamp from before the recovery would not count
        came = asyncio.get_running_loop().time()
        switch.event("CHANNEL_CREATE", "call-1", made_s_ago=0.1)
        told = asyncio.get_running_loop().time()
        await until(lambda: "first_reinvite" in dict(moments))
        rest.set_result(calls(20))
        verdicts = await under_way
        assert short(verdicts) == {r.uuid: "recovered" for r in calls(20)}
        assert len(switch.recovered_rows) == 20
        assert all("#" in name for uuid, name, _ in switch.recovered_rows[2:])
        dated = dict(moments)
        first = dated["first_reinvite"] + began + 0.1
        assert came - 0.01 <= first <= told + 0.01, "as stamped, not as it came"
        assert dated["first_reinvite"] < dated["injected"]
        again = await recovery.recover("east", ["pa"], calls(2), epoch=3, rest=given(20))
        assert short(again) == short(verdicts)
    async with recovering(switch) as recovery:  # the agent was restarted
        again = await recovery.recover("east", ["pa"], calls(2), epoch=3, rest=given(21))
    assert {v.verdict for v in again} == {"recovered"}
    assert len(switch.recovered_rows) == 21


async def test_a_head_of_none_lifts_standby_and_a_lone_call_is_not_deleted_with_it(
    switch: Switch,
) -> None:
    async with recovering(switch) as recovery:
        verdicts = await recovery.recover("east", ["pa"], [], rest=given(1))
    assert short(verdicts) == {"call-0": "recovered"}
    assert switch.lines == ["sofia profile pa recover", "fsctl recover sofia:pa#0"]


def given(count: int) -> Rest:
    async def rest() -> list[CallRecord]:
        return calls(count)

    return Rest(rest)


async def test_many_calls_use_streams_and_standby_is_lifted_early(switch: Switch) -> None:
    async with recovering(switch) as recovery:
        verdicts = await recovery.recover("east", ["pa", "pb"], calls(20), epoch=4)
        assert set(short(verdicts).values()) == {"recovered"}
        assert [v.uuid for v in verdicts] == [r.uuid for r in calls(20)]
    assert sorted(switch.lines) == [
        *(f"fsctl recover sofia:pa#{number}" for number in range(4)),
        "sofia profile pa recover",
        "sofia profile pb recover",
    ]
    names = [name for _, name, _ in switch.recovered_rows]
    assert all(names.count(f"pa#{number}") == 5 for number in range(4))
    assert switch.rows() == []


async def test_no_calls_still_lift_standby(switch: Switch) -> None:
    async with recovering(switch) as recovery:
        assert await recovery.recover("east", ["pa"], []) == []
    assert switch.lines == ["sofia profile pa recover"]


async def test_other_rows_are_neither_recovered_nor_touched(switch: Switch) -> None:
    with contextlib.closing(switch.open()) as db:
        for runtime, profile, uuid in (
            ("core-0", "pa", "stale"), ("core-0", "pa#3", "stale2"),
            ("core-0", "west", "other"), ("core-b", "pa", "live"), ("core-0", "pab", "pab"),
        ):  # fmt: skip
            db.execute("INSERT INTO recovery VALUES (?,'sofia',?,'',?,?)",
                       (runtime, profile, uuid, TONE))  # fmt: skip
    async with recovering(switch) as recovery:
        await recovery.recover("east", ["pa"], calls(2))
        assert {uuid for uuid, *_ in switch.recovered_rows} == {"call-0", "call-1"}
        assert {uuid for *_, uuid in switch.rows()} == {"other", "live", "pab"}
        assert await recovery.clear_stale_rows() == 2
        assert {uuid for *_, uuid in switch.rows()} == {"live"}
        assert await recovery.clear_stale_rows(freeswitch_runs=False) == 1


async def test_losses_have_reasons(switch: Switch) -> None:
    switch.silent = {"call-1"}
    switch.refused = {"call-2"}
    records = calls(4)
    records[3] = msgspec.structs.replace(records[3], metadata="<!DOCTYPE x>")
    records.append(msgspec.structs.replace(record("odd"), profile="elsewhere"))
    async with recovering(switch) as recovery:
        verdicts = await recovery.recover("east", ["pa"], records, epoch=1)
    assert {v.uuid: (v.verdict, v.reason) for v in verdicts} == {
        "call-0": ("recovered", "re-INVITE answered, RTP flows"),
        "call-1": ("lost", "no answer to the re-INVITE within 250 ms"),
        "call-2": (
            "lost",
            "the phone refused the re-INVITE or can not be reached (NORMAL_TEMPORARY_FAILURE)",
        ),
        "call-3": ("lost", "a declaration or NUL in the recovery metadata"),
        "odd": ("lost", "its SIP profile 'elsewhere' is not one of service 'east'"),
    }


async def test_bridged_pairs(switch: Switch) -> None:
    switch.silent = {"d"}
    records = [record("a", "b"), record("b", "a"), record("c", "d"), record("d", "c")]
    records.append(record("e", "unknown"))
    async with recovering(switch) as recovery:
        verdicts = short(await recovery.recover("east", ["pa"], records))
    assert verdicts == {
        "a": "recovered", "b": "recovered", "c": "partial", "d": "lost", "e": "partial",
    }  # fmt: skip


async def test_answered_but_unbridged_is_partial(switch: Switch) -> None:
    switch.unbridged = True
    async with recovering(switch) as recovery:
        verdicts = await recovery.recover("east", ["pa"], [record("a", "b"), record("b", "a")])
    assert [(v.verdict, v.reason) for v in verdicts] == [
        ("partial", "the other leg: not bridged to it")
    ] * 2


async def test_a_second_call_injects_nothing_twice(switch: Switch) -> None:
    records = calls(3)
    async with recovering(switch) as recovery:
        await recovery.recover("east", ["pa"], records, epoch=7)
        switch.channels.clear()  # all hung up since
        again = await recovery.recover("east", ["pa"], records, epoch=7)
        assert set(short(again).values()) == {"recovered"}
    switch.channels = {"call-0": "123001"}
    async with recovering(switch) as recovery:  # the agent was restarted
        third = await recovery.recover("east", ["pa"], records, epoch=7)
    assert short(third) == {"call-0": "recovered", "call-1": "lost", "call-2": "lost"}
    assert len(switch.recovered_rows) == 3


async def test_rows_that_were_never_recovered_are_recovered_by_the_next_run(
    switch: Switch,
) -> None:
    recover, switch.api["sofia profile"] = switch.api["sofia profile"], "-ERR not now\n"
    async with recovering(switch) as recovery:
        verdicts = await recovery.recover("east", ["pa"], calls(1), epoch=2)
        assert short(verdicts) == {"call-0": "lost"}
    switch.api["sofia profile"] = recover
    async with recovering(switch) as recovery:
        assert short(await recovery.recover("east", ["pa"], calls(1), epoch=2)) == {
            "call-0": "recovered"
        }


async def test_a_crash_in_the_middle_can_be_repeated(switch: Switch) -> None:
    switch.crash_at_recover = 1
    async with recovering(switch) as recovery:
        with pytest.raises(RecoveryInterrupted, match="restarted") as broken:
            await recovery.recover("east", ["pa"], calls(3), epoch=1)
        assert len(broken.value.unverified) == 3
        verdicts = await recovery.recover("east", ["pa"], broken.value.unverified, epoch=1)
    assert set(short(verdicts).values()) == {"recovered"}
    assert len(switch.recovered_rows) == 3


async def test_a_lost_connection_is_not_a_crash(switch: Switch) -> None:
    real = switch.getvar
    drops = [1]

    def dropping(line: str) -> str | None:
        if drops:
            drops.pop()
            switch.drop_all()
            return None
        return real(line)

    switch.api["uuid_getvar"] = dropping
    async with recovering(switch) as recovery:
        verdicts = await recovery.recover("east", ["pa"], calls(2))
    assert set(short(verdicts).values()) == {"recovered"}


async def test_a_freeswitch_too_busy_to_count_rtp_takes_no_verdict_back(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 calls on two cores: one answer took more than 5 s, and the recovery was done again."""
    monkeypatch.setattr(proving, "HEAR_S", 0.05)
    switch.api["json"] = lambda line: None
    async with recovering(switch) as recovery:
        verdicts = await recovery.recover("east", ["pa"], calls(2))
    assert [v.reason for v in verdicts] == ["re-INVITE answered"] * 2


async def test_without_freeswitch_or_core_db(switch: Switch, tmp_path: Path) -> None:
    async with recovering(switch) as recovery:
        switch.path.unlink()
        with pytest.raises(CoreDbError, match="no such file"):
            await recovery.recover("east", ["pa"], calls(1))
        with pytest.raises(ValueError, match="no SIP profiles"):
            await recovery.recover("east", [], calls(1))
    await switch.close()
    settings = EslSettings("127.0.0.1", switch.port, "x")
    recovery = Recovery(lambda **options: EslConnection(settings, **options), switch.path)
    with pytest.raises(RecoveryInterrupted) as broken:
        await recovery.recover("east", ["pa"], calls(1))
    assert len(broken.value.unverified) == 1


def hangup(uuid: str, cause: str, cseq: str) -> Event:
    return Event(
        {
            "Event-Name": "CHANNEL_HANGUP", "Unique-ID": uuid, "Hangup-Cause": cause,
            "variable_sip_cseq": cseq,
        }
    )  # fmt: skip


def test_a_call_that_ended_after_its_recovery_was_recovered() -> None:
    check = Verification([record("a")])
    check.take_event(hangup("a", "NORMAL_CLEARING", "123456"), 1.0)
    assert not check.open
    why = "recovered, ended since (NORMAL_CLEARING)"
    assert check.verdicts(1, None)[0] == CallVerdict("a", "recovered", why, ended=True)


def test_a_missing_channel_counts_only_after_the_launch_and_a_grace() -> None:
    def still_open(now: float) -> bool:
        check.take_cseq("a", "-ERR No such channel!\n", now)
        return check.open

    check = Verification([record("a")])
    assert still_open(0.0)
    check.launched(["a"])
    assert still_open(1.0)
    assert not still_open(1.2)
    assert check.verdicts(1, None)[0].reason == "FreeSWITCH did not take the call up"
