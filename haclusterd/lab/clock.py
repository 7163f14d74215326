"""The laboratory's one clock: BOOTTIME in nanoseconds, the same in every process and namespace."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_MCL_CURRENT_AND_FUTURE = 3
_AT_ONCE_PRIORITY = 60


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_offset_ns() -> int:
    """What to add to a wall-clock time (kernel packet stamps) to have it on this clock."""
    return now_ns() - time.time_ns()


def preferred(nice: int) -> tuple[str, ...]:
    """What to put before a command so that it runs at `nice` (`LabPlan.nice` says why)."""
    return ("nice", "-n", str(nice)) if nice else ()


@contextmanager
def at_once() -> Iterator[None]:
    """This thread before all ordinary work, if permitted; what it starts is ordinary again."""
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(OSError):
        os.sched_setscheduler(
            0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_AT_ONCE_PRIORITY)
        )
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, policy, param)


def be_punctual(priority: int) -> None:
    """Real-time scheduling and locked memory if permitted, so that figures are the cluster's own.

    Without the right to it nothing happens: `late_ms` in the results then tells how bad it is.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE)
