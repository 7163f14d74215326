"""Bringing FreeSWITCH back: `start_command` after an exit, with a bounded number of attempts.

A FreeSWITCH that was shut down on purpose (its SHUTDOWN event was seen) stays down, and one that
something else starts first, such as systemd, is left alone. The command, and the FreeSWITCH that it
becomes or leaves behind, has neither the daemon's capabilities nor its line to systemd.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from haclusterd.agent.child import complaints, environment_for_others, powerless
from haclusterd.lasting import lasting

log = logging.getLogger(__name__)

GRACE_S = 0.3  # for a supervisor that restarts it by itself
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
ATTEMPTS_MAX = 20
PATIENCE_S = 15.0  # from a start to the pid file
LOADING_POLL_S = 0.05
COMMAND_S = 30.0
COMPLAINT_BYTES = 400
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as every program says it that starts another
CORRECT = "; correct start_command in [freeswitch]"


class Starter:
    """Runs the command until `is_up()`; `tell(text)` gets one sentence per attempt."""

    def __init__(
        self,
        command: Sequence[str],
        is_up: Callable[[], bool],
        tell: Callable[[str], None],
        backoff_first_s: float = BACKOFF_FIRST_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._command = list(command)
        self._is_up = is_up
        self._tell = tell
        self._backoff_first_s = backoff_first_s
        self._patience_s = patience_s
        self._task: asyncio.Task[None] | None = None
        self._processes: set[asyncio.Task[int]] = set()
        self.stopped_on_purpose = False
        self.attempts = 0
        self.problem = ""

    def exited(self) -> None:
        """FreeSWITCH is not running: begin to start it, unless that is under way."""
        if not self._command or self.stopped_on_purpose:
            return
        if self._task is None or (self._task.done() and self.attempts < ATTEMPTS_MAX):
            self._task = lasting(self._until_up(), "starter")

    def up(self) -> None:
        """FreeSWITCH runs: the next exit begins anew."""
        self.stopped_on_purpose = False
        self.attempts = 0
        self.problem = ""

    async def stop(self) -> None:
        """No more attempts; what was started goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _until_up(self) -> None:
        await asyncio.sleep(GRACE_S)
        delay_s = self._backoff_first_s
        while not self._is_up() and not self.stopped_on_purpose:
            if self.attempts >= ATTEMPTS_MAX:
                self.problem = f"FreeSWITCH did not come up in {ATTEMPTS_MAX} attempts: start it"
                self._tell(self.problem)
                return
            self.attempts += 1
            text = f"started FreeSWITCH again (attempt {self.attempts})"
            self.problem = await self._attempt()
            self._tell(f"{text}: {self.problem}" if self.problem else text)
            if self.problem:
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, BACKOFF_MAX_S)
            else:
                await self._loading()

    async def _loading(self) -> None:
        """FreeSWITCH takes seconds to load; a second one beside it would only do harm."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        while not self._is_up() and (self._processes or loop.time() < until):
            await asyncio.sleep(LOADING_POLL_S)

    async def _attempt(self) -> str:
        """Run the command once; what is wrong, or an empty text."""
        try:
            complaint = complaints()  # a pipe would be held open by a daemon
        except OSError as error:
            return f"{self._command[0]}: {error.strerror}"
        with complaint:
            try:
                process = await asyncio.create_subprocess_exec(
                    *powerless(),
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=complaint,
                    start_new_session=True,
                    env=environment_for_others(),
                )
            except OSError as error:
                return f"{self._command[0]}: {error.strerror}{CORRECT}"
            waiting = asyncio.get_running_loop().create_task(process.wait())
            self._processes.add(waiting)
            waiting.add_done_callback(self._processes.discard)
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(COMMAND_S):
                    status = await asyncio.shield(waiting)
                if status != 0:
                    complaint.seek(0)
                    said = complaint.read(COMPLAINT_BYTES).decode(errors="replace").strip()
                    hint = CORRECT if status in (NOT_EXECUTABLE, NOT_FOUND) else ""
                    said = said or "nothing said"
                    return f"start_command ended with status {status}: {said}{hint}"
        return ""
