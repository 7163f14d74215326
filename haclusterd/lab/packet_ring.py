"""Frames that cross a bridge, through a memory-mapped ring: no system call per packet.

The kernel stamps and filters; frames that a cut port swallowed never reach the bridge, so what
comes out here is what was on the wire.
"""

from __future__ import annotations

import ctypes
import mmap
import select
import socket
import struct
from collections.abc import Iterator

from haclusterd.lab.clock import wall_offset_ns
from haclusterd.lab.frames import ETH_ARP, ETH_IPV4, ETH_IPV6

_SOL_PACKET = 263
_ADD_MEMBERSHIP, _RX_RING, _STATISTICS, _VERSION = 1, 5, 6, 10
_MR_PROMISC, _TPACKET_V3 = 1, 2
_SO_ATTACH_FILTER = 26
_ETH_P_ALL = 3
# A block is given up every 4 ms, full or not: this many outlast two seconds without the CPU.
_BLOCK_BYTES, _BLOCKS, _FRAME_BYTES, _RETIRE_MS = 1 << 16, 512, 1 << 11, 4
_TP_STATUS_USER = 1

_HEADER_BYTES = 64  # Ethernet, IPv4, UDP, RTP; or ARP
_V6_BYTES = 128
_WHOLE = 65535

# Classic BPF: operation codes used below.
_LDH, _LDB, _LDW, _LDHX, _LDXMSH = 0x28, 0x30, 0x20, 0x48, 0xB1
_JEQ, _JGE, _JGT, _JSET, _RET = 0x15, 0x35, 0x25, 0x45, 0x06

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def filter_program(sip_port: int, first_ip: str, last_ip: str) -> list[Instruction]:
    """Whole SIP messages; the heads of ARP, IPv6, and of IPv4 from `first_ip` to `last_ip`."""
    low, high = (struct.unpack("!I", socket.inet_aton(ip))[0] for ip in (first_ip, last_ip))
    lines: list[tuple[str, int, str, str, int]] = [  # label, code, if true, if false, operand
        ("", _LDH, "", "", 12),
        ("", _JEQ, "head", "", ETH_ARP),
        ("", _JEQ, "v6", "", ETH_IPV6),
        ("", _JEQ, "", "drop", ETH_IPV4),
        ("", _LDB, "", "", 23),
        ("", _JEQ, "", "source", 17),
        ("", _LDH, "", "", 20),
        ("", _JSET, "source", "", 0x1FFF),
        ("", _LDXMSH, "", "", 14),
        ("", _LDHX, "", "", 14),
        ("", _JEQ, "whole", "", sip_port),
        ("", _LDHX, "", "", 16),
        ("", _JEQ, "whole", "", sip_port),
        ("source", _LDW, "", "", 26),
        ("", _JGE, "", "drop", low),
        ("", _JGT, "drop", "head", high),
        ("whole", _RET, "", "", _WHOLE),
        ("head", _RET, "", "", _HEADER_BYTES),
        ("v6", _RET, "", "", _V6_BYTES),
        ("drop", _RET, "", "", 0),
    ]
    at = {label: number for number, (label, *_) in enumerate(lines) if label}

    def ahead(number: int, label: str) -> int:
        return at[label] - number - 1 if label else 0

    return [
        (code, ahead(number, true), ahead(number, false), operand)
        for number, (_, code, true, false, operand) in enumerate(lines)
    ]


class PacketRing:
    """A capture on one bridge. Open it inside the namespace of the bridge."""

    def __init__(self, bridge: str, program: list[Instruction]) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
        self._code = ctypes.create_string_buffer(code, len(code))
        header = struct.pack("@HP", len(program), ctypes.addressof(self._code))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
        self._socket.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
        frames = _BLOCK_BYTES * _BLOCKS // _FRAME_BYTES
        request = struct.pack("=7I", _BLOCK_BYTES, _BLOCKS, _FRAME_BYTES, frames, _RETIRE_MS, 0, 0)
        self._socket.setsockopt(_SOL_PACKET, _RX_RING, request)
        self._ring = mmap.mmap(self._socket.fileno(), _BLOCK_BYTES * _BLOCKS)
        self._view = memoryview(self._ring)
        self._block = 0
        index = socket.if_nametoindex(bridge)
        member = struct.pack("=IHH8x", index, _MR_PROMISC, 0)
        self._socket.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)
        self._socket.bind((bridge, _ETH_P_ALL))

    def fileno(self) -> int:
        return self._socket.fileno()

    def dropped(self) -> int:
        """Frames that the kernel could not deliver since the last call."""
        counters = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 12)
        return int(struct.unpack("=3I", counters)[1])

    def read(self) -> Iterator[tuple[int, memoryview]]:
        """(BOOTTIME in ns, frame) of all complete blocks; a frame is valid until the next one."""
        offset_ns = wall_offset_ns()
        for _ in range(_BLOCKS):
            start = self._block * _BLOCK_BYTES
            status, count, first = struct.unpack_from("=3I", self._ring, start + 8)
            if not status & _TP_STATUS_USER:
                return
            at = start + first
            for _ in range(count):
                ahead, seconds, ns, size, _, _, mac = struct.unpack_from("=6IH", self._ring, at)
                yield (
                    seconds * 1_000_000_000 + ns + offset_ns,
                    self._view[at + mac : at + mac + size],
                )
                at += ahead
            struct.pack_into("=I", self._ring, start + 8, 0)
            self._block = (self._block + 1) % _BLOCKS

    def wait(self, other: int, timeout_s: float) -> bool:
        """Sleep until frames, or input on descriptor `other`; True if it is `other`."""
        ready, _, _ = select.select([self._socket.fileno(), other], [], [], timeout_s)
        return other in ready
