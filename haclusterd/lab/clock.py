"""The laboratory's one clock: BOOTTIME in nanoseconds, the same in every process and namespace."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress

_MCL_CURRENT_AND_FUTURE = 3

# FreeSWITCH raises itself to this priority, and the nodes of a laboratory share their processors
# with whatever else runs: without it a busy machine looks like a hung FreeSWITCH.
PREFERRED = ("nice", "-n", "-10")


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_offset_ns() -> int:
    """What to add to a wall-clock time (kernel packet stamps) to have it on this clock."""
    return now_ns() - time.time_ns()


def be_punctual(priority: int) -> None:
    """Real-time scheduling and locked memory if permitted, so that figures are the cluster's own.

    Without the right to it nothing happens: `late_ms` in the results then tells how bad it is.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE)
