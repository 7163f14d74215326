"""This node's streams on their way to the other nodes: one cursor per connection and stream."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from haclusterd.core.cursor import Cursor
from haclusterd.core.replication import Ack, Offer, Resume, SequencedLog, StreamId
from haclusterd.sync.session import Session
from haclusterd.sync.status import OutgoingStatus, PeerStatus, data_of, percent, worst

ACK_SAMPLES = 1024


class Outgoing:
    """Progress of all peers. `eligible`: whose acknowledgement counts; None: everybody's."""

    def __init__(self, logs: Mapping[str, SequencedLog], lag_ms_max: int, prefix: str = "") -> None:
        self.eligible: frozenset[str] | None = None
        self._logs = logs
        self._lag_ms_max = lag_ms_max
        self._cursors: dict[Session, dict[StreamId, Cursor]] = {}
        self._data = data_of(prefix)
        self._left: dict[str, dict[StreamId, int]] = {}  # by peer: what it had when it went
        self._overflowed: set[tuple[str, str]] = set()  # (peer, service)
        self._begun_ms: dict[Cursor, int] = {}  # snapshots under way
        self._ack_ms: deque[int] = deque(maxlen=ACK_SAMPLES)

    def ready(self, session: Session) -> None:
        """A peer connected: offer it all own streams."""
        self._left.setdefault(session.peer, {})
        for old in [s for s in self._cursors if s.peer == session.peer]:
            self.lost(old)  # it is replaced: its end will be heard of soon
        self._cursors[session] = {}
        for own in self._logs.values():
            self._offer(session, own)

    def lost(self, session: Session) -> None:
        """The connection ended."""
        for stream, cursor in self._cursors.pop(session, {}).items():
            self._begun_ms.pop(cursor, None)
            if cursor.acked >= 0:
                self._left.setdefault(session.peer, {})[stream] = cursor.acked

    def wake(self) -> None:
        """There is something new to send."""
        for session in self._cursors:
            session.wake()

    def replaced(self, service: str) -> None:
        """The service has another stream, or none any more."""
        own = self._logs.get(service)
        for left in self._left.values():
            for stream in [s for s in left if s.service == service]:
                del left[stream]
        for session, cursors in self._cursors.items():
            for stream in [s for s in cursors if s.service == service]:
                self._begun_ms.pop(cursors[stream], None)
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
            self._begun_ms[cursor] = now_ms
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
            state = "suspended" if node in self._left else "none"
            return PeerStatus(node, False, "", -1.0, state, 0, [])
        cursors = self._cursors.get(session, {}).values()
        rows = [self._row(node, cursor, now_ms()) for cursor in cursors]
        state = worst(row.state for row in rows)
        lag_ms = max((r.lag_ms for r in rows), default=0)
        return PeerStatus(node, True, session.address, session.rtt_ms, state, lag_ms, rows)

    def _offer(self, session: Session, own: SequencedLog) -> None:
        cursor = Cursor(own)
        self._cursors[session][own.stream] = cursor
        session.sources.append(cursor.next)
        session.send(Offer(own.stream, own.epoch, own.head))

    @property
    def overflowed(self) -> list[tuple[str, str]]:
        """(peer, service) of streams of which a peer missed more than is kept, until in sync."""
        return sorted(self._overflowed)

    def judge(self) -> None:
        """Who has fallen out of the buffer, and who is back in sync."""
        at_ms, there = now_ms(), set()
        for session, cursors in self._cursors.items():
            for stream, cursor in cursors.items():
                there.add((session.peer, stream.service))
                late = 0 <= cursor.acked < cursor.log.kept_from and not cursor.syncing
                if late or self._fell_out(session.peer, cursor.log, cursor):
                    self._overflowed.add((session.peer, stream.service))
                elif self._state(session.peer, cursor, at_ms)[0] == "in-sync":
                    self._overflowed.discard((session.peer, stream.service))
                    self._left[session.peer].pop(stream, None)
        for peer, left in self._left.items():
            for service, own in self._logs.items():
                away = (peer, service) not in there
                if away and left.get(own.stream, 0) < own.kept_from:
                    self._overflowed.add((peer, service))
        self._overflowed = {(p, s) for p, s in self._overflowed if s in self._logs}

    def _fell_out(self, peer: str, own: SequencedLog, cursor: Cursor) -> bool:
        """A peer that is back and got a snapshot, because it had less than the buffer's begin."""
        had = self._left.get(peer, {}).get(own.stream)
        return had is not None and cursor.syncing and had < own.kept_from

    def _row(self, peer: str, cursor: Cursor, at_ms: int) -> OutgoingStatus:
        own = cursor.log
        state, lag_ms = self._state(peer, cursor, at_ms)
        want = have = own.items.live
        eta_ms = None
        if cursor.syncing:
            have, want = cursor.staged, cursor.staging or want
            took_ms = at_ms - self._begun_ms.get(cursor, at_ms)
            eta_ms = took_ms * max(0, want - have) // have if have else None
        elif cursor.acked < own.head:
            have -= len(own.at_risk(cursor.acked))
        return OutgoingStatus(
            own.stream.service, own.epoch, state, cursor.acked, own.head, lag_ms, cursor.snapshots,
            self._data, have, want, percent(have, want), eta_ms,
            (peer, own.stream.service) in self._overflowed, own.items.digest(),
        )  # fmt: skip

    def _state(self, peer: str, cursor: Cursor, at_ms: int) -> tuple[str, int]:
        """The state of a peer's copy, and the age of the oldest change it has not acknowledged.

        One that has not answered yet has what it had when it went: it changes connections.
        """
        own, acked = cursor.log, cursor.acked
        if cursor.sent is None:
            acked = self._left.get(peer, {}).get(own.stream, acked)
        lag_ms = 0
        if acked < own.head:
            since_ms = own.logged_ms(max(1, acked + 1))
            lag_ms = self._lag_ms_max + 1 if since_ms is None else at_ms - since_ms
        state = "in-sync"
        if cursor.sent is None:
            state = "none"
        elif cursor.syncing or cursor.acked < 0:
            state = "syncing"
        elif lag_ms > self._lag_ms_max:
            state = "suspended"
        return state, lag_ms


def now_ms() -> int:
    """CLOCK_BOOTTIME in ms: goes on in suspend, knows no wall clock steps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
