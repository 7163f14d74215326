"""The fence of a host without nf_tables egress, and the choice between the two.

`ip rule from ADDRESS iif lo prohibit` while closed, and the address taken off, so that nothing
answers ARP or neighbour solicitations either. Nothing of that ends by itself: while open, heart
writes into a page how long each service may speak, and a second process (`watchdog`) closes what
heart does not renew. Should that one stand still as well, the addresses' lifetime ends IPv4, ARP
and neighbour advertisements; what status shows is how long we expect the kernel to take for that,
no kernel promises it. An IPv6 socket that is bound already may speak for longer.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Collection, Mapping

from haclusterd.heart.clock import now_us
from haclusterd.heart.errors import HeartError, refused
from haclusterd.heart.fence import Fence, FencedService, InertFence, KernelLease, Mode
from haclusterd.heart.netlink import Netlink
from haclusterd.heart.nft import drop_table
from haclusterd.heart.watchdog import PROHIBIT_PRIORITY, Page, silence

# An address with valid_lft 1 after its last renewal. The kernel looks at most once a second
# (addrconf_verify_rtnl, check_lifetime), and by a timer that does not wake an idle CPU: since Linux
# 5.18 for IPv6 and 6.13 for IPv4 nothing but that CPU's other timers ends the wait.
_LIFETIME_BOUND_MS = 5000
_START_AGAIN_US = 1_000_000
_ASSERT_EVERY_US = 1_000_000
_STARTS_WITHIN_US = 3_000_000  # a Python that starts on a busy host
_TURNS_WITHIN_US = 500_000
_ENDS_WITHIN_S = 1.0


class RuleFence:
    """Rules and addresses set and cleared by heart, with a watchdog beside it.

    A pause between `arm` and `renew` shortens what is renewed, because the time until which a
    service may speak counts from `arm`. Renewing an open service is a write into the page: netlink
    may have to wait for whoever changes a NIC.
    """

    mode: Mode = "iprule"
    overlap_bound_ms = _LIFETIME_BOUND_MS

    def __init__(self, services: Mapping[int, FencedService], fence_ms: int) -> None:
        """Raises HeartError when netlink or the shared page are refused."""
        self._ips = {k: frozenset(service.addresses) for k, service in services.items()}
        self._fence_us = fence_ms * 1000
        self._netlink = Netlink()
        try:
            self._page_fd = os.memfd_create("haclusterd-watchdog")
            self._page = Page(self._page_fd, len(services))
        except OSError as error:
            raise refused("the watchdog's page", error) from error
        self._process: subprocess.Popen[bytes] | None = None
        self._life_fd = -1
        self._started_us = 0
        self._armed_us = 0
        self._asserted_us = now_us()
        self._open: dict[int, int] = {}  # service -> what the page said of its silencing
        self.fault = ""

    @property
    def watchdog_pid(self) -> int:
        """Its process, 0 for none."""
        return self._process.pid if self._process else 0

    @property
    def watchdog_turned_us(self) -> int:
        """When it last looked, 0 if it never did."""
        return self._page.turned_us

    def load(self) -> None:
        """Start closed. Raises HeartError without CAP_NET_ADMIN."""
        for ips in self._ips.values():
            silence(self._netlink, ips)
        self._start_watchdog(now_us())

    def adopt(self, opened: Collection[int]) -> None:
        """Take over the rules of a predecessor, which left these services open and is gone.

        Not before: should this process be given up, its watchdog would silence them.
        """
        self._asserted_us = now_us()  # which are open is known for sure at the first renewals
        self.arm()
        for k in opened:
            self._page.allow(k, self._armed_us + self._fence_us)

    def hand_on(self) -> None:
        """A successor looks after the rules from now on, with a watchdog of its own."""
        if self._process is not None:
            self._process.kill()

    def unload(self) -> None:
        """End the watchdog and lift every prohibition."""
        for k in self._ips:
            self._page.allow(k, 0)
        self._end_watchdog()
        for ips in self._ips.values():
            self._lift(ips)
        self._netlink.close()
        os.close(self._page_fd)

    def arm(self) -> bool:
        self._armed_us = now_us()
        self._look_after_watchdog()
        if self._armed_us - self._asserted_us >= _ASSERT_EVERY_US:
            self._asserted_us = self._armed_us
            self._assert_closed()
        return True

    def _assert_closed(self) -> None:
        """Somebody may have flushed the rules of a service that is closed."""
        with contextlib.suppress(HeartError):
            for k in self._ips.keys() - self._open:
                for ip in self._ips[k]:
                    self._netlink.prohibit_source(ip, PROHIBIT_PRIORITY, on=True)

    def renew(self, indices: Collection[int]) -> bool:
        """Allow these services to speak for `fence_ms` from the last `arm`.

        The rules are lifted at the opening, and where the watchdog set them during a short stall.
        """
        until_us = self._armed_us + self._fence_us
        try:
            for k in indices:
                self._page.allow(k, until_us)
                silenced_us = self._page.silenced_us(k)
                if self._open.get(k) != silenced_us:
                    self._lift(self._ips[k])
                    self._open[k] = silenced_us
        except HeartError:
            return False
        if now_us() < until_us:
            return True
        self.close(indices)  # stood still since `arm`
        return False

    def close(self, indices: Collection[int]) -> bool:
        """Silence these services. True: the kernel confirmed it."""
        failures = 0
        for k in indices:
            self._open.pop(k, None)
            try:
                silence(self._netlink, self._ips[k])
            except HeartError:
                failures += 1
            else:
                self._page.allow(k, 0)
        return failures == 0

    def _lift(self, ips: Collection[str]) -> None:
        for ip in ips:
            self._netlink.prohibit_source(ip, PROHIBIT_PRIORITY, on=False)

    def begin_load(self) -> None:
        return

    def load_result(self) -> str | None:
        return ""

    def incomplete(self) -> bool:
        return False

    def needs(self, device: str) -> bool:
        return False  # a source rule knows no NIC

    def device_gone(self, device: str) -> None:
        return

    def _look_after_watchdog(self) -> None:
        at_us, process = self._armed_us, self._process
        if process is None or process.poll() is not None:
            self.fault = "the watchdog of the fallback fence does not run and is started again"
            if at_us - self._started_us >= _START_AGAIN_US:
                # It may have ended between setting rules and saying so.
                self._open = dict.fromkeys(self._open, -1)
                self._end_watchdog()
                self._start_watchdog(at_us)
            return
        quiet_us = at_us - max(self._page.turned_us, self._started_us + _STARTS_WITHIN_US)
        self.fault = (
            "the watchdog of the fallback fence stands still: a frozen heart would not be silenced"
            if quiet_us > _TURNS_WITHIN_US
            else ""
        )

    def _start_watchdog(self, at_us: int) -> None:
        self._started_us = at_us
        theirs, self._life_fd = os.pipe2(os.O_CLOEXEC)
        command = [sys.executable, "-m", "haclusterd.heart.watchdog"]
        numbers = [str(n) for n in (self._page_fd, theirs, self._fence_us // 1000)]
        lists = [",".join(self._ips[k]) for k in sorted(self._ips)]
        try:
            self._process = subprocess.Popen(
                [*command, *numbers, *lists],
                pass_fds=[self._page_fd, theirs],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self.fault = f"the watchdog of the fallback fence cannot be started: {error}"
        finally:
            os.close(theirs)

    def _end_watchdog(self) -> None:
        """It ends by itself when its pipe closes."""
        if self._life_fd >= 0:
            os.close(self._life_fd)
            self._life_fd = -1
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def sentence(self) -> str:
        """What people have to know while this fence is in use."""
        return (
            f"falling back to `ip rule`: a watchdog silences a frozen owner after "
            f"{self._fence_us // 1000} ms; if both stand still it may overlap for "
            f"{self.overlap_bound_ms} ms (overlap_bound_ms), an IPv6 socket for longer"
        )


def load_fence(
    table: str,
    services: Mapping[int, FencedService],
    fence_ms: int,
    arm_ms: int,
    devices: Collection[str] = (),
) -> tuple[Fence, str]:
    """The best fence this host can have, loaded and closed, and a sentence if it is the lesser one.

    Raises HeartError when neither is possible, and InertFence when the host has nf_tables but its
    loopback is down: that is mended, not worked around.
    """
    try:
        lease = KernelLease(table, services, fence_ms, arm_ms, devices)
        lease.load()
    except InertFence:
        drop_table(table)
        raise
    except HeartError as error:
        # Nobody would renew a table that a predecessor left, and it would keep us silent.
        with contextlib.suppress(HeartError):
            drop_table(table)
        fallback = RuleFence(services, fence_ms)
        fallback.load()
        return fallback, f"no kernel fence ({error}); {fallback.sentence()}"
    return lease, ""
