"""Register at one node, be registered at all: what this node's agent does for it (EG8).

For a service that this node owns: phones' changes go into the lane of registrations, and after a
takeover what the former owner had is in mod_sofia's table first. For the others': what the lane
brings is kept in this FreeSWITCH as `freeswitch.registration_plan` says. Heart decides who owns
what; nothing here does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from haclusterd.agent.absent import ASK_MS, Absent
from haclusterd.agent.replication import AgentReplicator
from haclusterd.agent.wall_clocks import WallClocks
from haclusterd.config import FreeSwitch
from haclusterd.core.model import ClusterSpec, ServiceSpec
from haclusterd.core.records import Registration
from haclusterd.core.replication import Item, Rank, rank
from haclusterd.core.standby import Freshness
from haclusterd.core.view import View
from haclusterd.freeswitch.esl import EslFactory
from haclusterd.freeswitch.registration_keeper import RegistrationKeeper
from haclusterd.freeswitch.registration_source import Told
from haclusterd.lasting import lasting, unending
from haclusterd.sync.codec import Malformed, registration_of
from haclusterd.sync.lane import REGISTRATIONS

log = logging.getLogger(__name__)

GRACE_S = 60.0  # without an owner: then calls to the service's phones fail at once elsewhere
RESUME_S = 1.0  # heart's order to recover comes within this time of its view, if it comes
FETCH_MS = 20
CALLS_FIRST_S = 5.0  # telling the registrations on waits for the calls, but no longer
POLL_S = 0.05
RECYCLE_S = 2.0  # for removing rows; what is left then is told as if it were registered here
COALESCE_S = 0.01
ORIGINS_MAX = 256  # runs of agents whose registrations are known
NO_RANK: Rank = (-1, -1, -1, False)
SLICE = 64  # items (2 ms) between two turns of the event loop


class Listed(NamedTuple):
    """One registration as this node knows it. `node` is where the phone is registered."""

    service: str
    here: str  # own | copy
    node: str
    record: Registration
    at_risk: bool


class Registrations:
    """See the module. `busy(service)` names what keeps a service's calls busy, empty if nothing.

    `policy` of what the former owner had, `recovery.registrations`: recover, recycle, ignore.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        replicator: AgentReplicator,
        busy: Callable[[str], str],
        policy: str = "recover",
    ) -> None:
        self.policy = policy
        self._recycled = 0
        self._spec = spec
        self._replicator = replicator
        self._lane = replicator.registrations
        self._lane.on_items = self._items
        self._busy = busy
        self._by_profile = {p: s.name for s in spec.services for p in s.profiles}
        self.keeper: RegistrationKeeper | None = None
        self._view: View | None = None
        self._owned: dict[str, int] = {}  # epoch by service
        self._unread: dict[str, set[str]] = {}  # profiles of owned services not yet told whole
        self._waiting: set[str] = set()  # of these, those whose tables are not ready yet
        self._taken: dict[str, dict[str, Rank]] = {}  # by service, by key: what the keeper has
        self._pending: dict[str, set[str] | None] = {}
        self._news = asyncio.Event()
        self._ownerless: dict[str, float] = {}  # loop time by service
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._malformed = 0
        nodes = [node.id for node in spec.nodes]
        self.clocks = WallClocks(nodes[spec.me], nodes, replicator, self._clock_changed)
        self._absent = Absent(self._lane, self._learn_origins, self._by_our_clock)
        self._origins: dict[int, str] = {}  # node by its agent's incarnation

    # -- life --

    async def start(self, section: FreeSwitch, esl_factory: EslFactory) -> None:
        """Begin to follow the local FreeSWITCH."""
        if self.policy == "ignore":
            return
        self.keeper = RegistrationKeeper(
            section.core_db, esl_factory, self._by_profile, self._lane_of, self._report
        )
        await self.keeper.start()
        await self.clocks.start()
        self._tasks[""] = unending(self._take_for_ever, "registrations of others")
        if self._view is not None:
            self.observe(self._view)

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.clocks.stop()
        if self.keeper is not None:
            await self.keeper.stop()

    # -- what heart says --

    def observe(self, view: View) -> None:
        """Heart's view: what is owned here, by others, by nobody."""
        self._view = view
        if self.keeper is None:
            return
        for service, seen in zip(self._spec.services, view.services, strict=False):
            if not service.profiles:
                continue
            name = service.name
            if seen.local_state == "owned" and seen.owner == view.node:
                if name not in self._owned:
                    self._begin(service, seen.epoch, inherit=False)
                elif seen.epoch > self._owned[name]:
                    self._owned[name] = seen.epoch
                    self._lane.change_log.advance(REGISTRATIONS + name, seen.epoch)
            elif seen.owner not in ("", view.node) and name in self._owned:
                self._disown(service)
            if seen.owner:
                self._ownerless.pop(name, None)
            else:
                self._ownerless.setdefault(name, asyncio.get_running_loop().time())
        self._judge_lost()

    def recover(self, name: str, epoch: int) -> None:
        """This node took the service over: what the former owner had is here now."""
        service = next(s for s in self._spec.services if s.name == name)
        if self.keeper is not None and service.profiles:
            self._begin(service, epoch, inherit=True)

    def _begin(self, service: ServiceSpec, epoch: int, inherit: bool) -> None:
        name = service.name
        self._owned[name] = epoch
        old = self._tasks.pop(name, None)
        if old is not None:
            old.cancel()
        work = self._own(service, epoch, inherit)
        self._tasks[name] = lasting(work, f"registrations of {name}")

    async def _own(self, service: ServiceSpec, epoch: int, inherit: bool) -> None:
        keeper = self.keeper
        if keeper is None:
            return
        if not inherit:
            # This agent is new, the service is not: FreeSWITCH's table is the truth, not the
            # others' copies of it.
            await asyncio.sleep(RESUME_S)
        lane_name = REGISTRATIONS + service.name
        if inherit and self.policy == "recycle":
            await self._recycle(keeper, service)
        elif inherit:
            await self._replicator.fetch(lane_name, FETCH_MS)
            await self._load(lane_name, None)
        else:
            self._forget(lane_name)
        self._lane.own(lane_name, epoch, settled=False)
        self._unread[service.name] = set(service.profiles)
        self._waiting.update(service.profiles)
        async with asyncio.TaskGroup() as group:
            for profile in service.profiles:
                group.create_task(self._follow(keeper, service.name, profile))
        self._taken.pop(lane_name, None)

    async def _follow(self, keeper: RegistrationKeeper, service: str, profile: str) -> None:
        """As soon as its table has all that is known: one that does not run holds up no other."""
        lane_name = REGISTRATIONS + service
        ready = keeper.own(profile)
        if await self._absent.lasts(ready):
            if self.policy == "recover":
                await self._replicator.fetch(lane_name, ASK_MS)
                await self._absent.tell_on(lane_name, profile)
            self._read_whole(service, profile)
            await self._absent.wait(ready, lane_name, profile)
        until = asyncio.get_running_loop().time() + CALLS_FIRST_S
        while self._busy(service) and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(POLL_S)
        self._waiting.discard(profile)
        keeper.follow(profile)  # tells all, also where it was followed at a lower epoch

    async def _recycle(self, keeper: RegistrationKeeper, service: ServiceSpec) -> None:
        """What the former owner had goes from this FreeSWITCH before the phones' own rows count.

        The stream that begins now is settled without it, so it goes from the other nodes, too.
        """
        lane_name = REGISTRATIONS + service.name
        gone = len(self._taken.get(lane_name, {}))
        self._forget(lane_name)
        until = asyncio.get_running_loop().time() + RECYCLE_S
        while keeper.has_rows_of(service.profiles):
            if asyncio.get_running_loop().time() > until:
                log.warning("old registrations of %s are still being removed", service.name)
                break
            await asyncio.sleep(POLL_S / 10)
        self._recycled += gone
        log.info("%d registrations of %s are recycled: phones register anew", gone, service.name)

    def _disown(self, service: ServiceSpec) -> None:
        self._owned.pop(service.name, None)
        self._unread.pop(service.name, None)
        task = self._tasks.pop(service.name, None)
        if task is not None:
            task.cancel()
        self._lane.disown(REGISTRATIONS + service.name)
        self._waiting.difference_update(service.profiles)
        taken = self._taken.get(REGISTRATIONS + service.name, {})
        taken.update(dict.fromkeys(taken, NO_RANK))  # the keeper has handed them over meanwhile
        for profile in service.profiles:
            self._absent.forget(profile)
            if self.keeper is not None:
                self.keeper.disown(profile)
        self._items(REGISTRATIONS + service.name, None)

    def _judge_lost(self) -> None:
        """Calls through a service that nobody serves would ring nowhere for half a minute."""
        now = asyncio.get_running_loop().time()
        lost = {name for name, since in self._ownerless.items() if now - since > GRACE_S}
        if self.keeper is not None:
            profiles = (p for p, name in self._by_profile.items() if name in lost)
            self.keeper.set_lost(frozenset(profiles))

    # -- what phones do here --

    def _lane_of(self, profile: str) -> str:
        return REGISTRATIONS + self._by_profile[profile]

    async def _report(self, profile: str, told: Told) -> None:
        name = self._by_profile[profile]
        if name not in self._owned:
            return
        self._lane.change_log.append(told.changes)
        if told.users is None and profile not in self._waiting:
            there = {r.uuid for r in told.changes if isinstance(r, Registration)}
            self._absent.read(REGISTRATIONS + name, profile, there)
            self._read_whole(name, profile)

    def _read_whole(self, name: str, profile: str) -> None:
        """All of the profile is in this node's stream; with the last one the service is settled."""
        self._unread.get(name, set()).discard(profile)
        if self._unread.get(name) == set():
            del self._unread[name]
            self._lane.change_log.settle(REGISTRATIONS + name)

    # -- what the lane brings --

    def _items(self, lane_name: str, uuids: list[str] | None) -> None:
        pending = self._pending.setdefault(lane_name, set())
        if uuids is None or pending is None:
            self._pending[lane_name] = None
        else:
            pending.update(uuids)
        self._news.set()

    async def _take_for_ever(self) -> None:
        for service in self._spec.services:
            self._items(REGISTRATIONS + service.name, None)
        while True:
            await self._news.wait()
            await asyncio.sleep(COALESCE_S)
            self._news.clear()
            pending, self._pending = self._pending, {}
            for lane_name, uuids in pending.items():
                if lane_name.removeprefix(REGISTRATIONS) in self._owned:
                    continue
                await self._load(lane_name, uuids)
            self._judge_lost()

    async def _load(self, lane_name: str, uuids: set[str] | None) -> None:
        """Bring the keeper what is in the copies: of these, or of all (None)."""
        keeper = self.keeper
        if keeper is None:
            return
        union = self._lane.store.items(lane_name)
        self._learn_origins(lane_name)
        taken = self._taken.setdefault(lane_name, {})
        wanted = list(uuids if uuids is not None else union.keys() | taken.keys())
        for at, key in enumerate(wanted):
            if at % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            self._take(keeper, taken, key, union.get(key))

    def _take(
        self, keeper: RegistrationKeeper, taken: dict[str, Rank], key: str, item: Item | None
    ) -> None:
        if item is None or item.dead:
            if taken.pop(key, None) is not None:
                keeper.drop(key)
            return
        if taken.get(key) == rank(item):
            return
        try:
            record = registration_of(item)
        except Malformed as error:
            self._malformed += 1
            log.warning("a registration cannot be read: %s", error)
            return
        if record.uuid == key and self._by_profile.get(record.profile) is not None:
            taken[key] = rank(item)
            keeper.take(self._by_our_clock(item, record))

    def _by_our_clock(self, item: Item, record: Registration) -> Registration:
        """It runs out at its owner's time, which may be another one here."""
        ahead_s = self.clocks.ahead_s(self._origins.get(item.incarnation, ""))
        if not ahead_s:
            return record
        return msgspec.structs.replace(record, expires_s=max(1, record.expires_s - ahead_s))

    def _learn_origins(self, lane_name: str) -> None:
        copies = self._lane.store.services.get(lane_name)
        for stream in () if copies is None else [c.stream for c in copies.copies.values()]:
            self._origins[stream.incarnation] = stream.origin
        while len(self._origins) > ORIGINS_MAX:
            del self._origins[next(iter(self._origins))]

    def _clock_changed(self, node: str) -> None:
        """Of this node's registrations, or of the local clock: all are looked at again."""
        for lane_name, taken in self._taken.items():
            if lane_name.removeprefix(REGISTRATIONS) not in self._owned:
                taken.update(dict.fromkeys(taken, NO_RANK))  # it may just be being read
                self._items(lane_name, None)

    def _forget(self, lane_name: str) -> None:
        taken, keeper = self._taken.pop(lane_name, {}), self.keeper
        if keeper is not None:
            for key in taken:
                keeper.drop(key)

    # -- what others see --

    @property
    def problem(self) -> str:
        """Why registrations are not kept now; empty while they are."""
        return "" if (k := self.keeper) is None else k.problem or k.source.problem

    def freshness(self) -> dict[str, Freshness]:
        """By service: how good this node's copy of its registrations is; empty where none are
        kept."""
        names = dict.fromkeys(self._by_profile.values() if self.keeper is not None else ())
        return {name: self._lane.freshness(REGISTRATIONS + name) for name in names}

    def counters(self) -> dict[str, int]:
        """What only counts up since the agent started."""
        counts = {"registrations_malformed": self._malformed}
        counts["registrations_recycled"] = self._recycled
        if self.keeper is not None:
            counts |= {f"registrations_{k}": v for k, v in self.keeper.counters.items()}
        return counts

    def counts(self) -> tuple[int, int]:
        """(registered here, copies of others)."""
        own = sum(log.items.live for log in self._lane.change_log.logs.values())
        held = 0
        for lane_name, copies in self._lane.store.services.items():
            newest = copies.newest()
            if lane_name not in self._lane.change_log.logs and newest is not None:
                held += newest.items.live
        return own, held

    def listed(self) -> Iterator[Listed]:
        """Every registration this node knows, unpacked one by one."""
        lane = self._lane
        risky = set(lane.change_log.waiting_uuids())
        for own in lane.change_log.logs.values():
            risky.update(own.at_risk(lane.outgoing.safe(own)))
        for service in self._spec.services:
            lane_name = REGISTRATIONS + service.name
            own_items = lane.change_log.items(lane_name)
            items = own_items.items if own_items is not None else lane.store.items(lane_name)
            owner, _ = lane.owners.get(lane_name, ("", 0))
            here = "copy" if own_items is None else "own"
            for item in list(items.values()):
                record = _readable(item)
                if record is not None:
                    at_risk = own_items is not None and item.uuid in risky
                    yield Listed(service.name, here, owner, record, at_risk)


def _readable(item: Item) -> Registration | None:
    try:
        return None if item.dead else registration_of(item)
    except Malformed:
        return None
