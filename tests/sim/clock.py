"""The clock of one machine: BOOTTIME from an offset of its own, at a rate of its own."""

from __future__ import annotations


class Clock:
    """`offset` in us at true time 0; `ppm` how much faster than true time it goes."""

    def __init__(self, offset: int, ppm: int) -> None:
        self.offset = offset
        self.ppm = ppm

    def local(self, t: int) -> int:
        return self.offset + t + t * self.ppm // 1_000_000

    def true(self, local: int) -> int:
        """The first true time at which this clock shows `local`."""
        return -((self.offset - local) * 1_000_000 // (1_000_000 + self.ppm)) + 1
