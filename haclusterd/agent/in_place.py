"""Calls of a service that stayed here while its FreeSWITCH was replaced by another process.

Where they cannot be given to it, heart is told, who hands the service to a node that can; until
then they have the verdict `lost`, which a later attempt mends. Given up after `GIVE_UP_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from haclusterd.agent.history import History
from haclusterd.agent.latecomers import GIVE_UP_S
from haclusterd.agent.replication import Replication
from haclusterd.agent.reports import Account, Reports
from haclusterd.agent.switch import Switch, SwitchError
from haclusterd.core.actions import Recover
from haclusterd.core.inputs import FromAgent, RecoveryEnded
from haclusterd.core.model import ClusterSpec, Identity
from haclusterd.core.records import CallRecord, CallVerdict
from haclusterd.core.text import brief

log = logging.getLogger(__name__)


class Work(Protocol):
    """What is needed of `Recoveries`."""

    switch: Switch | None
    exited_us: int

    def served(self, name: str) -> bool: ...
    def by_policy(self, records: Sequence[CallRecord]) -> list[CallVerdict]: ...
    def bury(
        self, name: str, verdicts: Sequence[CallVerdict], versions: dict[str, int]
    ) -> None: ...


@dataclass
class Stranded:
    """Calls that the present FreeSWITCH was not given. `since`: loop time of the first failure."""

    identity: Identity
    epoch: int
    records: Sequence[CallRecord]
    since: float
    reason: str


class InPlace:
    """See the module. `inject` recovers and `finish` closes a report, as `Recoveries` does it."""

    def __init__(
        self,
        spec: ClusterSpec,
        work: Work,
        replication: Replication | None,
        history: History,
        reports: Reports,
        send: Callable[[FromAgent], None],
        inject: Callable[
            [str, int, Sequence[CallRecord], Account], Awaitable[Sequence[CallVerdict]]
        ],
        finish: Callable[[Account, Sequence[CallVerdict]], None],
        recovers: bool,
    ) -> None:
        self._spec = spec
        self._work = work
        self._replication = replication
        self._history = history
        self._reports = reports
        self._send = send
        self._inject = inject
        self._finish = finish
        self._recovers = recovers
        self.stranded: dict[str, Stranded] = {}

    @property
    def _me(self) -> str:
        return self._spec.nodes[self._spec.me].id

    async def recover(
        self, name: str, identity: Identity | None, epoch: int, records: Sequence[CallRecord]
    ) -> None:
        """The first attempt with this process."""
        self.stranded.pop(name, None)
        identity = identity or Identity(epoch, self._spec.me, 0)
        account = self._begin(name, identity)
        reason, verdicts = "", list[CallVerdict]()
        try:
            reason, verdicts = await self._attempt(name, epoch, records, account)
        finally:
            self._finish(account, verdicts)
        if reason:
            since = asyncio.get_running_loop().time()
            self.stranded[name] = Stranded(identity, epoch, records, since, reason)
            text = f"{self._me} cannot recover {name}: {reason}"
            self._history.add("A5", text, None, name, epoch)
        # Also that it worked: heart may know of an attempt with the process before, which did not.
        self._tell(name, identity, reason)

    async def repeat(self, name: str) -> None:
        """Once more, for what has not ended since; in the end only to have standby lifted."""
        one = self.stranded.get(name)
        if one is None:
            return
        self._keep_live(name, one)
        if one.records and asyncio.get_running_loop().time() - one.since >= GIVE_UP_S:
            await self._give_up(name, one)
        account = self._begin(name, one.identity)
        reason, verdicts = one.reason, list[CallVerdict]()
        try:
            reason, verdicts = await self._attempt(name, one.epoch, one.records, account)
        finally:
            if reason:
                self._reports.discard(account)
            else:
                self._finish(account, verdicts)
        if reason:
            log.info("%s still cannot recover %s: %s", self._me, name, reason)
            one.reason = reason
            if not one.identity.nonce:  # the first word may have come while the lease had lapsed
                self._tell(name, one.identity, reason)
            return
        self.stranded.pop(name, None)
        self._tell(name, one.identity, "")

    def _tell(self, name: str, identity: Identity, reason: str) -> None:
        """Heart. An agent that found the service owned names it by its epoch, as it is now."""
        if not identity.nonce and self._replication is not None:
            epoch = self._replication.owned().get(name, identity.epoch)
            identity = Identity(epoch, self._spec.me, 0)
        self._send(RecoveryEnded(self._index(name), identity, not reason, reason))

    async def _attempt(
        self, name: str, epoch: int, records: Sequence[CallRecord], account: Account
    ) -> tuple[str, list[CallVerdict]]:
        """Why it failed, empty if it did not; and the verdicts."""
        account.moment("freeswitch_up")
        try:
            verdicts = list(
                await self._inject(name, epoch, records if self._recovers else [], account)
            )
        except SwitchError as error:
            reason = brief(str(error))
        except Exception as error:
            log.exception("recovery of %s in place", name)
            reason = brief(f"haclusterd failed ({error!r}); see its log (journalctl)")
        else:
            over = verdicts
            if not self._recovers:
                verdicts = self._work.by_policy(records)
                # Also where none is given: nobody else tells the end of what is logged as live.
                over = verdicts or [CallVerdict(r.uuid, "lost", "recovery.calls") for r in records]
            self._work.bury(name, over, {record.uuid: record.version for record in records})
            return "", verdicts
        why = f"not recovered, and tried again: {reason}"
        return reason, [CallVerdict(record.uuid, "lost", why) for record in records]

    def _keep_live(self, name: str, one: Stranded) -> None:
        """What this node has logged the end of is no call to recover (S8)."""
        if self._replication is not None:
            live = self._replication.own_versions(name, {record.uuid for record in one.records})
            one.records = [record for record in one.records if record.uuid in live]

    async def _give_up(self, name: str, one: Stranded) -> None:
        """Buried is what FreeSWITCH's table does not show; later, if that cannot be read now."""
        if self._work.switch is None or self._replication is None:
            return
        try:
            up = {record.uuid for record in await self._work.switch.snapshot()}
        except SwitchError as error:
            log.info("calls of %s that are lost cannot be told from others yet: %s", name, error)
            return
        if not self._work.served(name):
            return  # fenced meanwhile: its calls are not in what was read
        gone = [record for record in one.records if record.uuid not in up]
        one.records = []
        if not gone:
            return
        why = f"not recovered within {GIVE_UP_S:.0f} s: {one.reason}"
        verdicts = [CallVerdict(record.uuid, "lost", why) for record in gone]
        versions = self._replication.own_versions(name, {record.uuid for record in gone})
        account = self._begin(name, one.identity)
        account.replicated = len(gone)
        self._work.bury(name, verdicts, versions)
        self._finish(account, verdicts)

    def _index(self, name: str) -> int:
        return [s.name for s in self._spec.services].index(name)

    def _begin(self, name: str, identity: Identity) -> Account:
        times = {"dead": self._work.exited_us} if self._work.exited_us else {}
        cause = "FreeSWITCH came back"
        action = Recover(self._index(name), identity, self._spec.me, cause, times)
        return self._reports.begin(name, self._me, self._me, action, False)
