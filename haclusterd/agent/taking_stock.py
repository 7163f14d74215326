"""Which calls belong to a service that this node owned before this agent knew of it.

FreeSWITCH has them, or it is another process than the one that had them: the agent before this one
may have died with that, or FreeSWITCH while there was no agent. Then only the other nodes know the
calls, by records that name the dead process, and they forget them once this node has settled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable

from haclusterd.agent.history import History
from haclusterd.agent.latecomers import ASK_MS, GIVE_UP_S, WAIT_S, whole
from haclusterd.agent.recoveries import Recoveries
from haclusterd.agent.replication import Replication
from haclusterd.agent.switch import Switch, SwitchError
from haclusterd.core.model import ClusterSpec, Identity
from haclusterd.core.records import CallRecord

log = logging.getLogger(__name__)

RETRY_S = 0.2
PAUSE_S = 0.02
SOON_S = 0.2  # for nodes that told nothing while FreeSWITCH came up: phones are silent meanwhile


def of_the_dead(records: Iterable[CallRecord], switch: Switch | None) -> list[CallRecord]:
    """Those of another process than the present one: only a recovery brings them back."""
    alive = ("", switch.core_uuid if switch is not None else "")
    return [record for record in records if record.runtime_uuid not in alive] if alive[1] else []


class Stock:
    """See the module. `busy(service, what)` changes what is said to be going on; empty: nothing."""

    def __init__(
        self,
        spec: ClusterSpec,
        replication: Replication | None,
        history: History,
        work: Recoveries,
        busy: Callable[[str, str], None],
    ) -> None:
        self._spec = spec
        self._replication = replication
        self._history = history
        self._work = work
        self._busy = busy

    async def take(self, name: str, identity: Identity | None) -> bool:
        """Log every call, recover what died, and only then let standbys forget what the earlier
        agent told them. False, and they keep it, if the service is fenced or lost before."""
        replication = self._replication
        if replication is None:
            return True
        if not self._has_calls(name):
            replication.settle(name)
            return True
        up = await self._read(replication, name)
        if up is None:
            return False
        replication.append(up)
        given, patience_s = {record.uuid for record in up}, SOON_S
        until = asyncio.get_running_loop().time() + GIVE_UP_S
        while True:
            missing = await self._ask(replication, name, patience_s)
            found = of_the_dead(await replication.inherited(name, given), self._work.switch)
            if missing and patience_s == SOON_S:
                found = whole(found, given)  # a leg without the other one would be ended
            if name not in replication.owned() or not self._work.served(name):
                return False
            replication.append(found)  # from now on they are safe elsewhere as this node's
            await self._bring_back(replication, name, identity, given, found)
            if not missing or asyncio.get_running_loop().time() >= until:
                break
            if patience_s == WAIT_S:  # phones are served meanwhile, and what else wants it at rest
                self._busy(name, "")
            patience_s = WAIT_S
        if missing:
            text = f"{', '.join(missing)} never told which calls of {name} it knows"
            self._history.add("A7", text, None, name, replication.owned().get(name, 0))
        replication.settle(name)
        return True

    def _has_calls(self, name: str) -> bool:
        """Whether there is, or will be, a FreeSWITCH to ask for them."""
        has_profiles = any(s.name == name and s.profiles for s in self._spec.services)
        return has_profiles and bool(self._work.switch or self._work.why_no_switch(name))

    async def _read(self, replication: Replication, name: str) -> list[CallRecord] | None:
        """As FreeSWITCH has them, as soon as it can be read; None where a fence hides them. Until
        then the others are asked, who would else be waited for while phones are silent."""
        said = ""
        while self._work.served(name):
            try:
                switch = self._work.switch
                if switch is None:
                    raise SwitchError(self._work.why_no_switch(name))
                found = await switch.snapshot()
            except SwitchError as error:
                if str(error) != said:
                    log.info("the calls of %s are not read yet: %s", name, error)
                said = str(error)
                await replication.ask(name, ASK_MS)
                await asyncio.sleep(RETRY_S)
                continue
            if self._work.served(name):
                return [record for record in found if record.service == name]
        return None

    async def _ask(self, replication: Replication, name: str, patience_s: float) -> list[str]:
        """Until every living node has told what it knows; gives who has not in that time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s
        while (missing := replication.unasked(name)) and loop.time() < until:
            await replication.ask(name, ASK_MS)
            if replication.unasked(name):
                await asyncio.sleep(PAUSE_S)
        return missing

    async def _bring_back(
        self,
        replication: Replication,
        name: str,
        identity: Identity | None,
        given: set[str],
        found: Collection[CallRecord],
    ) -> None:
        """`found`, and what is logged here of a process that died behind the fence, if it is news;
        with what could not be given to the present one before."""
        # Of what is logged only the rest is unpacked: thousands of calls would hold the agent up.
        logged = of_the_dead(replication.own_records(name, given), self._work.switch)
        news = list({record.uuid: record for record in (*logged, *found)}.values())
        waiting = self._work.in_place.stranded.get(name)
        if not news:
            if waiting is not None:
                self._busy(name, "recovering in place")
                await self._work.in_place.repeat(name)
            return
        given.update(record.uuid for record in news)
        epoch, me = replication.owned()[name], self._spec.nodes[self._spec.me].id
        text = f"FreeSWITCH on {me} is another one: {len(news)} legs of {name} in place"
        self._history.add("A3", text, None, name, epoch)
        news += waiting.records if waiting is not None else ()
        # An attempt of its own, else calls that the dead process was given would count as tried.
        self._work.generation = max(1, self._work.generation)
        self._busy(name, "recovering in place")
        await self._work.in_place.recover(name, identity, epoch, news)
