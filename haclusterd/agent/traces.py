"""The agent's side of the flight recorder: fetch it from heart, save it, hand it to clients.

Heart keeps the ring and never touches the disk. What it hands out is put together here, packed
and written in a thread. One recording at a time, and never in quick succession: packing a minute
of a busy cluster takes some 30 ms.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from haclusterd.agent.operators import OperatorError
from haclusterd.core.actions import Decided, TracePart
from haclusterd.core.inputs import FromAgent, TraceRequested
from haclusterd.core.model import ClusterSpec
from haclusterd.lasting import lasting
from haclusterd.trace import folder
from haclusterd.trace.file import BODY_BYTES_MAX, TraceError

log = logging.getLogger(__name__)

HEART_S = 8.0
SPACING_S = 0.5  # between two recordings, whoever asks
STATE_SPACING_S = 0.05  # after one of the present state only
AFTER_CHANGE_S = 4.0  # the aftermath of a change of owner belongs into its recording

# This node began to serve a service, or ceased to.
_CHANGES = frozenset({"T301", "T311", "T407", "T505", "T605", "T701", "T703"})


class Traces:
    """`send` goes to heart; `take` and `decided` are given what it says."""

    def __init__(self, spec: ClusterSpec, path: Path, send: Callable[[FromAgent], None]) -> None:
        self._spec = spec
        self.folder = path
        self._send = send
        self._lock = asyncio.Lock()
        self._next_at = 0.0
        self._number = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[list[bytes]] | None = None
        self._later: asyncio.Task[None] | None = None

    def take(self, part: TracePart) -> None:
        """A piece of the recording that is being fetched; others are late and count no more."""
        waiter = self._waiter
        if waiter is None or waiter.done() or part.request != self._number:
            return
        self._parts.append(part.data)
        self._size += len(part.data)
        if part.refusal:
            waiter.set_exception(OperatorError(part.refusal))
        elif self._size > BODY_BYTES_MAX:
            waiter.set_exception(OperatorError("heart's recording is larger than any should be"))
        elif part.last:
            waiter.set_result(self._parts)

    async def fetch(self, whole: bool, reason: str = folder.ASKED) -> bytes:
        """A recording as a file's content. Raises OperatorError."""
        async with self._lock:
            now = asyncio.get_running_loop().time
            await asyncio.sleep(max(0.0, self._next_at - now()))
            try:
                pieces = await self._fetch(whole)
                return await asyncio.to_thread(folder.content_of, self._spec, pieces, reason)
            finally:
                self._next_at = now() + (SPACING_S if whole else STATE_SPACING_S)

    async def _fetch(self, whole: bool) -> list[bytes]:
        self._number += 1
        self._parts, self._size = [], 0
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            self._send(TraceRequested(self._number, whole))
            async with asyncio.timeout(HEART_S):
                return await self._waiter
        except TimeoutError:
            raise OperatorError(
                f"heart handed no recording out within {HEART_S:.0f} s; see its log (journalctl)"
            ) from None
        finally:
            self._waiter = None
            self._parts = []

    async def save(self, reason: str = folder.ASKED) -> folder.Saved:
        """Fetch the recording and keep it in the folder. Raises OperatorError."""
        content = await self.fetch(True, reason)
        try:
            return await asyncio.to_thread(folder.save, self.folder, content, reason)
        except OSError as error:
            raise OperatorError(
                f"{self.folder}: {error.strerror}: make the folder writable and its disk not full"
            ) from None

    async def listed(self) -> list[folder.Saved]:
        """The saved recordings, oldest first."""
        return await asyncio.to_thread(folder.listed, self.folder)

    async def named(self, name: str) -> bytes:
        """A saved recording. Raises OperatorError."""
        try:
            return await asyncio.to_thread(folder.read_named, self.folder, name)
        except TraceError as error:
            raise OperatorError(str(error)) from None

    # -- by itself, after a change of owner --

    def decided(self, message: Decided) -> None:
        """Save a recording once things have settled, if this node's services changed."""
        if message.row in _CHANGES and (self._later is None or self._later.done()):
            self._later = lasting(self._save_later(), "trace")

    async def _save_later(self) -> None:
        await asyncio.sleep(AFTER_CHANGE_S)
        try:
            saved = await self.save(folder.OWNER)
        except OperatorError as error:
            log.warning("the recording of the change of owner was not saved: %s", error)
        else:
            log.info("the recording of the change of owner is in %s", saved.path)

    async def stop(self) -> None:
        """End what is under way."""
        if self._later is not None:
            self._later.cancel()
            await asyncio.gather(self._later, return_exceptions=True)
