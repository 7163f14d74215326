"""The pure parts of replication: log, cursor, copies and their succession, one rule at a time."""

from __future__ import annotations

import pytest

from haclusterd.core.cursor import Cursor
from haclusterd.core.replication import (
    CHUNK_BYTES,
    CHUNK_ITEMS,
    GRAVE_MS,
    Advanced,
    Chunk,
    Delta,
    Item,
    ItemSet,
    Limits,
    Offer,
    SequencedLog,
    Settled,
    SnapshotBegin,
    SnapshotEnd,
    StreamId,
)
from haclusterd.core.standby import (
    COPIES_MAX,
    LimitExceeded,
    ServiceCopies,
    StreamCopy,
    StreamGap,
    differing,
    in_buckets,
)

A1 = StreamId("east", "a", 10, 1)
B2 = StreamId("east", "b", 7, 2)


def item(uuid: str, version: int = 1, dead: bool = False, epoch: int = 1, size: int = 10) -> Item:
    return Item(uuid, epoch, 10, version, dead, b"x" * size)


def log_of(count: int, limits: Limits | None = None, stream: StreamId = A1) -> SequencedLog:
    log = SequencedLog(stream, limits or Limits())
    for number in range(count):
        log.append(item(f"u{number}", epoch=stream.begun), 100 + number)
    return log


def copied(copies: ServiceCopies, log: SequencedLog, now_ms: int = 0) -> StreamCopy:
    """The whole log, as one delta."""
    copy = copies.offer(Offer(log.stream, log.epoch, log.head), now_ms)
    assert copy is not None
    while copy.position < log.head:
        entries = log.since(copy.position)
        assert entries
        copy.delta(Delta(log.stream, copy.position + 1, log.head, entries), now_ms)
    copies.supersede()
    return copy


def test_tombstone_wins_at_its_version_and_loses_to_a_later_one() -> None:
    calls = ItemSet()
    assert calls.merge(item("u", 3), 0)
    assert calls.merge(item("u", 3, dead=True), 0)
    assert not calls.merge(item("u", 3), 0)
    assert calls.live == 0
    assert calls.digest() == 0
    assert calls.merge(item("u", 4), 0)
    assert calls.live == 1
    assert not calls.graves
    assert calls.merge(item("u", 1, epoch=2), 0), "a higher epoch outranks any version"


def test_tombstones_are_forgotten_after_a_time() -> None:
    calls = ItemSet()
    calls.merge(item("old", dead=True), 0)
    calls.merge(item("new", dead=True), GRAVE_MS)
    assert set(calls.items) == {"old", "new"}
    calls.merge(item("later", dead=True), GRAVE_MS + 1)
    assert set(calls.items) == {"new", "later"}
    assert calls.bytes == 20


def test_log_refuses_what_is_not_newer_and_what_is_too_much() -> None:
    log = log_of(3, Limits(records=3))
    assert log.append(item("u1", 1), 0) is None
    assert log.append(item("u9"), 0) is None, "full"
    assert log.append(item("u1", 2), 0) == 4, "a known call may change although it is full"
    assert log.append(item("u0", 1, dead=True), 0) == 5
    assert log.append(item("u9"), 0) == 6
    assert log.append(Advanced(1), 0) is None
    assert log.append(Advanced(5), 0) == 7
    assert log.epoch == 5


def test_buffer_is_bounded_by_entries_and_by_bytes() -> None:
    log = log_of(50, Limits(buffer_entries=10))
    assert log.since(39) is None
    assert log.since(40) is not None
    assert not log.can_resume(39)
    assert log.can_resume(40)
    assert not log.can_resume(51)
    assert not log.can_resume(-1)
    assert log.logged_ms(40) is None
    assert log.logged_ms(41) == 140
    large = SequencedLog(A1, Limits(buffer_bytes=10_000))
    for number in range(20):
        large.append(item(f"u{number}", size=4000), 0)
    assert large.since(17) is None
    assert large.since(18) is not None


def test_long_delta_is_no_better_than_a_snapshot() -> None:
    log = SequencedLog(A1, Limits())
    for version in range(1, 1100):
        log.append(item("u", version), 0)
    assert not log.can_resume(0)
    assert log.can_resume(100)


def test_messages_are_small() -> None:
    log = log_of(0)
    for number in range(300):
        log.append(item(f"u{number}", size=1000), 0)
    entries = log.since(0)
    assert entries is not None
    assert len(entries) <= CHUNK_BYTES // 1000 + 1
    tiny = log_of(300).since(0)
    assert tiny is not None
    assert len(tiny) == CHUNK_ITEMS


def test_holds_and_at_risk_follow_the_acknowledged_position() -> None:
    log = log_of(3)
    log.append(item("u0", 2), 0)
    log.append(item("u2", 2, dead=True), 0)
    assert log.holds("u0", 1, 3)
    assert not log.holds("u0", 2, 3)
    assert log.holds("u0", 2, 4)
    assert not log.holds("u1", 1, 1)
    assert not log.holds("nobody", 1, 5)
    assert log.at_risk(3) == ["u0"]
    assert log.at_risk(-1) == ["u0", "u1"]
    assert log.at_risk(5) == []


def test_cursor_believes_no_impossible_acknowledgement() -> None:
    cursor = Cursor(log_of(3))
    assert not cursor.ack(3), "it has not even resumed"
    assert cursor.next() is None
    cursor.resume(0)
    assert not cursor.ack(3), "nothing was sent"
    assert isinstance(cursor.next(), Delta)
    assert cursor.ack(2)
    assert not cursor.ack(1)
    assert not cursor.ack(4)
    assert cursor.acked == 2
    cursor.resume(99)
    assert cursor.acked == -1
    assert isinstance(cursor.next(), SnapshotBegin)
    assert cursor.syncing
    assert not cursor.ack(3), "in a snapshot nothing is whole"


def test_changes_go_out_between_the_chunks_of_a_snapshot() -> None:
    log = log_of(200)
    cursor, copy = Cursor(log), StreamCopy(A1, 1, Limits())
    cursor.resume(-1)
    kinds = []
    for turn in range(20):
        message = cursor.next()
        if message is None:
            break
        kinds.append(type(message))
        if isinstance(message, Delta):
            copy.delta(message, 0)
        elif isinstance(message, SnapshotBegin):
            copy.begin(message)
        elif isinstance(message, Chunk):
            copy.chunk(message, 0)
        else:
            assert isinstance(message, SnapshotEnd)
            assert copy.end(message, 0)
        if turn == 1:
            log.append(item("u0", 2, dead=True), 0)
            log.append(item("late"), 0)
            log.append(Settled(), 0)
    assert kinds == [SnapshotBegin, Chunk, Delta, Chunk, SnapshotEnd]
    assert copy.position == log.head
    assert copy.settled
    assert copy.items.items == log.items.items


def test_copy_refuses_gaps_and_excess_and_stays_as_it_was() -> None:
    copy = StreamCopy(A1, 1, Limits(records=10))
    with pytest.raises(StreamGap):
        copy.delta(Delta(A1, 2, 2, [item("u")]), 0)
    with pytest.raises(StreamGap):
        copy.chunk(Chunk(A1, [item("u")]), 0)
    with pytest.raises(StreamGap):
        copy.end(SnapshotEnd(A1, 0, 0), 0)
    flood: list[Item | Advanced | Settled] = [item(f"u{n}") for n in range(1100)]
    with pytest.raises(LimitExceeded):
        copy.delta(Delta(A1, 1, 1100, flood), 0)
    assert copy.position == 0
    assert not copy.items.items


def test_snapshot_with_a_wrong_digest_is_not_taken() -> None:
    copy = StreamCopy(A1, 1, Limits())
    copy.begin(SnapshotBegin(A1, 5, 1, 1, False))
    copy.chunk(Chunk(A1, [item("u")]), 0)
    assert not copy.end(SnapshotEnd(A1, 5, 12345), 0)
    assert copy.position == 0


def test_half_a_snapshot_is_better_than_nothing() -> None:
    """33: the only slave has just joined when the master dies."""
    copies = ServiceCopies(Limits())
    copy = copies.offer(Offer(A1, 1, 9), 0)
    assert copy is not None
    copy.begin(SnapshotBegin(A1, 9, 9, 1, True))
    copy.chunk(Chunk(A1, [item("u")]), 0)
    copy.salvage()
    assert set(copies.union()) == {"u"}
    assert copies.freshness("a", 1, 1000).state == "syncing"


def test_higher_epoch_freezes_and_settling_replaces() -> None:
    copies = ServiceCopies(Limits())
    first = copied(copies, log_of(3))
    second_log = log_of(1, stream=B2)
    second = copied(copies, second_log)
    assert first.frozen
    assert not second.frozen
    assert len(copies.union()) == 3
    assert copies.union()["u0"].epoch == 2
    assert copies.offer(Offer(A1, 1, 3), 0) is None, "outdated"
    second_log.append(Settled(), 0)
    second.delta(Delta(B2, 2, 2, [Settled()]), 0)
    copies.supersede()
    assert set(copies.union()) == {"u0"}


def test_chain_of_unfinished_takeovers_is_folded_without_loss() -> None:
    copies = ServiceCopies(Limits())
    for epoch in range(1, 12):
        stream = StreamId("east", f"n{epoch}", 10, epoch)
        log = SequencedLog(stream, Limits())
        log.append(item(f"only-{epoch}", epoch=epoch), 0)
        copied(copies, log)
    assert len(copies.copies) == COPIES_MAX
    assert set(copies.union()) == {f"only-{n}" for n in range(1, 12)}


def test_lost_own_log_becomes_a_copy() -> None:
    copies = ServiceCopies(Limits())
    copies.adopt(log_of(2), 0)
    copied(copies, log_of(0, stream=B2))
    assert set(copies.union()) == {"u0", "u1"}


def test_freshness() -> None:
    copies = ServiceCopies(Limits())
    assert copies.freshness("a", 1, 1000).state == "none"
    log = log_of(2)
    copy = copied(copies, log, now_ms=5000)
    assert copies.freshness("a", 1, 1000).state == "syncing", "unsettled and nothing below"
    copy.settled = True
    assert copies.freshness("a", 1, 1000).state == "in-sync"
    assert copies.freshness("b", 1, 1000).state == "suspended", "not the owner's stream"
    assert copies.freshness("b", 2, 1000).state == "in-sync", "b has not offered its own yet"
    copy.age(6001)
    fresh = copies.freshness("a", 1, 1000)
    assert (fresh.state, fresh.lag_ms) == ("suspended", 1001)
    copy.saw_head(log.head, 6002)
    assert copies.freshness("a", 1, 1000).state == "in-sync"
    copied(copies, log_of(0, stream=B2), now_ms=6003)
    assert copies.freshness("b", 2, 1000).state == "in-sync", "rests on the lower copy"


def test_digests_find_the_calls_that_differ() -> None:
    mine, theirs = ItemSet(), ItemSet()
    for number in range(1000):
        mine.merge(item(f"u{number}"), 0)
        theirs.merge(item(f"u{number}", 2 if number == 77 else 1, dead=number == 78), 0)
    found = in_buckets(theirs.items.values(), differing(mine.marks, theirs.marks))
    assert {"u77", "u78"} <= {i.uuid for i in found}
    assert len(found) < 20
    assert differing(mine.marks, list(mine.marks)) == frozenset()
