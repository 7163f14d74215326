"""Did a process that does not answer get any CPU? From the kernel's account of its threads.

Only the reading of /proc belongs here (schedstat: ns run, ns waited for a CPU, times run).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

THREADS_MAX = 200  # the oldest: those of calls come later, those of the event socket are among them


class CpuWait:
    """`look` again and again while there is no answer, `forget` when there is one."""

    def __init__(self, pid: Callable[[], int], proc: Path = Path("/proc")) -> None:
        self._pid = pid
        self._proc = proc
        self._waited_ns: dict[str, int] = {}

    def look(self) -> float:
        """The longest time in s that one thread stood in line for a CPU since the last look.

        0 at the first look, and where the kernel does not tell: that excuses nobody.
        """
        before, self._waited_ns = self._waited_ns, self._read()
        more = (ns - before[tid] for tid, ns in self._waited_ns.items() if tid in before)
        return max(more, default=0) / 1e9

    def forget(self) -> None:
        """What comes next has nothing to do with what was."""
        self._waited_ns.clear()

    def _read(self) -> dict[str, int]:
        found: dict[str, int] = {}
        try:
            threads = islice((self._proc / str(self._pid()) / "task").iterdir(), THREADS_MAX)
            for thread in threads:
                fields = (thread / "schedstat").read_text(encoding="ascii").split()
                found[thread.name] = int(fields[1])
        except (OSError, ValueError, IndexError):
            return found  # a thread ended meanwhile: those that were read will do
        return found
