"""What heart reports when the kernel or the host refuses: the fault and its fix in one value."""

from __future__ import annotations

import errno
import os


class HeartError(Exception):
    """Something heart needs is refused. `what` names the fault, `fix` what the operator can do."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what}; {fix}" if fix else what)
        self.what = what
        self.fix = fix


_FIX_BY_ERRNO = {
    errno.EPERM: "run with CAP_NET_ADMIN and CAP_NET_RAW (systemd: AmbientCapabilities=)",
    errno.EACCES: "run with CAP_NET_ADMIN and CAP_NET_RAW (systemd: AmbientCapabilities=)",
    errno.ENODEV: "check the NIC name in the configuration against `ip link`",
    errno.EADDRNOTAVAIL: "give this host the address or correct it in the configuration",
    errno.EADDRINUSE: "another program has this port; see `ss -lunp`, or change [heartbeat] port",
    errno.ENETDOWN: "bring the NIC up: `ip link set DEV up`",
}


def refused(what: str, error: OSError) -> HeartError:
    """The HeartError for an OSError: the errno's own text, and the fix where one is known."""
    number = error.errno or 0
    text = os.strerror(number) if number else str(error)
    return HeartError(f"{what}: {text}", _FIX_BY_ERRNO.get(number, ""))
