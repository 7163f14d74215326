"""Where this node's profiles have their RTP, asked at every login: no takeover waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from .esl import Esl
from .esl_errors import EslError
from .mends import MediaAddress
from .profiles import ProfileError, media_addresses

log = logging.getLogger(__name__)

ASK_S = 2.0  # until every profile runs
ASKED_MAX = 10


class MediaAhead:
    """`known` holds the addresses by profile, as far as FreeSWITCH has told them."""

    def __init__(self, profiles: Sequence[str]) -> None:
        self._profiles = tuple(profiles)
        self._task: asyncio.Task[None] | None = None
        self.known: dict[str, MediaAddress] = {}

    def ask(self, esl: Esl) -> None:
        """Begin anew, because it may be another process."""
        self.known = {}
        if self._profiles:
            self._task = asyncio.create_task(self._ask(esl), name="media addresses")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self, esl: Esl) -> None:
        for _ in range(ASKED_MAX):
            try:
                self.known = await media_addresses(esl, self._profiles)
            except (EslError, ProfileError) as error:
                log.info("where profiles have their RTP is not known: %s", error)
                return
            if len(self.known) == len(self._profiles):
                return
            await asyncio.sleep(ASK_S)
