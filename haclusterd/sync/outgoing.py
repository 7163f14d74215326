"""This node's streams on their way to the other nodes: one cursor per connection and stream."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from haclusterd.core.replication import Ack, Cursor, Offer, Resume, SequencedLog, StreamId
from haclusterd.sync.session import Session
from haclusterd.sync.status import OutgoingStatus, PeerStatus

ACK_SAMPLES = 1024
_WORST_LAST = ["in-sync", "syncing", "suspended", "none"]


class Outgoing:
    """Progress of all peers. `eligible`: whose acknowledgement counts; None: everybody's."""

    def __init__(self, logs: Mapping[str, SequencedLog], lag_ms_max: int) -> None:
        self.eligible: frozenset[str] | None = None
        self._logs = logs
        self._lag_ms_max = lag_ms_max
        self._cursors: dict[Session, dict[StreamId, Cursor]] = {}
        self._seen: set[str] = set()
        self._ack_ms: deque[int] = deque(maxlen=ACK_SAMPLES)

    def ready(self, session: Session) -> None:
        """A peer connected: offer it all own streams."""
        self._seen.add(session.peer)
        self._cursors[session] = {}
        for own in self._logs.values():
            self._offer(session, own)

    def lost(self, session: Session) -> None:
        """The connection ended."""
        self._cursors.pop(session, None)

    def wake(self) -> None:
        """There is something new to send."""
        for session in self._cursors:
            session.wake()

    def replaced(self, service: str) -> None:
        """The service has another stream, or none any more."""
        own = self._logs.get(service)
        for session, cursors in self._cursors.items():
            for stream in [s for s in cursors if s.service == service]:
                session.sources.remove(cursors.pop(stream).next)
            if own is not None:
                self._offer(session, own)

    def answered(self, session: Session, message: Resume | Ack, now_ms: int) -> None:
        """The peer said what it holds."""
        cursor = self._cursors.get(session, {}).get(message.stream)
        if cursor is None:
            return
        if isinstance(message, Resume):
            cursor.resume(message.position)
            session.wake()
        elif cursor.ack(message.position):
            logged_ms = cursor.log.logged_ms(message.position)
            if logged_ms is not None:
                self._ack_ms.append(now_ms - logged_ms)

    def safe(self, own: SequencedLog) -> int:
        """The highest position that an eligible standby holds whole; -1 where there is none."""
        return max(
            (
                cursors[own.stream].acked
                for session, cursors in self._cursors.items()
                if own.stream in cursors
                and (self.eligible is None or session.peer in self.eligible)
            ),
            default=-1,
        )

    def ack_ms(self) -> tuple[int, int]:
        """Median and 99th percentile of the time from logged to acknowledged."""
        acks = sorted(self._ack_ms) or [0]
        return acks[len(acks) // 2], acks[min(len(acks) - 1, len(acks) * 99 // 100)]

    def peer_status(self, node: str, session: Session | None) -> PeerStatus:
        """How one peer's copies of the own streams are."""
        if session is None:
            state = "suspended" if node in self._seen else "none"
            return PeerStatus(node, False, "", -1.0, state, 0, [])
        rows = [self._row(c, now_ms()) for c in self._cursors.get(session, {}).values()]
        worst = max((r.state for r in rows), key=_WORST_LAST.index, default="in-sync")
        lag_ms = max((r.lag_ms for r in rows), default=0)
        return PeerStatus(node, True, session.address, session.rtt_ms, worst, lag_ms, rows)

    def _offer(self, session: Session, own: SequencedLog) -> None:
        cursor = Cursor(own)
        self._cursors[session][own.stream] = cursor
        session.sources.append(cursor.next)
        session.send(Offer(own.stream, own.epoch, own.head))

    def _row(self, cursor: Cursor, at_ms: int) -> OutgoingStatus:
        own = cursor.log
        lag_ms = 0
        if cursor.acked < own.head:
            since_ms = own.logged_ms(max(1, cursor.acked + 1))
            lag_ms = self._lag_ms_max + 1 if since_ms is None else at_ms - since_ms
        state = "in-sync"
        if cursor.sent is None:
            state = "none"
        elif cursor.syncing or cursor.acked < 0:
            state = "syncing"
        elif lag_ms > self._lag_ms_max:
            state = "suspended"
        return OutgoingStatus(
            own.stream.service, own.epoch, state, cursor.acked, own.head, lag_ms, cursor.snapshots,
            own.items.digest(),
        )  # fmt: skip


def now_ms() -> int:
    """CLOCK_BOOTTIME in ms: goes on in suspend, knows no wall clock steps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
