"""How far one peer's copy of a stream is, and what to send it next; pure, at the origin."""

from __future__ import annotations

from collections.abc import Iterator

from haclusterd.core.replication import (
    CHUNK_BYTES,
    CHUNK_ITEMS,
    Chunk,
    Delta,
    Item,
    OriginMessage,
    SequencedLog,
    SnapshotBegin,
    SnapshotEnd,
)


class Cursor:
    """How far one peer's copy of a stream is, and what to send it next.

    During a snapshot new changes go out between its chunks, so that a busy origin never has to
    hold them back and the snapshot ends in the present.
    """

    def __init__(self, log: SequencedLog) -> None:
        self.log = log
        self.acked = -1  # nothing acknowledged: the peer does not hold the stream whole
        self.sent: int | None = None  # None: the peer has not answered the offer
        self.snapshots = 0
        self.staged = 0  # items of the snapshot under way that were sent
        self.staging = 0  # of how many
        self._wants_snapshot = False
        self._uuids: Iterator[str] | None = None

    @property
    def syncing(self) -> bool:
        """A snapshot is due or under way."""
        return self._wants_snapshot or self._uuids is not None

    def resume(self, position: int) -> None:
        """The peer said what it holds."""
        self._uuids = None
        self._wants_snapshot = not self.log.can_resume(position)
        self.sent = self.log.head if self._wants_snapshot else position
        self.acked = position if position <= self.log.head else -1

    def ack(self, position: int) -> bool:
        """The peer acknowledged; False if it claims what was never sent or already said."""
        if self.sent is None or self.syncing or not self.acked < position <= self.sent:
            return False
        self.acked = position
        return True

    def next(self) -> OriginMessage | None:
        """The next message for this peer; None while there is nothing to say."""
        if self.sent is None:
            return None
        if self._wants_snapshot:
            return self._begin()
        if self.sent < self.log.head:
            entries = self.log.since(self.sent)
            if entries is None:
                return self._begin()
            first = self.sent + 1
            self.sent += len(entries)
            return Delta(self.log.stream, first, self.log.head, entries)
        return None if self._uuids is None else self._chunk(self._uuids)

    def _begin(self) -> SnapshotBegin:
        log = self.log
        self._wants_snapshot = False
        self._uuids = iter(list(log.items.items))
        self.sent = log.head
        self.snapshots += 1
        count = self.staging = len(log.items.items)
        self.staged = 0
        return SnapshotBegin(log.stream, log.head, count, log.epoch, log.settled)

    def _chunk(self, uuids: Iterator[str]) -> Chunk | SnapshotEnd:
        items: list[Item] = []
        size = 0
        for uuid in uuids:
            item = self.log.items.items.get(uuid)
            if item is None:
                continue
            items.append(item)
            size += len(item.blob)
            if size >= CHUNK_BYTES or len(items) >= CHUNK_ITEMS:
                break
        if items:
            self.staged += len(items)
            return Chunk(self.log.stream, items)
        self._uuids = None
        return SnapshotEnd(self.log.stream, self.log.head, self.log.items.digest())
