"""Answers that come after the verdict mend it, and that of the other leg (E2, M13)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from haclusterd.core.records import CallRecord, CallVerdict
from haclusterd.freeswitch import aftercare
from haclusterd.freeswitch.aftercare import apply_limits
from haclusterd.freeswitch.esl import Esl
from haclusterd.freeswitch.esl_errors import EslTimeout
from haclusterd.freeswitch.mends import Limit
from haclusterd.freeswitch.options import RecoveryOptions
from tests.fixtures.freeswitch.fake_recovery import Switch, calls, quick_switch, record, recovery_of

pytestmark = pytest.mark.timeout(30)
ANSWER, ORPHAN_MS = "124000", 400
PAIR = [record("a", "b"), record("b", "a")]


@pytest.fixture
async def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Switch]:
    async with quick_switch(tmp_path, monkeypatch) as fake:
        yield fake


class Bench:
    """A recovery that remembers which verdicts changed."""

    def __init__(self, switch: Switch, end_halves: bool) -> None:
        self.later: list[CallVerdict] = []
        self.recovery = recovery_of(
            switch,
            RecoveryOptions(4, 150, orphan_timeout_ms=ORPHAN_MS, end_halves=end_halves),
            settled=lambda service, verdict: self.later.append(verdict),
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.01)

    @property
    def last(self) -> dict[str, str]:
        return {verdict.uuid: verdict.verdict for verdict in self.later}


@contextlib.asynccontextmanager
async def bench_of(switch: Switch, *, end_halves: bool = True) -> AsyncIterator[Bench]:
    bench = Bench(switch, end_halves)
    await bench.recovery.start()
    try:
        yield bench
    finally:
        await bench.recovery.stop()


def bridge(switch: Switch) -> None:
    switch.bridges = {"a": "b", "b": "a"}


@pytest.mark.parametrize("late", ["a", "b"])
async def test_e2_a_late_answer_makes_both_legs_whole(switch: Switch, late: str) -> None:
    other = "b" if late == "a" else "a"
    switch.silent = {late}
    bridge(switch)
    async with bench_of(switch) as bench:
        first = await bench.recovery.recover("east", ["pa"], PAIR, outage_began=0.0)
        assert {v.uuid: v.verdict for v in first} == {late: "lost", other: "partial"}
        switch.channels[late] = ANSWER
        await bench.until(lambda: len(bench.later) == 2)
        await asyncio.sleep(0.1)
    found = {v.uuid: v for v in bench.later}
    assert bench.last == {"a": "recovered", "b": "recovered"}
    assert found[late].reason.startswith("re-INVITE answered ")
    assert found[other].reason.startswith("re-INVITE answered, its other leg's ")
    assert found[late].gap_ms == found[other].gap_ms > 0
    assert len(bench.later) == 2
    assert switch.killed == []


async def test_e2_both_answer_late_one_after_the_other(switch: Switch) -> None:
    switch.silent = {"a", "b"}
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], PAIR)
        switch.channels["a"] = ANSWER
        await bench.until(lambda: bool(bench.later))
        assert bench.last == {"a": "partial"}
        bridge(switch)
        switch.channels["b"] = ANSWER
        await bench.until(lambda: len(bench.later) == 3)
    assert bench.last == {"a": "recovered", "b": "recovered"}


async def test_e2_a_late_answer_that_is_not_bridged_yet_is_half_a_call(switch: Switch) -> None:
    """FreeSWITCH may need two seconds more."""
    switch.silent = {"b"}
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], PAIR)
        switch.channels["b"] = ANSWER
        await bench.until(lambda: bool(bench.later))
        assert bench.last == {"b": "partial"}
        bridge(switch)
        await bench.until(lambda: len(bench.later) == 3)
    assert bench.last == {"a": "recovered", "b": "recovered"}
    assert switch.killed == []


async def test_e2_a_late_answer_to_a_leg_whose_other_leg_is_lost_is_half_a_call(
    switch: Switch,
) -> None:
    switch.silent, switch.refused = {"a"}, {"b"}
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], PAIR)
        switch.channels["a"] = ANSWER
        await bench.until(lambda: len(bench.later) == 2)
    assert [v.verdict for v in bench.later] == ["partial", "partial"]
    assert switch.killed == ["uuid_kill a DESTINATION_OUT_OF_ORDER"]


async def test_m13_the_half_of_an_orphan_waits_for_its_end(switch: Switch) -> None:
    switch.silent = {"b"}
    switch.packets["b"] = 0
    bridge(switch)
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], PAIR)
        assert bench.recovery.aftercare.orphans == 1
        await bench.until(lambda: len(bench.later) == 2)
    assert bench.last == {"a": "partial", "b": "lost"}
    assert [line.split()[1] for line in switch.killed] == ["b", "a"]


async def test_halves_that_are_not_to_be_ended_are_mended_all_the_same(switch: Switch) -> None:
    switch.silent = {"b"}
    bridge(switch)
    async with bench_of(switch, end_halves=False) as bench:
        await bench.recovery.recover("east", ["pa"], PAIR)
        switch.channels["b"] = ANSWER
        await bench.until(lambda: len(bench.later) == 2)
        assert bench.last == {"a": "recovered", "b": "recovered"}


async def test_halves_are_not_ended_where_that_is_not_wanted(switch: Switch) -> None:
    switch.refused = {"b"}
    async with bench_of(switch, end_halves=False) as bench:
        await bench.recovery.recover("east", ["pa"], PAIR)
        await asyncio.sleep(0.2)
    assert (switch.killed, bench.later) == ([], [])


async def test_half_a_call_that_was_transferred_meanwhile_is_left_alone(switch: Switch) -> None:
    switch.refused = {"b"}
    switch.bridges = {"a": "c"}
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], PAIR)
        await asyncio.sleep(0.2)
    assert (switch.killed, bench.later) == ([], [])


async def test_e2_who_has_only_rung_is_an_orphan_until_it_answers(switch: Switch) -> None:
    switch.ringing = {"call-0", "call-1"}
    switch.packets = {"call-0": 0, "call-1": 0}
    async with bench_of(switch) as bench:
        first = await bench.recovery.recover("east", ["pa"], calls(3))
        assert [v.verdict for v in first] == ["lost", "lost", "recovered"]
        assert bench.recovery.aftercare.orphans == 2
        switch.ringing.discard("call-0")
        await bench.until(lambda: len(bench.later) == 2)
    assert bench.last == {"call-0": "recovered", "call-1": "lost"}
    assert switch.killed == ["uuid_kill call-1 RECOVERY_ON_TIMER_EXPIRE"]


async def test_e2_who_rings_late_has_not_answered_late(switch: Switch) -> None:
    switch.silent = switch.ringing = {"call-0"}
    switch.packets["call-0"] = 0
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], calls(1))
        switch.channels["call-0"] = ANSWER
        await bench.until(lambda: bool(bench.later))
    assert bench.last == {"call-0": "lost"}
    assert switch.killed == ["uuid_kill call-0 RECOVERY_ON_TIMER_EXPIRE"]


LIMIT = '<app_log>\n    <application app_name="limit" app_data="{} out trunk 5"></application>'


def limited(backend: str = "hash") -> list[CallRecord]:
    text = PAIR[0].metadata.replace("<app_log>", LIMIT.format(backend), 1)
    return [msgspec.structs.replace(PAIR[0], metadata=text), PAIR[1]]


@pytest.mark.parametrize("late", ["a", "b"])
async def test_b12_a_call_that_answers_late_is_counted_once(switch: Switch, late: str) -> None:
    switch.silent = {late}
    bridge(switch)
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], limited())
        assert switch.limited == ([] if late == "a" else ["uuid_limit a hash out trunk"])
        switch.channels[late] = ANSWER
        await bench.until(lambda: len(bench.later) == 2)
        await asyncio.sleep(0.1)
    assert switch.limited == ["uuid_limit a hash out trunk"]


async def test_b12_a_call_that_answers_while_others_are_heard_is_counted(switch: Switch) -> None:
    switch.silent = {"a"}
    switch.packets["b"] = 0  # so that it is listened to for a while
    bridge(switch)

    def answers(line: str) -> str:
        if not bench.recovery.aftercare.orphans and "b" in line:
            row = msgspec.structs.replace(PAIR[0], sip_cseq=ANSWER)
            switch.channels["a"] = ANSWER
            bench.recovery.tracked([row])
        return switch.media_stats(line)

    async with bench_of(switch) as bench:
        switch.api["json"] = answers
        found = await bench.recovery.recover("east", ["pa"], limited())
        assert "lost" not in {v.verdict for v in found}
    assert switch.limited == ["uuid_limit a hash out trunk"]


async def test_b12_mod_db_is_told_once(switch: Switch) -> None:
    """It counts a call as often as it is told to."""
    switch.silent = {"a"}
    switch.api["module_exists"] = lambda _: "true"
    bridge(switch)
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], limited("db"))
        switch.channels["a"] = ANSWER
        await bench.until(lambda: len(bench.later) == 2)
        await asyncio.sleep(0.1)
    assert switch.limited == ["uuid_limit_release a db out trunk", "uuid_limit a db out trunk"]


async def test_b12_mod_db_counts_a_call_once_though_its_answer_came_too_late() -> None:
    counted: list[str] = []

    class Busy:
        slow = True

        async def api(self, line: str) -> str:
            command, _, what = line.partition(" ")
            if command == "uuid_limit_release":
                counted[:] = [one for one in counted if one != what]
            elif command == "uuid_limit":
                counted.append(what)
                if self.slow:
                    raise EslTimeout("no answer")
            return "true" if command == "module_exists" else "+OK"

    esl, wanted = Busy(), [("a", Limit("db", "out", "trunk"))]
    with pytest.raises(EslTimeout):
        await apply_limits(esl, wanted)  # type: ignore[arg-type]
    esl.slow = False
    assert await apply_limits(esl, wanted) == []  # type: ignore[arg-type]
    assert counted == ["a db out trunk"]


async def test_a_leg_that_cannot_be_asked_for_does_not_hold_up_those_behind_it(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch.silent = {"call-0", "call-1", "call-2"}
    switch.packets = dict.fromkeys(switch.silent, 0)
    asked = aftercare.packets_from_phone

    async def packets(esl: Esl, uuid: str, timeout_ms: int = 5000) -> int:
        if uuid == "call-0":
            raise EslTimeout("FreeSWITCH did not answer")
        return await asked(esl, uuid, timeout_ms)

    monkeypatch.setattr(aftercare, "packets_from_phone", packets)
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], calls(3))
        await bench.until(lambda: len(bench.later) == 2)
    assert sorted(line.split()[1] for line in switch.killed) == ["call-1", "call-2"]


async def test_aftercare_that_fails_is_said_at_once(
    switch: Switch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(esl: Esl, uuid: str) -> int:
        raise KeyError(uuid)

    switch.silent = {"call-0"}
    async with bench_of(switch) as bench:
        await bench.recovery.recover("east", ["pa"], calls(1))
        monkeypatch.setattr(aftercare, "packets_from_phone", broken)
        await bench.until(lambda: "aftercare failed" in caplog.text)
