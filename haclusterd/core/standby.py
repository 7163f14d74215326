"""The standby's side of replication, pure: copies of streams, their succession and freshness.

The origin's side is `core.replication`. Per service there may be several copies: the newest stream
and, until its origin has settled it, those of lower epochs; what a takeover works on is their
union, in which the higher rank wins per call.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from haclusterd.core.replication import (
    BUCKETS,
    Advanced,
    Chunk,
    Delta,
    Entry,
    Item,
    ItemSet,
    Limits,
    Offer,
    SequencedLog,
    Settled,
    SnapshotBegin,
    SnapshotEnd,
    StreamId,
    bucket,
    rank,
)

COPIES_MAX = 4  # per service; beyond it the two lowest are folded into one
Key = tuple[int, int, str]


class StreamGap(Exception):
    """The peer sent what does not follow from what it sent before: reconnect and resume."""


class LimitExceeded(Exception):
    """The peer sent more calls than one stream may hold."""


class _Staging:
    """A snapshot under way; it replaces the copy when it is whole."""

    __slots__ = ("begun_ms", "epoch", "items", "position", "settled", "want")

    def __init__(self, begin: SnapshotBegin, now_ms: int) -> None:
        self.begun_ms = now_ms
        self.items = ItemSet()
        self.position = begin.position
        self.want = begin.count
        self.epoch = begin.epoch
        self.settled = begin.settled


class StreamCopy:
    """One stream as this node holds it; at `position` 0 it is the empty log at its beginning.

    A frozen copy takes nothing more: a higher stream of the service is known.
    """

    def __init__(self, stream: StreamId, epoch: int, limits: Limits) -> None:
        self.stream = stream
        self.limits = limits
        self.epoch = epoch
        self.settled = False
        self.frozen = False
        self.position = 0
        self.head = 0
        self.reached = 0  # nothing here is newer, not even of half a snapshot
        self.items = ItemSet()
        self.staging: _Staging | None = None
        self.caught_up_ms: int | None = None  # when this copy last had all that the origin had
        self.lag_ms = 0  # kept as it was when the origin fell silent
        self.ignored = 0

    @property
    def key(self) -> Key:
        """Order of the streams of one service: the highest is the present one."""
        return (self.epoch, self.stream.incarnation, self.stream.origin)

    @property
    def complete(self) -> bool:
        """Once had everything and has lost nothing since."""
        return self.caught_up_ms is not None

    def delta(self, message: Delta, now_ms: int) -> None:
        """Apply entries in order. Raises StreamGap, LimitExceeded; then nothing was applied."""
        at = self.staging or self
        if message.first != at.position + 1:
            raise StreamGap(f"{self.stream}: got {message.first} after {at.position}")
        self._check(at.items, message.entries)
        for entry in message.entries:
            if isinstance(entry, Item):
                at.items.merge(entry, now_ms)
            elif isinstance(entry, Advanced):
                at.epoch = max(at.epoch, entry.epoch)
            else:
                at.settled = True
        at.position += len(message.entries)
        self.reached = max(self.reached, at.position)
        self.saw_head(message.head, now_ms)

    def begin(self, message: SnapshotBegin, now_ms: int = 0) -> None:
        """A snapshot starts; one that was under way is forgotten."""
        self.staging = _Staging(message, now_ms)
        self.head = max(self.head, message.position)
        self.reached = max(self.reached, message.position)

    def chunk(self, message: Chunk, now_ms: int) -> None:
        """Stage some items. Raises StreamGap outside a snapshot, LimitExceeded."""
        if self.staging is None:
            raise StreamGap(f"{self.stream}: chunk outside a snapshot")
        self._check(self.staging.items, message.items)
        for item in message.items:
            self.staging.items.merge(item, now_ms)

    def end(self, message: SnapshotEnd, now_ms: int) -> bool:
        """Put the whole snapshot in place; False if its digest is not the origin's."""
        staged = self.staging
        if staged is None or staged.position != message.position:
            raise StreamGap(f"{self.stream}: snapshot end at {message.position}")
        self.staging = None
        if staged.items.digest() != message.digest:
            return False
        self.items, self.position = staged.items, staged.position
        self.epoch, self.settled = max(self.epoch, staged.epoch), staged.settled
        self.saw_head(max(self.head, message.position), now_ms)
        return True

    def saw_head(self, head: int, now_ms: int) -> None:
        """The origin said how far it is."""
        self.head = max(self.head, head)
        if self.staging is None and self.position >= self.head:
            self.caught_up_ms = now_ms
            self.lag_ms = 0

    def salvage(self) -> None:
        """A snapshot ends half way: what came of it is kept, should the origin never come back.

        The position stays: a delta from there on, or another snapshot, makes the copy whole.
        """
        staged, self.staging = self.staging, None
        if staged is not None:
            for item in staged.items.items.values():
                self.items.merge(item, self.caught_up_ms or 0)

    def age(self, now_ms: int, quiet_ms: int = 0) -> None:
        """Judge the lag; not called while the origin is dead, whose last state is what counts.

        Between two beats of an origin that says nothing new there is nothing to be behind of:
        only a silence of more than `quiet_ms` counts.
        """
        if self.caught_up_ms is not None:
            silent_ms = max(0, now_ms - self.caught_up_ms)
            has_all = self.staging is None and self.position >= self.head
            self.lag_ms = 0 if has_all and silent_ms <= quiet_ms else silent_ms

    def left_ms(self, now_ms: int) -> int | None:
        """How long the snapshot under way will take at its pace so far; None without one."""
        staged = self.staging
        if staged is None or not staged.items.items:
            return None
        have = len(staged.items.items)
        return max(0, now_ms - staged.begun_ms) * max(0, staged.want - have) // have

    def _check(self, items: ItemSet, entries: Iterable[Entry]) -> None:
        more = sum(len(e.blob) for e in entries if isinstance(e, Item))
        count = sum(isinstance(e, Item) and e.uuid not in items.items for e in entries)
        dead_room = len(items.graves)
        if (
            len(items.items) - dead_room + count > self.limits.records + 1024
            or items.bytes + more > 2 * self.limits.record_bytes
        ):
            raise LimitExceeded(f"{self.stream}: more than {self.limits.records} calls")


class Freshness(msgspec.Struct, frozen=True):
    """Is this node's copy of a service good enough to take over with? `state` as in DESIGN 8."""

    state: str  # in-sync | syncing | suspended | none
    have: int
    want: int
    lag_ms: int


class ServiceCopies:
    """All that this node holds of one service that others owned."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.copies: dict[StreamId, StreamCopy] = {}
        self.fetched = ItemSet()  # found on other standbys before a takeover

    def newest(self) -> StreamCopy | None:
        """The copy of the highest stream."""
        return max(self.copies.values(), key=lambda c: c.key, default=None)

    def offer(self, message: Offer, now_ms: int) -> StreamCopy | None:
        """Take up an offered stream; None if a newer one is known."""
        newest = self.newest()
        copy = self.copies.get(message.stream)
        key = (message.epoch, message.stream.incarnation, message.stream.origin)
        if newest is not None and newest is not copy and newest.key > key:
            return None
        if copy is None:
            copy = self.copies[message.stream] = StreamCopy(
                message.stream, message.epoch, self.limits
            )
        copy.head = max(copy.head, message.head)
        copy.frozen = False
        self.freeze(message.epoch, copy)
        copy.saw_head(message.head, now_ms)
        self.supersede()
        return copy

    def freeze(self, epoch: int, present: StreamCopy | None = None) -> None:
        """A stream with this epoch begins: what its predecessors still say is void."""
        for copy in self.copies.values():
            if copy is not present and copy.epoch <= epoch:
                copy.frozen = True
                copy.salvage()

    def adopt(self, log: SequencedLog, now_ms: int) -> None:
        """This node lost the service: its own log becomes one more copy, frozen."""
        copy = StreamCopy(log.stream, log.epoch, self.limits)
        copy.items, copy.settled, copy.frozen = log.items, log.settled, True
        copy.position = copy.head = copy.reached = log.head
        copy.caught_up_ms = now_ms
        self.copies[log.stream] = copy
        self.supersede()

    def supersede(self) -> None:
        """Forget what a settled stream has replaced; fold the lowest copies when there are many."""
        settled = max(
            (c.key for c in self.copies.values() if c.settled and c.complete), default=None
        )
        if settled is not None:
            self.drop_below(settled)
        while len(self.copies) > COPIES_MAX:
            low, high = sorted(self.copies.values(), key=lambda c: c.key)[:2]
            for item in low.items.items.values():
                high.items.merge(item, high.caught_up_ms or 0)
            del self.copies[low.stream]

    def drop_below(self, key: Key) -> None:
        """A stream with this key is settled: lower ones have nothing to add."""
        lower = [s for s, c in self.copies.items() if c.key < key]
        for stream in lower:
            del self.copies[stream]
        if lower or not self.copies:
            self.fetched = ItemSet()

    def union(self) -> dict[str, Item]:
        """The newest item per call over all copies (one set is given as it is, not copied)."""
        sets = [c.items.items for c in self.copies.values() if c.items.items]
        sets += [c.staging.items.items for c in self.copies.values() if c.staging is not None]
        if self.fetched.items:
            sets.append(self.fetched.items)
        if len(sets) == 1:
            return sets[0]
        merged: dict[str, Item] = {}
        for items in sets:
            for uuid, item in items.items():
                known = merged.get(uuid)
                if known is None or rank(item) > rank(known):
                    merged[uuid] = item
        return merged

    def marks(self) -> list[int]:
        """Digest per bucket of the union (live calls)."""
        copies = [c for c in self.copies.values() if c.items.items or c.staging is not None]
        if len(copies) == 1 and copies[0].staging is None and not self.fetched.items:
            return list(copies[0].items.marks)
        union = ItemSet()
        for item in self.union().values():
            union.merge(item, 0)
        return union.marks if union.items else [0] * BUCKETS

    def freshness(self, owner: str, epoch: int, lag_ms_max: int) -> Freshness:
        """Whether this node could take over from `owner` at `epoch` (section 7 of DESIGN).

        In sync: the owner's stream, caught up within the bound, and settled or resting on a lower
        copy that was. A stream the owner has not offered yet counts as its predecessor.
        """
        newest = self.newest()
        if newest is None:
            return Freshness("none", 0, 0, 0)
        want = newest.staging.want if newest.staging is not None else len(newest.items.items)
        have = len((newest.staging or newest).items.items)
        if newest.stream.origin != owner and newest.epoch >= epoch:
            return Freshness("suspended", have, want, newest.lag_ms)
        if newest.staging is not None or not newest.complete:
            return Freshness("syncing", have, max(want, have), newest.lag_ms)
        based = newest.settled or any(
            c.complete and c.lag_ms <= lag_ms_max for c in self.copies.values() if c is not newest
        )
        if not based:
            return Freshness("syncing", have, want, newest.lag_ms)
        state = "in-sync" if newest.lag_ms <= lag_ms_max else "suspended"
        return Freshness(state, have, want, newest.lag_ms)


def in_buckets(items: Iterable[Item], buckets: frozenset[int]) -> list[Item]:
    """The items (tombstones too) whose bucket differs."""
    return [item for item in items if bucket(item.uuid) in buckets]


def differing(mine: list[int], theirs: list[int]) -> frozenset[int]:
    """Buckets in which two digests differ."""
    return frozenset(n for n, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)


__all__ = [
    "Freshness",
    "LimitExceeded",
    "ServiceCopies",
    "Settled",
    "StreamCopy",
    "StreamGap",
    "differing",
    "in_buckets",
]
