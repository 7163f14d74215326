"""The stream of events: gapless per origin, resumable anywhere, gaps said aloud (MS22 to MS25)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from haclusterd.agent import events
from haclusterd.agent.events import Book, Event, Position, Reader, TooManyReaders, parse, written
from haclusterd.agent.forwarding import Forwarding
from haclusterd.agent.history import History
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.publishing import Publishing
from haclusterd.agent.replication import AgentReplicator
from haclusterd.agent.verdicts import Crier
from haclusterd.core.records import CallVerdict, Tombstone
from haclusterd.sync.replicator import Replicator
from tests.unit.sync_cluster import NODES, Cluster, call, until

pytestmark = pytest.mark.timeout(60)


class Host:
    """One node: its book, and what brings the others' events."""

    def __init__(self, name: str, run: int, mesh: Replicator) -> None:
        self.book = Book(name, run)
        self.mesh = mesh
        self.forwarding = Forwarding(self.book, NODES, mesh, lambda: mesh.mesh.sessions.keys())

    def say(self, *texts: str) -> None:
        for text in texts:
            self.book.publish("decision", row="A1", text=text)

    def texts(self, after: str) -> list[str]:
        """All that is there after a position, as text; gaps with their bounds."""
        reader = self.book.read(parse(after))
        try:
            return [shown(e) for e in reader.take()]
        finally:
            reader.close()


def shown(event: Event) -> str:
    if event.kind == "gap":
        return f"gap {event.origin} {event.from_}..{event.to or '?'}"
    return event.text


class Hosts:
    """Starts and kills them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.up: dict[str, Host] = {}

    async def start(self, name: str, run: int) -> Host:
        host = Host(name, run, await self.cluster.start(name))
        await host.forwarding.start()
        self.up[name] = host
        return host

    async def kill(self, name: str) -> None:
        host = self.up.pop(name)
        await host.forwarding.stop()
        await self.cluster.kill(name)


@pytest.fixture
async def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hosts]:
    monkeypatch.setattr("haclusterd.agent.forwarding.AGAIN_MAX_S", 0.3)
    made = Hosts(Cluster(tmp_path))
    yield made
    for name in list(made.up):
        await made.kill(name)


def knows(host: Host, origin: str, last: int) -> bool:
    rings = host.book.rings.get(origin)
    return bool(rings) and rings[-1].last >= last  # type: ignore[index]


async def test_ms23_events_of_all_are_at_every_node_marked_as_forwarded(hosts: Hosts) -> None:
    a, b = await hosts.start("a", 100), await hosts.start("b", 200)
    a.say("before anybody followed")
    await until(lambda: knows(b, "a", 1))
    follower = b.book.read()
    a.say("a1", "a2")
    b.say("b1")
    found: list[Event] = []
    while len(found) < 3:
        found += await follower.next()
    assert [(e.text, e.forwarded) for e in found if e.origin == "a"] == [("a1", True), ("a2", True)]
    assert [(e.text, e.forwarded) for e in found if e.origin == "b"] == [("b1", False)]
    assert [e.id for e in found if e.origin == "a"] == ["a:100:2", "a:100:3"]
    own = b.book.read({}, own_only=True)
    assert [e.text for e in own.take()] == ["b1"]


async def test_ms23_nothing_of_a_node_met_later_is_missed_and_its_past_is_not_news(
    hosts: Hosts,
) -> None:
    b = await hosts.start("b", 200)
    follower = b.book.read()
    a = await hosts.start("a", 100)
    a.say("past1", "past2")
    c = await hosts.start("c", 100)
    await until(lambda: knows(b, "a", 2) and "c" in b.book.rings)
    assert [e.text for e in follower.take()] == []
    a.say("a3")
    c.say("c1")
    await until(lambda: knows(b, "a", 3) and knows(b, "c", 1))
    assert [e.text for e in follower.take()] == ["a3", "c1"]


async def test_ms24_the_first_events_of_a_node_that_starts_later_are_not_missed(
    hosts: Hosts,
) -> None:
    """Its run is younger than the reader: none of it is the past."""
    b = await hosts.start("b", 200)
    follower, own_only = b.book.read(), b.book.read(own_only=True)
    now_ms = time.time_ns() // 1_000_000
    a = await hosts.start("a", now_ms)
    a.say("a1", "a2")
    c = await hosts.start("c", now_ms - 60_000)
    c.say("past")
    await until(lambda: knows(b, "a", 2) and knows(b, "c", 1))
    assert [e.text for e in follower.take()] == ["a1", "a2"]
    c.say("c2")
    await until(lambda: knows(b, "c", 2))
    assert [e.text for e in follower.take()] == ["c2"]
    assert own_only.take() == []


async def test_ms24_long_texts_of_any_script_are_forwarded(hosts: Hosts) -> None:
    """An answer between agents is bounded in bytes: a piece that is larger stops its origin."""
    a = await hosts.start("a", 100)
    a.say(*("\U0001f4de" * events.TEXT_CHARS_MAX for _ in range(3 * events.BATCH // 2)))
    b = await hosts.start("b", 200)
    await until(lambda: knows(b, "a", 300), 10)
    assert b.texts("a:100:0")[0] == "\U0001f4de" * events.TEXT_CHARS_MAX


async def test_ms24_the_node_that_was_followed_is_killed_in_mid_stream(hosts: Hosts) -> None:
    """Resumed at another node: every event of the dead one that any node has heard, in order, and
    a gap record for what went down with it."""
    a, b, c = [await hosts.start(name, 100) for name in NODES]
    a.say("a1", "a2", "a3")
    client = a.book.read({})
    got = [shown(e) for e in client.take()]
    at = client.cursor
    assert got == ["a1", "a2", "a3"]
    a.say("a4")
    await until(lambda: knows(b, "a", 4) and knows(c, "a", 4))
    await hosts.kill("a")
    b.say("b1")
    assert b.texts(at) == ["a4", "b1"]
    resumed = b.book.read(parse(at))
    assert [shown(e) for e in resumed.take()] == ["a4", "b1"]
    # a said more before it died than anybody heard; its next run tells that something is missing.
    a = await hosts.start("a", 500)
    a.say("new1")
    await until(lambda: knows(b, "a", 1) and b.book.rings["a"][-1].run == 500)
    assert [shown(e) for e in resumed.take()] == ["gap a 5..?", "new1"]
    assert a.texts("a:100:4")[:2] == ["gap a 5..?", "new1"], "also at the new run itself"


async def test_ms24_a_run_that_began_behind_the_last_one_by_the_clock_is_heard(
    hosts: Hosts,
) -> None:
    """Runs are named by the wall clock, which a host may have set back before it starts again."""
    a, b = await hosts.start("a", 500), await hosts.start("b", 100)
    a.say("a1")
    await until(lambda: knows(b, "a", 1))
    client = b.book.read(parse("a:500:1"))
    await hosts.kill("a")
    a = await hosts.start("a", 400)
    a.say("new1", "new2")
    await until(lambda: b.book.rings["a"][-1].run == 400 and knows(b, "a", 2))
    assert [shown(e) for e in client.take()] == ["gap a 2..?", "new1", "new2"]


async def test_ms23_bytes_that_are_no_text_stop_no_events(hosts: Hosts) -> None:
    """FreeSWITCH repeats in its errors what anybody wrote."""
    a, b = await hosts.start("a", 100), await hosts.start("b", 100)
    a.say("-ERR \udcff", "a2")
    await until(lambda: knows(b, "a", 2))
    assert b.texts("a:100:0") == ["-ERR ?", "a2"]


async def test_ms24_what_only_a_third_node_heard_is_told_there(hosts: Hosts) -> None:
    a, b, c = [await hosts.start(name, 100) for name in NODES]
    a.say("a1")
    await until(lambda: knows(b, "a", 1) and knows(c, "a", 1))
    await b.forwarding.stop()
    a.say("a2", "a3")
    await until(lambda: knows(c, "a", 3))
    await hosts.kill("a")
    assert b.texts("a:100:1") == []
    await until(lambda: "a" not in b.mesh.mesh.sessions)
    await b.forwarding.start()
    await until(lambda: knows(b, "a", 3))
    assert b.texts("a:100:1") == ["a2", "a3"]


async def test_ms24_a_planned_restart_is_no_gap(hosts: Hosts) -> None:
    """The next agent has the events of the last one and says where they ended."""
    a, b = await hosts.start("a", 100), await hosts.start("b", 100)
    a.say("a1", "a2")
    client = b.book.read({})
    await until(lambda: knows(b, "a", 2))
    assert [shown(e) for e in client.take()] == ["a1", "a2"]
    last = a.book.own
    await hosts.kill("a")
    last.add(Event("a:100:3", "decision", "a", 100, 3, text="a3, which nobody heard"))
    again = Host("a", 50, await hosts.cluster.start("a"))  # its clock went back
    again.book.resumed(last)
    await again.forwarding.start()
    hosts.up["a"] = again
    again.say("new1")
    await until(lambda: b.book.rings["a"][-1].run == 101 and knows(b, "a", 1))
    await until(lambda: b.book.rings["a"][0].closed)
    assert [shown(e) for e in client.take()] == ["a3, which nobody heard"]
    assert [shown(e) for e in client.take()] == ["new1"]
    assert again.texts("a:100:3") == ["new1"]


async def test_ms24_a_node_that_was_away_gets_what_it_missed(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEPT", 50)
    a, b = await hosts.start("a", 100), await hosts.start("b", 100)
    a.say("a1")
    await until(lambda: knows(b, "a", 1))
    client = b.book.read(parse("a:100:1"))
    b.mesh.mesh.sessions["a"].abort("test", "cut")
    a.say(*(f"a{n}" for n in range(2, 30)))
    await until(lambda: knows(b, "a", 29))
    assert [shown(e) for e in client.take()] == [f"a{n}" for n in range(2, 30)]
    await b.forwarding.stop()
    a.say(*(f"a{n}" for n in range(30, 101)))
    await b.forwarding.start()
    await until(lambda: knows(b, "a", 100))
    found = [shown(e) for e in client.take()]
    assert found == ["gap a 30..50", *(f"a{n}" for n in range(51, 101))]


def own(texts: int, run: int = 9, me: str = "a") -> Book:
    book = Book(me, run)
    for n in range(1, texts + 1):
        book.publish("decision", row="A1", text=f"a{n}")
    return book


def read_all(reader: Reader) -> list[str]:
    found: list[str] = []
    while more := reader.take():
        found += [shown(e) for e in more]
    return found


async def test_ms24_what_the_ring_no_longer_holds_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT", 10)
    book = own(25)
    assert read_all(book.read(parse("a:9:3"))) == ["gap a 4..15", *(f"a{n}" for n in range(16, 26))]
    assert read_all(book.read({})) == ["gap a 1..15", *(f"a{n}" for n in range(16, 26))]
    assert read_all(book.read(parse("a:9:20"))) == [f"a{n}" for n in range(21, 26)]
    assert read_all(book.read(parse("a:9:25"))) == []
    assert read_all(book.read()) == []
    assert read_all(book.read(parse("a:3:7")))[:2] == ["gap a 8..?", "a16"], "a run long gone"
    assert read_all(book.read(parse("a:11:7")))[0] == "gap a 8..?", "or one that never was"
    slow = book.read()
    for n in range(26, 60):
        book.publish("decision", row="A1", text=f"a{n}")
    assert read_all(slow) == ["gap a 26..49", *(f"a{n}" for n in range(50, 60))]
    gap = book.read({}).take()[0]
    assert parse(gap.id)["a"] == Position(9, 49), "to go on after a gap is to go on behind it"


async def test_ms24_a_position_ahead_of_what_this_node_has_heard_waits() -> None:
    book = own(0, me="b")
    ring = events.Ring(5)
    book.place("a", ring)
    for n in (1, 2):
        ring.add(Event(f"a:5:{n}", "decision", "a", 5, n, text=f"a{n}"))
    assert read_all(book.read(parse("a:5:4"))) == [], "no event twice"
    later = book.read(parse("a:7:4"))
    assert read_all(later) == [], "a run that this node will hear of"
    book.current["a"] = 5
    assert read_all(later) == ["gap a 5..?", "a1", "a2"], (
        "a itself is in contact: it is no run of it"
    )


async def test_ms24_keepalives_and_bounds() -> None:
    book = own(3)
    reader = book.read()
    (alive,) = await reader.next(0.01)
    assert (alive.kind, alive.cursor, alive.id) == ("keepalive", "a:9:3", "a:9:3")
    waiting = asyncio.create_task(reader.next(5))
    await asyncio.sleep(0)
    book.publish("decision", row="A1", text="now")
    assert [e.text for e in await asyncio.wait_for(waiting, 1)] == ["now"]
    readers = [reader, *(book.read() for _ in range(events.READERS_MAX - 1))]
    with pytest.raises(TooManyReaders, match="end one"):
        book.read()
    for one in readers:
        one.close()
    assert not book.waiters
    big = own(0)
    for _ in range(events.BATCH + 5):
        big.publish("decision", row="A1", text="x" * 5000)
    batch = big.read({}).take()
    assert sum(len(e.text) for e in batch) <= events.BATCH_BYTES
    assert len(big.read({}).take()[0].text) == events.TEXT_CHARS_MAX


def test_positions_are_parsed_as_they_are_written() -> None:
    at = {"fs-a": Position(1790000000000, 17), "fs-b": Position(3, 0)}
    assert parse(written(at)) == at
    assert parse("") == {}
    for wrong in ("x", "a:b:c", "a:1", ":1:2", "a:1:-2", "a:1:2,,b", "a:1:99999999999999999"):
        with pytest.raises(OperatorError, match="fs-a:1790000000000:17"):
            parse(wrong)


async def test_ms25_an_event_comes_after_it_can_be_seen(cluster_pair: Publishing) -> None:
    """Calls: `calls` shows it. Heart's decisions: the view that shows them has come."""
    publishing, replicator = cluster_pair, cluster_pair._replicator
    assert replicator is not None
    book, seen = publishing.book, []
    publish = book.publish

    def look(kind: str, at_us: int | None = None, **said: Any) -> None:
        live = {i.uuid for i in replicator.items_of("east")[1]}
        seen.append((said["uuid"], said["state"], said["uuid"] in live))
        publish(kind, at_us, **said)

    book.publish = look  # type: ignore[method-assign]
    replicator.own("east", 3, settled=True)
    replicator.append([call(1), call(2)])
    replicator.append([call(1, 2), Tombstone("east", "uuid-2", 2), Tombstone("east", "x", 1)])
    assert seen == [
        ("uuid-1", "live", True), ("uuid-2", "live", True), ("uuid-2", "ended", False),
    ]  # fmt: skip
    assert [e.uuid for e in book.read({}).take()] == ["uuid-1", "uuid-2", "uuid-2"]
    book.publish = publish  # type: ignore[method-assign]
    history = History()
    history.watchers.append(book.decided)
    reader = book.read()
    history.add("T201", "fs-a won east", at_us=50)
    history.add("A1", "an own sentence", at_us=51)
    history.add("T202", "later", at_us=70)
    assert [e.text for e in reader.take()] == ["an own sentence"]
    book.seen(60)
    assert [e.text for e in reader.take()] == ["fs-a won east"]
    book.seen(70)
    assert [e.text for e in reader.take()] == ["later"]


@pytest.fixture
async def cluster_pair(tmp_path: Path) -> AsyncIterator[Publishing]:
    cluster = Cluster(tmp_path)
    one = AgentReplicator(cluster.config("a"), 1)
    yield Publishing("a", History(), one, Crier(History(), lambda: None))
    await one.stop()


async def test_ms22_verdicts_are_events_of_their_calls_and_inherited_calls_are_not_new(
    cluster_pair: Publishing,
) -> None:
    history = History()
    crier = Crier(history, lambda: None)
    publishing = Publishing("a", history, cluster_pair._replicator, crier)
    replicator = publishing._replicator
    assert replicator is not None
    reader = publishing.book.read()
    crier.cry(
        "east", 7, [CallVerdict("u1", "recovered", "", 40), CallVerdict("u2", "lost", "481", -1)]
    )
    found = {e.uuid: e for e in reader.take() if e.kind == "verdict"}
    assert (found["u1"].verdict, found["u1"].gap_ms, found["u1"].epoch) == ("recovered", 40, 7)
    assert (found["u2"].verdict, found["u2"].text, found["u2"].gap_ms) == ("lost", "481", None)
    replicator.own("east", 1, settled=True)
    replicator.append([call(1)])
    replicator.disown("east")
    replicator.own("east", 5)
    replicator.append([call(1, 2), call(2)])
    calls = [(e.uuid, e.state) for e in reader.take() if e.kind == "call"]
    assert calls == [("uuid-1", "live"), ("uuid-2", "live")]
    await crier.stop()
