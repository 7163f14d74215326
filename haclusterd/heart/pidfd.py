"""FreeSWITCH's process held by pidfd: its end is an event, and a kill cannot hit a stranger.

The agent names a pid; between its reading the pid file and our opening it the pid may have been
reused, so the start time in /proc/PID/stat must match as well.
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from haclusterd.heart.errors import HeartError, refused


def start_time_ticks(pid: int) -> int:
    """Start time of `pid` in clock ticks since boot (/proc/PID/stat field 22).

    Raises HeartError when there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError as error:
        raise refused(f"process {pid}", error) from error
    # The command name may hold spaces and parentheses; the fields behind its last ")" do not.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return int(fields[19])


class WatchedProcess:
    """One process, by pidfd. `fileno()` becomes readable when it ends, whoever its parent is."""

    def __init__(self, pid: int, expected_start_ticks: int = 0) -> None:
        """Open `pid`; `expected_start_ticks` 0 accepts any start time.

        Raises HeartError when the process is gone or is not the one meant.
        """
        if pid <= 1:
            raise HeartError(f"pid {pid} is not a FreeSWITCH", "check pid_file in [freeswitch]")
        try:
            self._fd = os.pidfd_open(pid)
        except OSError as error:
            raise refused(f"process {pid}", error) from error
        self.pid = pid
        try:
            # Read after opening: the pidfd pins the process that these ticks belong to, unless
            # it ended in between, and then the pidfd says so at once.
            self.start_ticks = start_time_ticks(pid)
            if expected_start_ticks and self.start_ticks != expected_start_ticks:
                raise HeartError(f"pid {pid} was reused by another process")
        except HeartError:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        return self._fd

    def ended(self) -> bool:
        """True once the process has exited (a zombie counts: it runs nothing)."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def kill(self, number: signal.Signals = signal.SIGKILL) -> bool:
        """Send a signal through the pidfd; False if the process had already ended."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        except OSError as error:
            raise refused(f"signal {number.name} to process {self.pid}", error) from error
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
