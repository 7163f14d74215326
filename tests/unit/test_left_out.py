"""What found no room in a full stream is told as soon as there is some, however much it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from haclusterd.agent import left_out
from haclusterd.agent.history import History
from haclusterd.agent.left_out import LeftOut
from haclusterd.agent.services import Services
from haclusterd.agent.switch import SwitchError
from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.core.replication import Limits
from haclusterd.sync.codec import item_of
from haclusterd.sync.log import ChangeLog
from tests.fixtures.agent_parts import spec
from tests.unit.sync_cluster import until


def call(number: int, version: int = 1) -> CallRecord:
    return CallRecord("east", f"u{number}", version, "east", "core", "")


class Source:
    """A FreeSWITCH with calls, of which each change is told once."""

    def __init__(self) -> None:
        self.log = ChangeLog("a", 5, Limits(records=4), lambda: 0, lambda _: None, lambda _: None)
        self.log.own("east", 1, settled=True)
        self.calls: dict[str, CallRecord] = {}
        self.answer: Callable[[], Sequence[CallRecord] | None] = lambda: list(self.calls.values())
        self.reads = 0

    def begin(self, *numbers: int) -> None:
        records = [call(n) for n in numbers]
        self.calls |= {record.uuid: record for record in records}
        self.log.append(records)

    def end(self, *numbers: int) -> None:
        for n in numbers:
            del self.calls[f"u{n}"]
        self.log.append([Tombstone("east", f"u{n}", 2) for n in numbers])

    def live(self) -> set[str]:
        return {u for u, item in self.log.logs["east"].items.items.items() if not item.dead}

    async def read(self, stream: str) -> Sequence[CallRecord] | None:
        self.reads += 1
        return self.answer()


@pytest.fixture
async def source(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Source]:
    monkeypatch.setattr("haclusterd.sync.log.FULL_MAX", 2)
    monkeypatch.setattr(left_out, "LOOK_S", 0.01)
    one = Source()
    looking = LeftOut(one.log, one.read)
    looking.start()
    yield one
    await looking.stop()


async def test_all_are_told_once_there_is_room(source: Source) -> None:
    source.begin(*range(12))
    assert len(source.log.waiting_uuids()) == 8
    source.end(0, 1, 2, 3)
    await until(lambda: len(source.live()) == 4)
    source.end(*(int(uuid[1:]) for uuid in source.live()))
    await until(lambda: source.live() == source.calls.keys())
    assert len(source.calls) == 4
    assert source.log.waiting_uuids() == []


async def test_a_full_stream_is_not_read_again_and_again(source: Source) -> None:
    source.begin(*range(12))
    await asyncio.sleep(0.1)
    source.end(0)
    source.begin(99)  # takes in one of those that are kept
    await asyncio.sleep(0.1)
    assert source.reads == 0


async def test_what_cannot_be_read_now_is_read_later(source: Source) -> None:
    def fails() -> Sequence[CallRecord]:
        raise SwitchError("ESL is down")

    answer = source.answer
    source.answer = fails
    source.begin(*range(7))
    source.end(0, 1, 2, 3)
    await until(lambda: source.reads > 1)
    source.answer = lambda: None
    known = source.reads
    await until(lambda: source.reads > known + 1)
    assert source.live() == set()
    source.answer = answer
    await until(lambda: source.live() == {"u4", "u5", "u6"})


async def test_what_is_gone_with_its_freeswitch_is_not_at_risk_for_ever(source: Source) -> None:
    source.begin(*range(8))
    gone = [f"u{n}" for n in range(4, 8)]
    for uuid in gone:
        del source.calls[uuid]  # nobody tells their end
    source.end(0, 1, 2, 3)
    await until(lambda: source.log.waiting_uuids() == [])
    assert source.live() == set()


async def test_an_ended_stream_is_left_alone(source: Source) -> None:
    source.begin(*range(8))
    refused = source.log.begin_again("east")
    source.log.disown("east")
    source.log.tell_again("east", [call(7)], refused)
    assert source.log.left_out() == []
    assert source.log.counters["unowned"] == 0


def calls_of(
    meanwhile: Callable[[Services], None] = lambda services: None,
) -> tuple[Services, SimpleNamespace]:
    """Of a FreeSWITCH in which something happens while it is read; and what is done with them."""

    async def snapshot() -> list[CallRecord]:
        meanwhile(services)
        return [call(1), CallRecord("west", "u2", 1, "west", "core", "")]

    switch = SimpleNamespace(snapshot=snapshot)
    work = SimpleNamespace(
        switch=switch, recovering={"west": None}, generation=0, served=lambda name: name != "south"
    )
    services = Services(spec(), None, History(), cast(Any, work), lambda: None)
    return services, work


async def test_calls_that_are_being_recovered_or_fenced_are_not_read() -> None:
    """Of a fenced service none are read: they would count as gone, and be told no more."""
    services, _ = calls_of()
    services._busy["north"] = "recovering its calls"
    assert await services.all_calls("east") == [call(1)]
    for name in ("west", "north", "south"):
        assert await services.all_calls(name) is None, name


async def test_of_a_freeswitch_that_died_while_it_was_read_nothing_is_told() -> None:
    """Nobody would ever tell the end of such calls."""

    def begun(services: Services) -> None:
        services._busy["east"] = "recovering in place"

    def over(_: Services) -> None:
        work.generation += 1

    for meanwhile in (begun, over):
        services, work = calls_of(meanwhile)
        assert await services.all_calls("east") is None, meanwhile


def full_of_bytes() -> ChangeLog:
    """Takes four of these calls, for what they have of bytes."""
    size = len(item_of(call(0), 1, 5).blob)
    limits = Limits(records=100, record_bytes=4 * size + size // 2)
    log = ChangeLog("a", 5, limits, lambda: 0, lambda _: None, lambda _: None)
    log.own("east", 1, settled=True)
    return log


def test_a_stream_that_is_full_of_bytes_is_not_read_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """50,000 calls would be read every 30 s, for as long as they last, to be refused each time."""
    monkeypatch.setattr("haclusterd.sync.log.FULL_MAX", 2)
    log = full_of_bytes()
    log.append([call(n) for n in range(9)])
    assert log.logs["east"].items.live == 4
    assert log.left_out() == []
    log.append([Tombstone("east", f"u{n}", 2) for n in range(4)])
    assert log.left_out() == ["east"]


async def test_a_fault_of_ours_in_reading_does_not_end_it(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> Sequence[CallRecord]:
        source.log._full.clear()  # those that are kept may be in by now: the others are not
        raise KeyError("a bug")

    monkeypatch.setattr("haclusterd.lasting.AGAIN_S", 0.01)
    answer, source.answer = source.answer, fails
    source.begin(*range(12))
    source.end(0, 1, 2, 3)
    await until(lambda: source.reads > 0)
    source.answer = answer
    await until(lambda: len(source.live()) == 4)
