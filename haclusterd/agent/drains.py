"""Carries drains out on this node: profiles into standby, services away once they are empty.

Looks again at every word of heart and of FreeSWITCH, so that it does not matter when it starts or
what it missed: what is wanted follows from the orders, which are on disk, and from who owns what.
Services are moved by the switchover of `operators`, with all its checks, and only from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from haclusterd.agent import drained
from haclusterd.agent.history import History
from haclusterd.agent.lifting import Lifting
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.switch import Switch, SwitchError
from haclusterd.core.agreed import DrainWord
from haclusterd.core.model import FOR_GOOD_US, ClusterSpec
from haclusterd.core.view import ServiceView, View
from haclusterd.lasting import unending

log = logging.getLogger(__name__)

LOOK_S = 1.0
PAUSE_S = 0.1  # between two looks, however much is new
AGAIN_S = 5.0  # after a switchover that was refused
HOME_S = 5.0  # an unused maintenance service leaves its slave after that


class Mover(Protocol):
    """What is needed of `agent.operators` here."""

    async def switchover(self, service: str, to: str | None) -> str: ...


class Standing(Protocol):
    """What is needed of `agent.orders` here."""

    @property
    def standing_by(self) -> tuple[str, ...]: ...
    def drains(self) -> list[DrainWord]: ...
    async def keep_standing_by(self, services: Sequence[str]) -> None: ...


class Drains:
    """`view()` is heart's newest word, `switch()` the local FreeSWITCH, `busy(service)` what is
    going on there, `calls(service)` how many legs of an own service are up."""

    def __init__(
        self,
        spec: ClusterSpec,
        spare: str,
        orders: Standing,
        mover: Mover,
        history: History,
        view: Callable[[], View | None],
        switch: Callable[[], Switch | None],
        busy: Callable[[str], str],
        calls: Callable[[str], int],
        at_rest: Callable[[str], bool] = lambda service: True,
    ) -> None:
        self._spec, self._spare = spec, spare
        self._orders, self._mover, self._history = orders, mover, history
        self._view, self._switch, self._busy, self._calls = view, switch, busy, calls
        self._closed: dict[str, tuple[int, str]] = {}  # service: epoch and FreeSWITCH's process
        self._held: set[str] = set()  # services that a switchover keeps shut at this moment
        self._empty: set[str] = set()  # services without a call at the last look
        self._not_before: dict[str, float] = {}
        self._idle_since = 0.0
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.problems: dict[str, str] = {}  # by service
        self.lifting = Lifting([p for s in spec.services for p in s.profiles], at_rest)

    def start(self) -> None:
        self._closed = dict.fromkeys(self._orders.standing_by, (0, ""))
        self._idle_since = asyncio.get_running_loop().time()
        self._task = unending(self._look_for_ever, "drains")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def poke(self) -> None:
        """Something may have changed."""
        self._news.set()

    def closed(self, view: View) -> dict[str, str]:
        """By service, anywhere: why it takes no new calls."""
        return drained.closed(view, self._orders.drains(), self._spare)

    def is_closed(self, service: str) -> bool:
        view = self._view()
        return view is not None and service in self.closed(view)

    async def _look_for_ever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()
                await asyncio.sleep(PAUSE_S)
            self._news.clear()
            view = self._view()
            if view is None:
                continue
            try:
                await self.look(view)
            except Exception:
                # Whatever one look met, the next one tries again.
                log.exception("a look at what is drained")

    async def look(self, view: View) -> None:
        """One round."""
        await self._stand_by(view)
        mine = [s for s in view.services if s.owner == view.node and s.local_state == "owned"]
        drain = self._evacuating(view.node)
        self.problems = {k: v for k, v in self.problems.items() if k in {s.name for s in mine}}
        if drain is None:
            self._empty.clear()
            await self._bring_spare_home(view, mine)
            return
        await self._place_spare(view)
        empty: set[str] = set()
        for service in mine:
            if service.name == self._spare:
                continue
            if await self._is_empty(service):
                empty.add(service.name)
            twice = service.name in empty and service.name in self._empty
            if twice or not drain.move_us:
                why = "it has no calls" if twice else "the time of its drain is over"
                if await self._move(service.name, self._successor(view, service), why):
                    return  # heart's next word says what is left
        self._empty = empty

    def _evacuating(self, node: str) -> DrainWord | None:
        target = f"{drained.NODE}{node}"
        found = (d for d in self._orders.drains() if d.target == target)
        return next((d for d in found if d.move_us < FOR_GOOD_US), None)

    # -- new calls --

    async def _stand_by(self, view: View) -> None:
        switch, closed = self._switch(), self.closed(view)
        for service in self._spec.services:
            name = service.name
            seen = self._owned(name)  # now: the services before it took their time
            if seen is None:
                if self._gone(name):  # whoever owns it sees to it; here it stands by anyway
                    await self._forget(name)
                self.lifting.put_off(service.profiles)
                continue
            if switch is None or not switch.up or not service.profiles or name in self._held:
                continue
            if self._busy(name):
                if name in self._closed:
                    self._closed[name] = (0, "")  # a recovery lifts the standby: anew, after it
                self.lifting.put_off(service.profiles)
                continue
            stamp = (seen.epoch, switch.core_uuid)
            if name in closed:
                self.lifting.put_off(service.profiles)
            if name in closed and self._closed.get(name) != stamp:
                await self._shut(switch, name, service.profiles, stamp)
            elif name in self._closed and name not in closed:
                if self.lifting.at_rest(name):
                    await self._open(switch, name, service.profiles)
            elif name not in closed:
                await self._lift(switch, name, service.profiles)

    async def _lift(self, switch: Switch, name: str, profiles: Sequence[str]) -> None:
        """Profiles that came up take calls: as long as nothing of this has changed meanwhile."""
        for profile in profiles:
            if self._owned(name) is None or self._busy(name) or self.is_closed(name):
                return
            if name in self._held or not self.lifting.is_due(name, profile):
                continue
            await self.lifting.lift(switch, name, profile)
            if self._owned(name) is None:  # also if nobody knows whether it was lifted
                self.lifting.came_up(profile)  # a lease that lapsed may come back
                with contextlib.suppress(SwitchError):  # it went away: a standby must stay one
                    await switch.stand_by([profile], True)

    async def _shut(
        self, switch: Switch, name: str, profiles: Sequence[str], stamp: tuple[int, str]
    ) -> None:
        news = name not in self._closed
        self._closed[name] = (0, "")
        await self._orders.keep_standing_by(sorted(self._closed))
        try:
            await switch.stand_by(profiles, True)
        except SwitchError as error:
            self.problems[name] = f"{name} still takes new calls: {error}"
            return
        self.problems.pop(name, None)
        self._closed[name] = stamp
        if news:
            text = f"{name} takes no new calls on {self._me}"
            self._history.add("A31", text, None, name)

    async def _open(self, switch: Switch, name: str, profiles: Sequence[str]) -> None:
        """A profile that refuses, of several, is left to `lifting`: the others take calls."""
        refused: dict[str, SwitchError] = {}
        for profile in profiles:
            if self._owned(name) is None or name in self._held:
                break
            try:
                await switch.stand_by([profile], False)
            except SwitchError as error:
                refused[profile] = error
        if self._owned(name) is None:  # it went away meanwhile, and a standby must stay one
            with contextlib.suppress(SwitchError):
                await switch.stand_by(profiles, True)
            return
        if name in self._held:
            return  # a switchover shuts it: what it cannot open again is opened then
        if len(refused) == len(profiles):
            text = "; ".join(map(str, refused.values()))
            self.problems[name] = f"{name} takes no new calls yet: {text}"
            return
        self.problems.pop(name, None)
        for profile in refused:
            self.lifting.came_up(profile)
        await self._forget(name)
        self._history.add("A33", f"{name} takes new calls on {self._me}", None, name)

    def _gone(self, name: str) -> bool:
        """Let go of. A lease that lapsed may come back, and nothing else lifts a standby then."""
        view = self._view()
        found = (s for s in view.services if s.name == name) if view is not None else ()
        return any(s.local_state == "standby" for s in found)

    def _owned(self, name: str) -> ServiceView | None:
        """The service as heart last told it, if this node owns it."""
        view = self._view()
        found = (s for s in view.services if s.name == name) if view is not None else ()
        mine = (s for s in found if s.owner == self._me and s.local_state == "owned")
        return next(mine, None)

    async def _forget(self, name: str) -> None:
        if self._closed.pop(name, None) is not None:
            await self._orders.keep_standing_by(sorted(self._closed))

    async def hold(self, name: str) -> None:
        """A switchover shuts the service: if this agent dies in it, the next one has to open it."""
        self._held.add(name)
        if name not in self._closed:
            self._closed[name] = (0, "")
            await self._orders.keep_standing_by(sorted(self._closed))

    async def let_go(self, name: str, lifted: bool) -> None:
        """The switchover is over. What it could not open again is opened from here."""
        self._held.discard(name)
        if lifted and not self.is_closed(name):
            await self._forget(name)
        self.poke()

    # -- away --

    async def _is_empty(self, service: ServiceView) -> bool:
        """No call, and none that rings; who cannot tell has some."""
        spec = next(s for s in self._spec.services if s.name == service.name)
        switch = self._switch()
        if not spec.profiles:
            return True
        if self._calls(service.name) or switch is None or not switch.up:
            return False
        try:
            return not any(leg.profile in spec.profiles for leg in await switch.ringing())
        except SwitchError:
            return False

    async def _move(self, service: str, to: str | None, why: str) -> bool:
        """Whether it was tried: one that was refused just now must not hold up the others."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._not_before.get(service, 0.0):
            return False
        self._not_before[service] = loop.time() + AGAIN_S
        text = f"{service} leaves {self._me}, as ordered: {why}"
        self._history.add("A35", text, None, service)
        try:
            await self._mover.switchover(service, to)
        except OperatorError as error:
            self.problems[service] = f"{service} is not moved yet: {error}"
            log.warning("%s", self.problems[service])
        else:
            self.problems.pop(service, None)
        return True

    # -- the maintenance service --

    def _successor(self, view: View, service: ServiceView) -> str | None:
        """The first in line; where no slave is left, who has the new calls already, if it can."""
        slaves = {n.id for n in view.nodes if n.rank >= 0}
        spare = next((s.owner for s in view.services if s.name == self._spare), "")
        if slaves & set(service.successors) or spare not in service.successors:
            return None
        return spare

    async def _place_spare(self, view: View) -> None:
        """New calls go to the primary slave: there, or with a node that serves nothing else."""
        spare = next((s for s in view.services if s.name == self._spare), None)
        if spare is None:
            return
        if spare.owner != view.node and self._serves_only_spare(view, spare.owner):
            return
        slaves = sorted((n for n in view.nodes if n.rank >= 0), key=lambda n: n.rank)
        to = next((n.id for n in slaves if n.id in spare.successors), None)
        if to is not None or spare.owner == view.node:
            await self._move(spare.name, to, "new calls go to the first slave")

    async def _bring_spare_home(self, view: View, mine: Sequence[ServiceView]) -> None:
        """A slave that has only the maintenance service, which nobody needs any more, is to be a
        slave again: the service goes to a master that can take it."""
        loop = asyncio.get_running_loop()
        only = [s.name for s in mine] == [self._spare]
        busy = not only or self._orders.drains() or not await self._is_empty(mine[0])
        if busy:
            self._idle_since = loop.time()
            return
        masters = [n.id for n in view.nodes if n.role == "master" and n.id != view.node]
        home = next((n for n in mine[0].successors if n in masters), None)
        if home is not None and loop.time() - self._idle_since > HOME_S:
            await self._move(self._spare, home, "no service is drained any more")

    def _serves_only_spare(self, view: View, node: str) -> bool:
        return [s.name for s in view.services if s.owner == node] == [self._spare]

    @property
    def _me(self) -> str:
        return self._spec.nodes[self._spec.me].id
