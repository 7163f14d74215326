"""The one clock that decides: CLOCK_BOOTTIME in integer microseconds (it counts suspends too)."""

from __future__ import annotations

import time

_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h; the time module does not name it


def now_us() -> int:
    """Microseconds since boot, suspends included; never steps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def jiffy_us() -> int:
    """Length of one kernel tick; nf_tables timeouts and most kernel timers are multiples of it.

    CLOCK_MONOTONIC_COARSE advances once per tick, so its resolution is 1/HZ.
    """
    return round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1_000_000)
