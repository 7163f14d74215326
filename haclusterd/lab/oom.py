"""The kernel's own out-of-memory kill, of chosen processes.

They share a memory cgroup with a hog that may fill it: the kernel then has to choose, and is told
whom (`oom_score_adj`). Nothing outside that cgroup is short of memory.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from haclusterd.lab.netns import LabError

_LIMIT_BYTES = 16 << 20
_KILLED_S = 5.0
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
# A file in memory counts for the cgroup and not for the process: the hog is never the largest.
_HOG = (
    "import os, sys\nfile, block = os.memfd_create('hog'), bytes(1 << 16)\n"
    "while sys.stdin.read(1):\n    while True: os.write(file, block)"
)

_numbers = count(1)


def why_not() -> str:
    """Why there can be no such kill here, empty if there can."""
    try:
        folder, _ = _make()
    except OSError as error:
        return f"no memory cgroup can be made: {error}"
    folder.rmdir()
    return ""


class OutOfMemory:
    """Prepared at once; `kill` fills the memory; `close` waits for the end and cleans up."""

    def __init__(self, pids: Sequence[int]) -> None:
        if reason := why_not():
            raise LabError(reason)
        self._pids = pids
        # It ends with this process if `kill` never comes.
        self._hog = subprocess.Popen([sys.executable, "-c", _HOG], stdin=subprocess.PIPE)

    def kill(self) -> None:
        """Returns while the hog is still at it: the kernel needs some milliseconds."""
        self._folder, limit = _make()
        limit.write_text(str(_LIMIT_BYTES))
        for pid in self._pids:
            Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        for pid in (*self._pids, self._hog.pid):
            (self._folder / "cgroup.procs").write_text(str(pid))
        if self._hog.stdin is not None:
            self._hog.stdin.write(b"go")
            self._hog.stdin.flush()

    def close(self) -> None:
        """Wait for the end of the killed, end the hog, remove the cgroup. LabError if one lives."""
        end = time.monotonic() + _KILLED_S
        while (living := self._living()) and time.monotonic() < end:
            time.sleep(0.01)
        self._hog.kill()
        self._hog.wait()
        while self._folder.exists():
            try:
                self._folder.rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise LabError(f"{self._folder} cannot be removed: {error}") from None
                time.sleep(0.01)
        if living:
            raise LabError(f"the kernel did not kill {living}")

    def _living(self) -> list[int]:
        """Of the processes to be killed; a zombie has left its cgroup."""
        with suppress(OSError):
            inside = (self._folder / "cgroup.procs").read_text().split()
            return [pid for pid in self._pids if str(pid) in inside]
        return []


def _make() -> tuple[Path, Path]:
    """(a new cgroup, its limit file), version 1 or 2."""
    root, name = (_V1, "memory.limit_in_bytes") if _V1.is_dir() else (_V2, "memory.max")
    folder = root / f"haclusterd-lab-{os.getpid()}-{next(_numbers)}"
    folder.mkdir()
    if not (folder / name).exists():
        folder.rmdir()
        raise OSError(errno.ENOENT, "the memory controller is not enabled", str(root))
    return folder, folder / name
