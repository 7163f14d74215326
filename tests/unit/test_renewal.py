"""All agents are renewed in the same second: each leaves copies and events to the next (E1)."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from haclusterd.agent.events import Book
from haclusterd.agent.renewal import EVENTS_BYTES_MAX, leave_events, take_events
from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.core.replication import Item, Limits, SequencedLog, StreamId
from haclusterd.core.standby import StreamCopy
from haclusterd.sync import handover
from haclusterd.sync.codec import Malformed
from haclusterd.sync.handover import StoreOf, Told, Whose
from haclusterd.sync.lane import REGISTRATIONS
from haclusterd.sync.outgoing import now_ms
from haclusterd.sync.replicator import Replicator
from haclusterd.sync.store import StandbyStore
from tests.unit.sync_cluster import NODES, Cluster, call, collected, held, until

ME = Whose("voice1", "b", "boot-1")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in list(made.running):
        await made.kill(node)


def leave(one: Replicator, path: Path) -> Told:
    stores = (one.calls.store, one.registrations.store)
    return handover.write(path, ME, stores, one.calls.change_log.logs.values())


def take(one: Replicator, path: Path) -> Told | None:
    stores = StoreOf({REGISTRATIONS: one.registrations.store, "": one.calls.store})
    return handover.take(path, ME, stores, Limits())


def filled(count: int, size: int = 100) -> StandbyStore:
    store = StandbyStore(Limits(), now_ms)
    log = SequencedLog(StreamId("east", "a", 10, 1), Limits(), True)
    for n in range(count):
        log.append(Item(f"u{n}", 1, 10, 1, n % 10 == 9, b"x" * size), 0)
    store.adopt(log)
    return store


async def test_e1_all_agents_renewed_and_the_owner_lost_before_they_meet(cluster: Cluster) -> None:
    """The gap that an outside test found: calls were gone, and the report said none was lost."""
    a, b, c = [await cluster.start(n) for n in NODES]
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(50)])
    a.append([Tombstone("east", "uuid-7", 2)])
    assert await a.wait_acked("east", 3000)
    await until(lambda: len(held(b)) == len(held(c)) == 49)
    path = cluster.folder / "b.handover"
    for node in NODES:
        await cluster.kill(node)
    leave(b, path)
    b = await cluster.start("b")
    b.observe({"east": ("a", 1)}, ["b"])  # heart: a is dead
    took = take(b, path)
    assert took is not None
    assert took.problem == ""
    assert not path.exists()
    assert b.freshness("east").state == "in-sync"
    b.own("east", 2)
    assert {r.uuid for r in await collected(b)} == {f"uuid-{n}" for n in range(50) if n != 7}


async def test_e1_the_next_agent_goes_on_where_the_last_one_was(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(50)])
    assert await a.wait_acked("east", 3000)
    path = cluster.folder / "b.handover"
    await cluster.kill("b")
    leave(b, path)
    a.append([call(1, 2), call(99)])
    b = Replicator(cluster.config("b"), 77)
    take(b, path)
    await b.start()
    cluster.running["b"] = b
    assert await a.wait_acked("east", 3000)
    assert held(b)["uuid-1"] == 2
    assert len(held(b)) == 51
    assert a.status().peers[0].outgoing[0].snapshots == 0, "only the changes were sent"


async def test_e1_an_owners_new_agent_knows_what_it_logged_until_it_settles(
    cluster: Cluster,
) -> None:
    """The agent is renewed in mid-takeover: calls that it has recovered already are not lost."""
    a = await cluster.start("a")
    a.own("east", 1)
    a.append([call(n) for n in range(5)])
    await cluster.kill("a")
    path = cluster.folder / "a.handover"
    leave(a, path)
    a = await cluster.start("a")
    take(a, path)
    a.own("east", 1)
    assert len(await a.unrecovered("east")) == 5
    a.append([CallRecord("east", f"uuid-{n}", 9, "east", "core", "<new/>") for n in range(5)])
    a.settle("east")
    assert a.store.services["east"].copies == {}


def test_hand_over_file_keeps_every_copy_and_all_of_it(tmp_path: Path) -> None:
    store, path = filled(300), tmp_path / "x"
    copies = store.services["east"]
    lower = StreamCopy(StreamId("east", "c", 3, 0), 0, Limits())
    lower.items.merge(Item("only-lower", 0, 3, 1, False, b"y"), 0)
    copies.copies[lower.stream] = lower
    copies.fetched.merge(Item("found", 1, 10, 5, False, b"z"), 0)
    assert handover.write(path, ME, [store]).copies == 3
    assert path.stat().st_mode & 0o777 == 0o600
    back = StandbyStore(Limits(), now_ms)
    assert handover.take(path, ME, StoreOf({"": back}), Limits()) is not None
    assert back.items("east") == store.items("east")
    assert back.counts()[0].digest == store.counts()[0].digest
    assert back.services["east"].copies.keys() == copies.copies.keys()
    assert not back.services["east"].copies[lower.stream].complete


def test_hand_over_file_is_bounded_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "FILE_BYTES_MAX", 60_000)
    store, path = filled(2000), tmp_path / "x"
    told = handover.write(path, ME, [store])
    assert "left out" in told.problem
    assert path.stat().st_size < 61_000
    back = StandbyStore(Limits(), now_ms)
    handover.take(path, ME, StoreOf({"": back}), Limits())
    found = back.services["east"]
    assert not found.copies, "half a copy is no position to resume from"
    assert 0 < len(found.fetched.items) < 2000


def _cut(content: bytes) -> bytes:
    return content[:-10]


def _flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def _twice(content: bytes) -> bytes:
    return content + content


def _huge_frame(content: bytes) -> bytes:
    return b"\xff\xff\xff\xff" + content


def _nothing(content: bytes) -> bytes:
    return b""


def _noise(content: bytes) -> bytes:
    return os.urandom(4000)


@pytest.mark.parametrize("damage", [_cut, _flipped, _twice, _huge_frame, _nothing, _noise])
def test_of_a_damaged_file_nothing_is_taken(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "x"
    handover.write(path, ME, [filled(300)])
    path.write_bytes(damage(path.read_bytes()))
    back = StandbyStore(Limits(), now_ms)
    told = handover.take(path, ME, StoreOf({"": back}), Limits())
    assert told is not None
    assert told.problem
    assert back.services == {}
    assert not path.exists(), "it would be as bad the next time"


def test_files_of_others_and_of_yesterday_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = tmp_path / "x", filled(3)
    back = StoreOf({"": StandbyStore(Limits(), now_ms)})

    def problem(whose: Whose = ME) -> str:
        told = handover.take(path, whose, back, Limits())
        assert told is not None
        return told.problem

    assert handover.take(path, ME, back, Limits()) is None
    for other in (Whose("voice2", "b", "boot-1"), Whose("voice1", "c", "boot-1"),
                  Whose("voice1", "b", "boot-2")):  # fmt: skip
        handover.write(path, other, [store])
        assert "another node, cluster or boot" in problem()
    handover.write(path, ME, [store])
    path.chmod(0o644)
    assert "others may read" in problem()
    handover.write(tmp_path / "real", ME, [store])
    path.symlink_to(tmp_path / "real")
    assert "cannot be read" in problem()
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert "is no file" in problem()
    handover.write(path, ME, [store])
    later = now_ms() + handover.AGE_MS_MAX + 1
    monkeypatch.setattr(handover, "now_ms", lambda: later)
    assert " s old" in problem()
    handover.write(path, ME, [store])
    monkeypatch.setattr(handover, "FORMAT", 2)
    assert "format" in problem()


def test_an_old_copy_is_kept_but_not_taken_for_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    handover.write(path, ME, [filled(3)])
    later = now_ms() + handover.FRESH_MS + 1000
    monkeypatch.setattr(handover, "now_ms", lambda: later)
    back = StandbyStore(Limits(), now_ms)
    handover.take(path, ME, StoreOf({"": back}), Limits())
    newest = back.services["east"].newest()
    assert newest is not None
    newest.age(later)
    assert newest.lag_ms >= handover.FRESH_MS


def test_ten_thousand_calls_change_hands_quickly(tmp_path: Path) -> None:
    """2 kB packed each, as measured of FreeSWITCH's rows: the restart must not become longer."""
    path, store = tmp_path / "x", filled(10_000, 2000)
    began = time.perf_counter()
    handover.write(path, ME, [store])
    back = StandbyStore(Limits(), now_ms)
    handover.take(path, ME, StoreOf({"": back}), Limits())
    took = time.perf_counter()
    assert len(back.items("east")) == 10_000
    assert took - began < 2  # measured 0.15 on a quiet machine


def test_ms24_events_change_hands(tmp_path: Path) -> None:
    path = tmp_path / "events"
    assert take_events(path, "a") is None
    book = Book("a", 9)
    for n in range(20):
        book.publish("call", service="east", uuid=f"u{n}", state="live")
    leave_events(path, book)
    assert path.stat().st_mode & 0o777 == 0o600
    ring = take_events(path, "a")
    assert ring is not None
    assert not path.exists()
    assert (ring.run, ring.first, ring.last) == (9, 1, 20)
    assert ring.all() == book.own.all()
    following = Book("a", 5)
    following.resumed(ring)
    assert following.own.run == 10, "runs grow although the clock went back"
    assert following.rings["a"][0].closed


@pytest.mark.parametrize("damage", [_cut, _flipped, _nothing, _noise])
def test_damaged_events_are_not_taken(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path, book = tmp_path / "events", Book("a", 9)
    for n in range(20):
        book.publish("decision", row="A1", text=f"t{n}")
    leave_events(path, book)
    path.write_bytes(damage(path.read_bytes()))
    path.chmod(0o600)
    with pytest.raises(Malformed):
        take_events(path, "a")
    assert not path.exists()
    leave_events(path, book)
    with pytest.raises(Malformed, match="another format, node or boot"):
        take_events(path, "b")
    path.write_bytes(b"x" * (EVENTS_BYTES_MAX + 2000))
    path.chmod(0o600)
    with pytest.raises(Malformed, match="more than this daemon writes"):
        take_events(path, "a")
