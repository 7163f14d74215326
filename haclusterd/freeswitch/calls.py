"""Source 1 of call state: what FreeSWITCH itself tracks in its core database, as it changes.

What a change of table `recovery` means belongs here: which service it is of, when it is a call
record, and when a deletion is a call that ended rather than a FreeSWITCH that is being shut down or
fenced (FREESWITCH.md 2.1 and 12, DESIGN 2.4 and 7).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.lasting import unending

from . import changelog, metadata, tags
from .changelog import RecoveryRow
from .core_reader import Batch, CoreReader
from .esl import Esl, EslFactory, EventItem, EventsLost
from .positions import Positions
from .refused import Refused

log = logging.getLogger(__name__)

Change = CallRecord | Tombstone
POLL_MS = 10  # while something changes, or inotify does not work; FreeSWITCH is 100 ms late
# FreeSWITCH's SHUTDOWN event may come up to 200 ms after the first row is gone (FREESWITCH 2.4, 7)
TOMBSTONE_HOLD_MS = 300
TICK_S = 0.05
UNMAPPED_MAX = 64


class _Known(NamedTuple):
    service: str
    digest: int


@dataclass(frozen=True, slots=True)
class _Ending:
    service: str
    version: int
    due: float  # loop time from which on the deletion counts as the call's end


def _digest(record: CallRecord) -> int:
    return hash((record.metadata, record.position))


def build_record(service: str, version: int, row: RecoveryRow) -> CallRecord:
    """One row as a call record. Raises metadata.MetadataError."""
    metadata.check_uuid(row.uuid)
    facts = metadata.facts(row.metadata)
    return CallRecord(
        service=service,
        uuid=row.uuid,
        version=version,
        profile=row.profile,
        runtime_uuid=row.runtime_uuid,
        metadata=row.metadata,
        partner=facts.partner,
        direction=facts.direction,
        answered_ms=facts.answered_ms,
        sip_cseq=facts.sip_cseq,
    )


class CallSource:
    """Follows the calls of the local FreeSWITCH and tells every change to `on_change`.

    `on_change` is awaited with a bounded list, in order; if it raises, everything is told again.
    `on_reset` is awaited when another FreeSWITCH process took the place of the old one: only
    `snapshot()` is true then, and calls that are not in it ended without a tombstone.
    `on_problem` gets a sentence while core.db can not be read, and "" when it can again.
    Without `esl_factory` the caller must name the process by `follow(core_uuid)`.
    """

    def __init__(
        self,
        core_db: Path,
        profiles_to_service: Mapping[str, str],
        on_change: Callable[[list[Change]], Awaitable[None]],
        *,
        esl_factory: EslFactory | None = None,
        on_reset: Callable[[], Awaitable[None]] | None = None,
        on_problem: Callable[[str], None] | None = None,
        poll_ms: int = POLL_MS,
        tombstone_hold_ms: int = TOMBSTONE_HOLD_MS,
        positions: bool = False,
    ) -> None:
        self._core_db = core_db
        self._positions: Positions | None = None
        if positions and esl_factory is not None:
            self._positions = Positions(core_db, esl_factory, lambda: self._core_uuid)
        self._services = dict(profiles_to_service)
        self._on_change = on_change
        self._on_reset = on_reset
        self._on_problem = on_problem
        self._poll_ms = poll_ms
        self._hold_s = tombstone_hold_ms / 1000
        self._esl: Esl | None = None
        if esl_factory is not None:
            self._esl = esl_factory(name="calls", events=("SHUTDOWN",), on_event=self._on_event)
        self._reader: CoreReader | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._known: dict[str, _Known] = {}
        self._ending: dict[str, _Ending] = {}
        self._gone = asyncio.Event()  # there may be something in `_ending`
        self._fenced: set[str] = set()
        self._unmapped: set[str] = set()
        self._refused = Refused()
        self._shutting_down = False
        self._core_uuid = ""
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why calls can not be followed now, with the fix; empty while they are."""
        if self._problem:
            return self._problem
        return self._esl.problem if self._esl is not None and not self._core_uuid else ""

    @property
    def core_uuid(self) -> str:
        """The FreeSWITCH process being followed, empty before the first contact."""
        return self._core_uuid

    @property
    def calls(self) -> int:
        """Call legs known to be up."""
        return len(self._known)

    @property
    def unprotected(self) -> str:
        """A sentence while there are calls that no other node could recover; else empty."""
        return self._refused.sentence

    @property
    def refused(self) -> int:
        """How many such calls there have been."""
        return self._refused.total

    async def start(self) -> None:
        """Begin to follow; never fails, see `problem`."""
        loop = asyncio.get_running_loop()
        self._reader = CoreReader(
            self._core_db,
            self._poll_ms,
            lambda batch: self._hand_over(loop, batch),
            lambda problem: self._hand_problem(loop, problem),
        )
        if self._core_uuid:
            self._reader.follow(self._core_uuid)
        self._reader.start()
        self._ticker = unending(self._tick, "calls-tombstones")
        if self._positions is not None:
            await self._positions.start()
        if self._esl is not None:
            await self._esl.start()

    async def stop(self) -> None:
        if self._positions is not None:
            await self._positions.stop()
        if self._esl is not None:
            await self._esl.stop()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        if self._reader is not None:
            self._reader.halt()
            await asyncio.to_thread(self._reader.join, 2.0)

    async def follow(self, core_uuid: str) -> None:
        """Follow the FreeSWITCH process with this Core-UUID; a new one resets all that is known."""
        async with self._lock:
            if core_uuid == self._core_uuid:
                return
            restarted = bool(self._core_uuid)
            self._core_uuid = core_uuid
            self._shutting_down = False
            self._known.clear()
            self._refused.clear()
            self._ending.clear()
            try:
                if restarted and self._on_reset is not None:
                    await self._on_reset()
            finally:  # whatever the consumer met, its calls are told
                if self._reader is not None:
                    self._reader.follow(core_uuid)

    def set_fenced(self, service: str, fenced: bool) -> None:
        """While a service is fenced nothing of it is told: its deletions are not ended calls.

        Opening the fence again (the owner reclaimed) compares: what is gone then, ended. A replaced
        owner must `forget(service)` before its fence ever opens again.
        """
        if fenced:
            self._fenced.add(service)
            for uuid in [u for u, ending in self._ending.items() if ending.service == service]:
                del self._ending[uuid]
        elif service in self._fenced:
            self._fenced.discard(service)
            if self._reader is not None:
                self._reader.resync()

    def forget(self, service: str) -> None:
        """Another node owns this service now: its calls are no longer ours to end."""
        for uuid in [u for u, known in self._known.items() if known.service == service]:
            del self._known[uuid]
        for uuid in [u for u, ending in self._ending.items() if ending.service == service]:
            del self._ending[uuid]

    def ended(self, service: str, uuid: str, version: int) -> None:
        """An inherited call hung up; if FreeSWITCH wrote no row of it yet, this is its end."""
        if uuid not in self._known:
            self._note_end(uuid, service, version)

    def expect_shutdown(self) -> None:
        """FreeSWITCH is going to be stopped: from now on deletions mean nothing."""
        self._shutting_down = True
        self._ending.clear()

    async def snapshot(self) -> list[CallRecord]:
        """Every recoverable call of the followed process now. Raises CoreDbError."""
        return await asyncio.to_thread(
            self._read_snapshot, self._core_uuid, frozenset(self._fenced)
        )

    def _read_snapshot(self, core_uuid: str, fenced: frozenset[str]) -> list[CallRecord]:
        connection = changelog.open_core_db(self._core_db, busy_ms=2000)
        try:
            seq = changelog.last_seq(connection)
            uuids = changelog.all_uuids(connection, core_uuid)
            records: list[CallRecord] = []
            for start in range(0, len(uuids), changelog.METADATA_READ_ROWS):
                part = uuids[start : start + changelog.METADATA_READ_ROWS]
                for row in changelog.rows_by_uuid(connection, part, core_uuid).values():
                    service = self._services.get(row.profile)
                    if service is None or service in fenced:
                        continue
                    try:
                        records.append(self._placed(build_record(service, seq, row)))
                    except Exception:  # counted and said where it is told
                        log.debug("call %.60r is left out", row.uuid, exc_info=True)
            return records
        except sqlite3.Error as error:
            raise changelog.explain(self._core_db, error) from error
        finally:
            connection.close()

    # from FreeSWITCH

    async def _on_event(self, item: EventItem) -> None:
        if isinstance(item, EventsLost):
            if self._esl is not None:
                core_uuid = (await self._esl.api("global_getvar core_uuid")).strip()
                if core_uuid and not core_uuid.startswith("-ERR"):
                    await self.follow(core_uuid)
        elif item.name == "SHUTDOWN" and item.get("Core-UUID", self._core_uuid) == self._core_uuid:
            self.expect_shutdown()

    # from the reader thread

    def _hand_over(self, loop: asyncio.AbstractEventLoop, batch: Batch) -> bool:
        """On the reader's thread: wait until the loop has taken the batch."""
        if loop.is_closed():
            return False
        taken = asyncio.run_coroutine_threadsafe(self._take(batch), loop)
        while True:
            try:
                return taken.result(0.2)
            except concurrent.futures.TimeoutError:
                if taken.done():
                    return taken.result()  # or what it raised
                if self._reader is None or self._reader.halted:
                    taken.cancel()
                    return False
            except concurrent.futures.CancelledError:
                return False

    def _hand_problem(self, loop: asyncio.AbstractEventLoop, problem: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be gone at exit
            loop.call_soon_threadsafe(self._set_problem, problem)

    def _set_problem(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            if self._on_problem is not None:
                self._on_problem(problem)

    async def _take(self, batch: Batch) -> bool:
        async with self._lock:
            if batch.runtime_uuid != self._core_uuid:
                return True  # of a process that is gone; the new one begins with a full read
            records = await tags.complete(self._esl, self._records(batch.rows))
            for entry in batch.ended:
                self._refused.drop(entry.uuid)
                known = self._known.get(entry.uuid)
                if known is not None:
                    self._note_end(entry.uuid, known.service, entry.seq)
            if batch.present is not None:
                self._refused.keep(batch.present)
                for uuid, known in list(self._known.items()):
                    if uuid not in batch.present and uuid not in self._ending:
                        self._note_end(uuid, known.service, batch.version)
            return await self._tell(records)

    def _records(self, rows: Iterable[tuple[int, RecoveryRow]]) -> list[Change]:
        """Records that are new or changed, of services that are ours to tell about."""
        changes: list[Change] = []
        for version, row in rows:
            service = self._services.get(row.profile)
            if service is None:
                self._note_unmapped(row.profile)
                continue
            self._ending.pop(row.uuid, None)
            known = self._known.get(row.uuid)
            if service in self._fenced:
                continue
            if self._positions is None and known == (service, hash((row.metadata, -1))):
                continue
            try:
                record = self._placed(build_record(service, version, row))
            except metadata.MetadataError as error:
                self._refused.note(row.uuid, str(error))
                continue
            except Exception as error:  # noqa: BLE001 - the rows behind it would never be told
                self._refused.failed(row.uuid, error)
                continue
            self._refused.drop(row.uuid)
            if known != (service, _digest(record)):
                changes.append(record)
        return changes

    def _placed(self, record: CallRecord) -> CallRecord:
        if self._positions is None:
            return record
        return self._positions.placed(record)

    async def _tell(self, changes: list[Change]) -> bool:
        if not changes:
            return True
        try:
            await self._on_change(changes)
        except Exception:
            log.exception("the consumer of call changes failed; all calls are told again")
            return False
        for change in changes:
            if isinstance(change, CallRecord):
                self._known[change.uuid] = _Known(change.service, _digest(change))
            else:
                self._known.pop(change.uuid, None)
        return True

    def _note_end(self, uuid: str, service: str, version: int) -> None:
        if self._shutting_down or service in self._fenced:
            return
        due = asyncio.get_running_loop().time() + self._hold_s
        self._ending[uuid] = _Ending(service, version, due)
        self._gone.set()

    def _note_unmapped(self, profile: str) -> None:
        if profile not in self._unmapped and len(self._unmapped) < UNMAPPED_MAX:
            self._unmapped.add(profile)
            log.warning(
                "calls of SIP profile %r are not protected: no [[service]] lists it", profile
            )

    async def _tick(self) -> None:
        """Turn deletions into tombstones once no shutdown explained them in time.

        While ESL is down nobody could have told us of a shutdown, so they wait.
        """
        loop = asyncio.get_running_loop()
        while True:
            if not self._ending:
                self._gone.clear()
                await self._gone.wait()
            await asyncio.sleep(TICK_S)
            if not self._ending or (self._esl is not None and not self._esl.up):
                continue
            async with self._lock:
                now = loop.time()
                due = {uuid: e for uuid, e in self._ending.items() if e.due <= now}
                tombstones: list[Change] = [
                    Tombstone(ending.service, uuid, ending.version) for uuid, ending in due.items()
                ]
                for uuid in due:
                    del self._ending[uuid]
                if not await self._tell(tombstones) and self._reader is not None:
                    self._reader.resync()
