"""Which process FreeSWITCH is: its pid file, the proof that the pid was not reused, its end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

_PID_CHARS_MAX = 32


class Process(NamedTuple):
    """A running process; `start` is field 22 of /proc/PID/stat (clock ticks since boot)."""

    pid: int
    start: int


def read_process(pid_file: Path) -> Process | None:
    """The process that the file names, None if there is none that runs."""
    try:
        with pid_file.open(encoding="ascii") as file:
            text = file.read(_PID_CHARS_MAX).strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not text.isdigit() or int(text) <= 1:
        return None
    return running(int(text))


def pid_of(pid_file: Path) -> int:
    """The pid of `read_process`, 0 if there is none."""
    process = read_process(pid_file)
    return 0 if process is None else process.pid


def running(pid: int) -> Process | None:
    """The process with this pid unless it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command may hold spaces and brackets: fields count from the last closing bracket.
    fields = stat[stat.rfind(")") + 2 :].split()
    if len(fields) < 20 or fields[0] in ("Z", "X", "x"):
        return None
    return Process(pid, int(fields[19]))


class ExitWatch:
    """Waits for the end of one process at a time, by pidfd."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._descriptor = -1
        self._exited = asyncio.Event()

    def watch(self, process: Process) -> bool:
        """Watch this process from now on; False where that is not possible, or it is gone."""
        if process == self._process:
            return True
        self.close()
        try:
            descriptor = os.pidfd_open(process.pid)
        except OSError:
            return False
        if running(process.pid) != process:  # looked at with the descriptor held: no other can come
            os.close(descriptor)
            return False
        self._process, self._descriptor = process, descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._ended)
        return True

    async def wait(self, timeout_s: float) -> None:
        """Until the process ended, but not longer than this."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._exited.wait()
        except TimeoutError:
            return
        self._exited.clear()

    def close(self) -> None:
        """Watch nothing any more."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
        self._process, self._descriptor = None, -1

    def _ended(self) -> None:
        self.close()
        self._exited.set()
