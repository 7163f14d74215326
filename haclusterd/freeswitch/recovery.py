"""At takeover: put one service's calls into the local FreeSWITCH and prove that each came back.

The order of steps belongs here (FREESWITCH.md 3): mend, inject in one transaction, lift standby
and launch parallel streams, verify every leg against a deadline, one verdict per call. What the
proof is lives in `verify`, the rows in `injection`, the spreading in `streams`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from haclusterd.core.records import CallRecord, CallVerdict

from . import injection
from .aftercare import Aftercare, Settled, apply_limits, can_be_asked
from .changelog import CoreDbError
from .esl import Esl, EslFactory, EventItem, EventsLost
from .esl_errors import EslError
from .injection import StreamRow
from .launching import Launcher
from .media_ahead import MediaAhead
from .mends import Limit, limits_of_all, mend_all
from .options import RecoveryOptions
from .proving import CONNECT_MS, Progress, Prover, Run
from .rest import Rest
from .streams import merge, spread

log = logging.getLogger(__name__)

HEAD_BUSY_MS = 3
INHERITED_MAX = 100_000
MEND_SLICE = 16  # records (0.5 ms) between two turns of the event loop

ENDED_BEFORE = "it had ended before, as another node told after it was injected: ended here"

Ended = Callable[[str, str, int], None]
"""`ended(service, uuid, version)`: a recovered call hung up. FreeSWITCH may not have written its
own row of it yet, so that its end shows nowhere else."""


class RecoveryInterrupted(Exception):
    """FreeSWITCH is or went away: run `recover` again with `unverified` once it is back.

    Those are all calls but the ones known to be lost, because what was recovered into a process
    that died can be recovered again.
    """

    def __init__(self, reason: str, lost: list[CallVerdict], unverified: list[CallRecord]) -> None:
        super().__init__(reason)
        self.lost = lost
        self.unverified = unverified


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
        options: RecoveryOptions | None = None,
        settled: Settled = lambda service, verdict: None,
        ended: Ended = lambda service, uuid, version: None,
    ) -> None:
        self._ended = ended
        self._settled = settled
        self._inherited: dict[str, tuple[str, int]] = {}  # by call: service, version
        self._core_db = core_db
        self._options = options or RecoveryOptions()
        self._deadline_ms = self._options.deadline_ms
        self._mends = self._options.mends
        self._media = MediaAhead(self._options.profiles if self._mends.addresses else ())
        self._workers: list[Esl] = [
            esl_factory(name=f"recovery-{number}")
            for number in range(max(self._options.streams, 1))
        ]
        self._watch: Esl = esl_factory(
            name="recovery-watch",
            events=("CHANNEL_CREATE", "CHANNEL_BRIDGE", "CHANNEL_HANGUP"),
            filters=(("variable_recovered", "true"),),
            on_event=self._on_event,
            on_up=self._connected,
        )
        self._lift: Esl = esl_factory(name="recovery-lift")
        self._connections = (*self._workers, self._lift, self._watch)
        self._prover = Prover(self._watch, self._deadline_ms)
        self._launcher = Launcher(self._workers, self._lift, self._prover)
        self.aftercare = Aftercare(
            self._watch,
            self._options.orphan_timeout_ms,
            settled,
            end_halves=self._options.end_halves,
        )
        self._core_uuid = ""  # of the process that `watch` is connected to
        self._rows_lock = asyncio.Lock()
        self._running: list[Run] = []
        self._decided: dict[str, tuple[tuple[int, str], dict[str, CallVerdict]]] = {}

    async def start(self) -> None:
        await asyncio.gather(*(esl.start() for esl in self._connections))

    async def stop(self) -> None:
        await self.aftercare.stop()
        await self._media.stop()
        await asyncio.gather(*(esl.stop() for esl in self._connections))

    @property
    def problem(self) -> str:
        """Why a recovery could not begin now; empty when it could."""
        return next((esl.problem for esl in self._connections if not esl.up), "")

    async def recover(
        self,
        service: str,
        profiles: Sequence[str],
        records: Sequence[CallRecord],
        progress: Progress | None = None,
        *,
        epoch: int = 0,
        outage_began: float | None = None,
        rest: Rest | None = None,
    ) -> list[CallVerdict]:
        """Recover exactly `records` and what `rest` brings, and return one verdict for each.

        `profiles` are all SIP profiles of the service: standby is lifted on each, also without any
        record. A second call in the same `epoch` never injects what has a verdict or lives.
        `outage_began` is a loop time; with it verdicts carry `gap_ms`. With `rest`, `records` are
        few, and on their way to the phones before it is called; of a call in both, that in
        `records` counts.
        """
        if not profiles:
            raise ValueError(f"service {service!r} has no SIP profiles to recover calls on")
        run = Run(service, epoch, profiles, "", progress or (lambda stage, legs, at: None))
        known, verdicts, lift = list(records), dict[str, CallVerdict](), None
        try:
            if self.problem:
                await asyncio.gather(*(esl.wait_up(CONNECT_MS) for esl in self._connections))
            run.core_uuid = await self.core_uuid()
            self._running.append(run)
            verdicts = self._verdicts_of(service, epoch, run.core_uuid)
            if rest is not None:
                lift, known = await self._begin(run, known, verdicts, rest)
                known = merge(known, await rest())
            lift = await self._go_on(run, known, verdicts, lift)
            await self._look_after(run, known, outage_began)
        except EslError as error:
            lost = [v for v in run.check.decided_verdicts() if v.verdict == "lost"]
            verdicts.update((v.uuid, v) for v in lost)
            gone = {v.uuid for v in verdicts.values() if v.verdict == "lost"}
            unverified = [record for record in known if record.uuid not in gone]
            raise RecoveryInterrupted(str(error), lost, unverified) from error
        finally:
            if run in self._running:
                self._running.remove(run)
            if lift is not None:
                lift.cancel()
                await asyncio.gather(lift, return_exceptions=True)
        final = run.check.verdicts(self._deadline_ms, outage_began)
        verdicts.update((v.uuid, v) for v in final)
        return [verdicts[record.uuid] for record in known]

    def _remember(self, run: Run, records: Sequence[CallRecord]) -> None:
        """Whose call it is, for the case that it hangs up before FreeSWITCH has a row of it."""
        for record in records:
            if record.uuid in run.check and len(self._inherited) < INHERITED_MAX:
                self._inherited[record.uuid] = run.service, record.version

    async def _begin(
        self,
        run: Run,
        records: Sequence[CallRecord],
        verdicts: dict[str, CallVerdict],
        rest: Rest,
    ) -> tuple[asyncio.Task[None] | None, list[CallRecord]]:
        """Send those that are still true on their way, and tell which; no task if this is not the
        first attempt in this epoch."""
        head = await self._usable(run, records, verdicts)
        first = await self._inject(run, [StreamRow(r.profile, r) for r in head], first=True)
        sure = list(await rest.still_true(records))
        if not first:
            return None, sure
        if untrue := {r.uuid for r in records} - {r.uuid for r in sure}:
            await self._withdraw(untrue)
            head = [r for r in head if r.uuid not in untrue]
        run.head, run.begun = head, True
        run.check.add(head)
        lift = asyncio.create_task(self._launcher.lift_standby(run))
        await asyncio.sleep(0)  # the command goes out now
        return lift, sure

    async def _go_on(
        self,
        run: Run,
        records: Sequence[CallRecord],
        verdicts: dict[str, CallVerdict],
        lift: asyncio.Task[None] | None,
    ) -> asyncio.Task[None]:
        """Everything that is not in the head, to the end of the verification."""
        todo = [record for record in records if record.uuid not in run.check]
        usable = await self._usable(run, todo, verdicts)
        run.check.add(usable)
        fresh = {record.uuid for record in usable}
        if lift is None:
            fresh = await self._not_tried_yet(usable, run)
            there = [record for record in usable if record.uuid not in fresh]
            run.check.launched([record.uuid for record in there])
        todo = [record for record in usable if record.uuid in fresh]
        run.streams = spread(todo, len(self._workers), self._options.urgent_variable)
        rows = [
            StreamRow(run.stream_name(index, record), record)
            for index, part in enumerate(run.streams)
            for record in part
        ]
        if rows or lift is None:
            await self._inject(run, rows, first=False)
        run.tell("injected", len(rows) + len(run.head))
        lift = lift or asyncio.create_task(self._launcher.lift_standby(run))
        try:
            await self._launcher.execute(run, lift)
        except BaseException:
            lift.cancel()  # whoever called does not know of it yet
            raise
        return lift

    async def _look_after(
        self, run: Run, records: Sequence[CallRecord], outage_began: float | None
    ) -> None:
        """What is left to do once every leg is decided or the deadline is over."""
        run.tell("recovered", run.check.answered)
        if run.refused:  # they would be recovered by whoever lifts its standby once it runs
            await self._withdraw([record.uuid for record in records], again=True)
        wanted = limits_of_all((r for r in records if r.uuid in run.check), self._mends)
        await self._count_limits(run, wanted)
        await self._prover.hear(run)
        await self._prover.confirm(run)
        await self._count_limits(run, wanted)  # who answered meanwhile
        run.check.drop_suspects()
        self._remember(run, records)
        unanswered = run.check.unanswered()
        self.aftercare.watch(run.service, unanswered, run.check.halves(), outage_began, wanted)

    async def _count_limits(self, run: Run, wanted: dict[str, list[Limit]]) -> None:
        """Of legs that are up, until all are; what is left of `wanted` is of legs that are not."""
        while up := [uuid for uuid in run.check.up() if uuid in wanted]:
            limits = [(uuid, limit) for uuid in up for limit in wanted.pop(uuid)]
            for refused in await apply_limits(self._watch, limits):
                log.warning("a limit is not counted: %s", refused)

    def tracked(self, changes: Sequence[object]) -> None:
        """Rows that FreeSWITCH wrote of its own calls prove an answer, as its replies do.

        Under load its event socket may answer after half a minute (measured), its rows do not.
        """
        now = asyncio.get_running_loop().time() if self._running else 0.0
        for one in changes:
            if isinstance(one, CallRecord):
                for run in self._running:
                    run.check.take_row(one, now)
                self.aftercare.tracked(one.uuid, one.sip_cseq)

    async def end_resurrected(self, service: str, uuids: Sequence[str]) -> None:
        """End calls that had ended before they were injected, now or as soon as they come up.

        Raises EslError, CoreDbError.
        """
        runs = [run for run in self._running if run.service == service]
        for run in runs:
            run.ended_before.update(uuids)
            for uuid in uuids:
                run.check.over(uuid, ENDED_BEFORE)
        self.aftercare.drop(uuids)
        await self._withdraw(uuids)
        for uuid in filter(can_be_asked, uuids):  # no other was taken up
            await self._watch.api(f"uuid_kill {uuid} NORMAL_CLEARING")
            if not any(uuid in run.check for run in runs):
                self._settled(service, CallVerdict(uuid, "lost", ENDED_BEFORE))

    async def _withdraw(self, uuids: Collection[str], *, again: bool = False) -> None:
        work = partial(injection.withdraw, self._core_db, sorted(uuids), again=again)
        async with self._rows_lock:
            await asyncio.to_thread(work)

    async def _usable(
        self, run: Run, records: Sequence[CallRecord], verdicts: dict[str, CallVerdict]
    ) -> list[CallRecord]:
        """Mended records without a verdict; those that can not be used at all get theirs here."""
        todo = list({r.uuid: r for r in records if r.uuid not in verdicts}.values())
        usable: list[CallRecord] = []
        now_s, media = time.time(), self._media.known
        mends = replace(self._mends, media=media, attempt=run.epoch, now_s=now_s)
        for start in range(0, len(todo), MEND_SLICE):
            mended, refused = mend_all(todo[start : start + MEND_SLICE], mends)
            for record in mended:
                if record.profile not in run.profiles:
                    refused[record.uuid] = (
                        f"its SIP profile {record.profile!r} is not one of service {run.service!r}"
                    )
                else:
                    usable.append(record)
            verdicts.update((uuid, CallVerdict(uuid, "lost", why)) for uuid, why in refused.items())
            if start + MEND_SLICE < len(todo):
                await asyncio.sleep(0)
        return usable

    def _verdicts_of(self, service: str, epoch: int, core_uuid: str) -> dict[str, CallVerdict]:
        """What was decided in this epoch for this FreeSWITCH process; the rest is forgotten."""
        held = self._decided.get(service)
        if held is None or held[0] != (epoch, core_uuid):
            held = self._decided[service] = ((epoch, core_uuid), {})
        return held[1]

    async def _inject(self, run: Run, rows: Sequence[StreamRow], *, first: bool) -> bool:
        """False, and nothing done: `first`, but rows were injected in this epoch before."""
        async with self._rows_lock:
            work = partial(
                injection.inject, self._core_db, run.core_uuid, run.service, run.epoch,
                run.profiles, rows, first=first, beside_head=run.begun,
            )  # fmt: skip
            if first:
                # Few rows take less than the way to a thread and back.
                with contextlib.suppress(CoreDbError):
                    return work(busy_ms=HEAD_BUSY_MS)
            return await asyncio.to_thread(work)

    async def _not_tried_yet(self, records: Sequence[CallRecord], run: Run) -> set[str]:
        """Calls to inject: not those that this FreeSWITCH process was given already."""
        tried: Mapping[str, injection.Attempt] = await asyncio.to_thread(
            injection.attempts, self._core_db, run.service, run.epoch
        )
        fresh = set()
        for record in records:
            attempt = tried.get(record.uuid)
            if attempt is None or attempt.core_uuid != run.core_uuid or attempt.waiting:
                fresh.add(record.uuid)
            else:
                run.check.injected({record.uuid: attempt.sip_cseq})
        if tried:  # a second run: somebody may have brought calls back in between
            for uuid in sorted(fresh):
                if (await self._watch.api(f"uuid_exists {uuid}")).strip() == "true":
                    fresh.discard(uuid)
        return fresh

    def forget(self, service: str) -> None:
        """Another node has the service: nothing of its recovery here is of use any more."""
        self.aftercare.forget(service)
        self._decided.pop(service, None)
        for uuid in [u for u, (name, _) in self._inherited.items() if name == service]:
            del self._inherited[uuid]

    async def core_uuid(self) -> str:
        """Core-UUID of the running FreeSWITCH, asked once per connection. Raises EslError."""
        if not self._core_uuid or not self._watch.up:
            self._core_uuid = await self._prover.core_uuid()
        return self._core_uuid

    def _connected(self) -> None:
        """A login, maybe to another process."""
        self._core_uuid = ""
        self._media.ask(self._watch)

    async def _on_event(self, item: EventItem) -> None:
        if isinstance(item, EventsLost):
            return  # the polls find out what the events would have said
        now = asyncio.get_running_loop().time()
        for run in self._running:
            run.take_event(item, now)
            if item.name == "CHANNEL_CREATE" and item.get("Unique-ID") in run.ended_before:
                await self._watch.api(f"uuid_kill {item.get('Unique-ID')} NORMAL_CLEARING")
        if item.name == "CHANNEL_HANGUP":
            inherited = self._inherited.pop(item.get("Unique-ID"), None)
            if inherited is not None:
                self._ended(inherited[0], item.get("Unique-ID"), inherited[1])

    async def clear_stale_rows(self, *, freeswitch_runs: bool = True) -> int:
        """Delete rows of processes that are gone, before anyone runs recover here; the number.

        Not while a recovery runs: its rows are foreign too. Raises EslError, CoreDbError.
        """
        core_uuid = await self.core_uuid() if freeswitch_runs else None
        async with self._rows_lock:
            if self._running:
                return 0
            return await asyncio.to_thread(injection.clear_stale, self._core_db, core_uuid)
