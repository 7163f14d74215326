"""The commands of one recovery: standby is lifted, the streams are launched, side by side.

What is injected, and what becomes of it, is `recovery`'s and `proving`'s knowledge.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from .esl import Esl
from .esl_errors import EslDown
from .proving import CONNECT_MS, Prover, Run

log = logging.getLogger(__name__)

LAUNCH_BASE_MS = 10_000
LAUNCH_PER_LEG_MS = 40
LIFT_HEAD_START_S = 0.005


class Launcher:
    """Sends over `workers`, one for each stream, and over `lift`."""

    def __init__(self, workers: Sequence[Esl], lift: Esl, prover: Prover) -> None:
        self._workers = workers
        self._lift = lift
        self._prover = prover

    async def execute(self, run: Run, lift: asyncio.Task[None]) -> None:
        """Launch the streams, and verify until every leg is decided."""
        launches: list[asyncio.Task[None]] = []
        try:
            # Alone it takes 0.6 ms; beside the streams it waits for their locks on core.db, 103 ms
            # (measured), in which the profile would answer everybody 503.
            await asyncio.wait([lift], timeout=LIFT_HEAD_START_S)
            launches += [
                asyncio.create_task(self._launch(run, index)) for index in range(len(run.streams))
            ]
            await self._prover.verify(run, [lift, *launches] if run.head else launches)
            await lift
        finally:
            for task in launches:
                task.cancel()
            await asyncio.gather(*launches, return_exceptions=True)

    async def lift_standby(self, run: Run) -> None:
        """`sofia profile P recover`: with no row of that name it only lifts standby, at once.

        Early, because until then the profile answers everybody 503 (FREESWITCH.md 3.3). With the
        rows of the head under that name it recovers those, too.
        """
        first = [record.profile for record in run.head]
        for profile in dict.fromkeys([*first, *run.profiles]):
            if not run.streamed and any(r.profile == profile for part in run.streams for r in part):
                continue  # the launch does both
            await self._recover(run, self._lift, profile)
        run.check.launched([record.uuid for record in run.head])

    async def _launch(self, run: Run, index: int) -> None:
        part = run.streams[index]
        if run.streamed:
            line = f"fsctl recover sofia:{run.profiles[0]}#{index}"
            await self._surely(run, self._workers[index], line, len(part))
        else:
            for profile in dict.fromkeys(record.profile for record in part):
                await self._recover(run, self._workers[index], profile, len(part))
        run.check.launched([record.uuid for record in part])

    async def _recover(self, run: Run, esl: Esl, profile: str, legs: int = 0) -> None:
        """Rows of a profile that does not run stay, while those of a stream are used up."""
        reply = await self._surely(run, esl, f"sofia profile {profile} recover", legs)
        if "Invalid" in reply or reply.startswith("-ERR"):
            log.error("SIP profile %s could not be activated: %s", profile, reply.strip())
            run.refused.add(profile)

    async def _surely(self, run: Run, esl: Esl, line: str, legs: int = 0) -> str:
        """Once more if the connection ended: nobody knows whether FreeSWITCH had read the command.

        If it had, it goes on by itself, and the second finds nothing, or channels that are there.
        """
        try:
            return await self._command(run, esl, line, legs)
        except EslDown:
            await self._prover.rejoin(run)
            await esl.wait_up(CONNECT_MS)
            return await self._command(run, esl, line, legs)

    async def _command(self, run: Run, esl: Esl, line: str, legs: int = 0) -> str:
        run.command()
        return await esl.api(line, LAUNCH_BASE_MS + LAUNCH_PER_LEG_MS * legs)
