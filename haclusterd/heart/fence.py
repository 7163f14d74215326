"""The fence: a kernel lease in nf_tables that ends by itself when heart stops renewing it.

An egress chain on the service NICs drops IPv4, IPv6, ARP and neighbour advertisements that speak
for a service address unless the address is in a set whose elements live `fence_ms` (DESIGN 3).
Heart drives the sets in the packet path: it writes crafted frames to `lo`, where a second egress
chain of the same table takes them and drops them. The drop comes back from sendto() as ENOBUFS, in
the same system call, so each step is confirmed by the kernel before the next one:

    arm      consumed -> the table is there and is armed for `arm_ms`
             passed   -> the table is gone (someone flushed the ruleset): the fence is *open*
    renew    consumed -> the lease of this address now runs `fence_ms` from here
             passed   -> not armed any more: heart froze in between, nothing was renewed
    close    consumed -> the address left the set; nothing more goes out

Set timeouts are whole jiffies, rounded down by the kernel, counted from the last tick: an element
given T ms lives between T - 1 jiffy and T. So `fence_ms` and `arm_ms` are upper bounds, which is
the side that safety needs; liveness has to allow for one jiffy less (`least_fence_ms`).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket
import struct
import subprocess
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from haclusterd.heart.clock import jiffy_us
from haclusterd.heart.errors import HeartError, refused
from haclusterd.heart.netlink import Netlink

_SO_MARK = 36  # not in the socket module before Python 3.13
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_OTHER_HOST = b"\x02" + b"\0" * 5  # no NIC's address: a frame that passes the chain dies on lo
_ARM, _RENEW, _CLOSE = 1, 2, 3  # last octet of the crafted frame's destination
_NFT_TIMEOUT_S = 5.0
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
    def unload(self) -> None: ...
    def arm(self) -> bool: ...
    def needs(self, device: str) -> bool: ...
    def device_gone(self, device: str) -> None: ...
    def renew(self, indices: Collection[int]) -> bool: ...
    def close(self, indices: Collection[int]) -> bool: ...


def table_name(cluster: str, node: str) -> str:
    """An nf_tables name for this node's table: letters that nft takes, unique by checksum."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", f"{cluster}_{node}")[:60]
    return f"haclusterd_{plain}_{zlib.crc32(f'{cluster}/{node}'.encode()):08x}"


def ruleset(
    table: str,
    mark: int,
    devices: Sequence[str],
    addresses: Sequence[str],
    fence_ms: int,
    arm_ms: int,
) -> str:
    """The nft script that replaces `table` by a closed fence, in one transaction."""
    four = [a for a in addresses if ":" not in a]
    six = [a for a in addresses if ":" in a]
    sets, guard, control = [], [], []
    for family, kind, members, loopback in (
        ("ip", "ipv4_addr", four, "127.0.0."),
        ("ip6", "ipv6_addr", six, "::"),
    ):
        if not members:
            continue
        lease, own = f"lease_{family}", f"service_{family}"
        mine = f"{family} saddr @{own}"
        sets += [
            f"set {lease} {{ type {kind}; size 65535; flags dynamic,timeout; gc-interval 1s; }}",
            f"set {own} {{ type {kind}; elements = {{ {', '.join(members)} }} }}",
        ]
        guard.append(f"{mine} {family} saddr != @{lease} drop")
        control += [
            f"{family} daddr {loopback}{_RENEW} {mine} meta mark @armed "
            f"update @{lease} {{ {family} saddr timeout {fence_ms}ms }} drop",
            f"{family} daddr {loopback}{_CLOSE} {mine} delete @{lease} {{ {family} saddr }} drop",
        ]
    guard += _neighbour_rules(four, six)
    arm = f"ip daddr 127.0.0.{_ARM} update @armed {{ meta mark timeout {arm_ms}ms }} drop"
    named = ", ".join(f'"{device}"' for device in devices)
    body = [
        "set armed { type mark; size 4096; flags dynamic,timeout; gc-interval 1s; }",
        *sets,
        *(_chain("guard", f"devices = {{ {named} }}", guard) if named and guard else ()),
        *_chain("control", 'device "lo"', [f"meta mark != {mark:#x} accept", arm, *control]),
    ]
    name = f"table netdev {table}"
    return "\n".join([name, f"delete {name}", f"{name} {{", *body, "}"]) + "\n"


def _neighbour_rules(four: Sequence[str], six: Sequence[str]) -> list[str]:
    """What speaks for an address without having it as source: ARP, and NA by others."""
    rules = ["arp saddr ip @service_ip arp saddr ip != @lease_ip drop"] if four else []
    for address in six:
        # nft 1.0.6 has no name for the target field: it starts 8 bytes into the ICMPv6 header.
        target = ipaddress.ip_address(address).packed.hex()
        rules.append(
            f"icmpv6 type nd-neighbor-advert @th,64,128 0x{target} ip6 saddr != @lease_ip6 drop"
        )
    return rules


def _chain(name: str, device: str, rules: Sequence[str]) -> list[str]:
    head = f"type filter hook egress {device} priority 0; policy accept;"
    return [f"chain {name} {{", head, *rules, "}"]


def run_nft(*arguments: str, script: str = "") -> None:
    """Run nft once, at start or stop. Raises HeartError with nft's own first complaint."""
    try:
        done = subprocess.run(
            ["nft", *arguments],
            input=script,
            capture_output=True,
            text=True,
            timeout=_NFT_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise HeartError("the program nft is missing", "apt-get install nftables") from error
    except subprocess.TimeoutExpired as error:
        raise HeartError(f"nft did not finish within {_NFT_TIMEOUT_S:.0f} s") from error
    if done.returncode == 0:
        return
    said = next((line for line in done.stderr.splitlines() if line.strip()), "no reason given")
    fix = "needs Linux 5.16 or later with CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_EGRESS"
    if "permitted" in said:
        fix = "run with CAP_NET_ADMIN"
    raise HeartError(f"nft: {said.strip()}", fix)


def drop_table(table: str) -> None:
    """Remove the table, if it is there. Raises HeartError."""
    name = f"table netdev {table}"
    run_nft("-f", "-", script=f"{name}\ndelete {name}\n")


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
        self._mark = zlib.crc32(table.encode()) | 1
        self._services = dict(services)
        self._devices = sorted(
            {*devices, *(d for s in services.values() for d in s.devices)} - {"lo"}
        )
        self._fence_ms, self._arm_ms = fence_ms, arm_ms
        self.least_fence_ms = fence_ms - -(-jiffy_us() // 1000)
        self.missing_devices: tuple[str, ...] = ()
        self._arm_frame = _frame("127.0.0.1", _ARM)
        self._renew_frames = {i: _frames(s, _RENEW) for i, s in services.items()}
        self._close_frames = {i: _frames(s, _CLOSE) for i, s in services.items()}
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_PACKET, kind, 0)  # 0: receives nothing
            self._socket.bind(("lo", 0))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_MARK, struct.pack("=I", self._mark))
        except OSError as error:
            raise refused("the fence's control socket", error) from error

    def load(self) -> None:
        """Replace whatever table a predecessor left by a closed fence, and prove that it acts.

        NICs that do not exist are left out and named in `missing_devices`; load again once they
        appear. Raises HeartError.
        """
        present = {name for _index, name in socket.if_nameindex()}
        self.missing_devices = tuple(d for d in self._devices if d not in present)
        addresses = [a for s in self._services.values() for a in s.addresses]
        devices = [d for d in self._devices if d in present]
        run_nft(
            "-f",
            "-",
            script=ruleset(
                self._table, self._mark, devices, addresses, self._fence_ms, self._arm_ms
            ),
        )
        if not self.close(self._services) or not self.arm():
            raise InertFence(
                "the nf_tables fence was loaded but does not act",
                "bring the loopback up: `ip link set lo up`",
            )

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
        """Allow renewals for `arm_ms`; False: the table is gone and nothing is fenced."""
        return self._consumed(self._arm_frame)

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
