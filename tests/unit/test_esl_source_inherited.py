"""Calls that a node inherits and follows over ESL alone: what is told of them counts (E1, EG7)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from haclusterd.agent.local_switch import LocalSwitch
from haclusterd.agent.switch import SwitchEvents
from haclusterd.config import FreeSwitch
from haclusterd.core.records import CallRecord, CallVerdict, Tombstone
from haclusterd.core.replication import Limits
from haclusterd.freeswitch.esl_source import INHERITED_VERSION_MAX, EslCallSource
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.freeswitch.rest import Rest
from haclusterd.sync.log import ChangeLog
from tests.unit.sync_cluster import call
from tests.unit.test_esl_source import Switch, Told, following, until

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def switch() -> AsyncIterator[Switch]:
    fake = Switch()
    await fake.listen()
    yield fake
    await fake.close()


def longer_up(number: int) -> CallRecord:
    """A record of a node that has been up for a day longer than this one."""
    version = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000 + 86_400_000_000 + number
    return call(number, version)


async def test_e1_a_late_answer_outranks_the_tombstone_of_a_call_of_an_older_boot(
    switch: Switch,
) -> None:
    log = ChangeLog("b", 1, Limits(), lambda: 0, lambda service: None, lambda service: None)
    log.own("east", 8, settled=False)
    inherited = longer_up(1)
    told = Told()
    async with following(switch, told) as source:
        source.begin_above(inherited.version)
        log.append([Tombstone("east", "uuid-1", inherited.version, "no answer within 3000 ms")])
        switch.answer("uuid-1")
        await until(lambda: told.live == ["uuid-1"])
        log.append(told.changes)
        items = log.items("east")
        assert items is not None
        assert not items.items["uuid-1"].dead
        assert log.counters["stale"] == 0
        source.begin_above(1)
        switch.answer("uuid-1", variable_sip_cseq="7")
        await until(lambda: len(told.changes) == 2)
        assert told.changes[1].version > told.changes[0].version > inherited.version
        source.begin_above(1 << 64)
        assert source._next_version() == INHERITED_VERSION_MAX + 1


async def test_e1_a_leg_of_which_no_event_comes_is_told_once_it_has_answered(
    switch: Switch,
) -> None:
    told = Told()
    async with following(switch, told) as source:
        switch.answer("known")
        await until(lambda: told.live == ["known"])
        switch.answer("late")
        switch.legs["late"]["Answer-State"] = "ringing"
        source.look_again("late")
        source.look_again("gone")
        source.look_again("known")  # it is buried in the log: the same again makes it live
        await until(lambda: told.live == ["known"] * 2)
        switch.legs["late"]["Answer-State"] = "answered"
        source.look_again("late")
        await until(lambda: told.live == ["known", "known", "late"])
        assert told.dead == []


async def test_e1_what_is_injected_and_who_answers_late_is_told_to_the_source(
    tmp_path: Path,
) -> None:
    (tmp_path / "esl.password").write_text("ClueCon")
    section = FreeSwitch(
        "127.0.0.1", 9, tmp_path / "esl.password", tmp_path / "core.db", tmp_path / "pid", ()
    )
    settled: list[tuple[str, CallVerdict]] = []

    async def nothing(*_: object) -> None: ...

    events = SwitchEvents(nothing, nothing, lambda: None, lambda _: None, lambda _: None,
                          lambda: None, lambda _: None,
                          settled=lambda *one: settled.append(one))  # fmt: skip
    options = RecoveryOptions(source="esl")
    switch = LocalSwitch(section, {"east": "east"}, events, tmp_path / "sock", options=options)
    source = switch._source
    assert isinstance(source, EslCallSource)
    first, later = longer_up(1), longer_up(2)

    async def recover(service: str, profiles: object, records: Sequence[CallRecord], *_: object,
                      rest: Rest, **__: Any) -> list[CallVerdict]:  # fmt: skip
        assert source._next_version() > first.version
        assert list(await rest.others()) == [later]
        assert source._next_version() > later.version
        return [CallVerdict(record.uuid, "lost", "") for record in records]

    async def others() -> list[CallRecord]:
        return [later]

    switch._recovery.recover = recover  # type: ignore[method-assign,assignment]
    found = await switch.recover(
        "east", ["east"], [first], lambda stage, legs, at: None, 1, None, Rest(others)
    )
    assert [verdict.uuid for verdict in found] == ["uuid-1"]
    lost = found[0]
    back = msgspec.structs.replace(lost, verdict="recovered")
    switch._settled("east", lost)
    assert not source._due
    switch._settled("east", back)
    assert list(source._due) == ["uuid-1"]
    assert settled == [("east", lost), ("east", back)]
