"""Anti-entropy: a copy that differs silently is found by its content and mended (MS17, MS19)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.core.audit import DIFFERING_MAX, Walk, compared, mend
from haclusterd.core.records import Tombstone
from haclusterd.core.replication import Item, ItemSet, bucket
from haclusterd.core.standby import StreamCopy
from haclusterd.sync.audit import FETCH, HASH, Repair
from haclusterd.sync.lane import REGISTRATIONS
from haclusterd.sync.replicator import Replicator
from haclusterd.sync.rpc import RequestFailed
from tests.unit.sync_cluster import Cluster, call, held, until
from tests.unit.test_sync_lanes import EAST, phone

WITHIN_S = 2.0  # with rounds every 0.2 s; in production every 30 s


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in list(made.running):
        await made.kill(node)


async def pair(cluster: Cluster, calls: int, every_s: float = 0.2) -> tuple[Replicator, Replicator]:
    a, b = await cluster.start("a"), await cluster.start("b")
    b.auditor.every_s = every_s
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(calls)])
    assert await a.wait_acked("east", 5000)
    await until(lambda: b.in_sync_services() == ["east"])
    return a, b


def copy_of(one: Replicator) -> StreamCopy:
    copy = one.store.services["east"].newest()
    assert copy is not None
    return copy


def is_equal(a: Replicator, b: Replicator) -> bool:
    own = a.change_log.items("east")
    return own is not None and own.items == copy_of(b).items.items


def flip(item: Item) -> Item:
    """One bit of the blob."""
    blob = bytearray(item.blob)
    blob[len(blob) // 2] ^= 4
    return msgspec.structs.replace(item, blob=bytes(blob))


async def test_damaged_missing_and_invented_rows_are_mended(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three kinds; the digests that are kept change by change see none of them."""
    a, b = await pair(cluster, 200)
    repairs: list[Repair] = []
    b.auditor.told.append(repairs.append)
    items = copy_of(b).items
    items.items["uuid-3"] = flip(items.items["uuid-3"])
    del items.items["uuid-4"]
    items.items["uuid-invented"] = Item("uuid-invented", 1, 1, 1, False, b"x")
    own = a.change_log.items("east")
    assert own is not None
    assert items.digest() == own.digest()
    with caplog.at_level(logging.WARNING):
        await until(lambda: is_equal(a, b), WITHIN_S)
    assert b.status().counters["audit_repaired"] == 3
    assert sorted(repairs[0].uuids) == ["uuid-3", "uuid-4", "uuid-invented"]
    assert "the copy of east from a was not what a has, in 3 items" in caplog.text
    assert "uuid-3" in caplog.text
    assert b.store.counters["mismatch"] == 0, "no snapshot, and the copy stays good all the time"
    assert items.digest() == own.digest()
    assert items.live == own.live == 200
    assert items.bytes == own.bytes


async def test_registrations_are_compared_too(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    b.auditor.every_s = 0.2
    a.registrations.own(EAST, 1, settled=True)
    a.registrations.change_log.append([phone(n) for n in range(50)])
    store = b.registrations.store
    await until(lambda: len(store.items(EAST)) == 50)
    newest = store.services[EAST].newest()
    assert newest is not None
    heard: list[tuple[str, list[str] | None]] = []
    b.registrations.on_items = lambda service, uuids: heard.append((service, uuids))
    newest.items.items["key-9"] = flip(newest.items.items["key-9"])
    await until(lambda: heard == [(EAST, ["key-9"])], WITHIN_S)
    assert b.status().counters["registrations_audit_repaired"] == 1
    assert EAST.startswith(REGISTRATIONS)


async def test_nothing_is_mended_where_nothing_is_wrong_while_calls_come_and_go(
    cluster: Cluster,
) -> None:
    a, b = await pair(cluster, 300, every_s=0.01)
    until_s = time.monotonic() + 2
    number = 0
    while time.monotonic() < until_s:
        number += 1
        a.append([call(number % 300, 2 + number), call(1000 + number)])
        a.append([Tombstone("east", f"uuid-{990 + number}", 9)])
        await asyncio.sleep(0.001)
    await until(lambda: is_equal(a, b))
    counters = b.status().counters
    assert counters["audit_rounds"] > 10
    assert "audit_repaired" not in counters
    assert "audit_replaced" not in counters


async def test_a_damaged_row_is_found_while_calls_come_and_go(cluster: Cluster) -> None:
    a, b = await pair(cluster, 300)
    items = copy_of(b).items
    items.items["uuid-299"] = flip(items.items["uuid-299"])
    until_s = time.monotonic() + WITHIN_S
    number = 0
    while time.monotonic() < until_s and not b.store.counters["audit_repaired"]:
        number += 1
        a.append([call(number % 200, 2 + number)])
        await asyncio.sleep(0.002)
    await until(lambda: is_equal(a, b))
    assert b.store.counters["audit_repaired"] == 1


async def test_what_is_broken_at_the_origin_does_not_spoil_the_copy(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await pair(cluster, 50)
    own = a.change_log.items("east")
    assert own is not None
    good = own.items["uuid-7"]
    own.items["uuid-7"] = flip(good)
    await until(lambda: b.store.counters["audit_rounds"] > 2)
    assert copy_of(b).items.items["uuid-7"] == good
    assert a.status().counters["audit_broken_here"] >= 1
    assert "items of east cannot be read here: uuid-7" in caplog.text


async def test_a_copy_that_is_wrong_in_much_is_replaced(cluster: Cluster) -> None:
    a, b = await pair(cluster, 600)
    items = copy_of(b).items
    for uuid in list(items.items)[:300]:
        items.items[uuid] = flip(items.items[uuid])
    await until(lambda: is_equal(a, b), WITHIN_S)
    assert b.store.counters["audit_replaced"] == 1
    assert a.status().peers[0].outgoing[0].snapshots == 1


async def test_large_rows_are_fetched_in_parts(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    a.own("east", 1, settled=True)
    for n in range(30):
        a.append([call(n, size=900_000)])  # 4 kB packed
    assert await a.wait_acked("east", 5000)
    await until(lambda: b.in_sync_services() == ["east"])
    for n in range(30):
        del copy_of(b).items.items[f"uuid-{n}"]
    assert held(b) == {}
    await b.auditor.round()
    assert is_equal(a, b)


async def test_hostile_questions_are_refused(cluster: Cluster) -> None:
    a, b = await pair(cluster, 5)
    stream = copy_of(b).stream
    other = msgspec.structs.replace(stream, incarnation=999)
    pack = msgspec.msgpack.encode
    for method, payload in [
        (HASH, b""),
        (HASH, pack([stream, 1, [1, 2, 3], []])),
        (HASH, pack([stream, 10**9, [0] * 512, []])),
        (HASH, pack([other, 0, [0] * 512, []])),
        (FETCH, b"\xc1"),
        (FETCH, pack([other, ["uuid-1"]])),
    ]:
        with pytest.raises(RequestFailed):
            await b.request("a", method, payload, 1000)
    answer = await b.request("a", FETCH, pack([stream, ["nobody"] * 5000]), 1000)
    assert msgspec.msgpack.decode(answer) == []
    assert a.mesh.sessions, "the connection stays"


def test_a_walk_leaves_out_what_changes_meanwhile() -> None:
    mine, theirs = ItemSet(), ItemSet()
    for n in range(100):
        for items in (mine, theirs):
            items.merge(Item(f"u{n}", 1, 1, 1, False, b"a"), 0)
    walk, other = Walk(mine), Walk(theirs)
    assert walk.step(50)
    mine.merge(Item("u1", 1, 1, 2, False, b"b"), 0)
    mine.merge(Item("u99", 1, 1, 2, True, b""), 0)
    while walk.step(50) or other.step(50):
        pass
    assert walk.touched == {bucket("u1"), bucket("u99")}
    assert compared(walk.marks, other.marks, ()) != []
    assert compared(walk.marks, other.marks, walk.touched) == []
    walk.close()
    mine.merge(Item("u2", 1, 1, 2, False, b"b"), 0)
    assert bucket("u2") not in walk.touched
    assert not mine.watchers
    assert theirs.watchers == [other.touched]


def test_mending_keeps_what_is_newer() -> None:
    items = ItemSet()
    items.merge(Item("u", 1, 1, 5, False, b"new"), 0)
    assert mend(items, [Item("u", 1, 1, 4, False, b"old")], []) == []
    assert items.items["u"].blob == b"new"
    assert mend(items, [Item("u", 1, 1, 5, False, b"good")], ["nobody"]) == ["u"]
    assert items.bytes == 4
    assert DIFFERING_MAX < 512
