"""The origin's side: this node's changes to the calls of the services it owns, sequenced.

Records wait in an inbox until they are packed, a few milliseconds of work per turn of the event
loop, because 10,000 calls packed at once would hold it up for a second. What waits in the inbox
is at risk like everything that no standby has acknowledged. Of several waiting states of one call
only the newest is kept, so the inbox holds at most one entry per call.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

from haclusterd.core.records import CallRecord, Registration, Tombstone
from haclusterd.core.replication import (
    Advanced,
    Item,
    ItemSet,
    Limits,
    SequencedLog,
    Settled,
    StreamId,
)
from haclusterd.sync.codec import Malformed, item_of

SLICE_MS = 3.0
REFUSED_MAX = 10_000  # names kept of calls that cannot be replicated
FULL_MAX = 1000  # records kept of these, to log them when there is room
AT_ONCE = 64  # records that are packed within the call that logs them
_SETTLE = ""  # inbox key of the settled mark: no call has an empty uuid

Live = CallRecord | Registration
Record = Live | Tombstone
Waiting = Record | Settled


class ChangeLog:
    """One `SequencedLog` per owned service.

    `logged(service)` is called when entries were added, `replaced(service)` when the service got
    another stream or none. `counters`: stale (nothing new), unowned, oversize, full. `on_item(log,
    item, was_live)` hears of each item that was logged just now.
    """

    def __init__(
        self,
        node: str,
        incarnation: int,
        limits: Limits,
        now_ms: Callable[[], int],
        logged: Callable[[str], None],
        replaced: Callable[[str], None],
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self.limits = limits
        self.logs: dict[str, SequencedLog] = {}
        self.counters: Counter[str] = Counter()
        self.on_item: Callable[[SequencedLog, Item, bool], None] | None = None
        self._now_ms = now_ms
        self._logged = logged
        self._replaced = replaced
        self._inbox: OrderedDict[tuple[str, str], Waiting] = OrderedDict()
        self._waiting: Counter[str] = Counter()
        self._refused: dict[tuple[str, str], None] = {}
        self._full: dict[tuple[str, str], Live] = {}  # of a log that was full, oldest first
        self._left_out: set[str] = set()  # services of which more found no room than are kept
        self._scheduled = False

    def own(self, service: str, epoch: int, settled: bool) -> SequencedLog | None:
        """This node owns the service at `epoch`; gives the log of an earlier ownership, if any.

        `settled`: there are no calls to recover (a cold start). Otherwise call `settle` when
        every inherited call has its verdict.
        """
        old = self.logs.get(service)
        if old is not None and old.epoch >= epoch:
            return None
        self._clear(service)
        stream = StreamId(service, self.node, self.incarnation, epoch)
        self.logs[service] = SequencedLog(stream, self.limits, settled)
        self._replaced(service)
        return old

    def advance(self, service: str, epoch: int) -> None:
        """The owner reclaimed its own service at a higher epoch: the log goes on."""
        log = self.logs.get(service)
        if log is not None and log.append(Advanced(epoch), self._now_ms()) is not None:
            self._logged(service)

    def disown(self, service: str) -> SequencedLog | None:
        """The service has another owner; gives the log as it was. What waited is dropped."""
        log = self.logs.pop(service, None)
        if log is not None:
            self._clear(service)
            self._replaced(service)
        return log

    def renew(self, service: str, above: int) -> None:
        """Begin the stream anew with an incarnation above one that a standby remembers of us.

        Needed when the clock that incarnations are taken from went back between two runs.
        """
        old = self.logs[service]
        self.incarnation = max(self.incarnation, above) + 1
        stream = StreamId(service, self.node, self.incarnation, old.epoch)
        log = SequencedLog(stream, self.limits, old.settled)
        now_ms = self._now_ms()
        for item in old.items.items.values():
            log.append(
                Item(item.uuid, old.epoch, self.incarnation, item.version, item.dead, item.blob),
                now_ms,
            )
        self.logs[service] = log
        self._replaced(service)

    def append(self, records: Iterable[Record]) -> None:
        """Log changes, in order. A service that is not owned, or an unsendable record, is counted.

        Tombstones only for calls that ended while their service was owned and not fenced (S8).
        """
        for record in records:
            if record.service not in self.logs:
                self.counters["unowned"] += 1
                continue
            key = (record.service, record.uuid)
            waiting = self._inbox.get(key)
            if not isinstance(waiting, Settled | None):
                if _newer(record, waiting):
                    self._inbox[key] = record
                continue
            self._inbox[key] = record
            self._waiting[record.service] += 1
        self._drain()

    def settle(self, service: str) -> None:
        """Every inherited call has its verdict: standbys may forget the lower epochs."""
        log = self.logs.get(service)
        if log is None or log.settled or (service, _SETTLE) in self._inbox:
            return
        self._inbox[service, _SETTLE] = Settled()
        self._waiting[service] += 1
        self._drain()

    def waiting(self, service: str) -> int:
        """How many changes are not packed and sequenced yet."""
        return self._waiting[service]

    def waiting_uuids(self) -> list[str]:
        """Live calls among them, and those that were refused: both are on no standby."""
        waiting = [r.uuid for r in self._inbox.values() if isinstance(r, Live)]
        return waiting + [uuid for _, uuid in self._refused]

    def left_out(self) -> list[str]:
        """Services of which records found no room that there is now, beyond those kept for it."""
        kept = Counter(service for service, _ in self._full)
        return [
            service
            for service in {*self._left_out, *kept}
            if self._room(self.logs[service].items) > kept[service]
        ]

    def _room(self, items: ItemSet) -> int:
        """For how many more records, if they are as large as those that are logged."""
        bytes_left = max(0, self.limits.record_bytes - items.bytes)
        by_size = bytes_left * items.live // max(1, items.bytes) if items.live else bytes_left
        return min(self.limits.records - items.live, by_size)

    def begin_again(self, service: str) -> frozenset[str]:
        """All there is of the service is going to be read: names of it that are refused so far."""
        self._left_out.discard(service)
        return frozenset(uuid for owner, uuid in self._refused if owner == service)

    def tell_again(
        self, service: str, records: Sequence[Live] | None, refused: frozenset[str]
    ) -> None:
        """What was read since `begin_again` gave `refused`, or None: it could not be read.

        What is not logged is, or is refused anew; of what was refused and is not there any more,
        for example in a FreeSWITCH that is gone, nobody tells the end.
        """
        log = self.logs.get(service)
        if log is None:
            return
        if records is None:
            self._left_out.add(service)
            return
        for uuid in refused - {record.uuid for record in records}:
            self._refused.pop((service, uuid), None)
            self._full.pop((service, uuid), None)
        self.append(r for r in records if r.uuid not in log.items.items)

    def items(self, service: str) -> ItemSet | None:
        """What is logged of a service."""
        log = self.logs.get(service)
        return None if log is None else log.items

    def _drain(self) -> None:
        if not self._scheduled and len(self._inbox) <= AT_ONCE:
            self._slice()
        elif not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._slice)

    def _slice(self) -> None:
        self._scheduled = False
        until = perf_counter() + SLICE_MS / 1000
        now_ms = self._now_ms()
        touched: dict[str, None] = {}
        while self._inbox:
            (service, _), waiting = self._inbox.popitem(last=False)
            self._waiting[service] -= 1
            touched[service] = None
            self._log(self.logs[service], waiting, now_ms)
            if perf_counter() > until:
                break
        if self._inbox:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._slice)
        for service in touched:
            self._logged(service)

    def _log(self, log: SequencedLog, waiting: Waiting, now_ms: int) -> None:
        if isinstance(waiting, Settled):
            log.append(waiting, now_ms)
            return
        self._full.pop((waiting.service, waiting.uuid), None)
        if self._full and isinstance(waiting, Live):
            self._refill(log, waiting, now_ms)
        self._put(log, waiting, now_ms)

    def _put(self, log: SequencedLog, record: Record, now_ms: int) -> None:
        self._refused.pop((record.service, record.uuid), None)
        try:
            item = item_of(record, log.epoch, log.stream.incarnation)
        except Malformed:
            self._refuse("oversize", record)
            return
        known = log.items.items.get(item.uuid)
        was_live = known is not None and not known.dead
        if log.append(item, now_ms) is not None:
            if self.on_item is not None:
                self.on_item(log, item, was_live)
        else:
            if item.uuid in log.items.items:
                self.counters["stale"] += 1
            else:
                self._refuse("full", record)
                if isinstance(record, Live):
                    if len(self._full) < FULL_MAX:
                        self._full[record.service, record.uuid] = record
                    else:
                        self._left_out.add(record.service)

    def _refill(self, log: SequencedLog, told: Live, now_ms: int) -> None:
        """Before `told`, the oldest that found no room and may have it now: nobody tells it again.

        Not of a FreeSWITCH process that is gone, because such calls end without a tombstone.
        """
        key = next((key for key in self._full if key[0] == told.service), None)
        if key is None or log.items.live >= self.limits.records:
            return
        record = self._full.pop(key)
        if _process(record) == _process(told):
            self._put(log, record, now_ms)
        else:
            self._refused.pop(key, None)

    def _refuse(self, counter: str, record: Record) -> None:
        self.counters[counter] += 1
        if isinstance(record, Live) and len(self._refused) < REFUSED_MAX:
            self._refused[record.service, record.uuid] = None

    def _clear(self, service: str) -> None:
        for key in [k for k in self._inbox if k[0] == service]:
            del self._inbox[key]
        for key in [k for k in self._refused if k[0] == service]:
            del self._refused[key]
        for full in [k for k in self._full if k[0] == service]:
            del self._full[full]
        self._left_out.discard(service)
        self._waiting.pop(service, None)


def _process(record: Live) -> str:
    """Which FreeSWITCH process has it; registrations outlive theirs."""
    return record.runtime_uuid if isinstance(record, CallRecord) else ""


def _newer(record: Record, waiting: Record) -> bool:
    return (record.version, isinstance(record, Tombstone)) > (
        waiting.version,
        isinstance(waiting, Tombstone),
    )
