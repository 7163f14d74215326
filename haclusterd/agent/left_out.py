"""Calls and registrations that found no room in their service's stream are told again when it has.

Their source takes them for told, and of a full stream only some are kept to be logged later. So
where there is room for more than those, all that is there now is read once more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from haclusterd.agent.switch import SwitchError
from haclusterd.lasting import unending
from haclusterd.sync.log import ChangeLog, Live

log = logging.getLogger(__name__)

LOOK_S = 30.0  # reading 50,000 calls takes seconds

Read = Callable[[str], Awaitable[Sequence[Live] | None]]


class LeftOut:
    """See the module. `read(stream)` gives all that is there now; None: not just now."""

    def __init__(self, change_log: ChangeLog, read: Read) -> None:
        self._change_log = change_log
        self._read = read
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = unending(self._look_for_ever, "what found no room")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            for stream in self._change_log.left_out():
                found, refused = None, self._change_log.begin_again(stream)
                try:
                    found = await self._read(stream)
                except SwitchError as error:
                    log.info("what found no room in %s is not read yet: %s", stream, error)
                finally:  # by whatever it was not read, it is still to be
                    self._change_log.tell_again(stream, found, refused)
