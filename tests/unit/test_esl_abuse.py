"""Hostile values, floods and half events: nothing but field values reaches another FreeSWITCH.

What an ESL connection does with broken bytes is in test_esl_protocol and test_esl_contract; here is
what is made of calls whose values a stranger chose.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from haclusterd.agent.alarms import alarms
from haclusterd.agent.local_switch import LocalSwitch
from haclusterd.agent.switch import SwitchEvents
from haclusterd.config import FreeSwitch
from haclusterd.freeswitch import metadata
from haclusterd.freeswitch.calls import CallSource
from haclusterd.freeswitch.esl import EslConnection, EslSettings, EventItem, EventsLost
from haclusterd.sync import codec
from tests.fixtures.agent_parts import FakeSwitch
from tests.fixtures.freeswitch import fake_recovery
from tests.fixtures.freeswitch.fake_esl import FakeEsl, json_event
from tests.fixtures.freeswitch.fake_recovery import record
from tests.unit import test_calls, test_recovery
from tests.unit.test_calls import TONE, Told, following, until
from tests.unit.test_recovery import recovering, short

pytestmark = pytest.mark.timeout(60)
told, rows = test_calls.told, test_calls.switch
switch = test_recovery.switch

# Call-IDs of a stranger, where the profile takes them for uuids.
BAD_UUIDS = [
    "a\nb",
    "x\r\n\r\napi hupall\r\n\r\n",
    "x sip_cseq",
    "x\tfsctl shutdown",
    "\x1b[2J",
    "o'brien",
    "a\\sb",
    "grüße",
    "u" * 256,
]
EVIL = {
    "sip_h_X-A": "a\r\nContent-Type: api/response\r\n\r\n",
    "sip_h_X-B": "%0A%0Aapi hupall%0A%0A",
    "sip_h_X-C": "</variables><variables><x>1</x>",
    "sip_h_X-D": "'); DROP TABLE recovery; --",
    "sip_h_X-E": "${api(hupall)} ${system(reboot)}",
}
COMMANDS = re.compile(
    r"auth ClueCon|event json [A-Z_ ]+|filter [\w-]+ \w+|api global_getvar core_uuid"
    r"|api uuid_(getvar|exists) [!-~]{1,255}( sip_cseq| bridge_uuid| remote_audio_media_flow)?"
    r"|api sofia profile pa recover|api fsctl recover sofia:pa#\d"
    r'|api json \{"command":"mediaStats","data":\{"uuid":"[!-~]{1,255}"\}\}'
)


def evil_text() -> str:
    text = TONE
    for name, value in EVIL.items():
        text = metadata.set_variable(text, name, value)
    return text


async def test_calls_that_cannot_be_told_are_counted_and_the_others_are_told(
    rows: test_calls.Switch, told: Told
) -> None:
    for uuid in BAD_UUIDS:
        rows.answer(uuid)
    rows.answer("big", text=TONE.replace("<sip_cseq>", "<x>" + "x" * 1_000_000 + "</x><sip_cseq>"))
    rows.answer("good", text=evil_text())
    async with following(rows, told) as source:
        await until(lambda: [r.uuid for r in told.records] == ["good"])
        await until(lambda: source.refused == len(BAD_UUIDS) + 1)
        rows.answer("late\n")
        rows.update("late\n", "8")
        rows.update("late\n", "9")
        rows.answer("next")
        await until(lambda: [r.uuid for r in told.records] == ["good", "next"])
        assert source.refused == len(BAD_UUIDS) + 2, "each call once"
        assert f"{len(BAD_UUIDS) + 2} calls cannot be recovered" in source.unprotected
        assert [r.uuid for r in await source.snapshot()] == ["good", "next"]
        assert source.problem == ""
        for uuid in [*BAD_UUIDS, "big", "late\n"]:
            rows.hang_up(uuid)
        await until(lambda: source.unprotected == "")
        assert told.ended == []
    good = told.records[0]
    assert good.metadata == evil_text()
    assert {name: metadata.variable(good.metadata, name) for name in EVIL} == EVIL
    assert metadata.variable(good.metadata, "x") == ""


async def test_a_name_that_is_not_utf8_does_not_hide_the_other_calls(
    rows: test_calls.Switch, told: Told
) -> None:
    raw = TONE.replace("<caller_id_name>", "<caller_id_name>\udcff\udcfe", 1)
    assert raw != TONE
    content = raw.encode("utf-8", "surrogateescape")
    rows.db.execute(
        "INSERT INTO recovery VALUES (?, 'sofia', 'pa', 'h', 'odd', CAST(? AS TEXT))",
        (rows.core_uuid, content),
    )
    rows.answer("good")
    async with following(rows, told) as source:
        await until(lambda: {r.uuid for r in told.records} == {"odd", "good"})
        assert len(await source.snapshot()) == 2
        assert (source.problem, source.refused) == ("", 0)
    odd = next(r for r in told.records if r.uuid == "odd")
    assert "<caller_id_name>\ufffd\ufffd" in odd.metadata
    assert codec.record_of(codec.item_of(odd, 1, 1)) == odd, "it can travel"


async def test_only_field_values_reach_the_next_freeswitch(switch: fake_recovery.Switch) -> None:
    hostile = [record(uuid) for uuid in BAD_UUIDS]
    elsewhere = [
        msgspec.structs.replace(record(f"p{n}"), profile=profile)
        for n, profile in enumerate(["other", "pa\n\napi hupall", "pa recover; fsctl shutdown"])
    ]
    entities = [
        msgspec.structs.replace(record("entity"), metadata="<!DOCTYPE x>" + TONE),
        msgspec.structs.replace(record("cdata"), metadata=TONE.replace("<cdr ", "<cdr <![CDATA[")),
    ]
    odd = msgspec.structs.replace(record("odd"), metadata=evil_text(), partner="no\nbody",
                                  runtime_uuid="x'; --\n", sip_cseq="1\n\napi hupall")  # fmt: skip
    plain = [record(f"call-{n}") for n in range(3)]
    everything = [*hostile, *elsewhere, *entities, odd, *plain]
    async with recovering(switch) as recovery:
        await until(lambda: recovery.problem == "")
        found = await recovery.recover("east", ["pa"], everything, epoch=1)
        again = await recovery.recover("east", ["pa"], everything, epoch=1)
    verdicts = short(found)
    assert verdicts == short(again)
    assert [v.uuid for v in found] == [r.uuid for r in everything], "a verdict for each of them"
    assert {r.uuid for r in (*hostile, *elsewhere, *entities)} == {
        uuid for uuid, verdict in verdicts.items() if verdict == "lost"
    }
    assert all("cannot stand in a command" in v.reason for v in found[: len(hostile)])
    assert not [line for line in switch.received if not COMMANDS.fullmatch(line)]
    (injected,) = [text for uuid, _, text in switch.recovered_rows if uuid == "odd"]
    # What is of SIP came in one line: lines in it are a caller's %0D%0A (`percent`).
    in_lines = {n: v.replace("\r\n", "%0D%0A") if n[:4] == "sip_" else v for n, v in EVIL.items()}
    assert in_lines != EVIL
    assert {name: metadata.variable(injected, name) for name in EVIL} == in_lines


async def test_a_recovery_bears_a_flood_and_an_end_within_an_event(
    switch: fake_recovery.Switch,
) -> None:
    """20,000 events of others and an EOF within one: the answers to questions decide."""
    many = [record(f"call-{n}") for n in range(40)]
    flood = b"".join(
        json_event({"Event-Name": "CHANNEL_HANGUP", "Unique-ID": f"x{n}", "v": "y" * 50})
        for n in range(20_000)
    )
    async with recovering(switch, deadline_ms=5000) as recovery:
        await until(lambda: recovery.problem == "")
        work = asyncio.create_task(recovery.recover("east", ["pa"], many, epoch=1))
        await until(lambda: bool(switch.lines))
        switch.send_all(flood)
        await asyncio.sleep(0.1)
        switch.send_all(json_event({"Event-Name": "CHANNEL_HANGUP", "Unique-ID": "call-1"})[:-9])
        switch.drop_all()
        assert set(short(await work).values()) == {"recovered"}


async def test_a_flood_is_counted_where_it_is_not_kept() -> None:
    """20,000 events and a consumer that stands still: a bound, a count, a mark, and order."""
    seen: list[EventItem] = []
    gate = asyncio.Event()

    async def slow(item: EventItem) -> None:
        await gate.wait()
        seen.append(item)

    async with FakeEsl() as server:
        settings = EslSettings("127.0.0.1", server.port, "ClueCon", event_queue_max=1000)
        esl = EslConnection(settings, events=["MODULE_LOAD"], on_event=slow)
        await esl.start()
        await esl.wait_up(2000)
        for at in range(20):
            server.send_all(
                b"".join(
                    json_event({"Event-Name": "MODULE_LOAD", "n": str(at * 1000 + n)})
                    for n in range(1000)
                )
            )
            assert (await esl.api("status", 10_000)).startswith("UP"), "commands go on"
        gate.set()
        await until(lambda: bool(seen) and not isinstance(seen[-1], EventsLost)
                    and seen[-1].get("n") == "19999")  # fmt: skip
        await esl.stop()
    numbers = [int(item.get("n")) for item in seen if not isinstance(item, EventsLost)]
    marks = [item for item in seen if isinstance(item, EventsLost)]
    assert numbers == sorted(numbers)
    assert len(numbers) + esl.events_dropped >= 20_000
    assert "event queue overflow" in {mark.reason for mark in marks}
    assert len(numbers) <= 1100


async def test_half_a_shutdown_is_none(rows: test_calls.Switch, told: Told) -> None:
    """FreeSWITCH closes within its SHUTDOWN event: calls that end later have ended."""
    async with FakeEsl() as server:
        server.api["global_getvar core_uuid"] = rows.core_uuid
        settings = EslSettings("127.0.0.1", server.port, "ClueCon", backoff_first_ms=5)
        source = CallSource(
            rows.path, {"pa": "east"}, told.take, poll_ms=2, tombstone_hold_ms=20,
            esl_factory=lambda **options: EslConnection(settings, **options),
        )  # fmt: skip
        rows.answer("a")
        await source.start()
        await until(lambda: len(told.changes) == 1)
        server.send_all(json_event({"Event-Name": "SHUTDOWN", "Core-UUID": rows.core_uuid})[:-3])
        await asyncio.sleep(0.05)
        server.drop_all()
        await until(lambda: server.connections == 2)
        rows.hang_up("a")
        await until(lambda: told.ended == ["a"])
        await source.stop()


async def test_a_header_block_of_a_megabyte_costs_one_connection() -> None:
    """Not what FreeSWITCH sends: refused, and everything is read anew over the next connection."""
    seen: list[EventItem] = []

    async def sink(item: EventItem) -> None:
        seen.append(item)

    async with FakeEsl() as server:
        settings = EslSettings("127.0.0.1", server.port, "ClueCon", backoff_first_ms=5)
        esl = EslConnection(settings, events=["MODULE_LOAD"], on_event=sink)
        await esl.start()
        await esl.wait_up(2000)
        server.send_all(b"X: " + b"x" * 1_000_000 + b"\n\n")
        await until(lambda: seen == [EventsLost("connected")] * 2)
        assert esl.logins == 2
        await esl.stop()


def test_unprotected_calls_are_an_alarm_and_every_loss_a_metric() -> None:
    switch = FakeSwitch()
    switch.unprotected = "2 calls cannot be recovered elsewhere: why"
    life = SimpleNamespace(
        starter=SimpleNamespace(problem="", attempts=0), process=object(), profiles={}
    )
    (alarm,) = alarms({}, life, switch)  # type: ignore[arg-type]
    assert (alarm.name, alarm.text) == ("unprotected_calls", switch.unprotected)


async def test_the_switch_counts_what_its_connections_lost(tmp_path: Path) -> None:
    (tmp_path / "esl.password").write_text("ClueCon")
    async with FakeEsl() as server:
        server.api["show"] = '{"rows":[]}'
        section = FreeSwitch(
            "127.0.0.1", server.port, tmp_path / "esl.password", tmp_path / "core.db",
            tmp_path / "pid", (),
        )  # fmt: skip

        async def nothing(*_: object) -> None: ...

        events = SwitchEvents(nothing, nothing, lambda: None, lambda _: None, lambda _: None,
                              lambda: None, lambda _: None)  # fmt: skip
        switch = LocalSwitch(section, {"east": "east"}, events, tmp_path / "sock")
        await switch.start()
        await until(lambda: switch.counters()["esl_logins"] >= 5, 10)
        await until(lambda: switch.capabilities is not None)
        assert switch.counters()["esl_events_dropped"] == 0
        server.drop_all()
        await until(lambda: switch.counters()["esl_logins"] >= 10, 10)
        await switch.stop()
