"""The origin's side of replication, pure: items, ranks, the sequenced log.

A peer's place in it is `core.cursor`, what a standby makes of it is `core.standby`; sockets,
compression and pacing are `sync`.

A *stream* is the sequence of changes that one owner makes to one service while it owns it. It is
named by `StreamId`, carries its epoch in band (a reclaim advances it without a new snapshot), and
ends up *settled* when every call inherited from lower epochs has its verdict. Until then standbys
keep the lower streams too, so that a slave that dies in mid-takeover loses nothing (RELIABILITY
31, 35). Of two items about one call the higher `rank` wins wherever they meet (S8, S9).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TypeAlias
from zlib import crc32

import msgspec

BUCKETS = 512  # of an anti-entropy digest: one request is 4 KiB and names 1/512 of the calls
GRAVES_MAX = 20_000  # tombstones kept per set, whichever bound is reached first
GRAVE_MS = 600_000
CHUNK_BYTES = 32 * 1024  # of blobs per message, so that no message holds up the event loop
CHUNK_ITEMS = 128
_DIGEST_MASK = (1 << 64) - 1


class StreamId(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which log a sequence number belongs to.

    `incarnation` is the origin's agent run, `begun` the epoch at which the log was begun.
    """

    service: str
    origin: str
    incarnation: int
    begun: int


class Item(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """One call's state as it is logged, sent and stored; `blob` is opaque here (sync.codec)."""

    uuid: str
    epoch: int
    incarnation: int
    version: int
    dead: bool
    blob: bytes


class Advanced(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Log entry: the owner reclaimed its service; from here on the stream has this epoch."""

    epoch: int


class Settled(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Log entry: every inherited call has its verdict, lower epochs may be forgotten."""


Entry: TypeAlias = Item | Advanced | Settled
Rank: TypeAlias = tuple[int, int, int, bool]


class Offer(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Origin to standby: I have this stream, its newest sequence number is `head`."""

    stream: StreamId
    epoch: int
    head: int


class Resume(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Standby to origin: I hold the stream up to `position`; -1 asks for a snapshot."""

    stream: StreamId
    position: int


class Delta(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Entries `first`, `first + 1`, ...; `head` is the origin's newest, to judge the lag by."""

    stream: StreamId
    first: int
    head: int
    entries: list[Entry]


class SnapshotBegin(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """A snapshot of about `count` items follows; deltas from `position + 1` come between chunks."""

    stream: StreamId
    position: int
    count: int
    epoch: int
    settled: bool


class Chunk(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Some items of the snapshot."""

    stream: StreamId
    items: list[Item]


class SnapshotEnd(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """The snapshot with the deltas sent since its begin is the whole state at `position`."""

    stream: StreamId
    position: int
    digest: int


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Standby to origin: I hold everything up to `position` (never sent while in a snapshot)."""

    stream: StreamId
    position: int


class Outdated(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """Standby to origin: I know a newer stream of this service, yours is not taken."""

    stream: StreamId
    epoch: int
    incarnation: int
    origin: str


OriginMessage: TypeAlias = Delta | SnapshotBegin | Chunk | SnapshotEnd


def rank(item: Item) -> Rank:
    """The total order of a call's states; at one version the tombstone wins."""
    return (item.epoch, item.incarnation, item.version, item.dead)


def bucket(uuid: str) -> int:
    """The digest bucket of a call: by uuid alone, so that versions of it meet."""
    return crc32(uuid.encode()) % BUCKETS


def _mark(item: Item) -> int:
    key = f"{item.uuid}/{item.epoch}/{item.incarnation}/{item.version}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big")


class ItemSet:
    """The newest item per call. Merging is commutative, associative and idempotent.

    Digests cover live calls only: tombstones are forgotten at different times in different places.
    """

    __slots__ = ("bytes", "graves", "items", "live", "marks", "watchers")

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.marks = [0] * BUCKETS
        self.graves: dict[str, int] = {}  # uuid -> ms of burial, oldest first
        self.live = 0
        self.bytes = 0
        self.watchers: list[set[int]] = []  # each is told the buckets that change

    def merge(self, item: Item, now_ms: int) -> bool:
        """Take the item if it outranks what is known; True if it did."""
        known = self.items.get(item.uuid)
        if known is not None:
            if rank(item) <= rank(known):
                return False
            self._forget(known)
        self.items[item.uuid] = item
        for watcher in self.watchers:
            watcher.add(bucket(item.uuid))
        self.bytes += len(item.blob)
        if item.dead:
            self.graves[item.uuid] = now_ms
            self._prune(now_ms)
        else:
            self.live += 1
            at = bucket(item.uuid)
            self.marks[at] = (self.marks[at] + _mark(item)) & _DIGEST_MASK
        return True

    def digest(self) -> int:
        """One number for all live calls, independent of the order in which they came."""
        return sum(self.marks) & _DIGEST_MASK

    def recount(self) -> None:
        """Work out anew what is kept up change by change, from the items that are there."""
        self.marks = [0] * BUCKETS
        self.live = self.bytes = 0
        for item in self.items.values():
            self.bytes += len(item.blob)
            if not item.dead:
                self.live += 1
                at = bucket(item.uuid)
                self.marks[at] = (self.marks[at] + _mark(item)) & _DIGEST_MASK
        self.graves = {u: at_ms for u, at_ms in self.graves.items() if u in self.items}

    def _forget(self, item: Item) -> None:
        self.bytes -= len(item.blob)
        if item.dead:
            del self.graves[item.uuid]
            return
        self.live -= 1
        at = bucket(item.uuid)
        self.marks[at] = (self.marks[at] - _mark(item)) & _DIGEST_MASK

    def _prune(self, now_ms: int) -> None:
        while self.graves:
            uuid, buried_ms = next(iter(self.graves.items()))
            if len(self.graves) <= GRAVES_MAX and now_ms - buried_ms <= GRAVE_MS:
                return
            self._forget(self.items.pop(uuid))


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one stream at its origin and in a copy; sizes in bytes of blobs."""

    buffer_entries: int = 20_000
    buffer_bytes: int = 16 * 1024 * 1024
    records: int = 50_000
    record_bytes: int = 128 * 1024 * 1024


class _Kept(msgspec.Struct, frozen=True, gc=False):
    entry: Entry
    at_ms: int


class SequencedLog:
    """The origin's log of one service: its state, and the newest changes for resuming peers.

    The buffer is shared by all peers and bounded; a peer that falls behind it gets a snapshot,
    so a slow peer costs no memory.
    """

    def __init__(self, stream: StreamId, limits: Limits, settled: bool = False) -> None:
        self.stream = stream
        self.limits = limits
        self.epoch = stream.begun
        self.settled = settled
        self.head = 0
        self.items = ItemSet()
        self.sequence: dict[str, int] = {}  # uuid -> sequence number of its newest item
        self._kept: dict[int, _Kept] = {}
        self._kept_bytes = 0
        self._first = 1
        if settled:
            self.append(Settled(), 0)

    def append(self, entry: Entry, now_ms: int) -> int | None:
        """Log one change; None if it says nothing newer than what is logged, or is over a limit."""
        if isinstance(entry, Item):
            full = entry.uuid not in self.items.items and not entry.dead and self._full(entry)
            if full or not self.items.merge(entry, now_ms):
                return None
            self.sequence[entry.uuid] = self.head + 1
            if len(self.sequence) > len(self.items.items) + 1024:
                known = self.items.items
                self.sequence = {u: s for u, s in self.sequence.items() if u in known}
        elif isinstance(entry, Advanced):
            if entry.epoch <= self.epoch:
                return None
            self.epoch = entry.epoch
        else:
            self.settled = True
        self.head += 1
        self._kept[self.head] = _Kept(entry, now_ms)
        self._kept_bytes += _size(entry)
        self._trim()
        return self.head

    def can_resume(self, position: int) -> bool:
        """Whether a delta from `position` is possible, and cheaper than a snapshot."""
        if not self._first - 1 <= position <= self.head:
            return False
        return self.head - position <= max(1024, len(self.items.items))

    @property
    def kept_from(self) -> int:
        """The lowest position from which the buffer still tells everything."""
        return self._first - 1

    def since(self, position: int) -> list[Entry] | None:
        """The next few entries after `position`; None if the buffer no longer has them."""
        if position + 1 < self._first or position > self.head:
            return None
        entries: list[Entry] = []
        size = 0
        for number in range(position + 1, self.head + 1):
            entry = self._kept[number].entry
            entries.append(entry)
            size += _size(entry)
            if size >= CHUNK_BYTES or len(entries) >= CHUNK_ITEMS:
                break
        return entries

    def logged_ms(self, number: int) -> int | None:
        """When entry `number` was logged; None if it is no longer (or not yet) in the buffer."""
        kept = self._kept.get(number)
        return None if kept is None else kept.at_ms

    def holds(self, uuid: str, version: int, position: int) -> bool:
        """Whether a peer at `position` has this call at `version` or newer (S9)."""
        item = self.items.items.get(uuid)
        if item is None or item.version < version:
            return False
        if self.sequence[uuid] <= position:
            return True
        for number in range(min(position, self.head), self._first - 1, -1):
            entry = self._kept[number].entry
            if isinstance(entry, Item) and entry.uuid == uuid:
                return entry.version >= version
        return False

    def at_risk(self, position: int) -> list[str]:
        """Live calls whose newest state a peer at `position` has not acknowledged."""
        if position >= self.head:
            return []
        live = self.items.items
        return [
            u for u, s in self.sequence.items() if s > position and u in live and not live[u].dead
        ]

    def _full(self, item: Item) -> bool:
        return (
            self.items.live >= self.limits.records
            or self.items.bytes + len(item.blob) > self.limits.record_bytes
        )

    def _trim(self) -> None:
        limits = self.limits
        while len(self._kept) > limits.buffer_entries or (
            self._kept_bytes > limits.buffer_bytes and len(self._kept) > 1
        ):
            kept = self._kept.pop(self._first)
            self._kept_bytes -= _size(kept.entry)
            self._first += 1


def _size(entry: Entry) -> int:
    return len(entry.blob) + 96 if isinstance(entry, Item) else 96
