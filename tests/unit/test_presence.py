"""Presence and message waiting between agents: what travels, what does not, and how far."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from haclusterd.agent import presence as agent_presence
from haclusterd.agent import subscriptions as agent_subscriptions
from haclusterd.agent.presence import Presence
from haclusterd.agent.subscriptions import Said, Subscriptions, packed, unpacked
from haclusterd.freeswitch import subscription_db
from haclusterd.freeswitch.esl_protocol import Event
from haclusterd.freeswitch.presence import Refused, Word, checked, multicast, word_of
from haclusterd.freeswitch.registrations import Refused as RowRefused
from haclusterd.freeswitch.subscription_db import Subscription, check

pytestmark = pytest.mark.timeout(20)

RINGS = {
    "Event-Name": "PRESENCE_IN", "Event-Calling-File": "switch_channel.c", "proto": "any",
    "from": "1000@lab.test", "Unique-ID": "u-1", "Answer-State": "ringing", "status": "CS_ROUTING",
    "Caller-Caller-ID-Name": "J\u00f6rg <b>", "Core-UUID": "x", "variable_secret": "y",
}  # fmt: skip
WAITS = {
    "Event-Name": "MESSAGE_WAITING", "MWI-Messages-Waiting": "yes",
    "MWI-Message-Account": "sip:2000@lab.test", "MWI-Voice-Message": "2/0 (0/0)",
}  # fmt: skip


def test_what_mod_sofia_reads_travels_and_nothing_else() -> None:
    word = word_of(Event(RINGS))
    assert word is not None
    assert word.headers["answer-state"] == "ringing"
    assert word.headers["Caller-Caller-ID-Name"] == "J\u00f6rg b"
    assert {"Core-UUID", "variable_secret"}.isdisjoint(word.headers)
    told = multicast(word)
    assert told["Event-Subclass"] == "multicast::event"
    assert (told["Orig-Event-Name"], told["Orig-from"]) == ("PRESENCE_IN", "1000@lab.test")
    waits = word_of(Event(WAITS))
    assert waits == Word("MESSAGE_WAITING", {k: v for k, v in WAITS.items() if k != "Event-Name"})


@pytest.mark.parametrize(
    "more",
    [
        {"Event-Calling-File": "sofia_presence.c"},  # an answer to a probe: known to this node only
        {"Event-Calling-File": "sofia_reg.c"},
        {"Event-Name": "CHANNEL_CREATE"},
    ],
)
def test_what_only_one_node_means_stays_there(more: dict[str, str]) -> None:
    assert word_of(Event({**RINGS, **more})) is None


def test_a_light_for_one_phone_that_asked_stays_there_but_what_a_phone_published_travels() -> None:
    assert word_of(Event({**WAITS, "sub-call-id": "x"})) is None
    assert word_of(Event({**WAITS, "call-id": "x"})) is None
    published = {
        "Event-Calling-File": "sofia_presence.c",
        "Event-Calling-Function": "sofia_presence_handle_sip_i_publish",
    }
    assert word_of(Event({**RINGS, **published})) is not None


@pytest.mark.parametrize(
    "account", ["", "2000", "2000@", "@lab.test", "2000@lab test", "a@b@c", "x\n@h", "%0a@h"]
)
def test_an_account_without_a_host_would_end_freeswitch(account: str) -> None:
    with pytest.raises(Refused, match="no user@host"):
        checked(Word("MESSAGE_WAITING", {**dict(WAITS), "MWI-Message-Account": account}))
    with pytest.raises(Refused):
        word_of(Event({**RINGS, "from": account}))


@pytest.mark.parametrize(
    "word",
    [
        Word("SHUTDOWN", {"from": "a@b"}),
        Word("PRESENCE_IN", {"from": "a@b", "Event-Name": "x"}),
        Word("PRESENCE_IN", {"from": "a@b", "status": "a\r\nb"}),
        Word("PRESENCE_IN", {"from": "a@b", "status": "%0a"}),
        Word("PRESENCE_IN", {"from": "a@b", "status": "<x/>"}),
        Word("PRESENCE_IN", {"from": "a@b", "status": "x" * 256}),
        Word("MESSAGE_WAITING", {"MWI-Message-Account": "a@b"}),
    ],
)
def test_hostile_words_are_refused(word: Word) -> None:
    with pytest.raises(Refused):
        checked(word)


class Wire:
    """Two agents' mesh, and their FreeSWITCHes as far as presence needs them."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.sent: list[tuple[str, str, bytes]] = []
        self.events: list[Mapping[str, str]] = []

    def register(self, method: str, answer: Any) -> None:
        self.answers[method] = answer

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        self.sent.append((node, method, payload))
        return b""

    def factory(self, **options: Any) -> Any:
        self.options = options
        return self

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def api(self, line: str) -> str:
        return "fs-a"

    async def sendevent(self, name: str, headers: Mapping[str, str]) -> str:
        self.events.append(headers)
        return "+OK"


def view(owner: str, node: str = "a", epoch: int = 1) -> Any:
    state = "owned" if owner == node else "standby"
    service = SimpleNamespace(name="east", owner=owner, local_state=state, epoch=epoch)
    return SimpleNamespace(node=node, services=[service])


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_events_are_told_once_and_passed_on_by_who_serves() -> None:
    wire = Wire()
    part = Presence("a", ["a", "b", "c"], wire)
    await part.start(wire.factory)
    try:
        for n in range(150):
            await wire.options["on_event"](Event({**RINGS, "Unique-ID": f"u-{n}"}))
        await until(lambda: len(wire.sent) == 4)
        assert [node for node, _, _ in wire.sent] == ["b", "c", "b", "c"]
        payload = wire.sent[0][2]
        await wire.answers["presence"]("b", payload)
        await asyncio.sleep(0.05)
        assert wire.events == []  # nobody subscribes at a node that serves nothing
        part.observe(view("a"))
        hostile = msgspec.msgpack.encode([Word("SHUTDOWN", {}), Word("PRESENCE_IN", {"from": "x"})])
        await wire.answers["presence"]("b", hostile)
        await wire.answers["presence"]("b", payload)
        await until(lambda: len(wire.events) == agent_presence.AT_ONCE)
        assert part.counters()["presence_refused"] == 2
        assert len(wire.sent) == 4, "what was passed on is not told again"
        many = msgspec.msgpack.encode([Word("PRESENCE_IN", {"from": "a@b"})] * 101)
        for odd in (b"", b"\xc1", many):
            with pytest.raises(ValueError, match=r"presence|events"):
                await wire.answers["presence"]("b", odd)
    finally:
        await part.stop()


async def test_a_flood_is_bounded_and_counted() -> None:
    wire = Wire()
    part = Presence("a", ["a", "b"], wire)
    await part.start(wire.factory)
    for _ in range(agent_presence.WAITING_MAX + 7):
        await wire.options["on_event"](Event(RINGS))
    assert part.counters()["presence_dropped"] == 7
    await part.stop()


ROW = Subscription(
    "sip", "2000", "lab.test", "1000", "lab.test", "", "dialog",
    '"user" <sip:2000@10.77.0.3:5062>', "1-4@10.77.0.3", "<sip:2000@lab.test>;tag=t1",
    "SIP/2.0/UDP 10.77.0.3:5062;branch=z9;rport=5062", 4_000_000_000, "phone",
    "application/dialog-info+xml ", "east", "5062", "10.77.0.3", 3, "", "<sip:1000@lab.test>;tag=F",
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"full_to": "<sip:1000@lab.test>;tag=F\r\nX: y"}, {"full_from": "sip:a@b"},
        {"contact": "<sip:a@b;x={y}>"}, {"call_id": "a b"}, {"event": "dialog'"},
        {"sub_to_user": "a%0ab"}, {"sub_to_host": "h;x"}, {"presence_hosts": "a'b"},
        {"expires": 0}, {"version": -2}, {"network_port": "x"}, {"proto": 5}, {"user_agent": 5},
    ],
)  # fmt: skip
def test_hostile_subscriptions_are_refused(change: dict[str, Any]) -> None:
    assert check(ROW) == ROW
    with pytest.raises(RowRefused):
        check(ROW._replace(**change))


def database(folder: Path, *rows: Subscription) -> Path:
    path = folder / "sofia_reg_east.db"
    with sqlite3.connect(path) as connection:
        columns = ", ".join([*subscription_db.COLUMNS, "hostname"])
        connection.execute(f"CREATE TABLE sip_subscriptions({columns})")
        for row in rows:
            marks = ", ".join("?" * (len(row) + 1))
            connection.execute(f"INSERT INTO sip_subscriptions VALUES ({marks})", (*row, "old"))
    return path


def stored(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as connection:
        return connection.execute(
            "SELECT call_id, expires, hostname FROM sip_subscriptions ORDER BY call_id"
        ).fetchall()


def test_rows_are_handed_over_but_not_over_newer_ones(tmp_path: Path) -> None:
    newer = ROW._replace(call_id="newer", expires=4_000_000_500)
    older = ROW._replace(call_id="older", expires=3_999_999_000)
    path = database(tmp_path, newer, older)
    rows = [ROW, newer._replace(expires=4_000_000_000), older._replace(expires=4_000_000_000)]
    assert subscription_db.hand_over(path, rows, "fs-c") == 2
    assert stored(path) == [
        ("1-4@10.77.0.3", 4_000_000_000, "fs-c"),
        ("newer", 4_000_000_500, "old"),
        ("older", 4_000_000_000, "fs-c"),
    ]
    found, refused = subscription_db.read(path, "east")
    assert (len(found), refused) == (3, 0)
    subscription_db.clear(path, "east")
    assert stored(path) == []


def test_only_so_many_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_db, "ROWS_MAX", 2)
    rows = [ROW._replace(call_id=str(n)) for n in range(5)]
    path = database(tmp_path, *rows, ROW._replace(call_id="over", expires=5))
    found, refused = subscription_db.read(path, "east")
    assert [row.call_id for row in found] == ["0", "1"]
    assert refused == 1


def test_what_agents_tell_each_other_is_bounded() -> None:
    said = Said("east", 3, [tuple(ROW)])
    assert unpacked(packed(said)) == said
    bomb = zlib.compress(b"\0" * (agent_subscriptions.UNPACKED_BYTES_MAX + 1))
    many = zlib.compress(msgspec.msgpack.encode(Said("east", 3, [tuple(ROW)] * 1001)))
    for odd in (b"", b"x", bomb, zlib.compress(b"\xc1"), packed(said)[:-3], many):
        with pytest.raises(ValueError, match="subscriptions"):
            unpacked(odd)


async def test_what_does_not_fit_is_counted_and_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None would be told otherwise, and a successor would hand over what it heard hours ago."""
    monkeypatch.setattr(agent_subscriptions, "LOOK_S", 0.01)
    monkeypatch.setattr(agent_subscriptions, "PAYLOAD_BYTES_MAX", 1000)
    rows = [ROW._replace(call_id=random.Random(n).randbytes(30).hex()) for n in range(40)]
    database(tmp_path, *rows)
    wire = Wire()
    part = site(wire, tmp_path)
    await part.start(tmp_path / "core.db", wire.factory)
    try:
        part.observe(view("a", epoch=2))
        await until(lambda: len(wire.sent) == 1)
        told = len(unpacked(wire.sent[0][2]).rows)
        assert 5 < told < 40
        assert part.counters()["subscriptions_refused"] == 40 - told
    finally:
        await part.stop()


def site(wire: Wire, tmp_path: Path) -> Subscriptions:
    nodes = [SimpleNamespace(id=name) for name in "ab"]
    services = [SimpleNamespace(name="east", profiles=("east",))]
    spec: Any = SimpleNamespace(nodes=nodes, me=0, services=services)
    return Subscriptions(spec, wire)


async def test_the_owner_tells_and_the_successor_hands_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_subscriptions, "LOOK_S", 0.01)
    path = database(tmp_path, ROW)
    wire = Wire()
    part = site(wire, tmp_path)
    await part.start(tmp_path / "core.db", wire.factory)
    try:
        part.observe(view("b"))
        await until(lambda: stored(path) == [])  # what is left of an earlier life is nobody's
        said = packed(Said("east", 1, [tuple(ROW), tuple(ROW._replace(profile_name="x")), (1,)]))
        await wire.answers["subscriptions"]("b", said)
        old = packed(Said("east", 0, []))
        await wire.answers["subscriptions"]("c", old)  # an owner that was: not heard
        assert part.counters()["subscriptions_refused"] == 2
        assert wire.sent == []
        part.recover("east", 2)
        await until(lambda: stored(path) == [(ROW.call_id, ROW.expires, "fs-a")])
        part.observe(view("a", epoch=2))
        await until(lambda: len(wire.sent) == 1)
        node, method, payload = wire.sent[0]
        assert (node, method, unpacked(payload)) == (
            "b", "subscriptions", Said("east", 2, [tuple(ROW)])
        )  # fmt: skip
        await asyncio.sleep(0.1)
        assert len(wire.sent) == 1, "only changes are told at once"
        await wire.answers["subscriptions"]("b", packed(Said("east", 9, [])))
        assert part.counters()["subscriptions_handed_over"] == 1
        subscription_db.clear(path, "east")
        await until(lambda: len(wire.sent) == 2)
    finally:
        await part.stop()


async def test_eg8_subscriptions_wait_for_a_table_that_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows were dropped after 5 s, and the others told that there are none."""
    monkeypatch.setattr(agent_subscriptions, "LOOK_S", 0.01)
    monkeypatch.setattr(agent_subscriptions, "TRY_AGAIN_S", 0.001)
    monkeypatch.setattr(agent_subscriptions, "TRY_AGAIN_MAX_S", 0.01)
    path = database(tmp_path)
    wire = Wire()
    part = site(wire, tmp_path)
    await part.start(tmp_path / "core.db", wire.factory)
    try:
        part.observe(view("b"))
        await wire.answers["subscriptions"]("b", packed(Said("east", 1, [tuple(ROW)])))
        await until(lambda: not part._changing)
        away = path.rename(path.with_suffix(".away"))
        part.recover("east", 2)
        await asyncio.sleep(0.3)  # 30 tries
        part.recover("east", 3)  # heart's word comes twice
        await asyncio.sleep(0.05)
        assert wire.sent == [], "nobody is told of a table that is not as it has to be"
        away.rename(path)
        await until(lambda: stored(path) == [(ROW.call_id, ROW.expires, "fs-a")])
        await until(lambda: len(wire.sent) == 1)
        assert part.counters()["subscriptions_lost"] == 0
    finally:
        await part.stop()


async def test_eg8_subscriptions_that_cannot_be_handed_over_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent_subscriptions, "HAND_OVER_S", 0.05)
    monkeypatch.setattr(agent_subscriptions, "TRY_AGAIN_S", 0.01)
    wire = Wire()
    part = site(wire, tmp_path)
    await part.start(tmp_path / "core.db", wire.factory)
    try:
        await wire.answers["subscriptions"]("b", packed(Said("east", 1, [tuple(ROW)])))
        part.recover("east", 2)
        await until(lambda: part.counters()["subscriptions_lost"] == 1)
        assert "1 subscriptions of east are lost" in caplog.text
        part.recover("east", 3)
        part.observe(view("b", epoch=4))
        await wire.answers["subscriptions"]("b", packed(Said("east", 4, [tuple(ROW)])))
        await asyncio.sleep(0.05)
        assert part._held["east"][0] == 4, "kept for the next takeover"
    finally:
        await part.stop()
