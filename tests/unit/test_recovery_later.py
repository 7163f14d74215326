"""What could not be recovered here is tried again while FreeSWITCH is there, and ends (E1, E2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent.switch import SwitchError
from haclusterd.core.inputs import RecoveryEnded
from haclusterd.core.model import Identity
from haclusterd.core.records import Tombstone
from haclusterd.core.view import View
from tests.fixtures.agent_parts import record, view
from tests.unit.test_agent_services import Bench, recover, recovered

pytestmark = pytest.mark.timeout(20)
LOCKED, FULL = "core.db: database is locked", "core.db: database or disk is full"


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr("haclusterd.agent.recoveries.RETRY_S", 0.01)
    monkeypatch.setattr("haclusterd.agent.again.AGAIN_S", 0.05)
    made = Bench(tmp_path)
    yield made
    await made.services.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def replaced(bench: Bench, reason: str = LOCKED) -> None:
    """Another FreeSWITCH process, which cannot be given the two calls of `east`."""
    bench.services.recover(recover())
    await bench.settle()
    bench.replication.append([record("u1", version=3), record("u2", version=4)])
    bench.sent.clear()
    bench.switch.fail = SwitchError(reason)
    await bench.services.freeswitch_replaced()
    await bench.settle()


def tombstones(bench: Bench) -> list[tuple[str, int]]:
    return [(r.uuid, r.version) for r in bench.replication.appended if isinstance(r, Tombstone)]


async def test_e1_a_takeover_that_failed_is_tried_again_while_esl_stays_up(bench: Bench) -> None:
    bench.replication.known = [record("u1")]
    bench.switch.fail = SwitchError(FULL)
    bench.services.recover(recover())
    await bench.settle()
    assert bench.sent == [RecoveryEnded(0, Identity(7, 0, 99), False, FULL)]
    await until(lambda: len(bench.sent) >= 3)
    bench.switch.fail = None
    await until(lambda: recovered(bench) == ["u1"])
    assert bench.sent[-1] == RecoveryEnded(0, Identity(7, 0, 99), True, "")
    said = [d.text for d in bench.history.last() if d.row == "A5"]
    assert said == [f"fs-a cannot recover east: {FULL}"], "the same failure is said once"
    assert [r.number for r in bench.reports.all()] == [1, 2], "nor has it a report of its own"
    bench.replication.append([record("u1", version=9)])
    await bench.settle()
    await asyncio.sleep(0.15)
    assert recovered(bench) == ["u1"]


async def test_e1_calls_of_a_process_that_died_are_in_every_later_attempt(bench: Bench) -> None:
    """They are logged here as live, so that they are nobody's `unrecovered` calls."""
    bench.switch.hold.clear()
    bench.services.recover(recover())
    await asyncio.sleep(0.02)
    await bench.services.call_changes([record("u1", version=9)])
    bench.switch.fail = SwitchError(FULL)
    bench.switch.hold.set()
    await bench.services.freeswitch_replaced()
    await bench.settle()
    bench.switch.fail = None
    await until(lambda: recovered(bench) == ["u1"])


async def test_a_service_that_is_fenced_just_now_waits(bench: Bench) -> None:
    bench.replication.known = [record("u1")]
    bench.switch.fail = SwitchError(FULL)
    bench.services.recover(recover())
    await bench.settle()
    bench.services.observe(view({}))
    bench.switch.fail = None
    await asyncio.sleep(0.15)
    assert recovered(bench) == []
    bench.services.observe(view({"east": ("fs-a", 7)}))
    await until(lambda: recovered(bench) == ["u1"])


async def test_what_another_node_owns_by_now_is_not_tried_again(bench: Bench) -> None:
    await replaced(bench)
    bench.services.observe(view({"east": ("fs-b", 8)}))
    bench.switch.fail = None
    await asyncio.sleep(0.15)
    assert recovered(bench) == []
    assert tombstones(bench) == []


async def test_ms13_a_recovery_in_place_that_failed_has_verdicts_and_heart_is_told(
    bench: Bench,
) -> None:
    await replaced(bench)
    report = bench.reports.find("last")
    assert [(v.uuid, v.verdict) for v in report.calls.verdicts] == [("u1", "lost"), ("u2", "lost")]
    assert LOCKED in report.calls.verdicts[0].reason
    assert bench.sent == [RecoveryEnded(0, Identity(7, 0, 99), False, LOCKED)]
    assert tombstones(bench) == [], "another node may still have them"


async def test_e2_a_later_attempt_in_place_mends_the_verdicts(bench: Bench) -> None:
    await replaced(bench)
    bench.replication.append([Tombstone("east", "u2", 5)])
    bench.switch.fail = None
    await until(lambda: recovered(bench) == ["u1"])
    await until(lambda: len(bench.sent) == 2)
    assert bench.sent[-1] == RecoveryEnded(0, Identity(7, 0, 99), True, "")
    report = bench.reports.find("last")
    assert (report.cause, report.calls.recovered) == ("FreeSWITCH came back", 1)
    await asyncio.sleep(0.15)
    assert recovered(bench) == ["u1"]


async def test_heart_is_told_that_the_next_process_could_be_given_what_the_last_one_could_not(
    bench: Bench,
) -> None:
    await replaced(bench)
    assert [m.ok for m in bench.sent if isinstance(m, RecoveryEnded)] == [False]
    bench.switch.fail = None
    await bench.services.freeswitch_replaced()
    await until(lambda: recovered(bench) == ["u1", "u2"])
    await bench.settle()
    assert [m.ok for m in bench.sent if isinstance(m, RecoveryEnded)] == [False, True]


async def test_e2_a_login_is_a_sign_to_try_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.again.AGAIN_S", 60.0)
    await replaced(bench)
    bench.switch.fail = None
    bench.services.freeswitch_connected()
    await until(lambda: recovered(bench) == ["u1", "u2"])


async def test_m13_in_place_is_given_up_and_what_is_not_up_is_buried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next owner would call phones that hung up long ago (S8)."""
    monkeypatch.setattr("haclusterd.agent.in_place.GIVE_UP_S", 0.12)
    await replaced(bench)
    bench.switch.calls_here = [record("u2", version=4)]

    async def fails(*given: object, **named: object) -> None:
        raise SwitchError(LOCKED)

    whole = bench.switch.recover
    monkeypatch.setattr(bench.switch, "recover", fails)
    await asyncio.sleep(0.25)
    assert tombstones(bench) == [], "whether they are up cannot be read yet"
    bench.switch.fail = None
    await until(lambda: tombstones(bench) == [("u1", 3)])
    report = [r for r in bench.reports.all() if r.done][-1]
    assert [(v.uuid, v.verdict) for v in report.calls.verdicts] == [("u1", "lost")]
    assert LOCKED in report.calls.verdicts[0].reason
    assert bench.sent[-1] == RecoveryEnded(0, Identity(7, 0, 99), False, LOCKED)
    monkeypatch.setattr(bench.switch, "recover", whole)
    await until(lambda: bench.sent[-1] == RecoveryEnded(0, Identity(7, 0, 99), True, ""))
    assert recovered(bench) == [], "but standby was lifted"
    assert bench.switch.done[-1][3] == []


async def test_s9_standbys_forget_nothing_while_the_table_of_calls_cannot_be_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.recoveries.SETTLE_S", 0.05)
    bench.replication.known = [record("u1"), record("u2")]
    bench.services.recover(recover())
    await until(lambda: recovered(bench) == ["u1", "u2"])
    bench.switch.fail = SwitchError(LOCKED)
    await asyncio.sleep(0.3)
    assert bench.replication.settled == []
    bench.switch.calls_here = [record("u1", version=9), record("w1", "west")]
    bench.switch.fail = None
    await bench.settle()
    assert bench.replication.settled == ["east"]
    assert bench.replication.appended == [record("u1", version=9)]


async def test_s9_an_agent_that_cannot_read_the_calls_yet_keeps_the_copies_of_the_one_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its FreeSWITCH goes on with all of them, while the password of ESL cannot be read."""
    monkeypatch.setattr("haclusterd.agent.taking_stock.RETRY_S", 0.01)
    bench.work.switch, bench.why_no_switch = None, "esl.password: Permission denied"
    bench.services.observe(view({"east": ("fs-a", 7)}))
    await asyncio.sleep(0.05)
    assert bench.replication.told == [("own", "east", 7, False)]
    assert bench.replication.settled == []
    bench.switch.calls_here = [record("u1")]
    bench.services.switch = bench.switch
    await bench.settle()
    assert [r.uuid for r in bench.replication.appended] == ["u1"]
    assert bench.replication.settled == ["east"]


def lapsed() -> View:
    """This node may not speak for `east` just now; nobody else owns it."""
    word = view({"east": ("fs-a", 7)})
    east = msgspec.structs.replace(word.services[0], local_state="lapsed")
    return msgspec.structs.replace(word, services=(east, *word.services[1:]))


@pytest.mark.parametrize("in_place", [False, True])
async def test_s8_a_login_while_fenced_calls_no_phones(bench: Bench, in_place: bool) -> None:
    """They cannot answer, and calls that nobody answers are buried."""
    if in_place:
        await replaced(bench)
    else:
        bench.replication.known = [record("u1"), record("u2")]
        bench.switch.fail = SwitchError(LOCKED)
        bench.services.recover(recover())
        await bench.settle()
    bench.services.observe(lapsed())
    bench.switch.fail = None
    bench.services.freeswitch_connected()
    await asyncio.sleep(0.15)
    assert bench.switch.fenced["east"]
    assert recovered(bench) == []
    bench.services.observe(view({"east": ("fs-a", 8)}))
    await until(lambda: recovered(bench) == ["u1", "u2"])


async def test_s8_what_came_back_of_a_recovery_that_failed_is_ended_for_the_next_owner(
    bench: Bench,
) -> None:
    """FreeSWITCH may have had half of the calls by then; heart's order is for whole recoveries."""
    bench.replication.known = [record("u1")]
    bench.switch.fail = SwitchError("FreeSWITCH did not answer uuid_getvar within 5000 ms")
    bench.services.recover(recover())
    await bench.settle()
    bench.switch.fail = None
    bench.services.observe(view({"east": ("fs-b", 8)}))
    await bench.settle()
    assert ("end_calls", ("east",)) in bench.switch.done
    assert recovered(bench) == []


async def test_s8_calls_that_came_back_are_ended_where_heart_gives_no_order(bench: Bench) -> None:
    """As when a mover could not fetch their packets, and the service was handed on."""
    bench.services.recover(recover())
    await bench.settle()
    bench.services.observe(view({"east": ("fs-a", 7)}))
    bench.services.observe(view({"east": ("fs-b", 8)}))
    await bench.settle()
    assert [done for done in bench.switch.done if done[0] == "end_calls"] == [
        ("end_calls", ("east",))
    ]


async def test_a_failure_like_the_last_one_leaves_no_report_under_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it came after the report was closed without a node that did not tell."""
    monkeypatch.setattr("haclusterd.agent.latecomers.WAIT_S", 0.02)
    bench.replication.late = {"fs-c": [record("u1")]}
    bench.replication.silent = {"fs-c"}
    bench.switch.fail = SwitchError(LOCKED)
    bench.services.recover(recover())
    await bench.settle()
    bench.switch.fail = None
    await until(lambda: len([r for r in bench.reports.all() if r.done]) == 2)
    bench.switch.fail = SwitchError(LOCKED)
    bench.replication.silent = set()
    await until(lambda: "east" in bench.work.pending)
    assert bench.reports.under_way() == {}


async def test_s9_standbys_forget_nothing_while_the_new_owner_is_fenced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a fenced service are neither told nor in a snapshot: no call has another copy."""
    monkeypatch.setattr("haclusterd.agent.recoveries.SETTLE_S", 0.05)
    bench.replication.known = [record("u1")]
    bench.services.recover(recover())
    await until(lambda: recovered(bench) == ["u1"])
    bench.services.observe(lapsed())
    await asyncio.sleep(0.2)
    assert bench.replication.settled == []
    bench.switch.calls_here = [record("u1", version=9)]
    bench.services.observe(view({"east": ("fs-a", 8)}))
    await bench.settle()
    assert bench.replication.settled == ["east"]
    assert bench.replication.appended == [record("u1", version=9)]


async def test_m13_calls_behind_a_fence_are_not_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.in_place.GIVE_UP_S", 0.05)
    await replaced(bench)

    async def fails(*given: object, **named: object) -> None:
        raise SwitchError(LOCKED)

    monkeypatch.setattr(bench.switch, "recover", fails)
    read = asyncio.Event()

    async def snapshot() -> list[object]:
        bench.services.observe(lapsed())
        read.set()
        return []

    monkeypatch.setattr(bench.switch, "snapshot", snapshot)
    bench.switch.fail = None
    async with asyncio.timeout(5):
        await read.wait()
    await asyncio.sleep(0.02)
    assert tombstones(bench) == []


async def test_s9_standbys_forget_nothing_where_the_new_owner_lets_go_before_all_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does this keep the node busy: it may be the only one to have the service again."""
    monkeypatch.setattr("haclusterd.agent.recoveries.SETTLE_S", 0.05)
    bench.replication.known = [record("u1")]
    bench.services.recover(recover())
    await until(lambda: recovered(bench) == ["u1"])
    bench.services.observe(view({}))
    await bench.settle()
    assert bench.replication.settled == []
