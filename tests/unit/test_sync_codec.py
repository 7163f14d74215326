"""Frames, messages and record blobs; the change log's inbox."""

from __future__ import annotations

import asyncio
import time
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.core.replication import Advanced, Delta, Item, Limits, Settled, StreamId
from haclusterd.sync.codec import (
    RECORD_BYTES_MAX,
    Found,
    FrameReader,
    Malformed,
    Message,
    Want,
    decode,
    frame,
    item_of,
    record_of,
)
from haclusterd.sync.log import ChangeLog
from tests.unit.sync_cluster import call

STREAM = StreamId("east", "a", 2**40, 3)


@given(st.text(max_size=3000), st.integers(0, 2**60))
def test_record_round_trip(metadata: str, version: int) -> None:
    try:
        record = CallRecord("east", "u", version, "east", "core", metadata)
        packed = item_of(record, 1, 2)
    except Malformed:  # half a sign
        return
    assert record_of(packed) == record


def test_xml_is_packed_and_small_records_are_not() -> None:
    large = item_of(CallRecord("east", "u", 1, "east", "core", "<tag>x</tag>" * 700), 1, 1)
    assert len(large.blob) < 400
    assert item_of(Tombstone("east", "u", 1), 1, 1).blob[:1] == b"\0"
    assert item_of(Tombstone("east", "u", 1), 1, 1).dead


def test_record_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(Malformed, match="more than can be replicated"):
        item_of(CallRecord("east", "u", 1, "e", "c", "x" * (RECORD_BYTES_MAX + 1)), 1, 1)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x00",
        b"\x01garbage",
        b"\x00\xc1",
        b"\x01" + zlib.compress(b"\xc1"),
        b"\x01" + zlib.compress(b"x" * 5000)[:20],
        b"\x01" + zlib.compress(b"\0" * (RECORD_BYTES_MAX + 1)),
    ],
)
def test_unreadable_blobs(blob: bytes) -> None:
    with pytest.raises(Malformed):
        record_of(Item("u", 1, 1, 1, False, blob))


@given(st.lists(st.integers(1, 60), max_size=30))
def test_frames_survive_any_cut(cuts: list[int]) -> None:
    messages: list[Message] = [
        Delta(STREAM, 5, 9, [Item("u", 1, 2, 3, True, b"blob"), Advanced(4), Settled()]),
        Want(1, "east", [2**64 - 1] * 3),
        Found(1, [], True),
    ]
    sent = b"".join(frame(m) for m in messages)
    reader, got, at = FrameReader(), [], 0
    for cut in [*cuts, len(sent)]:
        got += [decode(body) for body in reader.feed(sent[at : at + cut])]
        at += cut
    assert got == messages


@given(st.binary(max_size=200))
def test_garbage_is_malformed_and_nothing_else(garbage: bytes) -> None:
    try:
        for body in FrameReader(100).feed(garbage):
            decode(body)
    except Malformed:
        pass


def _log(limits: Limits | None = None) -> ChangeLog:
    return ChangeLog("a", 5, limits or Limits(), lambda: 0, lambda _: None, lambda _: None)


def _call(number: int, version: int = 1, metadata: str = "") -> CallRecord:
    return CallRecord("east", f"u{number}", version, "east", "core", metadata)


async def test_large_batches_are_packed_in_slices() -> None:
    log = _log()
    log.own("east", 1, settled=False)
    log.append([_call(n, 1, f"<{n}>" * 2000) for n in range(2000)])
    log.append([_call(7, 2), Tombstone("east", "u8", 2), _call(8, 1)])
    log.settle("east")
    assert log.waiting("east") == 2001, "one per call, and the mark"
    assert "u8" not in log.waiting_uuids()
    longest, last = 0.0, time.thread_time()
    while log.waiting("east"):
        await asyncio.sleep(0)
        longest, last = max(longest, time.thread_time() - last), time.thread_time()
    assert longest < 0.03  # CPU time; 3 ms a slice on a quiet machine
    own = log.logs["east"]
    assert own.settled
    assert own.head == 2001
    assert own.items.items["u7"].version == 2
    assert own.items.items["u8"].dead


async def test_what_is_not_logged_is_counted() -> None:
    log = _log(Limits(records=2))
    log.append([_call(1)])
    log.own("east", 1, settled=False)
    log.append([_call(1), _call(1), _call(2), _call(3), _call(4, 2, "x" * (RECORD_BYTES_MAX + 1))])
    await asyncio.sleep(0)
    log.append([_call(2)])
    assert log.counters == {"unowned": 1, "full": 1, "oversize": 1, "stale": 1}
    assert log.waiting_uuids() == ["u3", "u4"], "refused calls are at risk"
    log.append([Tombstone("east", "u3", 2), _call(4, 3)])
    assert log.waiting_uuids() == ["u4"], "still full"


async def test_a_call_that_found_no_room_is_logged_when_there_is_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its source takes it for told, and says it again only when it changes."""
    monkeypatch.setattr("haclusterd.sync.log.FULL_MAX", 3)
    log = _log(Limits(records=2))
    log.own("east", 1, settled=True)
    log.own("west", 1, settled=True)
    log.append([_call(n) for n in range(1, 7)])
    own = log.logs["east"].items

    def live() -> list[str]:
        return [uuid for uuid, item in own.items.items() if not item.dead]

    assert live() == ["u1", "u2"]
    log.append([_call(4, 7), Tombstone("east", "u3", 2)])  # u3 ends, u4 changes, without room
    log.append([Tombstone("east", "u1", 2), _call(2, 2)])
    assert live() == ["u2", "u5"], "the oldest that waits, when something is told"
    assert log.waiting_uuids() == ["u6", "u4"], "u6 was one too many to be kept"
    log.append([Tombstone("east", "u5", 2), _call(8)])
    assert live() == ["u2", "u4"], "before what is told"
    assert own.items["u4"].version == 7
    log.append([Tombstone("east", "u4", 8)])
    another = msgspec.structs.replace(_call(2, 3), runtime_uuid="another")
    log.append([another])
    assert live() == ["u2"], "u8 was of a process that is gone"
    assert log.waiting_uuids() == ["u6"], "nor is it at risk any more"
    log.append([_call(n) for n in (9, 10)])
    assert live() == ["u2", "u9"]
    log.disown("east")
    log.own("east", 2, settled=True)
    assert not log._full
    assert log.waiting("east") == 0


async def test_ownership_of_the_log() -> None:
    log = _log()
    assert log.own("east", 1, settled=True) is None
    first = log.logs["east"]
    assert log.own("east", 1, settled=False) is None, "the same epoch again changes nothing"
    assert log.logs["east"] is first
    log.advance("east", 3)
    log.advance("east", 2)
    assert first.epoch == 3
    log.append([_call(1)])
    assert log.own("east", 7, settled=False) is first
    assert log.items("east") is not first.items
    assert log.disown("east") is not None
    assert log.disown("east") is None
    assert log.items("east") is None


def test_a_record_that_is_no_text_is_refused_and_holds_up_no_other() -> None:
    """Raised as what it is, it had the source of calls tell all of them again, for ever."""
    logged: list[str] = []
    log = ChangeLog("a", 1, Limits(), lambda: 0, logged.append, lambda service: None)
    log.own("east", 1, settled=True)
    good = call(1)
    log.append([msgspec.structs.replace(good, uuid="odd", metadata="\udcff"), good])
    assert log.counters["oversize"] == 1
    items = log.items("east")
    assert items is not None
    assert list(items.items) == [good.uuid]
    assert log.waiting_uuids() == ["odd"]
