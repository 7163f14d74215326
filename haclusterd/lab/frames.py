"""Ethernet frames of the laboratory: the questions it asks, and who speaks for an address.

Pure: bytes in, bytes or values out.
"""

from __future__ import annotations

import socket
import struct

ETH_IPV4, ETH_ARP, ETH_IPV6 = 0x0800, 0x0806, 0x86DD
_UDP, _ICMPV6 = 17, 58
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136
_BROADCAST = b"\xff" * 6


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def arp_question(mac: bytes, ip: str, target: str) -> bytes:
    """ARP request from `ip` at `mac` for `target`, to everybody."""
    header = struct.pack("!HHBBH", 1, ETH_IPV4, 6, 4, 1)
    body = mac + socket.inet_aton(ip) + bytes(6) + socket.inet_aton(target)
    return _BROADCAST + mac + struct.pack("!H", ETH_ARP) + header + body


def neighbour_question(mac: bytes, ip: str, target: str) -> bytes:
    """Neighbour solicitation from `ip` at `mac` for `target`, to its multicast group."""
    source, wanted = (socket.inet_pton(socket.AF_INET6, text) for text in (ip, target))
    group = bytes.fromhex("ff0200000000000000000001ff") + wanted[-3:]
    body = bytes(4) + wanted + b"\x01\x01" + mac
    head = bytes([_NEIGHBOUR_SOLICITATION, 0])
    pseudo = source + group + struct.pack("!I3xB", len(body) + 4, _ICMPV6)
    checksum = _checksum(pseudo + head + b"\0\0" + body)
    icmp = head + struct.pack("!H", checksum) + body
    packet = struct.pack("!IHBB", 0x60000000, len(icmp), _ICMPV6, 255) + source + group + icmp
    return b"\x33\x33\xff" + wanted[-3:] + mac + struct.pack("!H", ETH_IPV6) + packet


def speaks_for(frame: bytes | memoryview) -> bytes:
    """The address (4 or 16 bytes) that this frame speaks for, empty if for none.

    That is the sender of an ARP question or answer, the source of an IP packet, and the target of
    a neighbour advertisement. ARP probes and questions from :: speak for nothing.
    """
    kind = (frame[12] << 8) | frame[13]
    if kind == ETH_IPV4:
        return bytes(frame[26:30])
    if kind == ETH_ARP:
        sender = bytes(frame[28:32])
        return sender if any(sender) else b""
    if kind == ETH_IPV6 and len(frame) >= 54:
        if frame[20] == _ICMPV6 and frame[54] == _NEIGHBOUR_ADVERTISEMENT and len(frame) >= 78:
            return bytes(frame[62:78])
        source = bytes(frame[22:38])
        return source if any(source) else b""
    return b""


def udp_of(frame: bytes | memoryview) -> tuple[int, int, bytes | memoryview] | None:
    """(source port, destination port, payload) of an unfragmented IPv4 UDP frame."""
    if ((frame[12] << 8) | frame[13]) != ETH_IPV4 or frame[23] != _UDP:
        return None
    if ((frame[20] << 8) | frame[21]) & 0x1FFF:
        return None
    start = 14 + (frame[14] & 15) * 4
    if len(frame) < start + 8:
        return None
    source = (frame[start] << 8) | frame[start + 1]
    target = (frame[start + 2] << 8) | frame[start + 3]
    return source, target, frame[start + 8 :]


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
