"""Source 2 while it asks: what happens between a question and the use of its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from haclusterd.freeswitch.calls import Change
from tests.fixtures.freeswitch.fake_esl import json_event
from tests.unit.test_esl_source import Switch, Told, dump, following, until

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def switch() -> AsyncIterator[Switch]:
    fake = Switch()
    await fake.listen()
    yield fake
    await fake.close()


async def test_e1_a_change_while_a_leg_is_asked_for_is_asked_for_again(switch: Switch) -> None:
    told = Told()

    def change_the_other(line: str) -> str:
        if switch.legs["a"]["variable_current_application"] != "park":
            switch.legs["a"]["variable_current_application"] = "park"
            switch.event("CALL_UPDATE", "a")
        return switch.dump(line)

    async with following(switch, told):
        switch.api["uuid_dump b"] = change_the_other
        switch.answer("a")
        switch.answer("b")
        await until(lambda: told.live == ["a", "b", "a"])


async def test_s8_a_call_that_ends_while_others_are_asked_for_is_no_ghost(switch: Switch) -> None:
    told = Told()

    def end_the_other(line: str) -> str:
        if switch.legs.pop("a", None) is not None:
            switch.event("CHANNEL_HANGUP", "a")
        return switch.dump(line)

    async with following(switch, told) as source:
        switch.answer("a")
        await until(lambda: told.live == ["a"])
        switch.api["uuid_dump b"] = end_the_other
        switch.event("CALL_UPDATE", "a")
        switch.answer("b")
        await until(lambda: told.dead == ["a"])
        assert source.calls == 1


async def test_s8_a_call_that_ends_before_it_was_told_is_not_told(switch: Switch) -> None:
    told = Told()

    def end_the_other(line: str) -> str:
        if switch.legs.pop("a", None) is not None:
            switch.event("CHANNEL_HANGUP", "a")
        return switch.dump(line)

    async with following(switch, told) as source:
        switch.api["uuid_dump b"] = end_the_other
        switch.answer("a")
        switch.answer("b")
        await until(lambda: "b" in told.live)
        await asyncio.sleep(0.2)
        assert source.calls == 1
        assert told.live.count("a") == told.dead.count("a")


class SlowlyTold(Told):
    """A consumer within whose time the first call ends."""

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self.switch = switch

    async def take(self, changes: list[Change]) -> None:
        if not self.changes:
            del self.switch.legs["a"]
            self.switch.event("CHANNEL_HANGUP", "a")
            await asyncio.sleep(0.1)
        await super().take(changes)


async def test_s8_a_call_that_ends_while_it_is_told_gets_its_tombstone(switch: Switch) -> None:
    told = SlowlyTold(switch)
    async with following(switch, told):
        switch.answer("a")
        await until(lambda: told.dead == ["a"])


async def test_a_call_answered_as_the_fence_closed_is_told_when_it_opens(switch: Switch) -> None:
    told = Told()
    async with following(switch, told) as source:
        switch.answer("a")
        source.set_fenced("east", True)
        await until(lambda: "api uuid_dump a json" in switch.received)
        await asyncio.sleep(0.1)
        assert told.live == []
        source.set_fenced("east", False)
        await until(lambda: told.live == ["a"])


async def test_the_end_of_another_process_does_not_silence_this_one(switch: Switch) -> None:
    told = Told()
    async with following(switch, told):
        switch.answer("a")
        await until(lambda: told.live == ["a"])
        switch.send_all(json_event({"Event-Name": "SHUTDOWN", "Core-UUID": "core-before"}))
        del switch.legs["a"]
        switch.event("CHANNEL_HANGUP", "a")
        await until(lambda: told.dead == ["a"])


async def test_a_uuid_that_is_no_word_of_a_command_stops_nobody_elses(switch: Switch) -> None:
    told = Told()
    async with following(switch, told):
        switch.event("CHANNEL_ANSWER", "a\nb")
        switch.legs["good"] = dump() | {"Unique-ID": "good"}
        switch.api["uuid_dump good"] = lambda _: json.dumps(switch.legs["good"])
        switch.event("CHANNEL_ANSWER", "good")
        await until(lambda: told.live == ["good"])


async def test_s8_a_call_that_ends_while_others_are_read_is_in_no_snapshot(switch: Switch) -> None:
    """What the next agent reads at its start is logged as it is; nobody else knows of this end."""
    told = Told()

    def end_the_other(line: str) -> str:
        if switch.legs.pop("a", None) is not None:
            switch.event("CHANNEL_HANGUP", "a")
        return switch.dump(line)

    async with following(switch, told) as source:
        switch.legs["a"] = dump() | {"Unique-ID": "a"}
        switch.legs["b"] = dump() | {"Unique-ID": "b"}
        switch.api["uuid_dump b"] = end_the_other
        assert [record.uuid for record in await source.snapshot()] == ["b"]


async def test_a_consumer_that_cannot_reset_stops_nothing(switch: Switch) -> None:
    told = Told()

    async def broken() -> None:
        raise RuntimeError("not now")

    async with following(switch, told) as source:
        source._on_reset = broken
        switch.core_uuid = "core-b"
        switch.legs["a"] = dump() | {"Unique-ID": "a"}
        switch.drop_all()
        await until(lambda: told.live == ["a"])
