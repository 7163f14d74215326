"""Messages to systemd (sd_notify): READY, WATCHDOG, STATUS, MAINPID. Silent without systemd."""

from __future__ import annotations

import os
import socket


class ServiceNotifier:
    """A datagram socket to `$NOTIFY_SOCKET`; `notify` never blocks and never raises."""

    def __init__(self, path: str | None = None) -> None:
        target = os.environ.get("NOTIFY_SOCKET", "") if path is None else path
        self._address = "\0" + target[1:] if target.startswith("@") else target
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_UNIX, kind) if target else None

    def notify(self, *lines: str) -> bool:
        """Send `lines` ("READY=1", "STATUS=...") as one message; False if nobody took it."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def watchdog_interval_ms() -> int:
    """Half of systemd's WatchdogSec for this process, or 0 when no watchdog is asked for."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return 0
    return int(usec) // 2000


def successors_environment() -> dict[str, str]:
    """This process's environment for the heart that takes over from it.

    systemd names here the process whose watchdog it is. It will be the successor, which would
    otherwise think that it has none, say nothing, and be killed.
    """
    return {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
