"""Telling the neighbours where an address lives now, and hearing who else answers for it.

Gratuitous ARP (RFC 5227 3: request and reply form, since some stacks heed only one), unsolicited
neighbour advertisements with the override flag (RFC 4861 7.2.6), and probes for both. Frames are
built by hand and sent on packet sockets that were opened beforehand; a kernel filter lets only
frames about our service addresses wake the loop.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from haclusterd.heart.errors import refused

_ETH_P_ARP, _ETH_P_IPV6 = 0x0806, 0x86DD
_SO_ATTACH_FILTER = 26
_PACKET_OUTGOING = 4
_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6
_SOLICITATION, _ADVERTISEMENT = 135, 136
_OVERRIDE = 0x20000000
_FRAME_BYTES = 1522
_ADDRESSES_MAX = 60  # a BPF jump reaches 255 instructions


@dataclass(frozen=True)
class Alien:
    """Somebody whose MAC is not ours spoke for one of our service addresses."""

    address: str
    mac: str


def arp_frame(operation: int, mac: bytes, sender: str, target: str) -> bytes:
    """A broadcast ARP frame; `sender` "0.0.0.0" makes it a probe (RFC 5227 2.1.1)."""
    head = _BROADCAST + mac + struct.pack("!H", _ETH_P_ARP)
    asked = mac if operation == _REPLY else bytes(6)
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return head + body + mac + socket.inet_aton(sender) + asked + socket.inet_aton(target)


def advertisement_frame(mac: bytes, address: str) -> bytes:
    """An unsolicited neighbour advertisement to all nodes, from the address itself."""
    raw = socket.inet_pton(socket.AF_INET6, address)
    body = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + raw + b"\x02\x01" + mac
    return _icmpv6_frame(mac, raw, socket.inet_pton(socket.AF_INET6, "ff02::1"), body)


def solicitation_frame(mac: bytes, address: str) -> bytes:
    """A neighbour solicitation from the unspecified address: a question that teaches nobody."""
    raw = socket.inet_pton(socket.AF_INET6, address)
    group = socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13] + raw[13:]
    return _icmpv6_frame(mac, bytes(16), group, struct.pack("!BBHI", _SOLICITATION, 0, 0, 0) + raw)


def _icmpv6_frame(mac: bytes, source: bytes, group: bytes, body: bytes) -> bytes:
    pseudo = source + group + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 0x60000000, len(body), socket.IPPROTO_ICMPV6, 255)
    ethernet = b"\x33\x33" + group[12:] + mac + struct.pack("!H", _ETH_P_IPV6)
    return ethernet + header + source + group + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return 0xFFFF - ((total + (total >> 16)) & 0xFFFF)


def parse_speaker(frame: bytes) -> tuple[str, bytes] | None:
    """(address, MAC) that an ARP frame or a neighbour advertisement speaks for, else None."""
    if len(frame) < 42:
        return None
    kind = int.from_bytes(frame[12:14], "big")
    if kind == _ETH_P_ARP and frame[14:20] == b"\x00\x01\x08\x00\x06\x04":
        return socket.inet_ntoa(frame[28:32]), frame[22:28]
    if (
        kind == _ETH_P_IPV6
        and len(frame) >= 78
        and frame[20] == socket.IPPROTO_ICMPV6
        and frame[54] == _ADVERTISEMENT
    ):
        mac = frame[6:12]
        if len(frame) >= 86 and frame[78:80] == b"\x02\x01":
            mac = frame[80:86]
        return socket.inet_ntop(socket.AF_INET6, frame[62:78]), mac
    return None


class Announcer:
    """Announcements, probes and their answers for the service addresses of one NIC."""

    def __init__(self, device: str, mac: bytes, addresses: Sequence[str]) -> None:
        """Open the packet sockets. Raises HeartError (no such NIC, missing CAP_NET_RAW)."""
        self.device = device
        self._mac = mac
        self._addresses = {str(ipaddress.ip_address(a)) for a in addresses}
        v4 = [socket.inet_aton(a) for a in self._addresses if ":" not in a]
        v6 = [socket.inet_pton(socket.AF_INET6, a) for a in self._addresses if ":" in a]
        self.sockets: list[socket.socket] = []
        try:
            if v4 or not v6:
                self.sockets.append(_open(device, _ETH_P_ARP, _arp_filter(v4)))
            if v6:
                self.sockets.append(_open(device, _ETH_P_IPV6, _advertisement_filter(v6)))
        except OSError as error:
            self.close()
            raise refused(f"packet socket on {device}", error) from error
        self._announcements = {a: self._announcement(a) for a in self._addresses}
        self._probes = {a: self._probe(a) for a in self._addresses}

    def _announcement(self, address: str) -> tuple[bytes, ...]:
        if ":" in address:
            return (advertisement_frame(self._mac, address),)
        return (
            arp_frame(_REQUEST, self._mac, address, address),
            arp_frame(_REPLY, self._mac, address, address),
        )

    def _probe(self, address: str) -> bytes:
        if ":" in address:
            return solicitation_frame(self._mac, address)
        return arp_frame(_REQUEST, self._mac, "0.0.0.0", address)

    def announce(self, address: str, count: int = 1) -> int:
        """Broadcast `count` rounds for one address; frames the kernel took (0: fenced)."""
        return sum(
            self._send(frame)
            for _round in range(count)
            for frame in self._announcements[str(ipaddress.ip_address(address))]
        )

    def probe(self, address: str) -> bool:
        """Ask who has `address`; answers come through `receive`."""
        return bool(self._send(self._probes[str(ipaddress.ip_address(address))]))

    def _send(self, frame: bytes) -> int:
        try:
            # The protocol by name: the fence looks at it before it looks into the frame.
            protocol = int.from_bytes(frame[12:14], "big")
            self.sockets[0].sendto(frame, (self.device, protocol))
        except OSError:
            return 0
        return 1

    def receive(self, limit: int = 32) -> list[Alien]:
        """Who else spoke for our addresses since the last call; at most `limit` frames a socket."""
        found = []
        for source in self.sockets:
            for _turn in range(limit):
                try:
                    frame, origin = source.recvfrom(_FRAME_BYTES)
                except OSError:
                    break
                spoken = parse_speaker(frame)
                if spoken is None or origin[2] == _PACKET_OUTGOING:
                    continue
                address, mac = spoken
                if address in self._addresses and mac != self._mac:
                    found.append(Alien(address, mac.hex(":")))
        return found

    def close(self) -> None:
        for opened in self.sockets:
            opened.close()
        self.sockets.clear()


def _open(device: str, protocol: int, program: list[tuple[int, int, int, int]]) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    opened = socket.socket(socket.AF_PACKET, kind, 0)
    try:
        # Filter before the protocol is bound: no frame from before it is ever seen.
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
        buffer = ctypes.create_string_buffer(code)
        filter_program = struct.pack("HL", len(program), ctypes.addressof(buffer))
        opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_program)
        opened.bind((device, protocol))
    except OSError:
        opened.close()
        raise
    return opened


# Classic BPF: (code, jump if true, jump if false, k).
_LOAD_WORD, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06
_REJECT, _ACCEPT = (_RETURN, 0, 0, 0), (_RETURN, 0, 0, _FRAME_BYTES)


def _word_filter(offset: int, words: list[int]) -> list[tuple[int, int, int, int]]:
    """Accept frames whose 32-bit word at `offset` is one of `words`."""
    words = sorted(set(words))[:_ADDRESSES_MAX]
    program = [(_LOAD_WORD, 0, 0, offset)]
    for position, word in enumerate(words):
        program.append((_JUMP_EQUAL, len(words) - position, 0, word))
    return [*program, _REJECT, _ACCEPT]


def _arp_filter(addresses: list[bytes]) -> list[tuple[int, int, int, int]]:
    return _word_filter(28, [int.from_bytes(a, "big") for a in addresses])


def _advertisement_filter(addresses: list[bytes]) -> list[tuple[int, int, int, int]]:
    rest = _word_filter(74, [int.from_bytes(a[12:], "big") for a in addresses])
    next_header = [(_LOAD_BYTE, 0, 0, 20), (_JUMP_EQUAL, 1, 0, socket.IPPROTO_ICMPV6), _REJECT]
    kind = [(_LOAD_BYTE, 0, 0, 54), (_JUMP_EQUAL, 1, 0, _ADVERTISEMENT), _REJECT]
    return [*next_header, *kind, *rest]
