"""Registrations of the local FreeSWITCH and of the others, kept where they belong.

Joins the source (what phones registered here) and the plan (where the others' registrations have
to be) with the tables. All that touches the tables happens in one task, one thing after the other,
so that no check sees a half of a change; every failure ends in a full check.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from haclusterd.core.records import Registration
from haclusterd.lasting import unending

from .departures import Departures
from .esl import Esl, EslFactory
from .esl_errors import EslError
from .esl_protocol import Event
from .profiles import parse_profile_addresses, with_one_phone_for_a_user
from .registration_db import RegistrationDbError, database_of, hand_over, read_all, write
from .registration_plan import Change, RegistrationPlan
from .registration_source import RegistrationSource, Told
from .registrations import BY_US, Refused, Row, check, wall_s

log = logging.getLogger(__name__)

COALESCE_S = 0.005
VERIFY_S = 30.0
RETRY_S = 0.5
RETRY_MAX_S = 30.0
EXPIRE_S = 5.0  # how often rows of ours are looked at for having run out
PROFILE_S = 5.0  # a SIP profile that is just being started is no problem yet
CONF_MS = 5000
SLICE = 256  # records between two turns of the event loop
_SWITCHNAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")

Report = Callable[[str, Told], Awaitable[None]]


class RegistrationKeeper:
    """See the module. `report(profile, told)` gets what phones do at owned profiles.

    `wanted` are the SIP profiles of all services. `counters`: refused, refused_here, too_many,
    handed_over, mended.
    """

    def __init__(
        self,
        core_db: Path,
        esl_factory: EslFactory,
        wanted: Iterable[str],
        lane_name: Callable[[str], str],
        report: Report,
    ) -> None:
        self.plan = RegistrationPlan()
        self.source = RegistrationSource(
            core_db, esl_factory, lane_name, self._told, self._connected, self._left
        )
        self._departures = Departures()
        self._one_phone: frozenset[str] = frozenset()  # profiles: for each user
        self._withdrawn: dict[str, list[Row]] = {}
        self._problems: dict[str, str] = {}  # by profile, "" for what concerns all
        self._pause_s = RETRY_S
        self._handed: dict[str, Change] = {}
        self._core_db = core_db
        self._profiles = frozenset(wanted)
        self._report = report
        self._counters: Counter[str] = Counter()
        self._dirty: set[str] = set()  # keys
        self._verify: set[str] = set()  # profiles
        self._taking: dict[str, list[Registration]] = {}
        self._ready: dict[str, asyncio.Event] = {}
        self._missing: dict[str, float] = {}  # by profile to take over: since when it does not run
        self._news = asyncio.Event()
        self._retry: asyncio.TimerHandle | None = None
        self._working = False
        self._introduced = self._introduced_now = self._all_run = False
        self._core_uuid = ""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def problem(self) -> str:
        """Why registrations are not where they belong, with the fix; empty while they are."""
        return next(iter(self._problems.values()), "")

    @property
    def counters(self) -> Counter[str]:
        """What only counts up."""
        own = Counter(self._counters)
        own["refused_here"] += self.plan.refused
        return own + self.source.counters

    async def start(self) -> None:
        await self.source.start()
        self._tasks = [
            unending(self._work_for_ever, "registration tables"),
            unending(self._look_for_ever, "registration tables, all"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.source.stop()

    # -- the others' registrations --

    def take(self, record: Registration) -> None:
        """A registration of another node, new or changed; one that must not travel is counted."""
        try:
            check(record)
        except Refused as error:
            self._counters["refused_here"] += 1
            log.warning("a registration of another node is refused: %s", error)
            self.drop(record.uuid)
            return
        self._look_at(self.plan.take(record))

    def drop(self, key: str) -> None:
        """A registration of another node is gone."""
        self._look_at(self.plan.drop(key))

    def has_rows_of(self, profiles: Iterable[str]) -> bool:
        """Whether registrations of others are in these profiles' tables, or may just be going."""
        wanted = set(profiles)
        here = any(placed.profile in wanted for placed in self.plan.placed.values())
        return here or bool(self._dirty) or self._working

    def set_lost(self, profiles: frozenset[str]) -> None:
        """Profiles of services without an owner for so long that calls to them are hopeless."""
        if profiles != self.plan.lost:
            self.plan.lost = profiles
            self._look_at(self.plan.everything())

    # -- ownership --

    def own(self, profile: str, extra: Iterable[Registration] = ()) -> asyncio.Event:
        """This node owns the profile's service. The event comes when its table holds all that is
        known of it, `extra` included; only then is it `follow`ed by the caller."""
        self._taking[profile] = list(extra)
        ready = self._ready[profile] = asyncio.Event()
        self._news.set()
        return ready

    def follow(self, profile: str) -> None:
        """Begin (again) to tell what phones do at an owned profile, with all there are first."""
        if profile in self.plan.owned:
            self.source.forget(profile)
            self.source.follow(profile)

    def disown(self, profile: str) -> None:
        """Another node owns the profile's service."""
        for waiting in (
            self._taking, self._ready, self._missing, self._handed, self._withdrawn, self._problems,
        ):  # fmt: skip
            waiting.pop(profile, None)
        self._departures.forget(profile)
        self.source.forget(profile)
        self.plan.forget_local(profile)
        if profile in self.plan.owned:
            self.plan.owned -= {profile}
            self._all_over()

    # -- what FreeSWITCH says --

    def _connected(self) -> None:
        self._introduced = False
        self._news.set()

    def _left(self, profile: str, event: Event) -> None:
        """A phone unregistered: what was put in for it, not knowing, goes again."""
        rows = self._departures.note(profile, event, asyncio.get_running_loop().time())
        if rows:
            self._withdrawn.setdefault(profile, []).extend(rows)
            self._news.set()

    async def _told(self, profile: str, told: Told) -> None:
        await self._report(profile, told)
        records = {record.uuid: record for record in self.source.known(profile)}
        for change in told.changes:
            if isinstance(change, Registration):
                records[change.uuid] = change
            else:
                records.pop(change.uuid, None)
        if told.changes:
            self._look_at(self.plan.local(profile, records.values()))
        wrong = self.plan.verify(profile, told.marked, told.users)
        if wrong.gone or wrong.added:
            self._verify.add(profile)
            self._news.set()

    async def _introduce(self, esl: Esl) -> None:
        """Who FreeSWITCH is and where its profiles are; rows of a process that is gone are kept."""
        addresses = parse_profile_addresses(await esl.api("sofia xmlstatus"))
        switchname = (await esl.api("switchname")).strip()
        core_uuid = (await esl.api("global_getvar core_uuid")).strip()
        conf = await esl.api("xml_locate configuration configuration name sofia.conf", CONF_MS)
        self._one_phone = with_one_phone_for_a_user(conf)
        if not _SWITCHNAME.fullmatch(switchname):
            raise RegistrationDbError(f"FreeSWITCH's switchname {switchname[:40]!a} is no name")
        self.plan.switchname = switchname
        found = {p: a for p, a in addresses.items() if p in self._profiles}
        self.plan.addresses = found
        self._introduced, self._all_run = True, set(found) == self._profiles
        if self._core_uuid not in ("", core_uuid):
            for profile in self.source.followed & self.plan.owned:
                self._taking[profile] = self.source.known(profile)
        self._core_uuid = core_uuid
        self._introduced_now = True
        self._all_over()

    # -- working --

    def _look_at(self, keys: Iterable[str]) -> None:
        self._dirty.update(keys)
        self._news.set()

    def _all_over(self) -> None:
        self._verify |= self.plan.addresses.keys()
        self._look_at(self.plan.everything())

    async def _look_for_ever(self) -> None:
        passed_s = 0.0
        while True:
            await asyncio.sleep(EXPIRE_S)
            now_s = wall_s()
            records = self.plan.records
            placed = list(self.plan.placed)
            self._look_at(
                key for key in placed if key not in records or records[key].expires_s <= now_s
            )
            passed_s += EXPIRE_S
            if passed_s >= VERIFY_S:
                passed_s = 0.0
                self._verify |= self.plan.addresses.keys() - self.plan.owned
            if not self._introduced or not self._all_run:
                self._introduced = False  # not at each change: all tables are read again
                self._news.set()

    async def _work_for_ever(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(COALESCE_S)
            self._news.clear()
            self._working = True
            await self._guarded("", self._work())
            self._working = False
            if self._retry is not None:
                self._retry.cancel()  # one at a time: a problem may last, and news go on coming
            if self._problems:
                loop = asyncio.get_running_loop()
                self._retry = loop.call_later(self._pause_s, self._news.set)
                self._pause_s = min(2 * self._pause_s, RETRY_MAX_S)
            else:
                self._pause_s = RETRY_S

    async def _guarded(self, profile: str, work: Coroutine[Any, Any, None]) -> None:
        """A profile that fails is checked whole later, and the others go on without it."""
        problem = ""
        try:
            await work
        except (RegistrationDbError, EslError) as error:
            problem = str(error)
        except Exception:
            log.exception("registrations of %s", profile or "all profiles")
            problem = "registrations are not kept where they belong: see the log"
        if not problem:
            if profile not in self._taking and profile not in self._withdrawn:  # else still to do
                self._problems.pop(profile, None)
            return
        self._verify |= {profile} if profile else self.plan.addresses.keys()
        if self._problems.get(profile) != problem:
            self._problems[profile] = problem
            log.warning("registrations: %s", problem)

    async def _work(self) -> None:
        if not self._introduced and self.source.esl.up:
            await self._introduce(self.source.esl)
        if not self.plan.switchname:
            return
        for profile in list(self._taking):
            await self._guarded(profile, self._take_over(profile))
        if self._introduced_now:
            self._introduced_now = False
            self.source.look_on()
        withdrawn, self._withdrawn = self._withdrawn, {}
        for profile, rows in withdrawn.items():
            await self._guarded(profile, self._take_back(profile, rows))
            self.source.look(profile)
        dirty, self._dirty = list(self._dirty), set()
        changes: dict[str, Change] = {}
        for at in range(0, len(dirty), SLICE):
            for profile, part in self.plan.changes(dirty[at : at + SLICE], wall_s()).items():
                whole = changes.setdefault(profile, Change([], []))
                whole.gone.extend(part.gone)
                whole.added.extend(part.added)
            await asyncio.sleep(0)
        for profile, change in changes.items():
            await self._guarded(profile, self._write(profile, change))
        verify, self._verify = self._verify, set()
        for profile in verify:
            await self._guarded(profile, self._check(profile))

    async def _take_over(self, profile: str) -> None:
        loop = asyncio.get_running_loop()
        if profile not in self.plan.addresses:  # `_introduce` comes again
            if loop.time() - self._missing.setdefault(profile, loop.time()) < PROFILE_S:
                return
            raise RegistrationDbError(
                f"SIP profile {profile} does not run, so its phones are not replicated: "
                f"`fs_cli -x 'sofia profile {profile} start'`, or see FreeSWITCH's log"
            )
        self._missing.pop(profile, None)
        handed = self._handed.setdefault(profile, Change([], []))  # kept until they are written
        taking = self._taking[profile]
        more = self.plan.hand_over(profile, wall_s(), taking)
        taking.clear()  # they are in `handed` from now on, once
        handed.gone.extend(more.gone)
        handed.added.extend(more.added)
        rows = self._departures.still_here(handed.added, loop.time())
        path = database_of(self._core_db, profile)
        one_phone = profile in self._one_phone
        added = await asyncio.to_thread(hand_over, path, list(handed.gone), rows, one_phone)
        if self._taking.get(profile) is not taking:
            return  # disowned meanwhile, and maybe owned again: that is another turn
        del self._taking[profile], self._handed[profile]
        self._counters["handed_over"] += len(added)
        self._departures.handed_over(profile, added, loop.time())
        stay = self._departures.still_here(added, loop.time())
        if len(stay) < len(added):
            here = set(stay)
            self._withdrawn.setdefault(profile, []).extend(r for r in added if r not in here)
        if profile not in self.plan.owned:
            self.plan.owned |= {profile}
            self._all_over()
        self.source.look(profile)
        if profile in self._ready:
            self._ready.pop(profile).set()

    async def _take_back(self, profile: str, rows: list[Row]) -> None:
        try:
            await self._write(profile, Change(rows, []))
        except RegistrationDbError:
            if profile in self.plan.owned:  # nothing else would find them
                self._withdrawn.setdefault(profile, []).extend(rows)
            raise

    async def _write(self, profile: str, change: Change) -> None:
        path = database_of(self._core_db, profile)
        await asyncio.to_thread(write, path, change.gone, change.added)

    async def _check(self, profile: str) -> None:
        if profile not in self.plan.addresses:
            return
        # In a thread: 5,000 rows would hold the event loop for 0.2 s. Only this task, which waits
        # for it, changes what is placed.
        wrong = await asyncio.to_thread(self._look_through, profile)
        if profile in self._taking and profile not in self.plan.owned:
            return
        if wrong.gone or wrong.added:
            self._counters["mended"] += len(wrong.gone) + len(wrong.added)
            await self._write(profile, wrong)

    def _look_through(self, profile: str) -> Change:
        """What is wrong in the whole table of a profile. Raises RegistrationDbError."""
        rows = read_all(database_of(self._core_db, profile))
        if profile in self.plan.owned:
            rows = [row for row in rows if row.orig_hostname == BY_US]
        return self.plan.verify(profile, rows, None)
