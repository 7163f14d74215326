"""The registrations that phones made at the local FreeSWITCH, as they change.

mod_sofia's events say whose registrations to look at, its table says what they are: an event lacks
half of the columns, and `sofia::expire` comes before its row is gone (FREESWITCH.md 4). What the
table holds for another reason (rows that lead to other nodes) is not told: nothing echoes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from haclusterd.core.records import Registration, Tombstone
from haclusterd.lasting import unending

from .esl import Esl, EslFactory, EventItem, EventsLost
from .esl_protocol import Event
from .registration_db import (
    ROWS_MAX,
    RegistrationDbError,
    database_of,
    read_all,
    read_users,
)
from .registrations import BY_US, TEXT_MAX, Refused, Row, key_of, record_of_row, wall_s

log = logging.getLogger(__name__)

Change = Registration | Tombstone
EVENTS = ("sofia::register", "sofia::unregister", "sofia::expire", "sofia::profile_start")
COALESCE_S = 0.005  # events that come together are one read
EXPIRED_AGAIN_S = 0.5  # `sofia::expire` comes before its DELETE, which waits in mod_sofia's queue
READ_ALL_S = 30.0  # what no event told: flushed by hand, deleted in the database
RETRY_S = 0.5
PENDING_MAX = 20_000  # users; beyond it everything is read


class Told(NamedTuple):
    """What was read of a profile: of some users, or of all (`users` None).

    `marked` are the rows that lead to other nodes, as they are there.
    """

    changes: list[Change]
    users: frozenset[tuple[str, str]] | None
    marked: list[Row]


Tell = Callable[[str, Told], Awaitable[None]]


class RegistrationSource:
    """Tells the registrations of the profiles in `follow` and every change of them.

    `told(profile, what)` is awaited after each read, one at a time; if it raises, all is read
    again. `connected()` is called when FreeSWITCH, or a profile of it, may have been started anew,
    `left(profile, event)` when a phone unregisters at any profile.
    `counters`: refused, too_many.
    """

    def __init__(
        self,
        core_db: Path,
        esl_factory: EslFactory,
        lane_name: Callable[[str], str],
        told: Tell,
        connected: Callable[[], None],
        left: Callable[[str, Event], None] = lambda profile, event: None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.problem = ""
        self._core_db = core_db
        self._lane_name = lane_name
        self._told = told
        self._connected = connected
        self._left = left
        self._esl: Esl = esl_factory(name="registrations", events=EVENTS, on_event=self._on_event)
        self._known: dict[str, dict[str, Registration]] = {}  # by profile, by key
        self._refused: dict[str, set[str]] = {}
        self._pending: dict[str, dict[tuple[str, str], None]] = {}
        self._whole: set[str] = set()
        self._news = asyncio.Event()
        self._held = True
        self._version = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._again: set[asyncio.TimerHandle] = set()

    @property
    def esl(self) -> Esl:
        """The connection the events come on; also good for a question now and then."""
        return self._esl

    @property
    def followed(self) -> frozenset[str]:
        """Profiles whose registrations are told."""
        return frozenset(self._known)

    def known(self, profile: str) -> list[Registration]:
        """What was last told of a profile."""
        return list(self._known.get(profile, {}).values())

    async def start(self) -> None:
        await self._esl.start()
        self._tasks = [
            unending(self._read_for_ever, "registrations"),
            unending(self._look_again_for_ever, "registrations, all"),
        ]

    async def stop(self) -> None:
        for handle in self._again:
            handle.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._esl.stop()

    def follow(self, profile: str) -> None:
        """This node owns the profile's service: tell all of it from now on, beginning with all."""
        self._known.setdefault(profile, {})
        self._refused.setdefault(profile, set())
        self.look(profile)

    def forget(self, profile: str) -> None:
        """Another node owns the service: what happens to its rows here is no news."""
        for known in (self._known, self._refused, self._pending):
            known.pop(profile, None)
        self._whole.discard(profile)

    def look(self, profile: str) -> None:
        """Read all of a followed profile, soon."""
        if profile in self._known:
            self._whole.add(profile)
            self._news.set()

    def look_on(self) -> None:
        """The FreeSWITCH behind the connection is known, and its tables are as they have to be."""
        self._held = False
        for profile in self._known:
            self.look(profile)

    # -- events --

    async def _on_event(self, item: EventItem) -> None:
        if isinstance(item, EventsLost):
            self._held = True  # maybe of another process with other tables: `look_on` is to come
            self._connected()
            return
        profile = item.get("profile-name") or item.get("profile_name")
        if item.subclass == "sofia::unregister":
            self._left(profile, item)
        if item.subclass == "sofia::profile_start":
            self.look(profile)
            self._connected()
        elif profile in self._known:
            user = item.get("from-user") or item.get("user")
            host = item.get("from-host") or item.get("host")
            self._look_at(profile, user, host)
            if item.subclass == "sofia::expire" and len(self._again) < PENDING_MAX:
                self._look_later(profile, user, host)

    def _look_at(self, profile: str, user: str, host: str) -> None:
        if profile not in self._known or max(len(user), len(host)) > TEXT_MAX:
            return  # of such a user nothing travels
        pending = self._pending.setdefault(profile, {})
        pending[user, host] = None
        if len(pending) > PENDING_MAX:
            pending.clear()
            self._whole.add(profile)
        self._news.set()

    def _look_later(self, profile: str, user: str, host: str) -> None:
        def now() -> None:
            self._again.discard(handle)
            self._look_at(profile, user, host)

        handle = asyncio.get_running_loop().call_later(EXPIRED_AGAIN_S, now)
        self._again.add(handle)

    # -- reading --

    async def _look_again_for_ever(self) -> None:
        while True:
            await asyncio.sleep(READ_ALL_S)
            for profile in self._known:
                self.look(profile)

    async def _read_for_ever(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(COALESCE_S)
            self._news.clear()
            if self._held or not self._esl.up:
                continue  # what a FreeSWITCH that is gone left behind is no news
            whole, self._whole = self._whole, set()
            pending, self._pending = self._pending, {}
            for profile in whole | pending.keys():
                users = None if profile in whole else list(pending[profile])
                try:
                    await self._read(profile, users)
                except RegistrationDbError as error:
                    if str(error) != self.problem:
                        self.problem = str(error)
                        log.warning("registrations: %s", error)
                    asyncio.get_running_loop().call_later(RETRY_S, self.look, profile)
                except Exception:
                    log.exception("registrations of %s; they are read again", profile)
                    asyncio.get_running_loop().call_later(RETRY_S, self.look, profile)
                else:
                    self.problem = ""

    async def _read(self, profile: str, users: list[tuple[str, str]] | None) -> None:
        path = database_of(self._core_db, profile)
        read = partial(read_all, path) if users is None else partial(read_users, path, users)
        rows = await asyncio.to_thread(read)
        known = self._known.get(profile)
        if known is None:
            return  # another node owns it by now
        if len(rows) > ROWS_MAX:
            self.counters["too_many"] += len(rows) - ROWS_MAX
            rows = rows[:ROWS_MAX]
        self._version = max(self._version + 1, round(wall_s() * 1_000_000))
        asked = None if users is None else frozenset(users)
        if asked is None:
            # A whole table of 5,000 phones would hold the event loop for 0.2 s.
            found, news = await asyncio.to_thread(self._compared, profile, rows, known)
            if self._known.get(profile) is not known:
                return
        else:
            found, news = self._compared(profile, rows, known)
        before = {k for k, r in known.items() if asked is None or (r.user, r.host) in asked}
        changes: list[Change] = [*news]
        service = self._lane_name(profile)
        changes += [Tombstone(service, key, self._version, "gone") for key in before - found.keys()]
        marked = [row for row in rows if row.orig_hostname == BY_US]
        await self._told(profile, Told(changes, asked, marked))
        for change in changes:
            if isinstance(change, Registration):
                known[change.uuid] = change
            else:
                known.pop(change.uuid, None)

    def _compared(
        self, profile: str, rows: Iterable[Row], known: Mapping[str, Registration]
    ) -> tuple[dict[str, Registration], list[Registration]]:
        """(what is registered, what of it is new or has changed)."""
        found = self._live(profile, rows)
        return found, [r for key, r in found.items() if key not in known or _differs(r, known[key])]

    def _live(self, profile: str, rows: Iterable[Row]) -> dict[str, Registration]:
        now_s = wall_s()
        service = self._lane_name(profile)
        refused = self._refused[profile]
        found: dict[str, Registration] = {}
        for row in rows:
            if row.orig_hostname == BY_US or row.profile_name != profile:
                continue
            if 0 < row.expires <= now_s:
                continue
            try:
                record = record_of_row(row, service, self._version)
            except Refused as error:
                key = key_of(profile, row.sip_user, row.sip_host, row.call_id, row.contact)
                if key not in refused:
                    if len(refused) >= ROWS_MAX:
                        refused.clear()
                    refused.add(key)
                    self.counters["refused"] += 1
                    log.info("a registration of %s is not replicated: %s", profile, error)
                continue
            known = found.get(record.uuid)
            if known is None or record.expires_s > known.expires_s:
                found[record.uuid] = record
        return found


def _differs(one: Registration, other: Registration) -> bool:
    return _without_version(one) != _without_version(other)


def _without_version(record: Registration) -> tuple[object, ...]:
    return tuple(getattr(record, name) for name in record.__struct_fields__ if name != "version")
