"""The work of one recovery: collect the calls, have them recovered, report, and bury what is lost.

`services` says when, by heart's decisions; how calls come back is `freeswitch.recovery`'s
knowledge; what happens to them by policy is section [recovery].
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from haclusterd.agent.admission import Admission
from haclusterd.agent.clock import now_us
from haclusterd.agent.history import History
from haclusterd.agent.in_place import InPlace
from haclusterd.agent.latecomers import hear_all
from haclusterd.agent.replication import Replication
from haclusterd.agent.reports import Account, Chronicle, Reports, last_heard, sentence
from haclusterd.agent.resurrected import watch
from haclusterd.agent.switch import Switch, SwitchError
from haclusterd.agent.verdicts import Crier
from haclusterd.config import RecoverySection
from haclusterd.core.actions import Recover
from haclusterd.core.inputs import FromAgent, RecoveryEnded
from haclusterd.core.model import ClusterSpec
from haclusterd.core.records import CallRecord, CallVerdict, Tombstone
from haclusterd.core.text import brief
from haclusterd.core.view import View
from haclusterd.freeswitch.mends import ATTEMPT_BITS
from haclusterd.freeswitch.rest import Rest
from haclusterd.lasting import lasting, until_done

log = logging.getLogger(__name__)

COLLECT_MS = 20
HEAD_LEGS = 4  # on their way to the phones while the others are still read
RETRIES_MAX = 3
RETRY_S = 0.5
UP_S = 1.0
UP_POLL_S = 0.01
SETTLE_S = 5.0
SETTLE_POLL_S = 0.1
EARLY_MAX = 10_000
LET_GO = ("standby", "claiming", "releasing")  # local states of services that leave, or have left


class Recoveries:
    """See the module. `pending`: what could not be recovered while the service is still owned, with
    the calls of `again`; `recovering`: what has not every verdict yet. `without_switch()` tells why
    there is no switch yet where there should be one."""

    def __init__(
        self,
        spec: ClusterSpec,
        replication: Replication | None,
        history: History,
        reports: Reports,
        send: Callable[[FromAgent], None],
        policy: RecoverySection | None = None,
        without_switch: Callable[[], str] = lambda: "",
    ) -> None:
        self._spec = spec
        self._replication = replication
        self._history = history
        self._reports = reports
        self._send = send
        self._policy = policy or RecoverySection()
        self._without_switch = without_switch
        self._early: dict[tuple[str, str], CallVerdict] = {}  # mended before their report was done
        self._saver: asyncio.Task[None] | None = None
        self._unsaved = False
        pace = self._policy
        self._admission = Admission(pace.pace_invites_per_s, pace.pace_registers_per_s)
        self.crier = Crier(history, lambda: self.switch)
        self.switch: Switch | None = None
        self.view: View | None = None
        self.pending: dict[str, Recover] = {}
        self.again: dict[str, Sequence[CallRecord]] = {}
        self.recovering: dict[str, Recover] = {}
        self.generation = 0  # of FreeSWITCH: another process is another one
        self.exited_us = 0  # when the FreeSWITCH before this one was seen gone
        self._refused: dict[str, tuple[Recover, str]] = {}  # why the last attempt failed
        self.in_place = InPlace(
            spec, self, replication, history, reports, send, self._inject, self._finish,
            self._policy.calls == "recover",
        )  # fmt: skip

    @property
    def _me(self) -> str:
        return self._spec.nodes[self._spec.me].id

    def served(self, name: str) -> bool:
        """Whether the fence is open, as far as heart has said: calls have a way to their phones."""
        return self._local_state(name) in ("", "owned")

    def _local_state(self, name: str) -> str:
        seen = self.view.services if self.view else ()
        return next((s.local_state for s in seen if s.name == name), "")

    async def stop(self) -> None:
        """End what is under way in the background."""
        await self.crier.stop()
        await self._admission.stop()
        if self._saver is not None:  # the last report belongs on the disk
            await asyncio.gather(self._saver, return_exceptions=True)

    def begin(self, name: str, action: Recover) -> Account:
        """Open the report of a change of owner."""
        origin = self._spec.nodes[action.from_node].id if action.from_node >= 0 else None
        silent, last_heard_us = last_heard(self.view, origin, self._spec.timing.suspect_us)
        account = self._reports.begin(name, origin, self._me, action, silent)
        if last_heard_us:
            dead_us = account.times.get("dead", last_heard_us)
            account.moment("last_heartbeat", min(last_heard_us, dead_us))
        account.moment("announced")
        has_calls = any(s.name == name and s.profiles for s in self._spec.services)
        if self._replication is not None and has_calls and origin not in (None, self._me):
            account.copy = self._replication.copy_state(name)
        return account

    def why_no_switch(self, name: str) -> str:
        """Why the switch that has the service's calls is not there yet; empty where none does."""
        has_calls = any(s.name == name and s.profiles for s in self._spec.services)
        return self._without_switch() if self.switch is None and has_calls else ""

    async def recover(self, action: Recover, account: Account, again: Sequence[CallRecord]) -> None:
        """Bring a service's inherited calls and those of `again` back, and tell heart the end."""
        spec = self._spec.services[action.service]
        reason, name, epoch = "", spec.name, action.identity.epoch
        told = Chronicle(account, partial(self.begin, name, action), self._finish)
        try:
            if reason := self.why_no_switch(name):
                raise SwitchError(reason)  # its first login is the sign to try again
            if self._replication is not None and self.switch is not None and spec.profiles:
                await self._recover_all(name, epoch, account, told, again)
        except SwitchError as error:
            reason = str(error)
        except Exception as error:
            # A fault of ours is no reason to keep the calls from whoever may do better.
            log.exception("recovery of %s", name)
            reason = f"haclusterd failed ({error!r}); see its log (journalctl)"
        finally:
            reason = brief(reason)  # it has to fit into a packet to heart
            said_of, said = self._refused.get(name, (None, ""))
            if reason and said_of == action and not told.verdicts:
                told.drop(self._reports.discard)
            else:
                told.close()
        self._send(RecoveryEnded(action.service, action.identity, not reason, reason))
        if reason:
            self.pending[name], self.again[name] = action, again
            self._refused[name] = action, reason
            self.recovering.pop(name, None)
            if (said_of, said) != (action, reason):
                text = f"{self._me} cannot recover {name}: {reason}"
                self._history.add("A5", text, None, name, epoch)
            return
        self._refused.pop(name, None)
        await until_done(partial(self._settle, name, told.verdicts, again), f"settling {name}")
        self.recovering.pop(name, None)

    async def _recover_all(
        self, name: str, epoch: int, account: Account, told: Chronicle, again: Sequence[CallRecord]
    ) -> None:
        if self._replication is None:
            return
        dead = (account.origin,) if account.silent and account.origin else ()
        if self._policy.calls != "recover":
            asked = asyncio.create_task(self._replication.fetch(name, COLLECT_MS, dead))
            records = await self._collect(name, again, [], account, set(), asked)
            await self._inject(name, epoch, [], account)
            told.judged(self.by_policy(records))
            return
        asked = asyncio.create_task(self._replication.fetch(name, COLLECT_MS, dead))
        await asyncio.sleep(0)  # the question is on its way
        head = [] if again else self._replication.quietest(name, HEAD_LEGS)
        given = {record.uuid for record in again}
        end, whole = partial(self._end_resurrected, name), asyncio.Event()
        guard = asyncio.create_task(watch(self._replication, name, dead, given, end, whole))

        async def others() -> list[CallRecord]:
            found = await self._collect(name, again, head, account, given, asked)
            whole.set()
            return found

        try:
            rest = Rest(others, partial(self._still_true, name, asked, given))
            told.judged(await self._inject(name, epoch, head, account, rest))
            inject = partial(self._inject_late, name, epoch, given)
            never = await hear_all(self._replication, told, name, dead, inject)
            whole.set()
            done = await guard
            if missed := self._replication.ended(name, given) - done:
                await end(sorted(missed))  # told between their being looked up and `given`
        finally:
            guard.cancel()
            asked.cancel()
        if never:
            text = f"{', '.join(never)} never told which calls of {name} it knows"
            self._history.add("A7", text, None, name, epoch)

    async def _inject_late(
        self, name: str, epoch: int, given: set[str], records: list[CallRecord], account: Account
    ) -> list[CallVerdict]:
        given.update(record.uuid for record in records)
        return await self._inject(name, epoch, records, account)

    async def _end_resurrected(self, name: str, uuids: list[str]) -> bool:
        try:
            if self.switch is not None:
                await self.switch.end_resurrected(name, uuids)
        except SwitchError as error:
            log.warning("%d calls of %s that had ended are up: %s", len(uuids), name, error)
            return False
        return True

    def by_policy(self, records: Sequence[CallRecord]) -> list[CallVerdict]:
        if self._policy.calls == "ignore":
            return []
        return [CallVerdict(r.uuid, "lost", "not recovered: recovery.calls") for r in records]

    async def _still_true(
        self,
        name: str,
        asked: asyncio.Task[None],
        given: set[str],
        records: Sequence[CallRecord],
    ) -> Sequence[CallRecord]:
        """Those of which the others know nothing newer; they go on, and so they are `given`."""
        await asked
        found = self._replication.current(name, records) if self._replication is not None else []
        given.update(record.uuid for record in found)
        return found

    async def _collect(
        self,
        name: str,
        again: Sequence[CallRecord],
        head: Sequence[CallRecord],
        account: Account,
        given: set[str],
        asked: asyncio.Task[None],
    ) -> list[CallRecord]:
        """All inherited calls, `again` and those of `head`, as they are there; for `given`, too."""
        if self._replication is None:
            return []
        head = [*again, *await self._still_true(name, asked, given, head)]
        found = await self._replication.unrecovered(name)
        account.moment("collected")
        known = {record.uuid for record in head}
        records = [*head, *(record for record in found if record.uuid not in known)]
        account.replicated = len(records)
        given.update(record.uuid for record in records)
        return records

    def _attempt_id(self, epoch: int) -> int:
        """Names a recovery to `Recovery`: another process is another one, in the same epoch."""
        return epoch << ATTEMPT_BITS | self.generation % (1 << ATTEMPT_BITS)

    async def _inject(
        self,
        name: str,
        epoch: int,
        records: Sequence[CallRecord],
        account: Account,
        rest: Rest | None = None,
    ) -> list[CallVerdict]:
        """Recover with a few retries, because FreeSWITCH may just be coming up."""
        switch = self.switch
        if switch is None:
            return []
        account.replicated = max(account.replicated, len(records))
        service = next(s for s in self._spec.services if s.name == name)
        loop = asyncio.get_running_loop()
        outage = loop.time() - (now_us() - account.fault_us) / 1e6
        attempt_id = self._attempt_id(epoch)

        def progress(stage: str, legs: int, at: float) -> None:
            self.crier.progress(account, stage, legs, now_us() - round((loop.time() - at) * 1e6))

        known = self._replication.known_legs(name) if self._replication is not None else 0
        with self._admission.of(service, max(len(records), known)):
            for attempt in range(RETRIES_MAX):
                await self._until_up(switch)
                try:
                    verdicts = await switch.recover(
                        name, service.profiles, records, progress, attempt_id, outage, rest
                    )
                    self._bury_own(name, verdicts)
                    return verdicts
                except SwitchError as error:
                    if rest is not None:
                        records, rest = await rest(), None
                    if attempt == RETRIES_MAX - 1:
                        raise
                    log.warning("recovery of %s is tried again: %s", name, error)
                    await asyncio.sleep(RETRY_S)
        return []

    async def _until_up(self, switch: Switch) -> None:
        """Wait for ESL, but not for long: another node may be able to do it now."""
        until = asyncio.get_running_loop().time() + UP_S
        while not switch.up:
            if asyncio.get_running_loop().time() >= until:
                raise SwitchError(switch.problem or "ESL is not logged in")
            await asyncio.sleep(UP_POLL_S)

    def _finish(self, account: Account, verdicts: Sequence[CallVerdict]) -> None:
        verdicts = [self._early.pop((account.service, v.uuid), v) for v in verdicts]
        account.judge(verdicts)
        account.moment("recovered")
        report = self._reports.finish(account)
        if report.service not in self._reports.under_way():
            self._early = {k: v for k, v in self._early.items() if k[0] != report.service}
        self._history.add("A7", sentence(report), None, report.service, report.epoch)
        self.crier.cry(report.service, report.epoch, verdicts)
        self._save()

    def _save(self) -> None:
        """One write at a time: of a thousand late verdicts a few are written, the last one last."""
        self._unsaved = True
        if self._saver is None or self._saver.done():
            self._saver = lasting(self._save_newest(), "save reports")

    async def _save_newest(self) -> None:
        while self._unsaved:
            self._unsaved = False
            await asyncio.to_thread(self._reports.save, self._reports.encode())

    def settled(self, service: str, verdict: CallVerdict) -> None:
        """A call that was neither back nor gone is one of both by now."""
        report = self._reports.revise(service, verdict)
        if self._reports.open_epoch(service) >= 0 and len(self._early) < EARLY_MAX:
            self._early[service, verdict.uuid] = verdict
        if report is not None:
            self.crier.cry(service, report.epoch, [verdict], late=True)
            self._save()

    async def _settle(
        self, name: str, verdicts: Sequence[CallVerdict], again: Sequence[CallRecord]
    ) -> None:
        """Log what became of every inherited call, then let standbys forget the old owner's log."""
        if self._replication is None:
            return
        mine = [*again, *await self._replication.unrecovered(name)]
        self.bury(name, verdicts, {record.uuid: record.version for record in mine})
        loop = asyncio.get_running_loop()
        until = loop.time() + SETTLE_S
        while loop.time() < until and await self._replication.unrecovered(name):
            await asyncio.sleep(SETTLE_POLL_S)
        if await self._log_late(self._replication, name):
            self._replication.settle(name)

    async def _log_late(self, replication: Replication, name: str) -> bool:
        """What FreeSWITCH's table has by now and nobody told; while it cannot be read, others keep
        the only copies. False, and they keep them, if the service is let go."""
        said = ""
        while (switch := self.switch) is not None and (late := await replication.unrecovered(name)):
            # Calls behind a fence are not in what is read; a lapsed lease may come back.
            while not self.served(name):
                if self._local_state(name) in LET_GO:
                    return False
                await asyncio.sleep(RETRY_S)
            uuids = {record.uuid for record in late}
            try:
                found = await switch.snapshot()
            except SwitchError as error:
                if str(error) != said:
                    log.warning("calls of %s have no copy of their new owner: %s", name, error)
                said = str(error)
                await asyncio.sleep(RETRY_S)
                continue
            if self.served(name):
                replication.append([r for r in found if r.service == name and r.uuid in uuids])
                return True
        return True

    def _bury_own(self, name: str, verdicts: Sequence[CallVerdict]) -> None:
        """FreeSWITCH tracks a call that nobody has answered for, too: its row here is no proof.

        At once, because an answer that comes later makes a newer row, and the call is live again.
        """
        if self._replication is not None:
            lost = {v.uuid: v.reason for v in verdicts if v.verdict == "lost"}
            versions = self._replication.own_versions(name, lost)
            self._replication.append(
                [Tombstone(name, uuid, v, lost[uuid][:200]) for uuid, v in versions.items()]
            )

    def bury(self, name: str, verdicts: Sequence[CallVerdict], versions: dict[str, int]) -> None:
        """A call that did not come back, or has ended since, must not be recovered by the next
        owner either (S8)."""
        if self._replication is None:
            return
        over = [v for v in verdicts if (v.verdict == "lost" or v.ended) and v.uuid in versions]
        self._replication.append(
            [Tombstone(name, v.uuid, versions[v.uuid], v.reason[:200]) for v in over]
        )
