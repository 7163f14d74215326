"""The two clocks of the agent: CLOCK_BOOTTIME for everything, the wall for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now_us() -> int:
    """CLOCK_BOOTTIME in us: the clock of heart's `*_us` values."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def wall_s() -> int:
    """The wall clock in whole seconds since 1970: which of two orders was given last."""
    return int(time.time())


def wall_text(at_us: int | None = None) -> str:
    """The wall clock at `at_us` (now if None) in ISO 8601, UTC, with ms."""
    past_s = 0.0 if at_us is None else (now_us() - at_us) / 1e6
    at = datetime.fromtimestamp(time.time() - past_s, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def wall_text_ms(at_ms: int) -> str | None:
    """Milliseconds since 1970 as text; None for 0."""
    if at_ms <= 0:
        return None
    return (
        datetime.fromtimestamp(at_ms / 1000, UTC)
        .isoformat(timespec="seconds")
        .replace("+00:00", "Z")
    )
