"""Where each unbridged call is in its dialplan: from CHANNEL_EXECUTE, because no row tells.

FreeSWITCH does not write a row when the next application begins (FREESWITCH.md 1.2). Which one it
is, is known by walking the extension along the applications that were heard to begin. The row's
variables are as old as the row, mostly as the answer: whatever the dialplan has set since, or a
caller has typed, comes with the event too (measured: a call that was resumed had lost it).

A call that is put too far has skipped what it still had to do, a PIN perhaps. So only what the
extension itself runs counts, not what runs within an application (`execute_extension`, a script, a
broadcast), nor what ran in another extension before a transfer; and only calls heard from their
beginning.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from haclusterd.core.records import CallRecord
from haclusterd.lasting import lasting

from . import changelog, metadata
from .esl import Esl, EslFactory, EventItem, EventsLost
from .esl_protocol import Event

log = logging.getLogger(__name__)

HEARD_MAX = 256  # applications of one call
OPEN_MAX = 64  # applications that run one within the other
CALLS_MAX = 50_000
TOUCH_ROWS = 256  # in one transaction: FreeSWITCH's writer waits for each
SETTLE_S = 0.25  # applications that follow each other faster make one change
VARIABLES_MAX = 64  # of one call
VALUE_MAX = 1024

_PREFIX = "variable_"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")
# What FreeSWITCH itself keeps for signalling and media: of these the row knows better.
_OF_FREESWITCH = re.compile(
    r"sip_|rtp_|sofia_|dlg_|local_|remote_|advertised_|recover|switch_|ep_codec|endpoint_|read_|"
    r"write_|audio_|video_|dtmf_|current_application|channel_name\Z|uuid\Z|call_uuid\Z|"
    r"session_id\Z|direction\Z|is_outbound\Z|signal_bond\Z|originat|bridge_|last_bridge|"
    r"limit_|max_forwards\Z|core_uuid\Z|answer_|progress_|start_|end_"
)


def position(applications: list[metadata.Application], heard: list[str]) -> int:
    """Index of the application that runs now, -1 where none was heard of."""
    at = -1
    for name in heard:
        following = range(at + 1, len(applications))
        at = next((k for k in following if applications[k].name == name), at)
    return at


def variables(event: Event) -> dict[str, str]:
    """What the dialplan has set so far, as far as it is plain and not too much."""
    found: dict[str, str] = {}
    for header, value in event.headers.items():
        name = header.removeprefix(_PREFIX)
        if name is header or not isinstance(value, str) or len(value) > VALUE_MAX:
            continue
        if _NAME.match(name) and not _OF_FREESWITCH.match(name) and value.isprintable():
            found[name] = value
        if len(found) == VARIABLES_MAX:
            break
    return found


@dataclass(slots=True)
class _Heard:
    applications: list[tuple[str, str]] = field(default_factory=list)  # profile index, name
    variables: dict[str, str] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)  # ids of what runs now, outermost first

    def begins(self, application: str) -> bool:
        """Whether the extension itself runs it: nothing else is running."""
        alone = not self.open
        if len(self.open) < OPEN_MAX:
            self.open.append(application)
        return alone

    def is_over(self, application: str) -> None:
        if application in self.open:
            del self.open[self.open.index(application) :]

    def names(self, index: str) -> list[str]:
        """What was heard of the extension of a caller profile: each transfer begins another.

        FreeSWITCH numbers no profile of what it runs within `execute_extension`.
        """
        return [name for profile, name in self.applications if profile == index] if index else []


class Positions:
    """Follows the applications of calls. `core_uuid()` is the process whose rows are touched."""

    def __init__(self, core_db: Path, esl_factory: EslFactory, core_uuid: Callable[[], str]):
        self._core_db = core_db
        self._core_uuid = core_uuid
        self._heard: dict[str, _Heard] = {}
        self._changed: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._esl: Esl = esl_factory(
            name="positions",
            events=(
                "CHANNEL_CREATE", "CHANNEL_EXECUTE", "CHANNEL_EXECUTE_COMPLETE", "CHANNEL_HANGUP",
            ),
            on_event=self._on_event,
        )  # fmt: skip

    async def start(self) -> None:
        await self._esl.start()

    async def stop(self) -> None:
        await self._esl.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def placed(self, record: CallRecord) -> CallRecord:
        """The record with where its call is, and what the dialplan has set on the way there.

        Position -1 where nobody can tell, or it is bridged. Raises metadata.MetadataError.
        """
        heard = self._heard.get(record.uuid)
        if heard is None or record.partner:
            return record
        text = record.metadata
        at = position(metadata.extension(text), heard.names(metadata.profile_index(text)))
        for name, value in heard.variables.items() if at > 0 else ():
            if metadata.variable(text, name) != value:
                longer = metadata.set_variable(text, name, value)
                # A call that is too large is refused when it is recovered, without its alarm here.
                text = longer if len(longer) <= metadata.METADATA_BYTES_MAX else text
        return msgspec.structs.replace(record, position=at, metadata=text)

    async def _on_event(self, item: EventItem) -> None:
        if isinstance(item, EventsLost):
            self._heard.clear()  # a gap: where calls are is not known any more
            return
        uuid, application = item.get("Unique-ID"), item.get("Application-UUID")
        if item.name == "CHANNEL_HANGUP":
            self._heard.pop(uuid, None)
        elif item.name == "CHANNEL_CREATE" and len(self._heard) < CALLS_MAX:
            self._heard[uuid] = _Heard()
        heard = self._heard.get(uuid)
        if heard is None:
            return  # it began before we listened: maybe within an application
        if item.name == "CHANNEL_EXECUTE_COMPLETE":
            heard.is_over(application)
        elif item.name == "CHANNEL_EXECUTE" and heard.begins(application):
            self._goes_on(uuid, heard, item)

    def _goes_on(self, uuid: str, heard: _Heard, item: Event) -> None:
        """The extension came to its next application."""
        if len(heard.applications) < HEARD_MAX:
            name = item.get("Application", "")
            heard.applications.append((item.get("Caller-Profile-Index"), name))
            heard.variables = variables(item)
            self._changed.add(uuid)
        if self._task is None or self._task.done():
            self._task = lasting(self._settle(), "positions of calls")

    async def _settle(self) -> None:
        while self._changed:
            await asyncio.sleep(SETTLE_S)
            changed, self._changed = list(self._changed), set()
            try:
                await asyncio.to_thread(self._touch, changed)
            except (changelog.CoreDbError, sqlite3.Error) as error:
                log.info("where calls are in their dialplan is told later: %s", error)
                self._changed.update(changed)

    def _touch(self, uuids: list[str]) -> None:
        connection = changelog.open_core_db(self._core_db, busy_ms=1000)
        try:
            for start in range(0, len(uuids), TOUCH_ROWS):
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    part = uuids[start : start + TOUCH_ROWS]
                    changelog.touch(connection, part, self._core_uuid())
        finally:
            connection.close()
