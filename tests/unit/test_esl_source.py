"""Source 2: calls over ESL alone, and the documents made of dumps."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.freeswitch import metadata, synthesis
from haclusterd.freeswitch.calls import Change
from haclusterd.freeswitch.esl import EslConnection, EslSettings
from haclusterd.freeswitch.esl_source import EslCallSource
from haclusterd.lab.emulator.metadata import Metadata
from haclusterd.sync import codec
from tests.fixtures.freeswitch.fake_esl import FakeEsl, json_event

pytestmark = pytest.mark.timeout(30)
CAPTURE = Path(__file__).parents[1] / "fixtures" / "freeswitch" / "uuid_dump_json.txt"
UUID = "04cb7ade-6405-4179-8d9b-7fa03885de2f"


def dump(**changes: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(CAPTURE.read_text())
    return found | changes


def test_a_captured_dump_becomes_a_document_that_recovers() -> None:
    record = synthesis.record("east", 9, dump())
    assert (record.uuid, record.profile, record.direction) == (UUID, "pa", "inbound")
    assert (record.service, record.version, record.partner) == ("east", 9, "")
    assert record.answered_ms == 1795360198577
    document = Metadata(record.metadata)  # strict: what recovery needs of it
    assert document.applications == [("playback", "tone_stream://%(10000,0,440);loops=-1")]
    for name in ("local_media_ip", "local_media_port", "remote_media_ip", "recovery_profile_name",
                 "sip_call_id", "rtp_use_codec_name"):  # fmt: skip
        assert document.need(name) == dump()[f"variable_{name}"]
    assert document.caller.destination_number == "8000"
    assert [one.name for one in metadata.extension(record.metadata)] == ["playback"]


def test_legs_of_a_bridge_know_each_other() -> None:
    inbound = synthesis.record("east", 1, dump(variable_signal_bond="other"))
    assert inbound.partner == "other"
    assert "<flags>1=1;4=1</flags>" in inbound.metadata
    assert metadata.extension(inbound.metadata) == []
    outbound = dump(variable_originate_signal_bond="other") | {"Call-Direction": "outbound"}
    assert "<flags>1=1;2=1</flags>" in synthesis.record("east", 1, outbound).metadata


def test_hostile_values_stay_values() -> None:
    odd = dump(variable_x="</x><!DOCTYPE a>", **{"variable_a b": "1", "Caller-Username": '<&">'})
    record = synthesis.record("east", 1, odd)
    assert metadata.variable(record.metadata, "x") == "</x><!DOCTYPE a>"
    assert "a b" not in record.metadata
    assert Metadata(record.metadata).caller.username == '<&">'
    with pytest.raises(metadata.MetadataError):
        synthesis.record("east", 1, {"Unique-ID": "u"})


class Switch(FakeEsl):
    """Calls by uuid as dumps."""

    def __init__(self) -> None:
        super().__init__()
        self.core_uuid = "core-a"
        self.legs: dict[str, dict[str, str]] = {}
        self.api = {
            "global_getvar core_uuid": lambda _: self.core_uuid,
            "show channels": lambda _: self.show(),
            "uuid_dump": self.dump,
        }

    def show(self) -> str:
        rows = [{"uuid": uuid, "name": "sofia/pa/x"} for uuid in self.legs]
        return json.dumps({"row_count": len(rows), "rows": rows})

    def dump(self, line: str) -> str:
        leg = self.legs.get(line.split()[1])
        return "-ERR No such channel!\n" if leg is None else json.dumps(leg)

    def answer(self, uuid: str, **changes: str) -> None:
        self.legs[uuid] = dump(**changes) | {"Unique-ID": uuid}
        self.event("CHANNEL_ANSWER", uuid)

    def event(self, name: str, uuid: str = "") -> None:
        self.send_all(json_event({"Event-Name": name, "Unique-ID": uuid}))


class Told:
    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.resets = 0

    async def take(self, changes: list[Change]) -> None:
        self.changes += changes

    async def reset(self) -> None:
        self.resets += 1

    @property
    def live(self) -> list[str]:
        return [c.uuid for c in self.changes if isinstance(c, CallRecord)]

    @property
    def dead(self) -> list[str]:
        return [c.uuid for c in self.changes if isinstance(c, Tombstone)]


@contextlib.asynccontextmanager
async def following(switch: Switch, told: Told) -> AsyncIterator[EslCallSource]:
    settings = EslSettings("127.0.0.1", switch.port, "ClueCon", backoff_first_ms=5)
    source = EslCallSource(
        {"pa": "east"}, told.take, esl_factory=lambda **o: EslConnection(settings, **o),
        on_reset=told.reset, dump_after_s=0.03, tombstone_hold_ms=80,
    )  # fmt: skip
    await source.start()
    await until(lambda: source.core_uuid == switch.core_uuid)
    try:
        yield source
    finally:
        await source.stop()


@pytest.fixture
async def switch() -> AsyncIterator[Switch]:
    fake = Switch()
    await fake.listen()
    yield fake
    await fake.close()


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_present_new_changed_and_ended_calls(switch: Switch) -> None:
    told = Told()
    switch.answer("old")
    async with following(switch, told) as source:
        await until(lambda: told.live == ["old"])
        switch.answer("new")
        await until(lambda: told.live == ["old", "new"])
        switch.event("CALL_UPDATE", "new")  # nothing changed
        switch.answer("new", variable_current_application="park")
        await until(lambda: told.live == ["old", "new", "new"])
        versions = [c.version for c in told.changes]
        assert versions == sorted(set(versions))
        assert [r.uuid for r in await source.snapshot()] == ["old", "new"]
        assert source.calls == 2
        del switch.legs["old"]
        switch.event("CHANNEL_HANGUP", "old")
        await until(lambda: told.dead == ["old"])
        assert source.calls == 1


async def test_a_name_that_is_not_utf8_keeps_no_call_from_being_told(switch: Switch) -> None:
    """Any caller can send one. It came as an error once, and no call was told any more."""
    told, odd = Told(), "\udcff\udcfe"
    names = {"variable_sip_from_display": odd, "Caller-Caller-ID-Name": odd}
    async with following(switch, told):
        switch.legs["odd"] = dump(**names) | {"Unique-ID": "odd"}
        switch.api["uuid_dump odd"] = lambda _: json.dumps(switch.legs["odd"], ensure_ascii=False)
        switch.event("CHANNEL_ANSWER", "odd")
        switch.answer("good")
        await until(lambda: set(told.live) == {"odd", "good"})
    record = next(c for c in told.changes if c.uuid == "odd")
    assert isinstance(record, CallRecord)
    assert metadata.variable(record.metadata, "sip_from_display") == "\ufffd\ufffd"
    assert codec.record_of(codec.item_of(record, 1, 1)) == record, "it can travel"


async def test_a_call_that_is_too_large_is_said_and_is_no_hang_up(switch: Switch) -> None:
    told = Told()
    async with following(switch, told) as source:
        switch.answer("grows")
        switch.answer("big", variable_sip_h_x="x" * 300_000)
        await until(lambda: told.live == ["grows"] and source.refused == 1)
        assert "more than 262144 characters" in source.unprotected
        switch.answer("grows", variable_sip_h_x="x" * 300_000)
        await until(lambda: source.refused == 2)
        await asyncio.sleep(0.3)
        assert told.dead == [], "it is up, and what was told of it is better than nothing"
        switch.answer("grows", variable_my_text="small again")
        await until(lambda: told.live == ["grows", "grows"])
        switch.drop_all()
        del switch.legs["big"]
        await until(lambda: source.unprotected == "")


async def test_ringing_and_foreign_legs_are_nobodys(switch: Switch) -> None:
    told = Told()
    async with following(switch, told):
        switch.answer("r", **{"Answer-State": "ringing"})
        switch.answer("f", variable_sofia_profile_name="other")
        switch.answer("mine")
        await until(lambda: told.live == ["mine"])
        await asyncio.sleep(0.1)
    assert told.live == ["mine"]


async def test_a_fenced_or_stopping_freeswitch_ends_no_call(switch: Switch) -> None:
    told = Told()
    switch.answer("a")
    async with following(switch, told) as source:
        await until(lambda: told.live == ["a"])
        switch.event("CHANNEL_HANGUP", "a")
        await asyncio.sleep(0.02)
        source.set_fenced("east", True)
        await asyncio.sleep(0.2)
        source.set_fenced("east", False)
        switch.event("CHANNEL_HANGUP", "a")
        switch.event("SHUTDOWN")
        await asyncio.sleep(0.2)
        assert told.dead == []
        source.forget("east")
        assert source.calls == 0


async def test_another_process_resets_and_a_missed_hang_up_is_found(switch: Switch) -> None:
    told = Told()
    switch.answer("a")
    switch.answer("b")
    async with following(switch, told):
        await until(lambda: len(told.live) == 2)
        del switch.legs["b"]
        switch.drop_all()  # reconnects: the same process
        await until(lambda: told.dead == ["b"])
        assert told.resets == 0
        switch.core_uuid = "core-b"
        switch.legs.clear()
        switch.drop_all()
        await until(lambda: told.resets == 1)
        await asyncio.sleep(0.15)
        assert told.dead == ["b"]


async def test_e1_a_call_is_asked_for_until_its_ack_has_come(switch: Switch) -> None:
    """It fires no event, and without the dialog's tag nobody can recover the call."""
    told = Told()
    whole = dump()["variable_sip_full_to"]
    async with following(switch, told):
        switch.answer("a", variable_sip_full_to=whole.partition(";tag=")[0])
        await until(lambda: told.live == ["a"])
        await asyncio.sleep(0.15)
        assert told.live == ["a"], "told once"
        switch.legs["a"]["variable_sip_full_to"] = whole  # no event
        await until(lambda: told.live == ["a", "a"])
        asked = switch.received.count("api uuid_dump a json")
        await asyncio.sleep(0.3)
        assert switch.received.count("api uuid_dump a json") == asked, "and no more"


async def test_events_without_end_put_off_nothing(switch: Switch) -> None:
    told = Told()
    async with following(switch, told):
        switch.answer("a")
        for _ in range(60):
            switch.event("CHANNEL_EXECUTE", "a")
            await asyncio.sleep(0.01)
            if told.live:
                break
        assert told.live == ["a"]
