"""Heartbeat links: one non-blocking UDP socket per NIC, which survives whatever the NIC does.

Bytes in, bytes out: what they mean is `wire`'s and the core's. A link whose address is absent, or
whose NIC is gone, counts its errors and is opened again by `reopen`; the others go on.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from haclusterd.heart.errors import HeartError, refused
from haclusterd.heart.former import Former

DATAGRAM_BYTES_MAX = 1200
_RECEIVE_BUFFER_BYTES = 256 * 1024  # about 500 beats: what a short stall may leave waiting
_SEND_BUFFER_BYTES = 256 * 1024
_CLASS_CS6 = 0xC0  # network control, RFC 4594
_PRIORITY_CONTROL = 6  # pfifo_fast's first band
_IPV6_TCLASS = 67

Address = tuple[str, int]
Datagram = tuple[int, bytes, str]  # link, content, source address


@dataclass
class LinkCounters:
    """What happened on one link since the start; only ever counts up."""

    sent: int = 0
    received: int = 0
    send_errors: int = 0
    receive_errors: int = 0
    alien_sources: int = 0
    oversized: int = 0
    opened: int = 0


@dataclass
class _Link:
    address: str
    port: int
    peers: tuple[Address | None, ...]
    sources: frozenset[str]
    former: Former
    newest: bytes = b""  # that was sent, for who is no peer any more
    socket: socket.socket | None = None
    fault: str = ""
    counters: LinkCounters = field(default_factory=LinkCounters)


class Links:
    """All heartbeat links of this node, by their position in the configuration."""

    def __init__(
        self,
        port: int,
        nodes: Sequence[Sequence[str]],
        me: int,
        former: Sequence[Sequence[str]] = (),
    ) -> None:
        """`nodes[n][k]` is the address of node n on link k; `me` is this node's position;
        `former` has the links of who was a node until the last change of the voters.

        Opens nothing yet: `reopen` does, now and whenever addresses come and go.
        """
        self._links = []
        for position, own in enumerate(nodes[me]):
            peers = tuple(
                None if node == me else (addresses[position], port)
                for node, addresses in enumerate(nodes)
            )
            sources = frozenset(
                _canonical(addresses[position])
                for node, addresses in enumerate(nodes)
                if node != me
            )
            # One that was removed before a NIC was added has no address there.
            gone = Former(_canonical(of[position]) for of in former if position < len(of))
            self._links.append(_Link(own, port, peers, sources, gone))

    def __len__(self) -> int:
        return len(self._links)

    def counters(self, link: int) -> LinkCounters:
        return self._links[link].counters

    def fault(self, link: int) -> str:
        """Why the link is not open, as a sentence with its fix; "" while it is."""
        return self._links[link].fault

    def opened(self, link: int) -> socket.socket | None:
        """The open socket of a link, for epoll and for handing over; None while it is closed."""
        return self._links[link].socket

    def reopen(self) -> list[int]:
        """Open every link that is closed and can be; the positions of those that now are."""
        opened = []
        for position, link in enumerate(self._links):
            if link.socket is not None:
                continue
            try:
                link.socket = _open(link.address, link.port)
            except HeartError as error:
                link.fault = f"link {link.address}: {error}"
                continue
            link.fault = ""
            link.counters.opened += 1
            opened.append(position)
        return opened

    def adopt(self, link: int, descriptor: int) -> None:
        """Take the socket that a predecessor handed over."""
        self.drop(link)
        opened = socket.socket(fileno=descriptor)
        opened.setblocking(False)
        self._links[link].socket = opened
        self._links[link].fault = ""

    def drop(self, link: int) -> None:
        """Close one link (its address went); `reopen` brings it back."""
        entry = self._links[link]
        if entry.socket is not None:
            entry.socket.close()
            entry.socket = None
            entry.fault = f"link {entry.address}: closed"

    def address_removed(self, address: str) -> list[int]:
        """Close the links that live on `address`; their positions."""
        canonical = _canonical(address)
        gone = [
            position
            for position, link in enumerate(self._links)
            if link.socket is not None and _canonical(link.address) == canonical
        ]
        for position in gone:
            self.drop(position)
        return gone

    def send(self, link: int, data: bytes, to: Sequence[int] = ()) -> int:
        """Send one datagram to the nodes `to`, or to all peers (none); how many the kernel took."""
        entry = self._links[link]
        if entry.socket is None:
            return 0
        entry.newest = data
        peers = [entry.peers[n] for n in to] if to else entry.peers
        taken = 0
        for peer in peers:
            if peer is None:
                continue
            try:
                entry.socket.sendto(data, peer)
            except OSError:
                # ENETUNREACH, EPERM (a local packet filter), ECONNREFUSED of an earlier send,
                # EAGAIN: the next beat is the retry, and the counter tells the operator.
                entry.counters.send_errors += 1
            else:
                taken += 1
        entry.counters.sent += taken
        return taken

    def receive(self, limit: int) -> list[Datagram]:
        """Up to `limit` datagrams per link as (link, data, source), from configured peers only.

        `source` is the address in the kernel's text: not yet proof of who sent it.
        """
        found: list[Datagram] = []
        for position, link in enumerate(self._links):
            if link.socket is not None:
                self._receive_from(position, link, limit, found)
        return found

    def receive_on(self, position: int, limit: int) -> list[Datagram]:
        """`receive` for one link; fewer than `limit` counted datagrams means it is drained."""
        found: list[Datagram] = []
        link = self._links[position]
        if link.socket is not None:
            self._receive_from(position, link, limit, found)
        return found

    def _receive_from(self, position: int, link: _Link, limit: int, found: list[Datagram]) -> None:
        opened = link.socket
        if opened is None:
            return
        counters = link.counters
        for _turn in range(limit):
            try:
                data, source = opened.recvfrom(DATAGRAM_BYTES_MAX + 1)
            except BlockingIOError:
                return
            except OSError:
                counters.receive_errors += 1  # ECONNREFUSED and the like, told by ICMP
                continue
            if source[0] not in link.sources:
                counters.alien_sources += 1
                if link.newest and link.former.is_due(source[0]):
                    _hint(link, opened, source[0])
            elif len(data) > DATAGRAM_BYTES_MAX:
                counters.oversized += 1
            else:
                counters.received += 1
                found.append((position, data, source[0]))

    def flush(self, limit: int = 8192) -> int:
        """Throw away what the sockets hold; how many datagrams that were."""
        thrown = 0
        for link in self._links:
            if link.socket is None:
                continue
            with contextlib.suppress(BlockingIOError):
                for _turn in range(limit):
                    try:
                        link.socket.recv(1)
                    except BlockingIOError:
                        raise
                    except OSError:
                        link.counters.receive_errors += 1
                    else:
                        thrown += 1
        return thrown

    def close(self) -> None:
        for position in range(len(self._links)):
            self.drop(position)


def _hint(link: _Link, opened: socket.socket, source: str) -> None:
    """The newest beat once more, to a former node: of what it says only the revision counts."""
    try:
        opened.sendto(link.newest, (source, link.port))
    except OSError:
        link.counters.send_errors += 1
    else:
        link.counters.sent += 1


def _canonical(address: str) -> str:
    return str(ipaddress.ip_address(address))


def _open(address: str, port: int) -> socket.socket:
    six = ":" in address
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        opened = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind)
    except OSError as error:
        raise refused("UDP socket", error) from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        with contextlib.suppress(OSError):  # marks for queues on the way: wanted, not needed
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _PRIORITY_CONTROL)
            if six:
                opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_TCLASS, _CLASS_CS6)
            else:
                opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _CLASS_CS6)
        opened.bind((address, port))
    except OSError as error:
        opened.close()
        raise refused(f"UDP port {port} on {address}", error) from error
    return opened
