"""Where each unbridged call is in its dialplan: from CHANNEL_EXECUTE, because no row tells.

FreeSWITCH does not write a row when the next application begins (FREESWITCH.md 1.2). Which one it
is, is known by walking the extension along the applications that were heard to begin.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from haclusterd.core.records import CallRecord

from . import changelog, metadata
from .esl import Esl, EslFactory, EventItem, EventsLost

log = logging.getLogger(__name__)

HEARD_MAX = 256  # applications of one call
CALLS_MAX = 50_000
SETTLE_S = 0.25  # applications that follow each other faster make one change


def position(applications: list[metadata.Application], heard: list[str]) -> int:
    """Index of the application that runs now, -1 where none was heard of."""
    at = -1
    for name in heard:
        following = range(at + 1, len(applications))
        at = next((k for k in following if applications[k].name == name), at)
    return at


class Positions:
    """Follows the applications of calls. `core_uuid()` is the process whose rows are touched."""

    def __init__(self, core_db: Path, esl_factory: EslFactory, core_uuid: Callable[[], str]):
        self._core_db = core_db
        self._core_uuid = core_uuid
        self._heard: dict[str, list[str]] = {}
        self._changed: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._esl: Esl = esl_factory(
            name="positions", events=("CHANNEL_EXECUTE", "CHANNEL_HANGUP"), on_event=self._on_event
        )

    async def start(self) -> None:
        await self._esl.start()

    async def stop(self) -> None:
        await self._esl.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def of(self, record: CallRecord) -> int:
        """Where this call is; -1 where nobody can tell, or it is bridged."""
        heard = self._heard.get(record.uuid)
        if heard is None or record.partner:
            return -1
        return position(metadata.extension(record.metadata), heard)

    async def _on_event(self, item: EventItem) -> None:
        if isinstance(item, EventsLost):
            self._heard.clear()  # a gap: where calls are is not known any more
            return
        uuid, name = item.get("Unique-ID"), item.get("Application", "")
        if item.name == "CHANNEL_HANGUP":
            self._heard.pop(uuid, None)
            return
        if uuid not in self._heard and len(self._heard) >= CALLS_MAX:
            return
        heard = self._heard.setdefault(uuid, [])
        if len(heard) < HEARD_MAX:
            heard.append(name)
            self._changed.add(uuid)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._settle(), name="positions of calls")

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
            with connection:
                changelog.touch(connection, uuids, self._core_uuid())
        finally:
            connection.close()
