"""The end of this node's certificates, looked at again and again: for alarms and metrics."""

from __future__ import annotations

import asyncio
import datetime
import logging
from pathlib import Path

from haclusterd import expiry
from haclusterd.agent.schema import Alarm
from haclusterd.config import Config
from haclusterd.expiry import Validity
from haclusterd.keys import KeysError
from haclusterd.lasting import unending

log = logging.getLogger(__name__)

LOOK_S = 60.0  # they may be replaced at any time, and then the alarm is to end


class Expiring:
    """See the module. Changed files count from when they are seen; the daemon may use older ones
    until it is told (`keys rotate`) or renewed (`upgrade`)."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._found: list[Validity] = []
        self._task: asyncio.Task[None] | None = None
        self._unreadable = ""
        self._said: set[Path] = set()

    def start(self) -> None:
        if len(self._config.nodes) > 1:  # one alone needs no certificates
            self._task = unending(self._look_for_ever, "the end of certificates")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def alarms(self) -> list[Alarm]:
        return [Alarm("certificate", text) for text in self._problems().values()]

    def _problems(self) -> dict[Path, str]:
        now = datetime.datetime.now(datetime.UTC)
        found = {one.file: one.problem(now) for one in self._found}
        return {file: f"{text}: {expiry.FIX}" for file, text in found.items() if text}

    def _say(self) -> None:
        problems = self._problems()
        for file in problems.keys() - self._said:
            log.warning("%s", problems[file])
        self._said = set(problems)

    def ends(self) -> dict[str, float]:
        """Seconds since 1970 by file name."""
        return {one.file.name: one.ends.timestamp() for one in self._found}

    async def _look_for_ever(self) -> None:
        while True:
            try:
                self._found = await asyncio.to_thread(
                    expiry.validities, self._config, self._config.node.id
                )
                self._unreadable = ""
                self._say()
            except KeysError as error:  # a rotation or an operator may be replacing them
                if str(error) != self._unreadable:
                    self._unreadable = str(error)
                    log.warning("%s", error)
            await asyncio.sleep(LOOK_S)
