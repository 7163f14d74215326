"""Which process FreeSWITCH is: its pid file, and the proof that the pid was not reused."""

from __future__ import annotations

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
