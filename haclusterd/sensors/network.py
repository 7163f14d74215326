"""Probes of the network that never wait but for an answer: carrier, ICMP echo, SIP OPTIONS."""

from __future__ import annotations

import asyncio
import fcntl
import re
import secrets
import socket
import struct
from collections.abc import Callable

_SIOCGIFFLAGS = 0x8913
_UP, _RUNNING = 0x1, 0x40
_ECHO = {socket.AF_INET: (8, 0), socket.AF_INET6: (128, 129)}
_STATUS = re.compile(rb"SIP/2\.0 ([1-6][0-9]{2}) ")
_DATAGRAM = 65535


class ProbeFailed(Exception):
    """No answer, or none that is good; the message is for people."""


class NobodyListens(ProbeFailed):
    """The host is there and says that nothing listens on this port."""


def carrier(nic: str) -> str:
    """Why the NIC cannot carry anything now; empty if it can. Looks into this network namespace."""
    request = struct.pack("16sH14x", nic.encode(), 0)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            answer = fcntl.ioctl(asker, _SIOCGIFFLAGS, request)
    except OSError as error:
        return f"{nic}: {error.strerror}"
    flags = struct.unpack("16sH14x", answer)[1]
    if not flags & _UP:
        return f"{nic} is down"
    return "" if flags & _RUNNING else f"{nic} has no carrier"


async def ping(host: str, timeout_s: float) -> float:
    """ms until one ICMP echo was answered. Raises ProbeFailed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    token = secrets.token_bytes(16)
    wanted = _ECHO[family][1]

    def is_ours(packet: bytes) -> bool:
        at = packet.find(token)
        return at >= 8 and packet[at - 8] == wanted

    with _icmp_socket(family) as asker:
        return await _ask(asker, (host, 0), _echo(family, token), timeout_s, is_ours)


def _icmp_socket(family: socket.AddressFamily) -> socket.socket:
    protocol = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            return socket.socket(family, kind, protocol)
        except OSError as error:
            reason = error.strerror
    raise ProbeFailed(f"no ICMP socket: {reason}; needs CAP_NET_RAW or net.ipv4.ping_group_range")


def _echo(family: int, token: bytes) -> bytes:
    kind = _ECHO[socket.AddressFamily(family)][0]
    bare = struct.pack("!BBHHH", kind, 0, 0, 0x6861, 1) + token
    if family == socket.AF_INET6:
        return bare  # the kernel adds the checksum
    total = sum(struct.unpack(f"!{len(bare) // 2}H", bare))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~(total + (total >> 16)) & 0xFFFF
    return bare[:2] + struct.pack("!H", total) + bare[4:]


async def options(host: str, port: int, timeout_s: float) -> tuple[int, float]:
    """(status, ms) of the final answer to one SIP OPTIONS over UDP. Raises ProbeFailed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    token = secrets.token_hex(12)
    with socket.socket(family, socket.SOCK_DGRAM) as asker:
        try:
            asker.connect((host, port))
        except OSError as error:
            raise ProbeFailed(f"{host}: {error.strerror}") from None
        own, own_port = asker.getsockname()[:2]
        message = _request(_in_uri(host), port, _in_uri(own), own_port, token)
        status = 0

        def is_final(packet: bytes) -> bool:
            nonlocal status
            found = _STATUS.match(packet)
            status = int(found[1]) if found else 0
            return status >= 200 and token.encode() in packet

        took_ms = await _ask(asker, None, message, timeout_s, is_final)
    return status, took_ms


def _in_uri(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _request(host: str, port: int, own: str, own_port: int, token: str) -> bytes:
    uri = f"sip:{host}:{port}"
    lines = (
        f"OPTIONS {uri} SIP/2.0",
        f"Via: SIP/2.0/UDP {own}:{own_port};rport;branch=z9hG4bK{token}",
        "Max-Forwards: 70",
        f"From: <sip:haclusterd@{own}>;tag={token[:8]}",
        f"To: <{uri}>",
        f"Call-ID: {token}@haclusterd",
        "CSeq: 1 OPTIONS",
        f"Contact: <sip:haclusterd@{own}:{own_port}>",
        "User-Agent: haclusterd",
        "Content-Length: 0",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _ask(
    asker: socket.socket,
    to: tuple[str, int] | None,
    message: bytes,
    timeout_s: float,
    is_answer: Callable[[bytes], bool],
) -> float:
    """Send and wait for what is an answer; other datagrams change nothing."""
    loop = asyncio.get_running_loop()
    asker.setblocking(False)
    began = loop.time()
    try:
        if to is not None:
            asker.connect(to)
        asker.send(message)
        async with asyncio.timeout(timeout_s):
            while not is_answer(await loop.sock_recv(asker, _DATAGRAM)):
                await asyncio.sleep(0)
    except TimeoutError:
        raise ProbeFailed(f"no answer within {timeout_s:g} s") from None
    except ConnectionRefusedError as error:
        raise NobodyListens(error.strerror or str(error)) from None
    except OSError as error:
        raise ProbeFailed(error.strerror or str(error)) from None
    return (loop.time() - began) * 1000
