"""Writing what heart promised to `state.json`: asynchronously, and of several writes the newest.

What could not be written is tried again: heart says it once.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from haclusterd.core import promises
from haclusterd.core.actions import Persist
from haclusterd.core.model import ClusterSpec
from haclusterd.files import boot_id, write_atomically
from haclusterd.lasting import lasting

log = logging.getLogger(__name__)

RETRY_S = 2.0
_PART = "state"


class Promised:
    """`keep` never waits; `stop` does, for what is being written. `problems`: for people."""

    def __init__(self, spec: ClusterSpec, folder: Path, problems: dict[str, str]) -> None:
        self._spec, self._problems = spec, problems
        self._path = folder / promises.FILE_NAME
        self._newest: Persist | None = None
        self._writing: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None

    def keep(self, message: Persist) -> None:
        """Only the newest counts; one write at a time, in a thread."""
        self._newest = message
        if self._retry is not None:
            self._retry.cancel()
        if self._writing is None or self._writing.done():
            self._writing = lasting(self._write_newest(), "promises")

    async def stop(self) -> None:
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._retry is not None:
            self._retry.cancel()  # also of what failed just now

    async def _write_newest(self) -> None:
        while (message := self._newest) is not None:
            self._newest = None
            content = promises.encode(self._spec, boot_id(), message)
            try:
                await asyncio.to_thread(_write, self._path, content)
                self._problems.pop(_PART, None)
            except OSError as error:
                before = self._problems.get(_PART)
                self._problems[_PART] = (
                    f"{self._path}: {error.strerror}: promises cannot be kept; make the folder "
                    "writable"
                )
                if self._problems[_PART] != before:
                    log.error("%s", self._problems[_PART])
                if self._newest is None:
                    loop = asyncio.get_running_loop()
                    self._retry = loop.call_later(RETRY_S, self.keep, message)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
