"""What this node does for each service as heart decides: own it, recover its calls, end them.

Nothing here decides who owns a service. One task at a time per service; a newer decision of heart
ends the task of an older one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any

from haclusterd.agent.clock import now_us
from haclusterd.agent.history import History
from haclusterd.agent.latecomers import hear_all
from haclusterd.agent.leaving import clear_old_rows, end_calls
from haclusterd.agent.replication import Replication
from haclusterd.agent.reports import Account, Chronicle, Reports, last_heard, sentence
from haclusterd.agent.switch import Change, Switch, SwitchError
from haclusterd.core.actions import EndCalls, Recover
from haclusterd.core.inputs import FromAgent, RecoveryEnded
from haclusterd.core.model import ClusterSpec, Identity
from haclusterd.core.records import CallRecord, CallVerdict, Tombstone
from haclusterd.core.view import View
from haclusterd.freeswitch.recovery import Rest

log = logging.getLogger(__name__)

COLLECT_MS = 20
HEAD_LEGS = 4  # on their way to the phones while the others are still asked and read
RETRIES_MAX = 3
RETRY_S = 0.5
UP_S = 1.0
UP_POLL_S = 0.01
SETTLE_S = 5.0
SETTLE_POLL_S = 0.1
GENERATION_BITS = 12


class Services:
    """See the module. `replication` and `switch` are None where the cluster moves only addresses.

    `busy(service)` names what is going on, for standing; `changed()` is called when it changes.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        replication: Replication | None,
        history: History,
        reports: Reports,
        send: Callable[[FromAgent], None],
        changed: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._replication = replication
        self.switch: Switch | None = None
        self._history = history
        self._reports = reports
        self._send = send
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._savers: set[asyncio.Task[None]] = set()
        self._busy: dict[str, str] = {}
        self._owned: dict[str, Identity] = {}
        self._pending: dict[str, Recover] = {}  # could not be recovered, and still owned
        self._recovering: dict[str, Recover] = {}  # not every inherited call has its verdict
        self._unsure: set[str] = set()  # services whose profiles may serve here unseen
        self._generation = 0
        self._exited_us = 0  # when the FreeSWITCH before this one was seen gone
        self.view: View | None = None

    # -- what heart says --

    def recover(self, action: Recover, again: Sequence[CallRecord] = ()) -> None:
        """This node owns the service now: its calls go on here.

        `again`: calls that were here already, in a FreeSWITCH that died before all had a verdict.
        """
        name = self._spec.services[action.service].name
        self._owned[name] = action.identity
        self._unsure.discard(name)
        self._pending.pop(name, None)
        account = self._begin(name, action)
        # Its turn comes after this, but before that of the news to all peers that `own` sends.
        self._recovering[name] = action
        self._start(name, "recovering its calls", self._recover(action, account, again))
        if self._replication is not None:
            self._replication.own(name, action.identity.epoch, settled=False)
        if self.switch is not None:
            self.switch.set_fenced(name, False)

    def end_calls(self, action: EndCalls) -> None:
        """Another node owns the service: end its calls here, back to standby."""
        service = self._spec.services[action.service]
        self._owned.pop(service.name, None)
        self._unsure.discard(service.name)
        self._pending.pop(service.name, None)
        self._recovering.pop(service.name, None)
        if self.switch is not None:
            self.switch.set_fenced(service.name, True)
            self.switch.forget(service.name)
        if self._replication is not None:
            self._replication.disown(service.name)
        if self.switch is not None and service.profiles:
            self._start(service.name, "ending its calls", self._end(service.name, service.profiles))

    def observe(self, view: View) -> None:
        """Heart's word: fences, reclaims, and what has been owned since before this run."""
        self.view = view
        for service, seen in zip(self._spec.services, view.services, strict=False):
            name = service.name
            owned = seen.local_state == "owned" and seen.owner == view.node
            if self.switch is not None:
                self.switch.set_fenced(name, not owned)
            if owned and self._replication is not None:
                known = self._replication.owned().get(name)
                if known is None:
                    self._resume(name, seen.epoch)
                elif seen.epoch > known:
                    self._replication.advance(name, seen.epoch)
        self._make_sure()

    def _make_sure(self) -> None:
        """Of services that others own by now, nothing may go on here: not a call, not a profile.

        Once for each login. Not while this node owns, lapsed or reclaims: those calls are alive.
        """
        view = self.view
        for service, seen in zip(self._spec.services, view.services if view else (), strict=False):
            elsewhere = seen.owner not in ("", self._me) and seen.local_state == "standby"
            if elsewhere and service.name in self._unsure and self.switch is not None:
                self._unsure.discard(service.name)
                self.switch.forget(service.name)
                work = self._end(service.name, service.profiles)
                self._start(service.name, "making sure that it stands by", work)

    def _resume(self, name: str, epoch: int) -> None:
        """The agent was restarted, the service stayed: FreeSWITCH has its calls."""
        if self._replication is None:
            return
        self._replication.own(name, epoch, settled=False)
        self._history.add("A1", f"{self._me} goes on replicating {name}", None, name, epoch)
        self._start(name, "reading its calls", self._reread(name))

    async def _reread(self, name: str) -> None:
        """Only with all calls logged may standbys forget what the earlier agent told them."""
        while self.switch is not None and self._replication is not None:
            try:
                records = [r for r in await self.switch.snapshot() if r.service == name]
            except SwitchError as error:
                log.info("the calls of %s are not read yet: %s", name, error)
                await asyncio.sleep(RETRY_S)
                continue
            self._replication.append(records)
            break
        if self._replication is not None:
            self._replication.settle(name)

    async def stop(self) -> None:
        """End all tasks."""
        tasks = [*self._tasks.values(), *self._savers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what FreeSWITCH says --

    async def call_changes(self, changes: Sequence[Change]) -> None:
        """Calls of the local FreeSWITCH changed."""
        if self._replication is not None:
            self._replication.append(changes)

    async def freeswitch_replaced(self) -> None:
        """Another FreeSWITCH process runs: calls of services that stayed here are recovered."""
        self._generation += 1
        if self._replication is None:
            return
        for name, epoch in self._replication.owned().items():
            records = self._replication.own_records(name)
            action = self._pending.get(name) or self._recovering.get(name)
            if action is not None:
                self.recover(action, records)
                continue
            text = f"FreeSWITCH on {self._me} came back: {len(records)} legs of {name} in place"
            self._history.add("A3", text, None, name, epoch)
            self._start(name, "recovering in place", self._in_place(name, epoch, records))

    def freeswitch_exited(self) -> None:
        """The process is gone: what it carried counts as out from now on."""
        self._exited_us = now_us()

    def freeswitch_connected(self) -> None:
        """ESL is logged in: nothing but the present process's rows may stay."""
        work = clear_old_rows(lambda: self.switch, self._history, self._me)
        self._start("", "clearing old rows", work)
        # No command tells whether a profile is in standby (FREESWITCH.md 4), and this process may
        # have outlived the agent and the heart that knew.
        self._unsure = {s.name for s in self._spec.services if s.profiles}
        self._make_sure()
        for action in list(self._pending.values()):
            self.recover(action)  # nobody else could have them: try again

    def busy(self, service: str) -> str:
        """What keeps this node from taking the service over now; empty if nothing."""
        return self._busy.get(service) or self._busy.get("", "")

    # -- work --

    @property
    def _me(self) -> str:
        return self._spec.nodes[self._spec.me].id

    def _start(self, name: str, what: str, work: Coroutine[Any, Any, None]) -> None:
        old = self._tasks.get(name)
        if old is not None:
            old.cancel()
        self._busy[name] = what
        task = asyncio.get_running_loop().create_task(work, name=f"{what} {name}".strip())
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._ended(name, done))
        self._changed()

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
            self._busy.pop(name, None)
            self._changed()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    def _begin(self, name: str, action: Recover) -> Account:
        origin = self._spec.nodes[action.from_node].id if action.from_node >= 0 else None
        silent, last_heard_us = last_heard(self.view, origin, self._spec.timing.suspect_us)
        account = self._reports.begin(name, origin, self._me, action, silent)
        if last_heard_us:
            dead_us = account.times.get("dead", last_heard_us)
            account.moment("last_heartbeat", min(last_heard_us, dead_us))
        account.moment("announced")
        return account

    async def _recover(
        self, action: Recover, account: Account, again: Sequence[CallRecord]
    ) -> None:
        spec = self._spec.services[action.service]
        reason, name, epoch = "", spec.name, action.identity.epoch
        told = Chronicle(account, partial(self._begin, name, action), self._finish)
        try:
            if self._replication is not None and self.switch is not None and spec.profiles:
                dead = (account.origin,) if account.silent and account.origin else ()
                head = [] if again else self._replication.quietest(name, HEAD_LEGS)
                rest = partial(self._collect, name, dead, again or head, account)
                told.judged(await self._inject(name, epoch, head, account, rest))
                inject = partial(self._inject, name, epoch)
                never = await hear_all(self._replication, told, name, dead, inject)
                if never:
                    text = f"{', '.join(never)} never told which calls of {name} it knows"
                    self._history.add("A7", text, None, name, epoch)
        except SwitchError as error:
            reason = str(error)
        finally:
            told.close()
        self._send(RecoveryEnded(action.service, action.identity, not reason, reason))
        if reason:
            self._pending[name] = action
            self._recovering.pop(name, None)
            text = f"{self._me} cannot recover {name}: {reason}"
            self._history.add("A5", text, None, name, epoch)
            return
        await self._settle(name, told.verdicts, again)
        self._recovering.pop(name, None)

    async def _collect(
        self, name: str, dead: Collection[str], head: Sequence[CallRecord], account: Account
    ) -> list[CallRecord]:
        """All inherited calls and those of `head`, as they are there."""
        if self._replication is None:
            return []
        found = await self._replication.collect(name, COLLECT_MS, dead)
        account.moment("collected")
        known = {record.uuid for record in head}
        records = [*head, *(record for record in found if record.uuid not in known)]
        account.replicated = len(records)
        return records

    async def _in_place(self, name: str, epoch: int, records: Sequence[CallRecord]) -> None:
        index = [s.name for s in self._spec.services].index(name)
        identity = self._owned.get(name, Identity(epoch, self._spec.me, 0))
        times = {"dead": self._exited_us} if self._exited_us else {}
        action = Recover(index, identity, self._spec.me, "FreeSWITCH came back", times)
        account = self._reports.begin(name, self._me, self._me, action, False)
        account.moment("freeswitch_up")
        verdicts: list[CallVerdict] = []
        try:
            verdicts = await self._inject(name, epoch, records, account)
        except SwitchError as error:
            self._history.add("A5", f"{self._me} cannot recover {name}: {error}", None, name, epoch)
        finally:
            self._finish(account, verdicts)
        self._bury(name, verdicts, {record.uuid: record.version for record in records})

    def _attempt_id(self, epoch: int) -> int:
        """Names a recovery to `Recovery`: another process is another one, in the same epoch."""
        return epoch << GENERATION_BITS | self._generation % (1 << GENERATION_BITS)

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
        profiles = next(s.profiles for s in self._spec.services if s.name == name)
        loop = asyncio.get_running_loop()
        outage = loop.time() - (now_us() - account.fault_us) / 1e6
        attempt_id = self._attempt_id(epoch)

        def progress(stage: str, legs: int, at: float) -> None:
            if stage != "verified":
                account.moment(stage, now_us() - round((loop.time() - at) * 1e6))

        for attempt in range(RETRIES_MAX):
            await self._until_up(switch)
            try:
                return await switch.recover(
                    name, profiles, records, progress, attempt_id, outage, rest
                )
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
        account.judge(verdicts)
        account.moment("recovered")
        report = self._reports.finish(account)
        self._history.add("A7", sentence(report), None, report.service, report.epoch)
        content = self._reports.encode()
        saver = asyncio.get_running_loop().create_task(
            asyncio.to_thread(self._reports.save, content), name="save reports"
        )
        self._savers.add(saver)
        saver.add_done_callback(self._savers.discard)

    async def _settle(
        self, name: str, verdicts: Sequence[CallVerdict], again: Sequence[CallRecord]
    ) -> None:
        """Log what became of every inherited call, then let standbys forget the old owner's log."""
        if self._replication is None:
            return
        mine = [*again, *await self._replication.unrecovered(name)]
        self._bury(name, verdicts, {record.uuid: record.version for record in mine})
        loop = asyncio.get_running_loop()
        until = loop.time() + SETTLE_S
        while loop.time() < until and await self._replication.unrecovered(name):
            await asyncio.sleep(SETTLE_POLL_S)
        self._replication.settle(name)

    def _bury(self, name: str, verdicts: Sequence[CallVerdict], versions: dict[str, int]) -> None:
        """A call that did not come back must not be recovered by the next owner either (S8)."""
        if self._replication is None:
            return
        lost = [v for v in verdicts if v.verdict == "lost" and v.uuid in versions]
        self._replication.append(
            [Tombstone(name, v.uuid, versions[v.uuid], v.reason[:200]) for v in lost]
        )

    async def _end(self, name: str, profiles: Sequence[str]) -> None:
        switch = self.switch
        done = switch is None or await end_calls(switch, self._history, self._me, name, profiles)
        if not done:
            self._unsure.add(name)  # never ready while old calls may be there
