"""What [recovery] says of calls (M11, one test per row), and who is told of verdicts (M13, E2)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from haclusterd.agent.events import Book
from haclusterd.agent.history import History
from haclusterd.agent.local_switch import recovery_options
from haclusterd.agent.recoveries import Recoveries
from haclusterd.agent.reports import Reports
from haclusterd.agent.services import Services
from haclusterd.agent.verdicts import SENTENCES_MAX
from haclusterd.config import RecoverySection
from haclusterd.core.actions import Recover
from haclusterd.core.inputs import FromAgent, RecoveryEnded
from haclusterd.core.model import Identity
from haclusterd.core.records import CallVerdict, Tombstone
from tests.fixtures.agent_parts import FakeReplication, FakeSwitch, record, spec

pytestmark = pytest.mark.timeout(20)

Make = Callable[..., Any]


class Bench:
    """Services under one policy."""

    def __init__(self, folder: Path, policy: RecoverySection) -> None:
        self.sent: list[FromAgent] = []
        self.replication = FakeReplication()
        self.switch = FakeSwitch()
        self.history = History()
        self.reports = Reports(folder)
        self.work = Recoveries(
            spec(), self.replication, self.history, self.reports, self.sent.append, policy
        )
        self.services = Services(spec(), self.replication, self.history, self.work, lambda: None)
        self.services.switch = self.switch

    async def take_over(self, legs: int) -> None:
        self.replication.known = [record(f"u{n}") for n in range(legs)]
        self.services.recover(Recover(0, Identity(7, 0, 99), 1, "fs-b is silent", {"dead": 1}))
        async with asyncio.timeout(10):
            while self.services.busy("east"):
                await asyncio.sleep(0.005)

    def texts(self, row: str) -> list[str]:
        return [d.text for d in self.history.last() if d.row == row]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr("haclusterd.agent.recoveries.SETTLE_S", 0.05)
    made: list[Bench] = []

    def bench(policy: RecoverySection | None = None) -> Bench:
        made.append(Bench(tmp_path, policy or RecoverySection()))
        return made[-1]

    yield bench
    for one in made:
        await one.services.stop()


def recovered(bench: Bench) -> list[list[str]]:
    return [done[3] for done in bench.switch.done if done[0] == "recover"]


async def test_m11_calls_recover(make: Make) -> None:
    bench = make()
    await bench.take_over(2)
    assert recovered(bench) == [["u0", "u1"]]
    assert bench.reports.find("last").calls.recovered == 2


async def test_m11_calls_recycle(make: Make) -> None:
    """Counted as lost, and buried so that nobody recovers them later; standby is lifted."""
    bench = make(RecoverySection(calls="recycle"))
    await bench.take_over(2)
    assert recovered(bench) == [[]]
    report = bench.reports.find("last")
    assert (report.calls.replicated, report.calls.lost) == (2, 2)
    assert report.calls.verdicts[0].reason == "not recovered: recovery.calls"
    assert [r.uuid for r in bench.replication.appended if isinstance(r, Tombstone)] == ["u0", "u1"]
    assert bench.replication.settled == ["east"]
    assert bench.sent == [RecoveryEnded(0, Identity(7, 0, 99), True, "")]


async def test_m11_calls_ignore(make: Make) -> None:
    bench = make(RecoverySection(calls="ignore"))
    await bench.take_over(2)
    assert recovered(bench) == [[]]
    assert bench.reports.find("last").calls.verdicts == []
    assert bench.replication.appended == []


@pytest.mark.parametrize("calls", ["recycle", "ignore"])
async def test_m11_calls_in_place(make: Make, calls: str) -> None:
    bench = make(RecoverySection(calls=calls))
    bench.replication.epochs["east"] = 3
    bench.replication.appended = [record("u0")]
    await bench.services.freeswitch_replaced()
    await asyncio.sleep(0.05)
    assert recovered(bench) == [[]]
    assert bench.reports.find("last").calls.lost == (1 if calls == "recycle" else 0)


def test_m11_the_other_policies_reach_freeswitch() -> None:
    """limits, half_calls, orphans: their effect is tested in test_aftercare."""
    standard = recovery_options(RecoverySection())
    assert standard.end_halves
    assert standard.mends.limits
    assert standard.orphan_timeout_ms == 10_000
    changed = recovery_options(
        RecoverySection(limits="ignore", half_calls="ignore", orphans="ignore", streams=3)
    )
    assert not changed.end_halves
    assert not changed.mends.limits
    assert changed.orphan_timeout_ms > 32_000
    assert changed.streams == 3


async def test_m13_every_verdict_is_an_event_and_losses_are_sentences(make: Make) -> None:
    bench = make()
    bench.switch.lost = {f"u{n}" for n in range(SENTENCES_MAX + 5)}
    await bench.take_over(SENTENCES_MAX + 10)
    await asyncio.sleep(0.02)
    assert len(bench.switch.verdicts_told) == SENTENCES_MAX + 10
    said = bench.texts("A8")
    assert len(said) == SENTENCES_MAX + 1
    assert said[0].startswith("call u0 of east: lost")
    assert "haclusterctl report" in said[-1]


async def test_e2_a_late_verdict_changes_report_history_and_events(
    make: Make, tmp_path: Path
) -> None:
    bench = make()
    bench.switch.lost = {"u1"}
    await bench.take_over(2)
    late = CallVerdict("u1", "recovered", "re-INVITE answered 700 ms after the verdict", 4200)
    bench.work.settled("east", late)
    await asyncio.sleep(0.05)
    calls = bench.reports.find("last").calls
    assert (calls.recovered, calls.lost) == (2, 0)
    assert calls.verdicts[1].gap_ms == 4200
    assert bench.texts("A8")[-1] == f"call u1 of east: recovered, {late.reason}"
    assert bench.switch.verdicts_told[-1] == late
    assert Reports(tmp_path).find("last").calls.recovered == 2
    bench.work.settled("east", CallVerdict("nobody", "lost", ""))
    assert len(bench.switch.verdicts_told) == 3


async def test_e2_a_late_answer_makes_both_legs_whole_for_whoever_asks(make: Make) -> None:
    """Report, history, FreeSWITCH's events, and those of the API."""
    bench = make()
    bench.switch.lost, bench.switch.partial = {"u1"}, {"u2"}
    book = Book("fs-a", 1)
    bench.work.crier.watchers.append(book.judged)
    await bench.take_over(3)
    calls = bench.reports.find("last").calls
    assert (calls.recovered, calls.partial, calls.lost) == (1, 1, 1)
    for uuid in ("u2", "u1"):
        bench.work.settled("east", CallVerdict(uuid, "recovered", "late", 4200))
    await asyncio.sleep(0.05)
    calls = bench.reports.find("last").calls
    assert (calls.recovered, calls.partial, calls.lost) == (3, 0, 0)
    assert [(v.verdict, v.gap_ms) for v in calls.verdicts[1:]] == [("recovered", 4200)] * 2
    assert bench.texts("A8")[-1] == "call u1 of east: recovered, late"
    assert [v.verdict for v in bench.switch.verdicts_told[-2:]] == ["recovered"] * 2
    events = list(book.own._events.values())
    assert [(e.uuid, e.verdict, e.gap_ms) for e in events[-2:]] == [
        ("u2", "recovered", 4200), ("u1", "recovered", 4200),
    ]  # fmt: skip


async def test_e2_an_answer_that_comes_before_the_report_is_done_is_in_it(make: Make) -> None:
    """Nodes that have not told yet keep it open for up to 3 s."""
    bench = make()
    bench.switch.lost = {"u1"}
    account = bench.work.begin("east", Recover(0, Identity(7, 0, 99), 1, "x", {"dead": 5}))
    bench.work.settled("east", CallVerdict("u1", "recovered", "late", 900))
    bench.work.settled("west", CallVerdict("u1", "recovered", "not of this one", 901))
    bench.work._finish(
        account, [CallVerdict("u1", "lost", "no answer"), CallVerdict("u2", "lost", "")]
    )
    assert [(v.verdict, v.gap_ms) for v in bench.reports.find("last").calls.verdicts] == [
        ("recovered", 900), ("lost", None),
    ]  # fmt: skip
    await asyncio.sleep(0.05)


async def test_e2_a_service_won_again_leaves_the_report_of_its_first_takeover_alone(
    make: Make,
) -> None:
    """The call was in both; what is told while the second is under way is of the second."""
    bench = make()
    lost, late = CallVerdict("u1", "lost", "no answer"), CallVerdict("u1", "recovered", "late", 900)
    for epoch in (7, 9):
        account = bench.work.begin("east", Recover(0, Identity(epoch, 0, 99), 1, "x", {"dead": 5}))
        if epoch == 9:
            bench.work.settled("east", late)
        bench.work._finish(account, [lost])
    assert [r.calls.verdicts[0].verdict for r in bench.reports.all()] == ["lost", "recovered"]
    await asyncio.sleep(0.05)


async def test_reports_are_written_one_after_the_other_and_the_newest_last(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side they would write one temporary file, and an old one could come last."""
    bench = make()
    await bench.take_over(40)
    await asyncio.sleep(0.05)
    write, writing, most, written = bench.reports.save, 0, 0, 0

    def save(content: bytes) -> None:
        nonlocal writing, most, written
        writing, written = writing + 1, written + 1
        most = max(most, writing)
        time.sleep(0.05 if written == 1 else 0.0)  # the first one takes longest
        write(content)
        writing -= 1

    monkeypatch.setattr(bench.reports, "save", save)
    for n in range(40):
        bench.work.settled("east", CallVerdict(f"u{n}", "lost", "no RTP"))
        await asyncio.sleep(0)
    await bench.services.stop()
    assert most == 1
    assert written < 10
    assert Reports(tmp_path).find("last").calls.lost == 40


async def test_progress_shows_while_it_runs(make: Make) -> None:
    bench = make()
    account = bench.work.begin("east", Recover(0, Identity(7, 0, 99), 1, "x", {"dead": 5}))
    account.replicated = 100
    bench.work.crier.progress(account, "injected", 100, 10)
    for answered in (10, 30, 31, 80, 100):
        bench.work.crier.progress(account, "verified", answered, 20)
    found = bench.reports.under_way()["east"]
    assert (found.replicated, found.injected, found.answered) == (100, 100, 100)
    assert bench.texts("A6") == [
        "30 of 100 call legs of east have answered",
        "80 of 100 call legs of east have answered",
    ]
    assert bench.reports.find("last").progress == found
    bench.reports.finish(account)
    assert bench.reports.under_way() == {}
    assert bench.reports.find("last").progress is None


async def test_s8_a_silent_phones_call_is_buried_though_freeswitch_tracks_it(make: Make) -> None:
    """Seen with a real FreeSWITCH: the next owner took it up again, and the one after that."""
    bench = make()
    bench.switch.lost = {"u0"}
    bench.replication.appended = [record("u0", version=9), record("u1", version=9)]
    await bench.take_over(2)
    assert bench.replication.appended[2:] == [Tombstone("east", "u0", 9, "")]


@pytest.mark.parametrize(
    ("copy", "text"),
    [("in-sync", ""), ("none", "the copy here was missing"), ("syncing", "was not whole"),
     ("suspended", "was too old")],
)  # fmt: skip
async def test_e1_none_lost_is_not_said_of_calls_that_nobody_knew(
    make: Make, copy: str, text: str
) -> None:
    """Every agent was new when the owner was lost: what was lost cannot be counted."""
    bench = make(RecoverySection())
    bench.replication.copy = copy
    await bench.take_over(0)
    report = bench.reports.find("last")
    assert (report.copy, report.calls.lost) == (copy, 0)
    (said,) = bench.texts("A7")
    assert text in said
    assert ("more may be lost" in said) is (copy != "in-sync")


async def test_reports_that_cannot_be_written_by_a_bug_are_a_line_of_the_log(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make()
    with monkeypatch.context() as patch:
        patch.setattr(bench.reports, "encode", lambda: 1 // 0)
        await bench.take_over(1)
        await asyncio.sleep(0.05)
    assert "save reports failed" in caplog.text
