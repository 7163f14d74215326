"""rtnetlink by hand: service addresses, source rules, link and address notifications.

Hand-written because it is on the takeover path and in the locked process: a call costs 5 us where
a library needs 200 us and 27 MB. Message layouts: rtnetlink(7), linux/if_addr.h, linux/fib_rules.h.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass

from haclusterd.heart.errors import HeartError, refused

FOREVER_S = 0xFFFFFFFF
_NETLINK_ROUTE = 0
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWRULE, _RTM_DELRULE = 32, 33
_REQUEST, _ACK, _DUMP, _REPLACE, _EXCL, _CREATE = 0x1, 0x4, 0x300, 0x100, 0x200, 0x400
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 6, 8
_IFA_F_NODAD, _IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x02, 0x08, 0x40
_IFLA_ADDRESS, _IFLA_IFNAME = 1, 3
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING = 0x1, 0x8, 0x40
_GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
_FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY = 2, 3, 6
_FR_ACT_PROHIBIT = 8
_HEADER = struct.Struct("=IHHII")
_RECEIVE_BYTES = 65536
_DUMP_MESSAGES_MAX = 4096


@dataclass(frozen=True)
class Link:
    """One NIC as the kernel sees it now. `carrier` is operational state, `up` the admin flag."""

    index: int
    name: str
    mac: bytes
    up: bool
    carrier: bool
    loopback: bool = False
    removed: bool = False


@dataclass(frozen=True)
class Address:
    """One address on a NIC; in notifications `removed` says that it went.

    `usable` is False for an IPv6 address that is tentative or failed duplicate detection.
    """

    index: int
    address: str
    prefix: int
    usable: bool = True
    removed: bool = False


def _attribute(kind: int, body: bytes) -> bytes:
    size = 4 + len(body)
    return struct.pack("=HH", size, kind) + body + b"\0" * (-size % 4)


def _attributes(message: memoryview, offset: int) -> dict[int, bytes]:
    found = {}
    while offset + 4 <= len(message):
        size, kind = struct.unpack_from("=HH", message, offset)
        if size < 4:
            break
        found[kind & 0x3FFF] = bytes(message[offset + 4 : offset + size])
        offset += (size + 3) & ~3
    return found


def _messages(datagram: bytes) -> list[tuple[int, memoryview]]:
    """(type, body) of each netlink message in a datagram; stops at a malformed length."""
    found = []
    view = memoryview(datagram)
    while len(view) >= 16:
        size, kind, _flags, _sequence, _pid = _HEADER.unpack_from(view)
        if size < 16 or size > len(view):
            break
        found.append((kind, view[16:size]))
        view = view[(size + 3) & ~3 :]
    return found


def _parse(kind: int, body: memoryview) -> Link | Address | None:
    if kind in (_RTM_NEWLINK, _RTM_DELLINK) and len(body) >= 16:
        family, _type, index, flags = struct.unpack_from("=BxHiI", body)
        if family != socket.AF_UNSPEC:  # bridge port notifications say nothing about the NIC
            return None
        found = _attributes(body, 16)
        return Link(
            index=index,
            name=found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
            mac=found.get(_IFLA_ADDRESS, b""),
            up=bool(flags & _IFF_UP),
            carrier=bool(flags & _IFF_RUNNING),
            loopback=bool(flags & _IFF_LOOPBACK),
            removed=kind == _RTM_DELLINK,
        )
    if kind in (_RTM_NEWADDR, _RTM_DELADDR) and len(body) >= 8:
        family, prefix, short_flags, _scope, index = struct.unpack_from("=BBBBi", body)
        found = _attributes(body, 8)
        raw = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
        if len(raw) != {socket.AF_INET: 4, socket.AF_INET6: 16}.get(family, -1):
            return None
        wide = found.get(_IFA_FLAGS, b"")
        flags = struct.unpack("=I", wide)[0] if len(wide) == 4 else short_flags
        return Address(
            index=index,
            address=socket.inet_ntop(family, raw),
            prefix=prefix,
            usable=not flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED),
            removed=kind == _RTM_DELADDR,
        )
    return None


def _open(groups: int) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    try:
        made = socket.socket(socket.AF_NETLINK, kind, _NETLINK_ROUTE)
        made.bind((0, groups))
    except OSError as error:
        raise refused("rtnetlink socket", error) from error
    return made


class Netlink:
    """Requests to the kernel's routing tables, each acknowledged before the call returns."""

    def __init__(self) -> None:
        self._socket = _open(0)
        # The kernel answers inside send(); the timeout only guards against its never doing so.
        self._socket.settimeout(0.5)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def add_address(
        self, index: int, address: str, prefix: int, valid_s: int, preferred_s: int | None = None
    ) -> None:
        """Add an address, or renew its lifetimes if it is there. No duplicate detection (IPv6):
        the grant decides who holds it, and waiting for DAD would cost a second.

        `preferred_s` 0 makes it deprecated: never chosen as source for new IPv6 traffic.
        Raises HeartError.
        """
        preferred = valid_s if preferred_s is None else preferred_s
        body = self._address_body(index, address, prefix)
        body += _attribute(_IFA_CACHEINFO, struct.pack("=IIII", preferred, valid_s, 0, 0))
        if ":" in address:
            body += _attribute(_IFA_FLAGS, struct.pack("=I", _IFA_F_NODAD))
        code = self._request(_RTM_NEWADDR, _CREATE | _REPLACE, body)
        if code == errno.EACCES and ":" in address:
            raise HeartError(
                f"adding {address}/{prefix}: IPv6 is disabled on its NIC",
                "set net.ipv6.conf.DEV.disable_ipv6 to 0 by sysctl",
            )
        if code:
            raise refused(f"adding {address}/{prefix}", OSError(code, ""))

    def delete_address(self, index: int, address: str, prefix: int) -> bool:
        """Remove an address; False if it (or its NIC) was not there. Raises HeartError."""
        code = self._request(_RTM_DELADDR, 0, self._address_body(index, address, prefix))
        if code in (errno.EADDRNOTAVAIL, errno.ENODEV):
            return False
        if code:
            raise refused(f"removing {address}/{prefix}", OSError(code, ""))
        return True

    def prohibit_source(self, address: str, priority: int, *, on: bool) -> bool:
        """Set or clear `ip rule from ADDRESS iif lo prohibit`; False if it already was so.

        `iif lo` is what this host sends itself: packets from the address, wherever it lives now,
        are received as ever.
        """
        raw, family = _packed(address)
        body = struct.pack("=BBBBBBBBI", family, 0, len(raw) * 8, 0, 0, 0, 0, _FR_ACT_PROHIBIT, 0)
        body += _attribute(_FRA_SRC, raw) + _attribute(_FRA_PRIORITY, struct.pack("=I", priority))
        body += _attribute(_FRA_IIFNAME, b"lo\0")
        kind, flags = (_RTM_NEWRULE, _CREATE | _EXCL) if on else (_RTM_DELRULE, 0)
        code = self._request(kind, flags, body)
        if code in (errno.EEXIST, errno.ENOENT):
            return False
        if code:
            raise refused(f"ip rule from {address} prohibit", OSError(code, ""))
        return True

    def links(self) -> list[Link]:
        """All NICs of this network namespace."""
        found = self._dump(_RTM_GETLINK, struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0))
        return [item for item in found if isinstance(item, Link)]

    def link(self, name: str) -> Link | None:
        """The NIC called `name`, or None."""
        return next((link for link in self.links() if link.name == name), None)

    def addresses(self, index: int = 0) -> list[Address]:
        """Addresses on NIC `index` (0: on all), in the kernel's order."""
        found = self._dump(_RTM_GETADDR, struct.pack("=BBBBi", socket.AF_UNSPEC, 0, 0, 0, 0))
        return [
            item
            for item in found
            if isinstance(item, Address) and (not index or item.index == index)
        ]

    def answers_for(self, index: int, address: str) -> bool:
        """Whether an IPv6 address is there and neither tentative nor found to be a duplicate.

        Raises HeartError.
        """
        raw, family = _packed(address)
        body = struct.pack("=BBBBi", family, 0, 0, 0, index) + _attribute(_IFA_ADDRESS, raw)
        self._send(_RTM_GETADDR, 0, body)
        for _attempt in range(8):
            datagram = self._receive()
            if _HEADER.unpack_from(datagram)[3] == self._sequence:
                found = [_parse(kind, content) for kind, content in _messages(datagram)]
                return any(isinstance(a, Address) and a.usable for a in found)
        raise HeartError("the kernel did not answer an rtnetlink request")

    def _address_body(self, index: int, address: str, prefix: int) -> bytes:
        raw, family = _packed(address)
        head = struct.pack("=BBBBi", family, prefix, 0, 0, index)
        return head + _attribute(_IFA_LOCAL, raw) + _attribute(_IFA_ADDRESS, raw)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        header = _HEADER.pack(16 + len(body), kind, flags | _REQUEST, self._sequence, 0)
        try:
            self._socket.send(header + body)
        except OSError as error:
            raise refused("rtnetlink request", error) from error

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError as error:
            raise HeartError("the kernel did not answer an rtnetlink request") from error
        except OSError as error:
            raise refused("rtnetlink answer", error) from error

    def _request(self, kind: int, flags: int, body: bytes) -> int:
        """Send one request and return the errno of its acknowledgement (0: done)."""
        self._send(kind, flags | _ACK, body)
        for _attempt in range(8):  # answers to an earlier request that timed out come first
            datagram = self._receive()
            size, answer, _flags, sequence, _pid = _HEADER.unpack_from(datagram)
            if answer == _NLMSG_ERROR and sequence == self._sequence and size >= 20:
                return -int(struct.unpack_from("=i", datagram, 16)[0])
        raise HeartError("the kernel did not acknowledge an rtnetlink request")

    def _dump(self, kind: int, body: bytes) -> list[Link | Address]:
        self._send(kind, _DUMP, body)
        found: list[Link | Address] = []
        for _datagram in range(_DUMP_MESSAGES_MAX):
            datagram = self._receive()
            if _HEADER.unpack_from(datagram)[3] != self._sequence:
                continue
            for answer, content in _messages(datagram):
                if answer == _NLMSG_DONE:
                    return found
                if answer == _NLMSG_ERROR:
                    code = -int(struct.unpack_from("=i", content)[0])
                    raise refused("rtnetlink listing", OSError(code, ""))
                item = _parse(answer, content)
                if item is not None:
                    found.append(item)
        raise HeartError("the kernel's rtnetlink listing did not end")


class NetlinkEvents:
    """Link and address changes as they happen, from a non-blocking socket for the loop's epoll."""

    def __init__(self) -> None:
        self._socket = _open(_GROUPS)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def receive(self, limit: int = 64) -> tuple[list[Link | Address], bool]:
        """Changes waiting (at most `limit` datagrams) and whether some were lost.

        After a loss (the kernel's buffer overran) the caller lists everything anew.
        """
        found: list[Link | Address] = []
        for _turn in range(limit):
            try:
                datagram = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return found, True
                raise refused("rtnetlink notifications", error) from error
            for kind, body in _messages(datagram):
                item = _parse(kind, body)
                if item is not None:
                    found.append(item)
        return found, False


def _packed(address: str) -> tuple[bytes, int]:
    parsed = ipaddress.ip_address(address)
    return parsed.packed, socket.AF_INET6 if parsed.version == 6 else socket.AF_INET
