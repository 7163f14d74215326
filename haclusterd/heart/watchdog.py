"""Silences services whose heart stands still, where no nf_tables fence does it (see `fallback`).

`python -m haclusterd.heart.watchdog PAGE_FD LIFE_FD FENCE_MS IPS...`, started by heart; one
argument of comma-separated addresses per service. Heart writes into a shared page until when each
service may speak; once that has passed, this process does what heart would do: prohibit the source
addresses, then take them off. It also does so when heart ends (LIFE_FD is a pipe that then closes),
and ends itself.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import signal
import sys
from collections.abc import Collection, Sequence

from haclusterd.heart.clock import now_us
from haclusterd.heart.errors import HeartError
from haclusterd.heart.journal import ERROR, WARNING, Journal
from haclusterd.heart.netlink import Netlink
from haclusterd.heart.realtime import lock_memory, raise_priority

PROHIBIT_PRIORITY = 71  # before the main table's rule, 32766
_AGAIN_US = 10_000  # a heart that stood still in the middle of opening may open after our closing


class Page:
    """The shared page: the watchdog's last turn, then per service until when it may speak and when
    the watchdog has silenced it.

    Times in us of BOOTTIME; 0 for never, and for a service that is closed. One writer a word.
    """

    def __init__(self, descriptor: int, services: int) -> None:
        size = 8 * (1 + 2 * services)
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        self._words = memoryview(mmap.mmap(descriptor, size)).cast("Q")

    @property
    def turned_us(self) -> int:
        """When the watchdog last looked; 0 before its first look."""
        return self._words[0]

    def turn(self, at_us: int) -> None:
        self._words[0] = at_us

    def until_us(self, k: int) -> int:
        return self._words[1 + 2 * k]

    def allow(self, k: int, until_us: int) -> None:
        self._words[1 + 2 * k] = until_us

    def silenced_us(self, k: int) -> int:
        return self._words[2 + 2 * k]

    def silenced(self, k: int, at_us: int) -> None:
        self._words[2 + 2 * k] = at_us


def silence(netlink: Netlink, ips: Collection[str]) -> list[str]:
    """Prohibit these source addresses, then take them off every NIC; those that were on one.

    In this order: without its address an IPv4 socket fails, but an IPv6 socket goes on sending.
    Without the address nothing answers ARP or neighbour solicitations. Raises HeartError.
    """
    for ip in ips:
        netlink.prohibit_source(ip, PROHIBIT_PRIORITY, on=True)
    removed = []
    for found in netlink.addresses():
        if found.address in ips and netlink.delete_address(
            found.index, found.address, found.prefix
        ):
            removed.append(found.address)
    return removed


class Watchdog:
    """Looks at the page; `look` is told the time, so that it can be tested without waiting."""

    def __init__(self, page: Page, services: Sequence[Collection[str]], netlink: Netlink,
                 journal: Journal) -> None:  # fmt: skip
        self._page, self._services = page, services
        self._netlink, self._journal = netlink, journal
        self._told_us = [0] * len(services)

    def look(self, at_us: int, *, heart_gone: bool = False) -> int:
        """Silence what may not speak any more; us until the next look is due at the latest."""
        self._page.turn(at_us)
        wait_us = 1 << 62
        for k in range(len(self._services)):
            until_us = self._page.until_us(k)
            if not until_us:
                continue
            if not heart_gone and at_us < until_us:
                wait_us = min(wait_us, until_us - at_us)
                continue
            self._silence(k, until_us, "has ended" if heart_gone else "stands still")
            self._page.silenced(k, at_us)
            wait_us = min(wait_us, _AGAIN_US)
        return wait_us

    def _silence(self, k: int, until_us: int, why: str) -> None:
        ips = self._services[k]
        try:
            removed = silence(self._netlink, ips)
        except HeartError as error:
            removed = []
            self._journal.say(f"watchdog: heart {why}, but {error}", ERROR)
        if removed or self._told_us[k] != until_us:
            self._told_us[k] = until_us
            self._journal.say(f"watchdog: heart {why}; {', '.join(ips)} silenced", WARNING)


def main(arguments: Sequence[str]) -> int:
    """Run until heart ends. Exit status 0."""
    page_fd, life_fd, fence_ms, *lists = arguments
    # The service manager's SIGTERM goes to heart as well, which hands over before it ends.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    services = [frozenset(text.split(",")) for text in lists]
    journal = Journal()
    netlink = Netlink()
    watchdog = Watchdog(Page(int(page_fd), len(services)), services, netlink, journal)
    lock_memory()
    raise_priority()
    gc.freeze()
    gc.disable()
    poll = select.poll()
    poll.register(int(life_fd), select.POLLIN)
    wait_us = 0
    while not poll.poll(wait_us / 1000):
        wait_us = min(watchdog.look(now_us()), int(fence_ms) * 1000)
    watchdog.look(now_us(), heart_gone=True)
    journal.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
