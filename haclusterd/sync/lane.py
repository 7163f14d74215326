"""One kind of replicated state: its streams out, its copies in, and what peers say about them.

Calls and registrations are two lanes over the same connections. They share nothing but these, so
that a storm of one kind is no gap, no lag and no limit of the other. A stream belongs to the lane
that its service's name begins with (`prefix`), which is how the bytes on the wire stay version 1.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from haclusterd.core.replication import (
    Ack,
    Chunk,
    Delta,
    Item,
    Limits,
    Offer,
    OriginMessage,
    Outdated,
    Resume,
    Settled,
    SnapshotBegin,
    SnapshotEnd,
    StreamId,
)
from haclusterd.core.standby import Freshness, LimitExceeded, StreamGap
from haclusterd.sync.codec import Head, Malformed, Message
from haclusterd.sync.collect import known
from haclusterd.sync.log import ChangeLog
from haclusterd.sync.outgoing import Outgoing, now_ms
from haclusterd.sync.session import Session, SyncTiming
from haclusterd.sync.status import IncomingStatus, incoming
from haclusterd.sync.store import StandbyStore

REGISTRATIONS = "registrations:"  # a configured service's name has no colon

Changed = Callable[[dict[str, Freshness]], None]


class Lane:
    """See the module. `progress()` is called when what is safe elsewhere may have changed.

    `on_items(service, uuids)` is called when copies of these have changed; None: maybe of all.
    """

    def __init__(
        self,
        node: str,
        incarnation: int,
        limits: Limits,
        timing: SyncTiming,
        counters: Counter[str],
        progress: Callable[[], None],
        prefix: str = "",
    ) -> None:
        self.node, self.prefix = node, prefix
        self.store = StandbyStore(limits, now_ms)
        self.change_log = ChangeLog(node, incarnation, limits, now_ms, self._logged, self._replaced)
        self.outgoing = Outgoing(self.change_log.logs, timing.lag_ms_max, prefix)
        self.owners: dict[str, tuple[str, int]] = {}
        self.on_items: Callable[[str, list[str] | None], None] | None = None
        self._timing = timing
        self._counters = counters
        self._progress = progress
        self._unacked: dict[Session, dict[StreamId, int]] = {}
        self._states: dict[str, str] = {}
        self.watchers: list[Changed] = []

    # -- ownership --

    def own(self, service: str, epoch: int, settled: bool) -> None:
        """This node owns the service from `epoch` on; see ChangeLog.own for `settled`."""
        old = self.change_log.own(service, epoch, settled)
        if old is not None:
            self.store.adopt(old)
        self.store.succeed(service, epoch)

    def disown(self, service: str) -> None:
        """Another node owns the service; what was known is kept until that node settles."""
        old = self.change_log.disown(service)
        if old is not None:
            self.store.adopt(old)

    def observe(self, owners: Mapping[str, tuple[str, int]]) -> None:
        """(owner, epoch) per service: what another node owns at a higher epoch is disowned."""
        self.owners = {self.prefix + service: owned for service, owned in owners.items()}
        for service, (owner, epoch) in self.owners.items():
            own = self.change_log.logs.get(service)
            if own is not None and owner != self.node and epoch > own.epoch:
                self.disown(service)

    # -- sessions --

    def ready(self, session: Session) -> None:
        """A peer connected."""
        self.store.disconnected(session.peer)
        self._unacked[session] = {}

    def lost(self, session: Session, current: bool) -> None:
        """A connection ended; `current`: it was the one in use."""
        self.outgoing.lost(session)
        self._unacked.pop(session, None)
        if current:
            self.store.disconnected(session.peer)

    def heads(self) -> list[Head]:
        """Where the own streams are."""
        return [
            Head(own.stream, own.head, own.items.digest()) for own in self.change_log.logs.values()
        ]

    def message(self, session: Session, message: Message) -> None:
        """A message about a stream of this lane. Raises Malformed."""
        match message:
            case Delta() | SnapshotBegin() | Chunk() | SnapshotEnd():
                self._apply(session, message)
            case Offer():
                self._offered(session, message)
            case Resume() | Ack():
                self.outgoing.answered(session, message, now_ms())
                self._progress()
            case Outdated():
                self._outdated(message)

    def batch(self, session: Session) -> None:
        """Acknowledge once for all that came together."""
        unacked = self._unacked.get(session)
        if unacked:
            for stream, position in unacked.items():
                session.send(Ack(stream, position))
            unacked.clear()

    def compare(self, session: Session, head: Head) -> None:
        """The origin says where its stream is. Raises Malformed."""
        self._check_origin(session, head.stream)
        if not self.store.compare(head):
            session.send(Resume(head.stream, -1))

    def view(self, service: str) -> tuple[list[int], Mapping[str, Item]]:
        """All that this node knows of a service: its digest, its items."""
        return known(self.change_log.items(service), self.store.services.get(service))

    def fetched(self, service: str, items: list[Item]) -> None:
        """What another standby knew. Once this node has settled the service that is the past, but
        for what an owner told whom it has not heard of itself."""
        own = self.change_log.logs.get(service)
        if own is not None and own.settled:
            items = [item for item in items if item.epoch > own.epoch]
        if items:
            self.store.fetched(service, items)

    # -- judging --

    def freshness(self, service: str) -> Freshness:
        """How good this node's copy of a service is; see core.standby."""
        copies = self.store.services.get(service)
        newest = None if copies is None else copies.newest()
        if copies is None or newest is None:
            return Freshness("none", 0, 0, 0)
        owner, epoch = self.owners.get(service, (newest.stream.origin, newest.epoch))
        return copies.freshness(owner, epoch, self._timing.lag_ms_max)

    def judge(self, alive: frozenset[str] | None) -> None:
        """Let the copies of living owners age."""
        at_ms = now_ms()
        for service, copies in self.store.services.items():
            newest = copies.newest()
            if newest is None:
                continue
            owner = self.owners.get(service, (newest.stream.origin, 0))[0]
            if alive is None or owner in alive:
                newest.age(at_ms, self._timing.beat_ms * 3 // 2)
        self.outgoing.judge()
        self.notify()

    def notify(self) -> None:
        """Tell the watchers which copies changed their state."""
        fresh = {s: self.freshness(s) for s in self.store.services}
        changed = {s: f for s, f in fresh.items() if self._states.get(s) != f.state}
        self._states = {s: f.state for s, f in fresh.items()}
        for watcher in self.watchers if changed else ():
            asyncio.get_running_loop().call_soon(watcher, changed)

    def incoming(self) -> list[IncomingStatus]:
        """One row per service of others."""
        return [
            incoming(s, self.prefix, copies.newest(), self.freshness(s), now_ms())
            for s, copies in sorted(self.store.services.items())
        ]

    # -- parts of it --

    def _apply(self, session: Session, message: OriginMessage) -> None:
        self._check_origin(session, message.stream)
        try:
            copy = self.store.apply(message)
        except StreamGap as error:
            self._counters["gap"] += 1
            raise Malformed(str(error)) from None
        except LimitExceeded as error:
            self._counters["limit"] += 1
            raise Malformed(str(error)) from None
        if copy is not None and session in self._unacked:
            self._unacked[session][message.stream] = copy.position
        if isinstance(message, SnapshotBegin | SnapshotEnd):
            self.notify()
            if self.store.lacks_snapshot(message.stream):
                session.send(Resume(message.stream, -1))
        if self.on_items is not None:
            self.on_items(message.stream.service, _uuids(message))

    def _offered(self, session: Session, message: Offer) -> None:
        self._check_origin(session, message.stream)
        service = message.stream.service
        own = self.change_log.logs.get(service)
        copy = None
        if own is None or message.epoch > own.epoch:
            copy = self.store.offer(message)
        if copy is not None:
            session.send(Resume(message.stream, copy.position))
            self.notify()
            return
        self.store.counters["outdated"] += 1
        copies = self.store.services.get(service)
        newest = None if copies is None else copies.newest()
        newer = own or newest
        if newer is not None:
            by = newer.stream
            session.send(Outdated(message.stream, newer.epoch, by.incarnation, by.origin))

    def _outdated(self, message: Outdated) -> None:
        own = self.change_log.logs.get(message.stream.service)
        if own is None or own.stream != message.stream or message.origin != self.node:
            return
        if message.epoch == own.epoch and message.incarnation > own.stream.incarnation:
            self.change_log.renew(message.stream.service, message.incarnation)

    def _check_origin(self, session: Session, stream: StreamId) -> None:
        if stream.origin != session.peer:
            raise Malformed(f"{session.peer} speaks for {stream.origin}")

    def _logged(self, service: str) -> None:
        own = self.change_log.logs[service]
        if own.settled:
            self.store.settled(own)
        self.outgoing.wake()
        self._progress()

    def _replaced(self, service: str) -> None:
        self.outgoing.replaced(service)
        self._progress()


def _uuids(message: OriginMessage) -> list[str] | None:
    if isinstance(message, Delta):
        if any(isinstance(entry, Settled) for entry in message.entries):
            return None  # what only lower streams had is forgotten now
        return [entry.uuid for entry in message.entries if isinstance(entry, Item)]
    return [item.uuid for item in message.items] if isinstance(message, Chunk) else None
