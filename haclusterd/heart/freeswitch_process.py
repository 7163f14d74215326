"""The local FreeSWITCH as a process: which one it is, that it ended, and how to end it.

The agent finds it and says so in each LocalReport; heart holds it by pidfd, so that its end is
news at once, and mends reports that were written before the agent knew.
"""

from __future__ import annotations

import msgspec

from haclusterd.core.inputs import LocalReport
from haclusterd.heart.errors import HeartError
from haclusterd.heart.pidfd import WatchedProcess


class FreeswitchProcess:
    """Follows the pid of the agent's reports."""

    def __init__(self) -> None:
        self._watched: WatchedProcess | None = None
        self._ended: tuple[int, int] = (0, 0)

    @property
    def pid(self) -> int:
        """The process held, 0 for none."""
        return self._watched.pid if self._watched else 0

    @property
    def identity(self) -> tuple[int, int]:
        """(pid, start time in clock ticks) of the process held, (0, 0) for none."""
        return (self._watched.pid, self._watched.start_ticks) if self._watched else (0, 0)

    def adopt(self, identity: tuple[int, int]) -> bool:
        """Hold the process that a predecessor held; False if it is gone."""
        if identity[0]:
            try:
                self._watched = WatchedProcess(*identity)
            except HeartError:
                return False
        return True

    def fileno(self) -> int:
        return self._watched.fileno() if self._watched else -1

    def follow(self, report: LocalReport) -> tuple[LocalReport, bool]:
        """(the report as it is true now, whether `fileno` is another one than before)."""
        if not report.freeswitch_up or report.pid <= 0:
            return report, False
        if (report.pid, report.pid_start) == self._ended:
            return _down(report, "its FreeSWITCH has ended"), False
        watched = self._watched
        starts = (0, watched.start_ticks) if watched else ()
        if watched and watched.pid == report.pid and report.pid_start in starts:
            if watched.ended():
                return _down(report, "its FreeSWITCH has ended"), False
            return report, False
        try:
            found = WatchedProcess(report.pid, report.pid_start)
        except HeartError as error:
            return _down(report, str(error)), False
        self._close()
        self._watched = found
        return report, True

    def ended(self) -> bool:
        """Whether the process held has ended; it is let go then."""
        watched = self._watched
        if watched is None or not watched.ended():
            return False
        self._ended = (watched.pid, watched.start_ticks)
        self._close()
        return True

    def kill(self) -> str:
        """SIGKILL; "" or why it could not be done."""
        if self._watched is None:
            return "no FreeSWITCH process is known"
        try:
            self._watched.kill()
        except HeartError as error:
            return str(error)
        return ""

    def _close(self) -> None:
        if self._watched is not None:
            self._watched.close()
            self._watched = None


def _down(report: LocalReport, reason: str) -> LocalReport:
    """The report with FreeSWITCH down, and therefore nothing ready."""
    services = tuple(
        msgspec.structs.replace(word, ready=False, reason=reason) for word in report.services
    )
    return msgspec.structs.replace(report, freeswitch_up=False, services=services)
