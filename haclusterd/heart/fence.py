"""The fence: a kernel lease in nf_tables that ends by itself when heart stops renewing it.

An egress chain on the service NICs drops IPv4, IPv6, ARP and neighbour advertisements that speak
for a service address unless the address is in a set whose elements live `fence_ms` (DESIGN 3).
Heart drives the sets in the packet path: it writes crafted frames to `lo`, where a second egress
chain of the same table takes them and drops them. The drop comes back from sendto() as ENOBUFS, in
the same system call, so each step is confirmed by the kernel before the next one:

    arm      consumed -> the table is there and is armed for `arm_ms`
             passed   -> the set took no element, or the table is gone: `probe` tells which
    renew    consumed -> the lease of this address now runs `fence_ms` from here
             passed   -> not armed any more: heart froze in between, nothing was renewed
    probe    consumed -> the table is there
             passed   -> the table is gone (someone flushed the ruleset): the fence is *open*
    close    consumed -> the address left the set; nothing more goes out

Every arming has a mark of its own. An element that ran out, or was deleted, stays in its hash chain
until the kernel's worker sweeps it, and a chain of more than 16 takes no more: with one mark and
the workers short of CPU for 0.4 s, 6 of 150 armings failed while the table was there (measured).

Set timeouts are whole jiffies, rounded down by the kernel, counted from the last tick: an element
given T ms lives between T - 1 jiffy and T. So `fence_ms` and `arm_ms` are upper bounds, which is
the side that safety needs; liveness has to allow for one jiffy less (`least_fence_ms`).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import subprocess
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from haclusterd.heart.clock import jiffy_us
from haclusterd.heart.errors import HeartError, refused
from haclusterd.heart.netlink import Netlink
from haclusterd.heart.nft import (
    ARM,
    CLOSE,
    MARKS,
    PROBE,
    RENEW,
    drop_table,
    nft_refused,
    ruleset,
    run_nft,
)

_SO_MARK = 36  # not in the socket module before Python 3.13
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_OTHER_HOST = b"\x02" + b"\0" * 5  # no NIC's address: a frame that passes the chain dies on lo
_PROHIBIT_PRIORITY = 71  # before the main table's rule, 32766
_LIFETIME_BOUND_MS = 1100  # address with valid_lft 1 after the last renewal, measured

Mode = Literal["nftables", "iprule"]
Frame = tuple[bytes, int]  # a whole Ethernet frame and its ethertype


@dataclass(frozen=True)
class FencedService:
    """What one service may speak with: its NICs and its addresses (without prefix length)."""

    devices: tuple[str, ...]
    addresses: tuple[str, ...]


class Fence(Protocol):
    """What the executor needs of either fence. Services are named by their index."""

    mode: Mode
    overlap_bound_ms: int

    def load(self) -> None: ...
    def begin_load(self) -> None: ...
    def load_result(self) -> str | None: ...
    def unload(self) -> None: ...
    def arm(self) -> bool: ...
    def incomplete(self) -> bool: ...
    def needs(self, device: str) -> bool: ...
    def device_gone(self, device: str) -> None: ...
    def renew(self, indices: Collection[int]) -> bool: ...
    def close(self, indices: Collection[int]) -> bool: ...


class InertFence(HeartError):
    """The table is loaded, but what is sent over the loopback does not reach it."""


class KernelLease:
    """The nf_tables fence. All calls but load and unload take about 5 us and never block."""

    mode: Mode = "nftables"
    overlap_bound_ms = 0

    def __init__(
        self,
        table: str,
        services: Mapping[int, FencedService],
        fence_ms: int,
        arm_ms: int,
        devices: Collection[str] = (),
    ) -> None:
        """`devices`: NICs to guard besides the services' own, so that no other way out is left.

        Raises HeartError when the control socket cannot be opened.
        """
        self._table = table
        self._mark = zlib.crc32(table.encode()) & ~(MARKS - 1) or MARKS
        self._services = dict(services)
        self._devices = sorted(
            {*devices, *(d for s in services.values() for d in s.devices)} - {"lo"}
        )
        self._fence_ms, self._arm_ms = fence_ms, arm_ms
        self.least_fence_ms = fence_ms - -(-jiffy_us() // 1000)
        self.missing_devices: tuple[str, ...] = ()
        self._loading: subprocess.Popen[str] | None = None
        self._load_failure = ""
        self._arm_frame = _frame("127.0.0.1", ARM)
        self._probe_frame = _frame("127.0.0.1", PROBE)
        self._renew_frames = {i: _frames(s, RENEW) for i, s in services.items()}
        self._close_frames = {i: _frames(s, CLOSE) for i, s in services.items()}
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_PACKET, kind, 0)  # 0: receives nothing
            self._socket.bind(("lo", 0))
            self._use_mark(0)
        except OSError as error:
            raise refused("the fence's control socket", error) from error

    def load(self) -> None:
        """Replace whatever table a predecessor left by a closed fence, and prove that it acts.

        NICs that do not exist are left out and named in `missing_devices`; load again once they
        appear. Raises HeartError.
        """
        run_nft("-f", "-", script=self._script())
        if not self.close(self._services) or not self.arm():
            raise InertFence(
                "the nf_tables fence was loaded but does not act",
                "bring the loopback up: `ip link set lo up`",
            )

    def _script(self) -> str:
        present = {name for _index, name in socket.if_nameindex()}
        self.missing_devices = tuple(d for d in self._devices if d not in present)
        addresses = [a for s in self._services.values() for a in s.addresses]
        devices = [d for d in self._devices if d in present]
        return ruleset(self._table, self._mark, devices, addresses, self._fence_ms, self._arm_ms)

    def begin_load(self) -> None:
        """`load` without waiting: nft may take longer than a lease on a busy host."""
        if self._loading is None:
            self._load_failure = ""
            try:
                self._loading = subprocess.Popen(
                    ["nft", "-f", "-"],
                    stdin=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            except OSError as error:
                self._load_failure = str(refused("nft", error))
                return
            if self._loading.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._loading.stdin.write(self._script())  # a few KB: the pipe takes it
                    self._loading.stdin.close()

    def load_result(self) -> str | None:
        """After `begin_load`: None while it runs, "" when the table is there, or what failed."""
        if self._loading is None:
            return self._load_failure
        if self._loading.poll() is None:
            return None
        ended, self._loading = self._loading, None
        stderr = ended.stderr.read() if ended.stderr is not None else ""
        if ended.returncode:
            self._load_failure = str(nft_refused(stderr))
        return self._load_failure

    def incomplete(self) -> bool:
        """Whether a NIC that is to be guarded is there now, but has no hook."""
        if not self.missing_devices:
            return False
        present = {name for _index, name in socket.if_nameindex()}
        return any(device in present for device in self.missing_devices)

    def needs(self, device: str) -> bool:
        """Whether this NIC is to be guarded and has appeared since the table was loaded."""
        return device in self.missing_devices

    def device_gone(self, device: str) -> None:
        """The NIC went, and its hook with it."""
        if device in self._devices and device not in self.missing_devices:
            self.missing_devices = (*self.missing_devices, device)

    def unload(self) -> None:
        """Remove the table and the control socket. Raises HeartError if the table stays."""
        self._socket.close()
        drop_table(self._table)

    def arm(self) -> bool:
        """Allow renewals for `arm_ms`; False: the table is gone and nothing is fenced.

        A set that takes no mark while the table is there: True, and `renew` says that it failed.
        """
        self._use_mark((self._turn + 1) % MARKS)
        return self._consumed(self._arm_frame) or self._consumed(self._probe_frame)

    def _use_mark(self, turn: int) -> None:
        self._turn = turn
        mark = struct.pack("=I", self._mark + turn)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)

    def renew(self, indices: Collection[int]) -> bool:
        """Open these services for `fence_ms` from now, if still armed. True: all were renewed."""
        return self._all_consumed(self._renew_frames, indices)

    def close(self, indices: Collection[int]) -> bool:
        """Close these services at once. True: the kernel confirmed each address."""
        return self._all_consumed(self._close_frames, indices)

    def _all_consumed(self, frames: dict[int, list[Frame]], indices: Collection[int]) -> bool:
        """Send every frame, also behind one that failed; True if the kernel obeyed them all."""
        passed = 0
        for index in indices:
            for frame in frames[index]:
                passed += not self._consumed(frame)
        return passed == 0

    def _consumed(self, frame: Frame) -> bool:
        data, protocol = frame
        try:
            self._socket.sendto(data, ("lo", protocol))
        except OSError as error:
            # The egress chain dropped it: that is what it does with the frames it has obeyed.
            return error.errno == errno.ENOBUFS
        return False


class RuleFence:
    """The fallback without nf_tables: `ip rule from ADDRESS prohibit` while closed.

    It needs heart alive to close; a frozen heart's addresses live until their lifetime ends, which
    is what `overlap_bound_ms` admits to. It does not stop ARP: the address must go as well.
    """

    mode: Mode = "iprule"
    overlap_bound_ms = _LIFETIME_BOUND_MS

    def __init__(self, services: Mapping[int, FencedService]) -> None:
        self._services = dict(services)
        self._netlink = Netlink()
        self._open: set[int] = set()

    def load(self) -> None:
        """Start closed. Raises HeartError without CAP_NET_ADMIN."""
        self._set(self._services, on=True)

    def unload(self) -> None:
        self._set(self._services, on=False)
        self._netlink.close()

    def arm(self) -> bool:
        return True

    def renew(self, indices: Collection[int]) -> bool:
        """Lift the prohibition where it stands; an open service costs nothing to renew."""
        wanted = [index for index in indices if index not in self._open]
        self._set(wanted, on=False)
        self._open.update(wanted)
        return True

    def close(self, indices: Collection[int]) -> bool:
        self._set(indices, on=True)
        self._open.difference_update(indices)
        return True

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

    def adopt(self, opened: Collection[int]) -> None:
        """Take over the rules of a predecessor, which left these services open."""
        self._open = set(opened)

    def _set(self, indices: Collection[int], *, on: bool) -> None:
        for index in indices:
            for address in self._services[index].addresses:
                self._netlink.prohibit_source(address, _PROHIBIT_PRIORITY, on=on)


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
        fallback = RuleFence(services)
        fallback.load()
        return fallback, (
            f"no kernel fence ({error}); falling back to `ip rule`: a frozen owner "
            f"may overlap for {fallback.overlap_bound_ms} ms"
        )
    return lease, ""


def _frame(source: str, operation: int) -> Frame:
    """A crafted frame for `lo` that names `source` and an operation, and its ethertype."""
    if ":" in source:
        header = struct.pack(
            "!IHBB16s16s",
            0x60000000,
            0,
            59,
            1,
            socket.inet_pton(socket.AF_INET6, source),
            bytes(15) + bytes([operation]),
        )
        protocol = _ETH_P_IPV6
    else:
        header = struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            0,
            20,
            0,
            0,
            1,
            253,
            0,
            socket.inet_aton(source),
            bytes([127, 0, 0, operation]),
        )
        protocol = _ETH_P_IP
    return _OTHER_HOST + _OTHER_HOST + struct.pack("!H", protocol) + header, protocol


def _frames(service: FencedService, operation: int) -> list[Frame]:
    return [_frame(address, operation) for address in service.addresses]
