"""At takeover: put one service's calls into the local FreeSWITCH and prove that each came back.

The order of steps belongs here (FREESWITCH.md 3): mend, inject in one transaction, lift standby
and launch parallel streams, verify every leg against a deadline, one verdict per call. What the
proof is lives in `verify`, the rows in `injection`, the spreading in `streams`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from haclusterd.core.records import CallRecord, CallVerdict

from . import injection
from .esl import Esl, EslFactory, EventItem, EventsLost
from .esl_errors import EslDown, EslError, EslTimeout
from .injection import StreamRow
from .mends import Mends, mend_all
from .streams import spread
from .verify import Verification

log = logging.getLogger(__name__)

STREAMS = 4
DEADLINE_MS = 3000
CONNECT_MS = 3000
REJOIN_ATTEMPTS = 5
LAUNCH_BASE_MS = 10_000
LAUNCH_PER_LEG_MS = 40
POLL_FIRST_S = 0.002
POLL_ALL_S = 0.01  # shorter pauses only date the first answer: they ask one leg of each stream
LIFT_HEAD_START_S = 0.005
POLL_MAX_S = 0.1
ASK_AT_ONCE = 25  # FreeSWITCH needs 0.25 ms for each; events get their turn in between

Progress = Callable[[str, int], None]
"""`progress(stage, legs)`; stages: injected, first_reinvite (first proof of one), verified,
recovered (the end)."""


class RecoveryInterrupted(Exception):
    """FreeSWITCH is or went away: run `recover` again with `unverified` once it is back.

    Those are all calls but the ones known to be lost, because what was recovered into a process
    that died can be recovered again.
    """

    def __init__(self, reason: str, lost: list[CallVerdict], unverified: list[CallRecord]) -> None:
        super().__init__(reason)
        self.lost = lost
        self.unverified = unverified


@dataclass(frozen=True)
class Prepared:
    """What a recovery has to know of FreeSWITCH and core.db before it can inject."""

    core_uuid: str
    tried: Mapping[str, injection.Attempt]


@dataclass
class _Run:
    """One `recover` under way."""

    service: str
    epoch: int
    profiles: Sequence[str]
    core_uuid: str
    check: Verification
    streams: list[list[CallRecord]]
    progress: Progress
    told_first: bool = False

    def stream_name(self, index: int, record: CallRecord) -> str:
        return f"{self.profiles[0]}#{index}" if self.streamed else record.profile

    @property
    def streamed(self) -> bool:
        return len(self.streams) > 1


class Recovery:
    """Recovers calls into the local FreeSWITCH; several services may be recovered at once.

    Keeps `streams` + 2 ESL connections open from `start()`, so that a takeover does not wait for a
    login, nor a question for the end of a long `recover`. Raises CoreDbError when the rows can not
    be written, RecoveryInterrupted when FreeSWITCH is or goes away.
    """

    def __init__(
        self,
        esl_factory: EslFactory,
        core_db: Path,
        *,
        streams: int = STREAMS,
        deadline_ms: int = DEADLINE_MS,
        mends: Mends | None = None,
    ) -> None:
        self._core_db = core_db
        self._deadline_ms = deadline_ms
        self._mends = Mends() if mends is None else mends
        self._workers: list[Esl] = [
            esl_factory(name=f"recovery-{number}") for number in range(max(streams, 1))
        ]
        self._watch: Esl = esl_factory(
            name="recovery-watch",
            events=("CHANNEL_BRIDGE", "CHANNEL_HANGUP"),
            filters=(("variable_recovered", "true"),),
            on_event=self._on_event,
        )
        self._lift: Esl = esl_factory(name="recovery-lift")
        self._connections = (*self._workers, self._lift, self._watch)
        self._rows_lock = asyncio.Lock()
        self._running: list[_Run] = []
        self._decided: dict[str, tuple[tuple[int, str], dict[str, CallVerdict]]] = {}

    async def start(self) -> None:
        await asyncio.gather(*(esl.start() for esl in self._connections))

    async def stop(self) -> None:
        await asyncio.gather(*(esl.stop() for esl in self._connections))

    @property
    def problem(self) -> str:
        """Why a recovery could not begin now; empty when it could."""
        return next((esl.problem for esl in self._connections if not esl.up), "")

    async def prepare(self, service: str, epoch: int) -> Prepared | None:
        """What `recover` begins with, for while the records are still being fetched.

        None while a connection is down. Raises EslError, CoreDbError.
        """
        return None if self.problem else await self._prepare(service, epoch)

    async def _prepare(self, service: str, epoch: int) -> Prepared:
        core_uuid, tried = await asyncio.gather(
            self.core_uuid(),
            asyncio.to_thread(injection.attempts, self._core_db, service, epoch),
        )
        return Prepared(core_uuid, tried)

    async def recover(
        self,
        service: str,
        profiles: Sequence[str],
        records: Sequence[CallRecord],
        progress: Progress | None = None,
        *,
        epoch: int = 0,
        outage_began: float | None = None,
        prepared: Prepared | None = None,
    ) -> list[CallVerdict]:
        """Recover exactly `records` and return one verdict for each.

        `profiles` are all SIP profiles of the service: standby is lifted on each, also without any
        record. A second call in the same `epoch` never injects what has a verdict or lives.
        `outage_began` is a loop time; with it verdicts carry `gap_ms`. `prepared` is a `prepare`
        of just before, for the same service and epoch.
        """
        if not profiles:
            raise ValueError(f"service {service!r} has no SIP profiles to recover calls on")
        try:
            await asyncio.gather(*(esl.wait_up(CONNECT_MS) for esl in self._connections))
            ready = prepared or await self._prepare(service, epoch)
            verdicts = self._verdicts_of(service, epoch, ready.core_uuid)
            usable = self._usable(service, profiles, records, verdicts)
            fresh = await self._not_tried_yet(usable, ready)
        except EslError as error:
            raise RecoveryInterrupted(str(error), [], list(records)) from error
        run = _Run(
            service, epoch, profiles, ready.core_uuid, Verification(usable),
            spread([record for record in usable if record.uuid in fresh], len(self._workers)),
            progress or (lambda stage, legs: None),
        )  # fmt: skip
        run.check.launched([record.uuid for record in usable if record.uuid not in fresh])
        self._running.append(run)
        try:
            await self._inject(run)
            await self._execute(run)
        except EslError as error:
            lost = [v for v in run.check.decided_verdicts() if v.verdict == "lost"]
            verdicts.update((v.uuid, v) for v in lost)
            gone = {v.uuid for v in verdicts.values() if v.verdict == "lost"}
            unverified = [record for record in records if record.uuid not in gone]
            raise RecoveryInterrupted(str(error), lost, unverified) from error
        finally:
            self._running.remove(run)
        final = run.check.verdicts(self._deadline_ms, outage_began)
        verdicts.update((v.uuid, v) for v in final)
        run.progress("recovered", sum(v.verdict == "recovered" for v in final))
        return [verdicts[record.uuid] for record in records]

    def _usable(
        self,
        service: str,
        profiles: Sequence[str],
        records: Sequence[CallRecord],
        verdicts: dict[str, CallVerdict],
    ) -> list[CallRecord]:
        """Mended records without a verdict; those that can not be used at all get theirs here."""
        todo = {r.uuid: r for r in records if r.uuid not in verdicts}
        mended, refused = mend_all(todo.values(), self._mends)
        for record in mended:
            if record.profile not in profiles:
                refused[record.uuid] = (
                    f"its SIP profile {record.profile!r} is not one of service {service!r}"
                )
        verdicts.update((uuid, CallVerdict(uuid, "lost", why)) for uuid, why in refused.items())
        return [record for record in mended if record.uuid not in refused]

    def _verdicts_of(self, service: str, epoch: int, core_uuid: str) -> dict[str, CallVerdict]:
        """What was decided in this epoch for this FreeSWITCH process; the rest is forgotten."""
        held = self._decided.get(service)
        if held is None or held[0] != (epoch, core_uuid):
            held = self._decided[service] = ((epoch, core_uuid), {})
        return held[1]

    async def _inject(self, run: _Run) -> None:
        rows = [
            StreamRow(run.stream_name(index, record), record)
            for index, part in enumerate(run.streams)
            for record in part
        ]
        async with self._rows_lock:
            await asyncio.to_thread(
                injection.inject,
                self._core_db, run.core_uuid, run.service, run.epoch, run.profiles, rows,
            )  # fmt: skip
        run.progress("injected", len(rows))

    async def _not_tried_yet(self, records: list[CallRecord], ready: Prepared) -> set[str]:
        """Calls to inject: not those that this FreeSWITCH process was given already."""
        fresh = set()
        for record in records:
            attempt = ready.tried.get(record.uuid)
            if attempt is None or attempt.core_uuid != ready.core_uuid or attempt.waiting:
                fresh.add(record.uuid)
        if ready.tried:  # a second run: somebody may have brought calls back in between
            for uuid in sorted(fresh):
                if (await self._watch.api(f"uuid_exists {uuid}")).strip() == "true":
                    fresh.discard(uuid)
        return fresh

    async def core_uuid(self) -> str:
        """Core-UUID of the running FreeSWITCH. Raises EslError."""
        reply = (await self._watch.api("global_getvar core_uuid")).strip()
        if not reply or reply.startswith("-") or " " in reply:
            raise EslDown(f"FreeSWITCH does not tell its core_uuid: {reply[:80]!r}")
        return reply

    # launching and verifying

    async def _execute(self, run: _Run) -> None:
        lift = asyncio.create_task(self._lift_standby(run))
        launches: list[asyncio.Task[None]] = []
        try:
            # Alone it takes 0.6 ms; beside the streams it waits for their locks on core.db, 103 ms
            # (measured), in which the profile would answer everybody 503.
            await asyncio.wait([lift], timeout=LIFT_HEAD_START_S)
            launches += [
                asyncio.create_task(self._launch(run, index)) for index in range(len(run.streams))
            ]
            await self._verify(run, launches)
            await lift
        finally:
            for task in (lift, *launches):
                task.cancel()
            await asyncio.gather(lift, *launches, return_exceptions=True)

    async def _lift_standby(self, run: _Run) -> None:
        """`sofia profile P recover`: with no row of that name it only lifts standby, at once.

        Early, because until then the profile answers everybody 503 (FREESWITCH.md 3.3).
        """
        for profile in run.profiles:
            if not run.streamed and any(r.profile == profile for part in run.streams for r in part):
                continue  # the launch does both
            reply = await self._lift.api(f"sofia profile {profile} recover")
            if "Invalid" in reply or reply.startswith("-ERR"):
                log.error("SIP profile %s could not be activated: %s", profile, reply.strip())

    async def _launch(self, run: _Run, index: int) -> None:
        part = run.streams[index]
        worker = self._workers[index]
        timeout_ms = LAUNCH_BASE_MS + LAUNCH_PER_LEG_MS * len(part)
        commands = [f"fsctl recover sofia:{run.profiles[0]}#{index}"]
        if not run.streamed:
            names = dict.fromkeys(record.profile for record in part)
            commands = [f"sofia profile {profile} recover" for profile in names]
        try:
            for line in commands:
                await worker.api(line, timeout_ms)
        except EslDown:
            await self._rejoin(run)  # the command goes on without its connection
        run.check.launched([record.uuid for record in part])

    async def _verify(self, run: _Run, launches: list[asyncio.Task[None]]) -> None:
        """Ask until every leg is decided or the deadline, counted from the end of the launch."""
        loop = asyncio.get_running_loop()
        pause_s = POLL_FIRST_S
        deadline = None
        while run.check.open:
            await asyncio.sleep(pause_s)
            if deadline is None and all(task.done() for task in launches):
                for task in launches:
                    task.result()  # FreeSWITCH was restarted or hangs: an EslError ends the run
                deadline = loop.time() + self._deadline_ms / 1000
            if deadline is not None and loop.time() >= deadline:
                break
            began = loop.time()
            try:
                await self._ask(run, first_only=pause_s < POLL_ALL_S)
            except EslDown:
                await self._rejoin(run)
            # at most a third of FreeSWITCH's time for questions while it is busy recovering
            pause_s = min(max(pause_s * 1.5, 2 * (loop.time() - began)), POLL_MAX_S)
        await self._look_for_bridges(run)

    async def _rejoin(self, run: _Run) -> None:
        """A lost connection is not a dead FreeSWITCH: go on if it is still the same process."""
        for _ in range(REJOIN_ATTEMPTS):
            await self._watch.wait_up(CONNECT_MS)
            try:
                core_uuid = await self.core_uuid()
            except EslDown:
                continue
            if core_uuid == run.core_uuid:
                return
            raise EslTimeout("FreeSWITCH was restarted during the recovery")
        raise EslTimeout("the ESL connection breaks again and again during the recovery")

    async def _ask(self, run: _Run, *, first_only: bool) -> None:
        loop = asyncio.get_running_loop()
        uuids = run.check.to_ask()
        if first_only and not run.told_first:
            heads = {part[0].uuid for part in run.streams}
            uuids = [uuid for uuid in uuids if uuid in heads]
        before = run.check.answered
        for start in range(0, len(uuids), ASK_AT_ONCE):
            part = uuids[start : start + ASK_AT_ONCE]
            replies = await asyncio.gather(
                *(self._watch.api(f"uuid_getvar {uuid} sip_cseq", 5000) for uuid in part)
            )
            for uuid, reply in zip(part, replies, strict=True):
                run.check.take_cseq(uuid, reply, loop.time())
            if not run.told_first and run.check.answered:
                run.told_first = True
                run.progress("first_reinvite", run.check.answered)
        if run.check.answered != before:
            run.progress("verified", run.check.answered)

    async def _look_for_bridges(self, run: _Run) -> None:
        """The event may have been lost: a bridged leg also has `bridge_uuid` set anew."""
        for uuid in run.check.unbridged():
            reply = await self._watch.api(f"uuid_getvar {uuid} bridge_uuid")
            if reply.strip() not in ("", "_undef_") and not reply.startswith("-"):
                run.check.bridged_after_all(uuid)

    async def _on_event(self, item: EventItem) -> None:
        if isinstance(item, EventsLost):
            return  # the polls find out what the events would have said
        now = asyncio.get_running_loop().time()
        for run in self._running:
            run.check.take_event(item, now)

    async def clear_stale_rows(self, *, freeswitch_runs: bool = True) -> int:
        """Delete rows of processes that are gone, before anyone runs recover here; the number.

        Not while a recovery runs: its rows are foreign too. Raises EslError, CoreDbError.
        """
        core_uuid = await self.core_uuid() if freeswitch_runs else None
        async with self._rows_lock:
            if self._running:
                return 0
            return await asyncio.to_thread(injection.clear_stale, self._core_db, core_uuid)
