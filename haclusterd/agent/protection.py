"""How long a call is unprotected: from its answer to the acknowledgement of all that it takes.

Measured on the calls themselves, because it is the sum of what FreeSWITCH, the reading, the packing
and the way to a standby take. Wall clock: FreeSWITCH stamps the answer by it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable

from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.freeswitch import metadata

SAMPLES = 1024
PENDING_MAX = 4096
STALE_MS = 10_000  # an older answer is one of a call that was there before we were


class Protection:
    """`holds(uuid, version)`: a standby has acknowledged it."""

    def __init__(self, holds: Callable[[str, int], bool]) -> None:
        self._holds = holds
        self._pending: dict[str, tuple[int, int]] = {}  # by call: version, answered
        self._seen: deque[str] = deque(maxlen=SAMPLES)  # each call counts once
        self._known: set[str] = set()
        self._lags_ms: deque[int] = deque(maxlen=SAMPLES)
        self.total = 0

    def logged(self, records: Iterable[CallRecord | Tombstone]) -> None:
        """Changes on their way to the standbys."""
        for record in records:
            if isinstance(record, Tombstone):
                self._pending.pop(record.uuid, None)
            elif record.uuid not in self._known and record.uuid not in self._pending:
                age_ms = _now_ms() - record.answered_ms
                if 0 <= age_ms < STALE_MS and len(self._pending) < PENDING_MAX and _whole(record):
                    self._pending[record.uuid] = record.version, record.answered_ms

    def acknowledged(self) -> None:
        """A standby has more than before."""
        if not self._pending:
            return
        now_ms = _now_ms()
        for uuid, (version, answered_ms) in list(self._pending.items()):
            if now_ms - answered_ms > STALE_MS:
                del self._pending[uuid]  # nobody is there to acknowledge
            elif self._holds(uuid, version):
                del self._pending[uuid]
                self._count(uuid, now_ms - answered_ms)

    def _count(self, uuid: str, lag_ms: int) -> None:
        if len(self._seen) == SAMPLES:
            self._known.discard(self._seen[0])
        self._seen.append(uuid)
        self._known.add(uuid)
        self._lags_ms.append(lag_ms)
        self.total += 1

    def quantiles_ms(self) -> tuple[int, int]:
        """Median and 99th percentile of the newest calls; 0 where there were none."""
        lags = sorted(self._lags_ms) or [0]
        return lags[len(lags) // 2], lags[min(len(lags) - 1, len(lags) * 99 // 100)]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _whole(record: CallRecord) -> bool:
    with contextlib.suppress(metadata.MetadataError):
        return not metadata.untagged(record.metadata)
    return False
