"""Source 2 of call state: events say which leg changed, `uuid_dump` what it is now.

For a FreeSWITCH whose core database the agent cannot read. The same interface and the same meaning
as `calls.CallSource`; what a dump lacks is said in `synthesis`. A dump is asked a little after the
event, because the ACK completes what the answer began and fires none (FREESWITCH.md 2.2); where it
has not come by then, again, later and later.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from haclusterd.core.records import CallRecord, Tombstone

from . import metadata, synthesis
from .calls import TOMBSTONE_HOLD_MS, Change
from .esl import Esl, EslFactory, EventItem, EventsLost
from .esl_errors import EslError
from .refused import Refused

log = logging.getLogger(__name__)

DUMP_AFTER_S = 0.06
AGAIN_MAX_S = 2.0  # for the ACK; FreeSWITCH ends a call that gets none after 32 s
TURN_S = 0.02  # changes that come together are told together
DUMPS_AT_ONCE = 20
LEGS_MAX = 100_000
INHERITED_VERSION_MAX = 1 << 62
_CHANGES = (
    "CHANNEL_ANSWER", "CHANNEL_BRIDGE", "CHANNEL_UNBRIDGE", "CALL_UPDATE", "CHANNEL_HOLD",
    "CHANNEL_UNHOLD", "CHANNEL_EXECUTE",
)  # fmt: skip


class _Known(NamedTuple):
    service: str
    digest: int


class EslCallSource:
    """Follows the calls of the local FreeSWITCH over ESL alone; see CallSource."""

    def __init__(
        self,
        profiles_to_service: Mapping[str, str],
        on_change: Callable[[list[Change]], Awaitable[None]],
        *,
        esl_factory: EslFactory,
        on_reset: Callable[[], Awaitable[None]] | None = None,
        dump_after_s: float = DUMP_AFTER_S,
        tombstone_hold_ms: int = TOMBSTONE_HOLD_MS,
    ) -> None:
        self._services = dict(profiles_to_service)
        self._on_change = on_change
        self._on_reset = on_reset
        self._dump_after_s = dump_after_s
        self._hold_s = tombstone_hold_ms / 1000
        self._esl: Esl = esl_factory(
            name="calls", events=(*_CHANGES, "CHANNEL_HANGUP", "SHUTDOWN"), on_event=self._on_event
        )
        self._due: dict[str, float] = {}  # loop time at which a leg is dumped
        self._again: dict[str, float] = {}  # how long a leg waits for its next dump for the ACK
        self._ending: dict[str, float] = {}  # loop time from which on a hang-up is an end
        self._known: dict[str, _Known] = {}
        self._asked: set[str] = set()  # legs of this turn that have not hung up since
        self._listening: list[set[str]] = []  # each is told who hangs up
        self._untold: set[str] = set()  # legs whose service was fenced when they were dumped
        self._fenced: set[str] = set()
        self._shutting_down = False
        self._core_uuid = ""
        self._version = 0
        self._refused = Refused()
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str:
        """Why calls can not be followed now; empty while they are."""
        return self._esl.problem

    @property
    def core_uuid(self) -> str:
        """The FreeSWITCH process being followed, empty before the first contact."""
        return self._core_uuid

    @property
    def calls(self) -> int:
        """Call legs known to be up."""
        return len(self._known)

    @property
    def unprotected(self) -> str:
        """A sentence while there are calls that no other node could recover; else empty."""
        return self._refused.sentence

    @property
    def refused(self) -> int:
        """How many such calls there have been."""
        return self._refused.total

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="calls over ESL")
        await self._esl.start()

    async def stop(self) -> None:
        await self._esl.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def set_fenced(self, service: str, fenced: bool) -> None:
        """While a service is fenced nothing of it is told; opening it compares."""
        if fenced:
            self._fenced.add(service)
            for uuid in [u for u in self._ending if self._service_of(u) == service]:
                del self._ending[uuid]
        elif service in self._fenced:
            self._fenced.discard(service)
            untold, self._untold = self._untold, set()
            for uuid in {u for u in self._known if self._service_of(u) == service} | untold:
                self._plan(uuid)

    def forget(self, service: str) -> None:
        """Another node owns this service now: its calls are no longer ours to end."""
        for uuid in [u for u, known in self._known.items() if known.service == service]:
            del self._known[uuid]
            self._ending.pop(uuid, None)

    def ended(self, service: str, uuid: str, version: int) -> None:
        """An inherited call hung up, maybe before it was dumped here."""
        self._known.setdefault(uuid, _Known(service, 0))
        self._hung_up(uuid)

    def begin_above(self, version: int) -> None:
        """What is told from now on counts higher than a record that was injected.

        It was made by another node's clock, which may have run for longer than this one's; so is
        the tombstone of an inherited call that has not answered yet.
        """
        self._version = max(self._version, min(version, INHERITED_VERSION_MAX))

    def look_again(self, uuid: str) -> None:
        """A leg has answered that was given up and buried: of one alone no event comes."""
        known = self._known.get(uuid)
        if known is not None:
            self._known[uuid] = known._replace(digest=0)
        self._plan(uuid)

    def expect_shutdown(self) -> None:
        """FreeSWITCH is going to be stopped: from now on hang-ups mean nothing."""
        self._shutting_down = True
        self._ending.clear()

    async def snapshot(self) -> list[CallRecord]:
        """Every recoverable call now. Raises EslError."""
        records: list[CallRecord] = []
        gone: set[str] = set()
        self._listening.append(gone)
        try:
            for uuid in await self._uuids():
                record = await self._dump(uuid)
                if record is not None and record.service not in self._fenced:
                    records.append(record)
        finally:
            self._listening = [one for one in self._listening if one is not gone]
        return [record for record in records if record.uuid not in gone]

    # -- from FreeSWITCH --

    async def _on_event(self, item: EventItem) -> None:
        if isinstance(item, EventsLost):
            await self._begin_again()
        elif item.name == "SHUTDOWN":
            if item.get("Core-UUID", self._core_uuid) == self._core_uuid:
                self.expect_shutdown()
        elif item.name == "CHANNEL_HANGUP":
            self._hung_up(item.get("Unique-ID"))
        else:
            for header in ("Unique-ID", "Other-Leg-Unique-ID"):
                if uuid := item.get(header):
                    self._plan(uuid)

    async def _begin_again(self) -> None:
        """Events are missing before this: is it the same process, and which calls does it have?"""
        core_uuid = (await self._esl.api("global_getvar core_uuid")).strip()
        if core_uuid.startswith("-") or not core_uuid:
            return
        if core_uuid != self._core_uuid:
            replaced = bool(self._core_uuid)
            self._core_uuid, self._shutting_down = core_uuid, False
            self._known.clear()
            self._refused.clear()
            self._ending.clear()
            if replaced and self._on_reset is not None:
                try:
                    await self._on_reset()
                except Exception:
                    log.exception("the consumer could not begin anew; its calls are told")
        present = await self._uuids()
        for uuid in {*present, *self._known, *self._refused}:
            self._plan(uuid, at_once=True)

    def _plan(self, uuid: str, *, at_once: bool = False) -> None:
        if len(self._due) < LEGS_MAX and _is_word(uuid):
            pause_s = 0.0 if at_once else self._dump_after_s
            due = asyncio.get_running_loop().time() + pause_s
            # Events that come all the time must not put it off; but what is being asked for now
            # may be older than this event, and is asked for again.
            known = due if uuid in self._asked else self._due.get(uuid, due)
            self._due[uuid] = min(due, known)
            self._work.set()

    def _hung_up(self, uuid: str) -> None:
        self._due.pop(uuid, None)
        self._again.pop(uuid, None)
        self._asked.discard(uuid)
        self._untold.discard(uuid)
        for gone in self._listening:
            gone.add(uuid)
        self._refused.drop(uuid)
        known = self._known.get(uuid)
        if known is None or self._shutting_down or known.service in self._fenced:
            return
        self._ending[uuid] = asyncio.get_running_loop().time() + self._hold_s
        self._work.set()

    def _service_of(self, uuid: str) -> str:
        known = self._known.get(uuid)
        return known.service if known is not None else ""

    # -- asking and telling --

    async def _run(self) -> None:
        while True:
            if not self._due and not self._ending:
                self._work.clear()
                await self._work.wait()
            await asyncio.sleep(TURN_S)
            try:
                await self._turn()
            except EslError as error:
                log.debug("calls are looked at later: %s", error)
            except Exception:
                log.exception("the consumer of call changes failed; they are told again")
            finally:
                self._asked.clear()

    async def _turn(self) -> None:
        now = asyncio.get_running_loop().time()
        due = [uuid for uuid, at in self._due.items() if at <= now][:DUMPS_AT_ONCE]
        self._asked.update(due)
        dumps = await asyncio.gather(*(self._dump(uuid) for uuid in due))
        # Who hung up since its dump is gone: no other event will come of it.
        found = [one if u in self._asked else None for u, one in zip(due, dumps, strict=True)]
        changes: list[Change] = []
        for uuid, record in zip(due, found, strict=True):
            if record is None:
                if uuid in self._known and uuid not in self._refused:  # its hang-up was not heard
                    self._hung_up(uuid)
            elif record.service in self._fenced:
                if len(self._untold) < LEGS_MAX:
                    self._untold.add(uuid)
            elif self._new(record):
                changes.append(record)
        if self._esl.up:  # else nobody could have told of a shutdown
            changes += [
                Tombstone(self._known[uuid].service, uuid, self._next_version())
                for uuid, at in self._ending.items()
                if at <= now and uuid in self._known
            ]
        if changes:
            await self._on_change(changes)
        for change in changes:
            if isinstance(change, CallRecord):
                self._known[change.uuid] = _Known(change.service, hash(change.metadata))
                if change.uuid not in self._asked:  # it hung up while it was told
                    self._hung_up(change.uuid)
            else:
                self._known.pop(change.uuid, None)
        self._ending = {u: at for u, at in self._ending.items() if u in self._known}
        for uuid in due:
            if self._due.get(uuid, now + 1) <= now:
                del self._due[uuid]
        for uuid, record in zip(due, found, strict=True):
            self._look_again(uuid, record)

    def _look_again(self, uuid: str, record: CallRecord | None) -> None:
        """At a leg whose ACK has not come: without its tags nobody can recover it."""
        if record is None or not metadata.untagged(record.metadata):
            self._again.pop(uuid, None)
            return
        pause_s = self._again.get(uuid, self._dump_after_s)
        self._again[uuid] = min(1.5 * pause_s, AGAIN_MAX_S)
        self._due.setdefault(uuid, asyncio.get_running_loop().time() + pause_s)

    def _new(self, record: CallRecord) -> bool:
        self._ending.pop(record.uuid, None)
        return self._known.get(record.uuid) != (record.service, hash(record.metadata))

    def _next_version(self) -> int:
        """Grows, also over a restart of the agent: no call outlives the boot."""
        boot_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        self._version = max(self._version + 1, boot_us)
        return self._version

    async def _uuids(self) -> Sequence[str]:
        shown = await self._esl.api("show channels as json", 5000)
        try:
            rows = json.loads(shown).get("rows", [])
        except (ValueError, AttributeError):
            return []
        return [
            str(row["uuid"])
            for row in rows[:LEGS_MAX]
            if isinstance(row, dict)
            and str(row.get("name", "")).startswith("sofia/")
            and _is_word(str(row.get("uuid", "")))
        ]

    async def _dump(self, uuid: str) -> CallRecord | None:
        """A leg as it is now; None if it is gone, not answered, or of no service of ours."""
        text = await self._esl.api(f"uuid_dump {uuid} json")
        if text.startswith("-"):
            self._refused.drop(uuid)
            return None
        if len(text) > synthesis.DUMP_CHARACTERS_MAX:
            most = synthesis.DUMP_CHARACTERS_MAX
            self._refused.note(uuid, f"its dump has more than {most} characters")
            return None
        try:
            # A name that is not UTF-8 must not keep this call, or any other, from being told.
            dump = json.loads(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
        if not isinstance(dump, dict) or not synthesis.answered(dump):
            return None
        headers = {str(name): value for name, value in dump.items() if isinstance(value, str)}
        service = self._services.get(headers.get("variable_sofia_profile_name", ""))
        if service is None:
            return None
        try:
            record = synthesis.record(service, self._next_version(), headers)
        except metadata.MetadataError as error:
            self._refused.note(uuid, str(error))
            return None
        except Exception as error:  # noqa: BLE001 - all others would wait for it for ever
            self._refused.failed(uuid, error)
            return None
        self._refused.drop(uuid)
        return record


def _is_word(uuid: str) -> bool:
    """Whether it can stand in a command; with one that cannot, no leg would be asked for again."""
    try:
        metadata.check_uuid(uuid)
    except metadata.MetadataError:
        return False
    return True
