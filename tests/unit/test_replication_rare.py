"""What seldom happens to a stream of call records: each is a branch of replication of its own."""

from __future__ import annotations

from haclusterd.core.cursor import Cursor
from haclusterd.core.replication import (
    GRAVE_MS,
    Advanced,
    Chunk,
    Delta,
    Item,
    ItemSet,
    Limits,
    Offer,
    SequencedLog,
    SnapshotBegin,
    SnapshotEnd,
    StreamId,
    bucket,
)
from haclusterd.core.standby import ServiceCopies, StreamCopy

A1 = StreamId("east", "a", 10, 1)
B2 = StreamId("east", "b", 7, 2)


def item(uuid: str, version: int = 1, dead: bool = False) -> Item:
    return Item(uuid, 1, 10, version, dead, b"x")


def test_the_last_tombstone_is_forgotten_too() -> None:
    items = ItemSet()
    items.merge(item("u", 2, dead=True), 0)
    items.merge(item("v", 2, dead=True), 0)
    items.merge(item("w", 2, dead=True), 2 * GRAVE_MS)
    assert set(items.graves) == {"w"}
    items._prune(4 * GRAVE_MS)
    assert not items.graves
    assert not items.items


def test_the_log_does_not_remember_the_place_of_calls_that_are_forgotten() -> None:
    log = SequencedLog(A1, Limits())
    for number in range(1_200):
        log.append(item(f"u{number}", 2, dead=True), 0)
    log.append(item("late"), 2 * GRAVE_MS)
    log.append(item("later", 2, dead=True), 2 * GRAVE_MS)
    assert set(log.sequence) == set(log.items.items) == {"late", "later"}


def test_a_call_that_is_forgotten_during_a_snapshot_is_left_out() -> None:
    log = SequencedLog(A1, Limits())
    log.append(item("gone", 2, dead=True), 0)
    log.append(item("here"), 0)
    cursor = Cursor(log)
    cursor.resume(-1)
    assert isinstance(cursor.next(), SnapshotBegin)
    log.items._prune(2 * GRAVE_MS)
    chunk = cursor.next()
    assert isinstance(chunk, Chunk)
    assert [i.uuid for i in chunk.items] == ["here"]
    assert isinstance(cursor.next(), SnapshotEnd)


def test_a_peer_that_falls_behind_the_buffer_begins_anew() -> None:
    log = SequencedLog(A1, Limits(buffer_entries=10))
    log.append(item("u0"), 0)
    cursor = Cursor(log)
    cursor.resume(0)
    for number in range(1, 20):
        log.append(item(f"u{number}"), 0)
    assert isinstance(cursor.next(), SnapshotBegin)
    assert cursor.snapshots == 1


def test_a_copy_counts_the_epochs_its_origin_counts() -> None:
    copy = StreamCopy(A1, 1, Limits())
    copy.delta(Delta(A1, 1, 2, [Advanced(4), Advanced(3)]), 0)
    assert copy.epoch == 4
    assert not copy.settled


def test_a_stream_that_is_offered_again_goes_on() -> None:
    copies = ServiceCopies(Limits())
    first = copies.offer(Offer(A1, 1, 2), 0)
    again = copies.offer(Offer(A1, 1, 5), 10)
    assert again is not None
    assert again is first
    assert again.head == 5


def test_a_copy_that_never_caught_up_has_no_lag() -> None:
    copy = StreamCopy(A1, 1, Limits())
    copy.age(10**6)
    assert (copy.lag_ms, copy.caught_up_ms) == (0, None)


def copies_of(*streams: StreamId) -> ServiceCopies:
    """Each stream has one call, named after its origin."""
    copies = ServiceCopies(Limits())
    for stream in streams:
        log = SequencedLog(stream, Limits())
        log.append(item(stream.origin), 0)
        copies.adopt(log, 0)
    return copies


def test_what_was_fetched_counts_beside_the_copies() -> None:
    copies = copies_of(A1)
    copies.fetched.merge(item("fetched"), 0)
    assert set(copies.union()) == {"a", "fetched"}
    both = ItemSet()
    for uuid in ("a", "fetched"):
        both.merge(item(uuid), 0)
    assert copies.marks() == both.marks


def test_an_older_copy_does_not_hide_the_newer_state_of_a_call() -> None:
    copies = ServiceCopies(Limits())
    for stream, version in ((A1, 3), (B2, 2)):
        log = SequencedLog(stream, Limits())
        log.append(item("u", version), 0)
        copies.adopt(log, 0)
    assert copies.union()["u"].version == 3


def test_marks_of_nothing_are_empty_and_those_of_one_copy_are_its_own() -> None:
    empty = ServiceCopies(Limits())
    assert set(empty.marks()) == {0}
    assert copies_of(A1).marks() == items_of("a").marks


def test_marks_count_what_a_snapshot_has_brought_so_far() -> None:
    copies = ServiceCopies(Limits())
    copy = copies.offer(Offer(A1, 1, 9), 0)
    assert copy is not None
    copy.begin(SnapshotBegin(A1, 9, 2, 1, True))
    assert set(copies.marks()) == {0}
    copy.chunk(Chunk(A1, [item("u")]), 0)
    assert copies.marks() == items_of("u").marks


def items_of(*uuids: str) -> ItemSet:
    items = ItemSet()
    for uuid in uuids:
        items.merge(item(uuid), 0)
    return items


def test_whoever_watches_a_walk_hears_what_changes_and_a_recount_mends_what_is_kept_up() -> None:
    items = ItemSet()
    touched: set[int] = set()
    items.watchers.append(touched)
    items.merge(item("u"), 0)
    items.merge(item("v", 2, dead=True), 0)
    assert touched == {bucket("u"), bucket("v")}
    right = (list(items.marks), items.live, items.bytes)
    items.marks, items.live, items.bytes = [7] * len(items.marks), 9, 9
    items.graves["unknown"] = 0
    items.recount()
    assert (items.marks, items.live, items.bytes) == right
    assert set(items.graves) == {"v"}


def test_the_buffer_says_from_where_it_tells_everything() -> None:
    log = SequencedLog(A1, Limits(buffer_entries=4))
    assert log.kept_from == 0
    for number in range(10):
        log.append(item(f"u{number}"), 0)
    assert log.since(log.kept_from)
    assert log.since(log.kept_from - 1) is None


def test_the_time_left_of_a_snapshot_is_by_its_pace_so_far() -> None:
    copy = StreamCopy(A1, 9, Limits())
    assert copy.left_ms(0) is None
    copy.begin(SnapshotBegin(A1, 9, 4, 1, True), 1_000)
    assert copy.left_ms(1_000) is None, "nothing has come yet"
    copy.chunk(Chunk(A1, [item("u")]), 1_100)
    assert copy.left_ms(1_100) == 300
