"""The standby store: what this node holds of the calls of services that others own.

In memory only: after a restart it is filled again by snapshots. Records stay packed as they came;
they are unpacked when a takeover asks for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from haclusterd.core.records import CallRecord
from haclusterd.core.replication import (
    Chunk,
    Delta,
    Item,
    Limits,
    Offer,
    OriginMessage,
    SequencedLog,
    SnapshotBegin,
    StreamId,
    rank,
)
from haclusterd.core.standby import ServiceCopies, StreamCopy
from haclusterd.sync.codec import Head, Malformed, record_of

RESYNC_MS = 5_000  # between two resyncs of one stream for a digest that differs
SERVICES_MAX = 256


class StoreCounts(msgspec.Struct, frozen=True):
    """One service in the store. `bytes` of packed records; `digest` of live calls."""

    service: str
    copies: int
    live: int
    tombstones: int
    bytes: int
    digest: int


class StandbyStore:
    """Per service the copies of its streams. `counters`: ignored (frozen), unreadable, mismatch."""

    def __init__(self, limits: Limits, now_ms: Callable[[], int]) -> None:
        self.limits = limits
        self.services: dict[str, ServiceCopies] = {}
        self.counters: Counter[str] = Counter()
        self._now_ms = now_ms
        self._resynced_ms: dict[tuple[str, str], int] = {}  # by service and origin
        self._unfit: set[StreamId] = set()  # whose snapshot was another than its origin said

    def offer(self, message: Offer) -> StreamCopy | None:
        """Take up an offered stream; None if a newer one of that service is known."""
        service = message.stream.service
        if service not in self.services and len(self.services) >= SERVICES_MAX:
            return None
        self._unfit.discard(message.stream)  # it is said anew what is held, and sent what is not
        return self._copies(service).offer(message, self._now_ms())

    def copy(self, stream: StreamId) -> StreamCopy | None:
        """The copy of one stream."""
        copies = self.services.get(stream.service)
        return None if copies is None else copies.copies.get(stream)

    def apply(self, message: OriginMessage) -> StreamCopy | None:
        """Apply what the origin sent; the copy if its position may be acknowledged now.

        Raises StreamGap and LimitExceeded (core.standby): the connection has to start again.
        """
        copy = self.copy(message.stream)
        if copy is None or copy.frozen:
            self.counters["ignored"] += 1
            return None
        now_ms = self._now_ms()
        if isinstance(message, Delta):
            copy.delta(message, now_ms)
        elif isinstance(message, SnapshotBegin):
            self._unfit.discard(message.stream)
            copy.begin(message, now_ms)
        elif isinstance(message, Chunk):
            copy.chunk(message, now_ms)
        elif not copy.end(message, now_ms):
            self.counters["mismatch"] += 1
            self._unfit = {s for s in self._unfit if self.copy(s) is not None} | {message.stream}
            return None
        if copy.staging is not None:
            return None
        if copy.settled:
            self.services[message.stream.service].supersede()
        return copy

    def compare(self, head: Head) -> bool:
        """The origin says where it is; False if this copy says otherwise at the same position.

        At most one False per stream and RESYNC_MS, because it costs a snapshot.
        """
        copy = self.copy(head.stream)
        if copy is None or copy.frozen:
            return True
        now_ms = self._now_ms()
        copy.saw_head(head.head, now_ms)
        if copy.staging is not None or copy.position != head.head:
            return not self.lacks_snapshot(head.stream)
        if copy.items.digest() == head.digest:
            return True
        copy.caught_up_ms = None
        if not self._may_resync(head.stream):
            return True
        self.counters["mismatch"] += 1
        return False

    def lacks_snapshot(self, stream: StreamId) -> bool:
        """The last one did not fit, its origin believes that it did, and it is time to say so."""
        copy = self.copy(stream)
        if stream not in self._unfit or copy is None or copy.frozen or copy.staging is not None:
            return False
        return self._may_resync(stream)

    def _may_resync(self, stream: StreamId) -> bool:
        now_ms = self._now_ms()
        key = (stream.service, stream.origin)
        if now_ms - self._resynced_ms.get(key, -RESYNC_MS) < RESYNC_MS:
            return False
        self._resynced_ms[key] = now_ms
        return True

    def disconnected(self, origin: str) -> None:
        """The connection to a peer ended: its snapshots under way end half way."""
        for copies in self.services.values():
            for copy in copies.copies.values():
                if copy.stream.origin == origin:
                    copy.salvage()

    def adopt(self, log: SequencedLog) -> None:
        """A service this node owned went to another: keep what we know of it until that settles."""
        self._copies(log.stream.service).adopt(log, self._now_ms())

    def succeed(self, service: str, epoch: int) -> None:
        """This node owns the service now: predecessors that still talk are not listened to."""
        if service in self.services:
            self.services[service].freeze(epoch)

    def settled(self, log: SequencedLog) -> None:
        """This node owns the service and has settled it: what it inherited may be forgotten."""
        copies = self.services.get(log.stream.service)
        if copies is not None:
            copies.drop_below((log.epoch, log.stream.incarnation, log.stream.origin))

    def fetched(self, service: str, items: Iterable[Item]) -> int:
        """Merge what another standby knew; the number of items that were news.

        A call that the owner of a settled stream did not take over is none any more, although its
        end was in a stream that is forgotten here.
        """
        copies = self._copies(service)
        sets = [copy.items.items for copy in copies.copies.values()]
        settled = max(
            (
                (c.stream.begun, c.stream.incarnation)
                for c in copies.copies.values()
                if c.settled and c.complete
            ),
            default=(0, 0),
        )
        now_ms = self._now_ms()
        news = 0
        for item in items:
            if not item.dead and (item.epoch, item.incarnation) < settled:
                self.counters["superseded"] += 1
                continue
            known = (s[item.uuid] for s in sets if item.uuid in s)
            if all(rank(item) > rank(other) for other in known):
                news += copies.fetched.merge(item, now_ms)
        return news

    def items(self, service: str) -> dict[str, Item]:
        """The newest item per call over all copies, tombstones included. Do not change it."""
        copies = self.services.get(service)
        return {} if copies is None else copies.union()

    def records(self, service: str) -> list[CallRecord]:
        """All live calls of a service, unpacked: about 25 us each, use in slices for many."""
        return self.unpack(self.items(service).values())

    def unpack(self, items: Iterable[Item]) -> list[CallRecord]:
        """The live ones among some items; an unreadable one is counted and left out."""
        records: list[CallRecord] = []
        for item in items:
            if item.dead:
                continue
            try:
                records.append(record_of(item))
            except Malformed:
                self.counters["unreadable"] += 1
        return records

    def counts(self) -> list[StoreCounts]:
        """One row per service, for status and metrics."""
        rows = []
        for service, copies in sorted(self.services.items()):
            sets = [c.items for c in copies.copies.values()] + [copies.fetched]
            newest = copies.newest()
            rows.append(
                StoreCounts(
                    service,
                    len(copies.copies),
                    max((s.live for s in sets), default=0),
                    max((len(s.graves) for s in sets), default=0),
                    sum(s.bytes for s in sets),
                    0 if newest is None else newest.items.digest(),
                )
            )
        return rows

    def _copies(self, service: str) -> ServiceCopies:
        return self.services.setdefault(service, ServiceCopies(self.limits))
