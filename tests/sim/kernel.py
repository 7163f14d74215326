"""The simulated kernel beneath a heart: what survives a process, and what may go wrong in it.

Fence sets and address lifetimes run out by themselves, on the clock of this machine and up to a
jiffy late; closing, adding and removing may fail or take their time.
"""

from __future__ import annotations

LIFETIME_US = 2_000_000
FOR_EVER_US = 1 << 60
JIFFY_US = 4_000  # nf_tables rounds a timeout up to one of these


class Kernel:
    """Of one host. Times are true microseconds; `*_us` spans are the machine's own."""

    arm_ignored = False  # a mutation drill: renews whenever it is asked

    def __init__(self, services: int, ppm: int) -> None:
        self.fence_until = [0] * services
        self.address_until = [0] * services
        self.keep = [False] * services  # somebody renews the lifetimes
        self.armed_until = 0
        self.times_out = True  # nf_tables: an open fence shuts by itself
        self.ppm = ppm
        # Faults, each until a true time, or of single services:
        self.fence_fails_until = (
            0  # the table was flushed: cannot be armed, closing is not confirmed
        )
        self.removal_fails_until = 0
        self.adding_takes_us = 0
        self.refused: set[int] = set()  # services whose addresses do not come up here

    def span(self, own_us: int) -> int:
        """How long, in true time, `own_us` of this machine's clock are."""
        return own_us * 1_000_000 // (1_000_000 + self.ppm)

    def arm(self, t: int, arm_us: int) -> bool:
        """The first step of a renewal; False: the table is gone."""
        if t < self.fence_fails_until:
            return False
        self.armed_until = t + self.span(arm_us)
        return True

    def renew(self, t: int, k: int, fence_us: int) -> bool:
        """The third step: open for `fence_us` more, if still armed."""
        if t >= self.armed_until and not self.arm_ignored:
            return False
        until = t + self.span(fence_us) + JIFFY_US
        self.fence_until[k] = until if self.times_out else FOR_EVER_US
        return True

    def close(self, t: int, k: int) -> bool:
        """Shut the fence; False: not confirmed, and what is open runs out by itself."""
        if t < self.fence_fails_until:
            return False
        self.fence_until[k] = 0
        return True

    def keep_alive(self, t: int) -> None:
        """Lifetimes are renewed twice a second in the product; with every beat is the same."""
        for k, keep in enumerate(self.keep):
            if keep:
                self.address_until[k] = t + LIFETIME_US

    def add(self, t: int, k: int) -> str:
        """Put the addresses on the NIC; why not, or nothing."""
        if k in self.refused:
            return "its addresses are refused"
        self.keep[k] = True
        self.address_until[k] = t + LIFETIME_US
        return ""

    def remove(self, t: int, k: int) -> bool:
        self.keep[k] = False
        if t < self.removal_fails_until:
            return False
        self.address_until[k] = 0
        return True

    def emits_until(self, k: int) -> int:
        """Until when packets may leave from the service's addresses, unless something happens.

        The fence alone ends it: an IPv6 socket that is bound speaks on without its address. Without
        nf_tables nothing is modelled but the addresses' lifetime, here an exact one.
        """
        if self.times_out:
            return self.fence_until[k]
        return min(self.fence_until[k], self.address_until[k])

    def power_off(self) -> None:
        services = len(self.keep)
        self.fence_until = [0] * services
        self.address_until = [0] * services
        self.keep = [False] * services
        self.fence_fails_until = self.removal_fails_until = self.adding_takes_us = 0

    def mend(self) -> None:
        """The faults end."""
        self.fence_fails_until = self.removal_fails_until = self.adding_takes_us = 0
        self.refused.clear()
