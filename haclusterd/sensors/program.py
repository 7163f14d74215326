"""Runs a program that may hang, write without end, or be somebody else's: bounded in all of it.

It gets none of the daemon's capabilities, environment or descriptors. One that not even SIGKILL
ends (it waits for a dead file server) is left behind, and no other is started until it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from haclusterd.sensors.reading import plain

OUTPUT_BYTES_MAX = 4096
_CHUNK = 65536
_REAPED_S = 0.5
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Ran(NamedTuple):
    """`status` is the exit status, None where it did not end by itself in time; `said` one line."""

    status: int | None
    said: str


class Program:
    """One command line that is run again and again, but never twice at a time."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self._words = list(words)
        self._environment = dict(environment)
        self._left: asyncio.subprocess.Process | None = None

    async def run(self, timeout_s: float, more: Mapping[str, str] | None = None) -> Ran:
        """Never raises but when cancelled; then, too, the program and its children are killed."""
        if self._left is not None and self._left.returncode is None:
            return Ran(None, f"process {self._left.pid} still hangs, not even SIGKILL ends it")
        self._left = None
        environment = {"PATH": PATH, "LANG": "C.UTF-8", **self._environment, **(more or {})}
        try:
            hearing = _Hearing()
        except OSError as error:
            return Ran(127, plain(f"{self._words[0]}: {error.strerror}"))
        try:
            process = await asyncio.create_subprocess_exec(
                *powerless(),
                *self._words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=hearing.mouth,
                stderr=hearing.mouth,
                start_new_session=True,
                cwd="/",
                env=environment,
            )
        except (OSError, ValueError) as error:
            hearing.close()
            reason = getattr(error, "strerror", None) or str(error)
            return Ran(127, plain(f"{self._words[0]}: {reason}"))
        except asyncio.CancelledError:
            hearing.close()
            raise
        try:
            async with asyncio.timeout(timeout_s):  # not wait_for: it may lose a cancellation
                await process.wait()
        except TimeoutError:
            said = hearing.so_far()
            text = f"did not end within {timeout_s:g} s" + (f": {said}" if said else "")
            return Ran(None, text)
        finally:
            await self._end(process)
            said = hearing.close()
        return Ran(process.returncode, said)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Kill it and what it left behind; what cannot be killed is remembered."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            self._left = process
            await asyncio.wait({asyncio.ensure_future(process.wait())}, timeout=_REAPED_S)


class _Hearing:
    """A pipe that is always read, so that nobody waits for it, and whose beginning is kept.

    Not asyncio's own: with that a program has not ended before all its children have.
    """

    def __init__(self) -> None:
        self._ear, self.mouth = os.pipe()
        os.set_blocking(self._ear, False)
        self._kept = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ear, self._hear)

    def _hear(self) -> None:
        try:
            chunk = os.read(self._ear, _CHUNK)
        except BlockingIOError:
            return
        self._kept += chunk[: OUTPUT_BYTES_MAX - len(self._kept)]
        if not chunk:
            self._loop.remove_reader(self._ear)

    def so_far(self) -> str:
        """The first line that was heard."""
        return plain(self._kept.decode(errors="replace"))

    def close(self) -> str:
        """The same, at the end; what is still in the pipe counts."""
        self._hear()
        self._loop.remove_reader(self._ear)
        os.close(self._ear)
        os.close(self.mouth)
        return self.so_far()


@functools.cache
def powerless() -> tuple[str, ...]:
    """What gives up the daemon's capabilities for good; also those that root would have."""
    setpriv = shutil.which("setpriv", path=PATH)  # of util-linux, which is everywhere
    if setpriv is None:
        return ()
    rights = ["--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"]
    if os.geteuid() == 0:
        rights.append("--bounding-set=-all")
    return (setpriv, *rights, "--")
