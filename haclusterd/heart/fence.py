"""The fence: a kernel lease in nf_tables that ends by itself when heart stops renewing it.

An egress chain on the service NICs stops IPv4, IPv6, ARP and neighbour advertisements that speak
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
the side that safety needs; liveness has to allow for less (`least_life_us`).
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

from haclusterd.heart.errors import HeartError, refused
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
from haclusterd.heart.realtime import HELPER_PRIORITY, raise_priority

_SO_MARK = 36  # not in the socket module before Python 3.13
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_OTHER_HOST = b"\x02" + b"\0" * 5  # no NIC's address: a frame that passes the chain dies on lo

Mode = Literal["nftables", "iprule"]
Frame = bytes  # a whole Ethernet frame


@dataclass(frozen=True)
class FencedService:
    """What one service may speak with: its NICs and its addresses (without prefix length)."""

    devices: tuple[str, ...]
    addresses: tuple[str, ...]


def least_life_us(timeout_ms: int, jiffy: int) -> int:
    """How long an element given `timeout_ms` lives at least, with ticks of `jiffy` us."""
    return max(timeout_ms * 1000 // jiffy - 1, 0) * jiffy


class Fence(Protocol):
    """What the executor needs of either fence. Services are named by their index.

    `fault`: what is wrong with it beyond the results of the calls, as a sentence, or "".
    """

    mode: Mode
    overlap_bound_ms: int
    fault: str

    def load(self) -> None: ...
    def begin_load(self) -> None: ...
    def load_result(self) -> str | None: ...
    def unload(self) -> None: ...
    def hand_on(self) -> None: ...
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
    fault = ""

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
        self._silent = True
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
        try:
            run_nft("-f", "-", script=self._script())
        except HeartError:
            if not self._silent:
                raise
            self._silent = False  # a kernel without nft_fwd_netdev
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
        return ruleset(
            self._table, self._mark, devices, addresses, self._fence_ms, self._arm_ms, self._silent
        )

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
            # On a busy host it would take twice as long, and nothing is fenced meanwhile.
            raise_priority(HELPER_PRIORITY, self._loading.pid)
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
        if ended.returncode and self._silent:
            self._silent = False
            self.begin_load()
            return None
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

    def hand_on(self) -> None:
        """A successor renews the kernel's lease from now on."""
        self._socket.close()

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
        try:
            # Bound to `lo`: to name it in each call would ask the kernel for its index each time.
            self._socket.send(frame)
        except OSError as error:
            # The egress chain dropped it: that is what it does with the frames it has obeyed.
            return error.errno == errno.ENOBUFS
        return False


def _frame(source: str, operation: int) -> Frame:
    """A crafted frame for `lo` that names `source` and an operation."""
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
    return _OTHER_HOST + _OTHER_HOST + struct.pack("!H", protocol) + header


def _frames(service: FencedService, operation: int) -> list[Frame]:
    return [_frame(address, operation) for address in service.addresses]
