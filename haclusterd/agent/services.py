"""What this node does for each service as heart decides: own it, recover its calls, end them.

Nothing here decides who owns a service. One task at a time per service; a newer decision of heart
ends the task of an older one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from haclusterd.agent.again import Again
from haclusterd.agent.clock import now_us
from haclusterd.agent.history import History
from haclusterd.agent.leaving import clear_old_rows, end_calls
from haclusterd.agent.recoveries import Recoveries
from haclusterd.agent.replication import Replication
from haclusterd.agent.switch import Change, Switch
from haclusterd.agent.taking_stock import Stock, of_the_dead
from haclusterd.core.actions import EndCalls, Recover
from haclusterd.core.model import ClusterSpec, Identity, ServiceSpec
from haclusterd.core.records import CallRecord
from haclusterd.core.view import View
from haclusterd.lasting import until_done

log = logging.getLogger(__name__)


class Services:
    """See the module. `replication` and `switch` are None where the cluster moves only addresses.

    `busy(service)` names what is going on, for standing; `changed()` is called when it changes.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        replication: Replication | None,
        history: History,
        work: Recoveries,
        changed: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._replication = replication
        self._history = history
        self._work = work
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._busy: dict[str, str] = {}
        self._owned: dict[str, Identity] = {}
        self._unsure: set[str] = set()  # services whose profiles may serve here unseen
        self._unread: set[str] = set()  # owned, and which calls they have is not known yet
        self._stock = Stock(spec, replication, history, work, self._say_busy)
        self._again = Again(self._repeat)

    @property
    def view(self) -> View | None:
        """Heart's newest word."""
        return self._work.view

    @property
    def switch(self) -> Switch | None:
        """The local FreeSWITCH, once the part that speaks with it has started."""
        return self._work.switch

    @switch.setter
    def switch(self, switch: Switch) -> None:
        self._work.switch = switch

    # -- what heart says --

    def recover(self, action: Recover, again: Sequence[CallRecord] | None = None) -> None:
        """This node owns the service now: its calls go on here.

        `again`: calls that were here already, in a FreeSWITCH that died before all had a verdict.
        Where heart repeats an order (None), those are in this node's log, and not inherited.
        """
        name, epoch = self._spec.services[action.service].name, action.identity.epoch
        if again is None:
            again = self._of_the_dead(name, epoch)
        self._owned[name] = action.identity
        self._unsure.discard(name)
        self._unread.discard(name)
        self._drop_waiting(name)
        account = self._work.begin(name, action)
        # Its turn comes after this, but before that of the news to all peers that `own` sends.
        self._work.recovering[name] = action
        self._start(name, "recovering its calls", self._work.recover(action, account, again))
        if self._replication is not None:
            self._replication.own(name, epoch, settled=False)
        if self.switch is not None:
            self.switch.set_fenced(name, False)

    def _of_the_dead(self, name: str, epoch: int) -> list[CallRecord]:
        """Logged as live in the log that is begun already for this epoch."""
        if self._replication is None or self._replication.owned().get(name, -1) < epoch:
            return []
        return of_the_dead(self._replication.own_records(name), self.switch)

    def end_calls(self, action: EndCalls) -> None:
        """Another node owns the service: end its calls here, back to standby."""
        service = self._spec.services[action.service]
        self._owned.pop(service.name, None)
        self._unsure.discard(service.name)
        self._unread.discard(service.name)
        self._drop_waiting(service.name)
        self._again.forget(service.name)
        self._work.recovering.pop(service.name, None)
        if self.switch is not None:
            self.switch.set_fenced(service.name, True)
            self.switch.forget(service.name)
        if self._replication is not None:
            self._replication.disown(service.name)
        if self.switch is not None and service.profiles:
            self._start(service.name, "ending its calls", self._end(service.name, service.profiles))

    def observe(self, view: View) -> None:
        """Heart's word: fences, reclaims, and what has been owned since before this run."""
        self._work.view = view
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
                if name in self._unread and name not in self._tasks:
                    self._read(name)  # the fence was closed before
            elif seen.owner not in ("", self._me) and seen.local_state == "standby":
                self._unread.discard(name)
                self._drop_recovery(service, seen.epoch)
        self._make_sure()

    def _drop_recovery(self, service: ServiceSpec, epoch: int) -> None:
        """Another node owns the service since, and heart gave no order to end calls: FreeSWITCH had
        died, or could not recover them all. What came back here all the same is that node's now,
        as is what did not."""
        name = service.name
        held, stranded = self._owned.get(name), self._work.in_place.stranded.get(name)
        newest = (
            held.epoch if held is not None else stranded.epoch if stranded is not None else epoch
        )
        if newest >= epoch:
            return
        self._owned.pop(name, None)
        if service.profiles and self.switch is not None and self.switch.up:
            self._unsure.add(name)  # where it is not up, its next login does
        waiting = self._drop_waiting(name)
        self._again.forget(name)
        if self._work.recovering.pop(name, None) or waiting:
            task = self._tasks.get(name)
            if task is not None:
                task.cancel()
            if self.switch is not None:
                self.switch.forget(name)

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
        """The agent was restarted, the service stayed; its FreeSWITCH maybe not."""
        if self._replication is None:
            return
        self._replication.own(name, epoch, settled=False)
        self._history.add("A1", f"{self._me} goes on replicating {name}", None, name, epoch)
        self._unread.add(name)
        self._read(name)

    def _read(self, name: str) -> None:
        what = "reading its calls"
        self._start(name, what, until_done(partial(self._take_stock, name), f"{what} {name}"))

    async def _take_stock(self, name: str) -> None:
        if await self._stock.take(name, self._owned.get(name)):
            self._unread.discard(name)

    async def stop(self) -> None:
        """End all tasks."""
        self._again.stop()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._work.stop()

    # -- what FreeSWITCH says --

    async def call_changes(self, changes: Sequence[Change]) -> None:
        """Calls of the local FreeSWITCH changed."""
        if self._replication is not None:
            self._replication.append(changes)

    async def freeswitch_replaced(self) -> None:
        """Another FreeSWITCH process runs: calls of services that stayed here are recovered."""
        self._work.generation += 1
        if self._replication is None:
            return
        for name, epoch in self._replication.owned().items():
            records = self._replication.own_records(name)
            action = self._work.pending.get(name) or self._work.recovering.get(name)
            if not self._work.served(name):
                self._put_off(name, action, records)
                continue
            if name in self._unread:
                self._read(name)  # what was read so far is of the process that is gone
                continue
            if action is not None:
                self.recover(action, records)
                continue
            if not any(s.name == name and s.profiles for s in self._spec.services):
                continue
            text = f"FreeSWITCH on {self._me} came back: {len(records)} legs of {name} in place"
            self._history.add("A3", text, None, name, epoch)
            self._again.forget(name)
            work = self._work.in_place.recover(name, self._owned.get(name), epoch, records)
            self._start(name, "recovering in place", work)

    def _put_off(self, name: str, action: Recover | None, records: Sequence[CallRecord]) -> None:
        """Until the fence is open: behind it no phone can answer, and the call would be buried."""
        self._drop_waiting(name)
        self._work.recovering.pop(name, None)
        if (task := self._tasks.get(name)) is not None:
            task.cancel()
        if action is None:
            self._unread.add(name)
            return
        self._work.pending[name], self._work.again[name] = action, records
        self._again.failed(name)

    async def all_calls(self, name: str) -> list[CallRecord] | None:
        """Of an owned service, as FreeSWITCH has them. Raises SwitchError. None where they are not
        all: of a service that is fenced none are read, what is recovered is told by that, and of
        a FreeSWITCH that is gone nobody tells the end of calls."""
        generation = self._work.generation
        if self.switch is None or not self._rests(name):
            return None
        records = [record for record in await self.switch.snapshot() if record.service == name]
        return records if self._rests(name) and self._work.generation == generation else None

    def _rests(self, name: str) -> bool:
        working = self.busy(name) or name in self._work.recovering
        return not working and self._work.served(name)

    def at_rest(self, name: str) -> bool:
        """Served, and nothing of it is being recovered or has to be tried again."""
        waiting = name in self._work.pending or name in self._work.in_place.stranded
        unread = name in self._unread and name not in self._tasks
        return self._rests(name) and not waiting and not unread

    def freeswitch_exited(self) -> None:
        """The process is gone: what it carried counts as out from now on."""
        self._work.exited_us = now_us()

    def freeswitch_connected(self) -> None:
        """ESL is logged in: nothing but the present process's rows may stay."""
        work = clear_old_rows(lambda: self.switch, self._history, self._me)
        self._start("", "clearing old rows", work)
        # No command tells whether a profile is in standby (FREESWITCH.md 4), and this process may
        # have outlived the agent and the heart that knew.
        self._unsure = {s.name for s in self._spec.services if s.profiles}
        self._make_sure()
        for name in {**self._work.pending, **self._work.in_place.stranded}:
            self._repeat(name)  # nobody else could have them

    def busy(self, service: str) -> str:
        """What keeps this node from taking the service over now; empty if nothing."""
        return self._busy.get(service) or self._busy.get("", "")

    # -- what failed --

    def _drop_waiting(self, name: str) -> bool:
        """True if there was something to try again."""
        self._work.again.pop(name, None)
        stranded = self._work.in_place.stranded.pop(name, None)
        return self._work.pending.pop(name, None) is not None or stranded is not None

    def _repeat(self, name: str) -> None:
        """Its time has come. Calls of a service that is fenced just now have no way to phones."""
        if name in self._tasks:
            return  # its end sees to it
        if self._work.served(name) and self.switch is not None and self.switch.up:
            self._once_more(name)
        else:
            self._again.failed(name)

    def _once_more(self, name: str) -> None:
        action = self._work.pending.get(name)
        if action is not None:
            self.recover(action, self._work.again.get(name, ()))
        elif name in self._work.in_place.stranded:
            self._start(name, "recovering in place", self._work.in_place.repeat(name))

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

    def _say_busy(self, name: str, what: str) -> None:
        """Of the task that is under way."""
        self._busy[name] = what
        self._changed()

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
            self._busy.pop(name, None)
            self._changed()
            if name in self._work.pending or name in self._work.in_place.stranded:
                if not task.cancelled():
                    self._again.failed(name)
            else:
                self._again.forget(name)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def _end(self, name: str, profiles: Sequence[str]) -> None:
        switch = self.switch
        done = switch is None or await end_calls(switch, self._history, self._me, name, profiles)
        if not done:
            self._unsure.add(name)  # never ready while old calls may be there
