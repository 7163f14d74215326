"""What a node that was cut off may tell a new owner: nothing of calls that ended since (S8, S9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.core import replication
from haclusterd.core.records import Tombstone
from haclusterd.core.replication import (
    Delta,
    Item,
    Limits,
    Offer,
    SequencedLog,
    SnapshotBegin,
    StreamId,
)
from haclusterd.sync import collect, rpc
from haclusterd.sync.codec import Message, Want, item_of
from haclusterd.sync.replicator import Replicator
from haclusterd.sync.rpc import RequestFailed
from haclusterd.sync.store import StandbyStore
from tests.unit.sync_cluster import NODES, Cluster, call, collected, held, until

CALLS = 40


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in list(made.running):
        await made.kill(node)


async def parted(cluster: Cluster) -> tuple[Replicator, Replicator, Replicator]:
    """All hold 40 calls; c hears of no more changes."""
    a, b, c = [await cluster.start(n) for n in NODES]
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(CALLS)])
    await until(lambda: len(held(b)) == len(held(c)) == CALLS)
    a.mesh.sessions["c"].sources.clear()
    return a, b, c


def age(one: Replicator) -> None:
    newest = one.store.services["east"].newest()
    assert newest is not None
    assert newest.caught_up_ms is not None
    newest.caught_up_ms -= replication.GRAVE_MS


async def forgotten(a: Replicator, b: Replicator, monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls end, and b forgets that."""
    a.append([Tombstone("east", f"uuid-{n}", 2) for n in range(CALLS)])
    await until(lambda: held(b) == {})
    with monkeypatch.context() as patch:
        patch.setattr(replication, "GRAVE_MS", -1)
        a.append([call(90), Tombstone("east", "uuid-90", 2), call(91)])
        await until(lambda: "uuid-91" in held(b) and len(b.store.items("east")) == 1)


async def test_s8_a_node_cut_off_for_long_resurrects_no_call(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = await parted(cluster)
    await forgotten(a, b, monkeypatch)
    age(c)
    copy = c.store.services["east"].newest()
    assert copy is not None
    await until(lambda: copy.head > copy.position)  # by the beats of a, which tell no call
    await cluster.kill("a")
    b.own("east", 2)
    assert len(held(c)) == CALLS
    assert {r.uuid for r in await collected(b, 500)} == {"uuid-91"}


async def test_s9_what_only_the_third_node_has_is_taken(cluster: Cluster) -> None:
    """However old: this node has nothing, or less."""
    a, b, c = await parted(cluster)
    await cluster.kill("b")
    b = await cluster.start("b")
    await until(lambda: len(held(b)) == CALLS and "c" in b.mesh.sessions)
    a.mesh.sessions["b"].sources.clear()
    await cluster.kill("c")
    c = await cluster.start("c")
    await until(lambda: len(held(c)) == CALLS)
    a.append([call(99), call(3, 2)])
    await until(lambda: "uuid-99" in held(c))
    age(c)
    await cluster.kill("a")
    await until(lambda: "c" in b.mesh.sessions)
    b.own("east", 2)
    assert {r.uuid: r.version for r in await collected(b, 500)} == held(c)
    b.store.services.clear()
    assert {r.uuid: r.version for r in await collected(b, 500)} == held(c)


async def test_a_peer_that_does_not_know_the_question_is_asked_in_the_old_words(
    cluster: Cluster,
) -> None:
    b, c = await cluster.start("b"), await cluster.start("c")
    await until(lambda: "c" in b.mesh.sessions)
    c.own("east", 1, settled=True)
    c.append([call(1)])
    await until(lambda: len(held(b)) == 1)
    b.store.services.clear()
    del c._requests._answers[collect.METHOD]
    assert [r.uuid for r in await collected(b, 500)] == ["uuid-1"]


async def test_s8_many_services_at_once_are_all_asked_in_the_new_words(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner of ten services dies: calls and registrations of all are asked for in one turn."""
    b, c = await cluster.start("b"), await cluster.start("c")
    await until(lambda: "c" in b.mesh.sessions and "b" in c.mesh.sessions)
    sent: list[object] = []
    session = b.mesh.sessions["c"]
    send = session.send

    def seen(message: Message) -> None:
        sent.append(message)
        send(message)

    monkeypatch.setattr(session, "send", seen)
    services = [f"s{n}" for n in range(2 * rpc.SERVED_MAX)]
    await asyncio.gather(*(b.fetch(s, 1000) for s in services))
    assert not [m for m in sent if isinstance(m, Want)]
    assert b._collector.told("s31") == {"c"}


async def test_s9_a_node_that_asks_too_much_already_asks_for_calls_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    b, c = await cluster.start("b"), await cluster.start("c")
    await until(lambda: "c" in b.mesh.sessions)
    c.own("east", 1, settled=True)
    c.append([call(1)])
    await until(lambda: len(held(b)) == 1)
    b.store.services.clear()
    monkeypatch.setattr(rpc, "ASKED_MAX", 0)
    assert [r.uuid for r in await collected(b, 500)] == ["uuid-1"]


async def test_a_question_that_is_none_is_refused(cluster: Cluster) -> None:
    b, _ = await cluster.start("b"), await cluster.start("c")
    await until(lambda: "c" in b.mesh.sessions)
    session = b.mesh.sessions["c"]
    stream = StreamId("east", "a", 1, 1)
    many = collect.Asked(1, "east", [0] * 512, [(stream, 1)] * (collect.HOLDS_MAX + 1))
    for bad in (b"\xff", b"", msgspec.msgpack.encode(Want(1, "east", [1, 2, 3])),
                msgspec.msgpack.encode(many)):  # fmt: skip
        with pytest.raises(RequestFailed, match=r"^c: "):
            await b.request("c", collect.METHOD, bad, 1000)
    assert b.mesh.sessions["c"] is session


async def test_what_is_told_after_a_service_is_settled_is_the_past(cluster: Cluster) -> None:
    b = await cluster.start("b")
    b.own("east", 2)
    late = [item_of(call(1), 1, 1)]
    b.calls.fetched("east", late)
    assert len(await b.unrecovered("east")) == 1
    b.settle("east")
    await asyncio.sleep(0)
    b.calls.fetched("east", late)
    assert await b.unrecovered("east") == []
    b.calls.fetched("east", [item_of(call(2), 3, 9)])
    assert [r.uuid for r in await b.unrecovered("east")] == ["uuid-2"], "of an owner since"


def filled(log: SequencedLog, store: StandbyStore) -> None:
    copy = store.offer(Offer(log.stream, log.epoch, log.head))
    assert copy is not None
    while entries := log.since(copy.position):
        store.apply(Delta(log.stream, copy.position + 1, log.head, entries))


def test_s8_calls_that_ended_before_a_settled_takeover_are_not_resurrected() -> None:
    """c still has the stream of the owner before the last; here it is settled and forgotten."""
    b = StandbyStore(Limits(), lambda: 0)
    first = SequencedLog(StreamId("east", "a", 1, 5), Limits(), True)
    old = [item_of(call(n), 5, 1) for n in range(3)]
    for item in old:
        first.append(item, 0)
    first.append(item_of(Tombstone("east", "uuid-0", 2), 5, 1), 0)
    filled(first, b)
    second = SequencedLog(StreamId("east", "d", 1, 6), Limits())
    second.append(item_of(call(1, 9), 6, 1), 0)
    filled(second, b)
    assert b.fetched("east", [item_of(call(7), 5, 1)]) == 1, "unsettled: it may be missing"
    second.append(item_of(Tombstone("east", "uuid-7", 9), 6, 1), 0)
    second.append(replication.Settled(), 0)
    filled(second, b)
    assert b.fetched("east", [*old, item_of(call(7), 5, 1)]) == 0
    assert [r.uuid for r in b.records("east")] == ["uuid-1"]
    assert b.counters["superseded"] == 4
    newer = [item_of(call(8), 6, 1), item_of(call(9), 7, 2)]
    assert b.fetched("east", newer) == 2, "of this stream, or of a later one"


def test_s8_only_a_copy_that_is_far_behind_keeps_its_calls_to_itself() -> None:
    now_ms = replication.GRAVE_MS
    c = StandbyStore(Limits(), lambda: now_ms)
    log = SequencedLog(StreamId("east", "a", 1, 5), Limits(), True)
    log.append(item_of(call(1), 5, 1), 0)
    log.append(item_of(Tombstone("east", "uuid-2", 2), 5, 1), 0)
    filled(log, c)
    copies = c.services["east"]
    copy = copies.copies[log.stream]
    assert copy.position == 3

    def told(position: int, stream: StreamId = log.stream, after_ms: int = 0) -> list[str]:
        items: list[Item] = list(copies.union().values())
        old = collect.outlived(copies, [(stream, position)], now_ms + after_ms)
        return sorted(i.uuid for i in collect.tellable(items, old))

    both, dead = ["uuid-1", "uuid-2"], ["uuid-2"]
    long_ms = replication.GRAVE_MS // 2 + 1
    assert told(3, after_ms=long_ms) == both, "the same: it mends what the asker lost"
    assert told(2, after_ms=long_ms) == both, "newer than what the asker has"
    assert told(9) == both, "the asker still has its tombstones"
    assert told(9, StreamId("east", "a", 2, 5), long_ms) == both, "another stream"
    assert told(9, after_ms=long_ms) == dead
    assert told(4 + replication.GRAVES_MAX // 2) == dead
    copy.head = 10  # it has only heard how far the origin is
    assert told(9, after_ms=long_ms) == dead
    at_ms, copy.caught_up_ms = copy.caught_up_ms, None
    assert told(9) == dead
    copy.caught_up_ms = at_ms
    copy.begin(SnapshotBegin(log.stream, 10, 2, 5, True))
    copy.salvage()  # half of a snapshot may have brought what the asker lacks
    assert told(9, after_ms=long_ms) == both
