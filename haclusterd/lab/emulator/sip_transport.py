"""The UDP socket of one SIP profile, and the transactions on it (RFC 3261 section 17).

Retransmitted requests get the stored answer; our own requests are repeated until answered, until
the timeout, or until ICMP or the kernel says that nobody is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from typing import Final

from haclusterd.lab.emulator.media import bind_udp
from haclusterd.lab.emulator.sip_message import SipMessage, SipParseError, response_target

_T1_S: Final = 0.5
_T2_S: Final = 4.0
_BATCH: Final = 64
_STORED_MAX: Final = 20_000
_STORED_S: Final = 32.0
_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25

Address = tuple[str, int]
Outcome = Callable[[SipMessage | None, str], None]  # (final or provisional answer, failure)


class _Client:
    """A request of ours under way."""

    __slots__ = ("address", "datagram", "deadline", "interval", "invite", "outcome", "timer")

    def __init__(
        self, datagram: bytes, address: Address, invite: bool, deadline: float, outcome: Outcome
    ) -> None:
        self.datagram = datagram
        self.address = address
        self.invite = invite
        self.deadline = deadline
        self.outcome = outcome
        self.interval = _T1_S
        self.timer: asyncio.TimerHandle | None = None


class SipTransport:
    """Bound to the profile's address; gives requests to `on_request`, which must not raise."""

    def __init__(
        self,
        ip: str,
        port: int,
        *,
        freebind: bool,
        timeout_s: float,
        on_request: Callable[[SipMessage, Address], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = bind_udp(ip, port, freebind, reuse=False)
        level, option = (
            (socket.IPPROTO_IPV6, _IPV6_RECVERR) if ":" in ip else (socket.IPPROTO_IP, _IP_RECVERR)
        )
        self._sock.setsockopt(level, option, 1)
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._timeout_s = timeout_s
        self._on_request = on_request
        self._clients: dict[tuple[str, str], _Client] = {}
        self._stored: dict[tuple[str, str], tuple[bytes, Address]] = {}
        self._acks: dict[str, tuple[bytes, Address]] = {}
        self.malformed = 0
        self._loop.add_reader(self._sock, self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        for client in self._clients.values():
            if client.timer:
                client.timer.cancel()
        self._clients.clear()
        self._stored.clear()
        self._acks.clear()
        self._sock.close()

    def send(self, datagram: bytes, address: Address) -> bool:
        """Send once; False where the kernel refuses (address gone, no route, pending ICMP)."""
        for _ in range(2):  # the first error may be an old ICMP of another peer
            try:
                self._sock.sendto(datagram, address)
                return True
            except OSError:
                self._read_errors()
        return False

    def reply(self, request: SipMessage, answer: bytes, source: Address, *, final: bool) -> None:
        """Answer `request`, and remember the answer for its retransmissions."""
        target = response_target(request.get("via"), source)
        self._store((request.branch, request.method), answer, target)
        if final and len(self._stored) < _STORED_MAX:
            key = (request.branch, request.method)
            self._loop.call_later(_STORED_S, self._stored.pop, key, None)
        self.send(answer, target)

    def _store(self, key: tuple[str, str], answer: bytes, target: Address) -> None:
        while len(self._stored) >= _STORED_MAX:
            self._stored.pop(next(iter(self._stored)))
        self._stored[key] = (answer, target)

    def request(
        self, datagram: bytes, address: Address, branch: str, method: str, outcome: Outcome
    ) -> None:
        """Start a client transaction; `outcome` gets each provisional, then one final answer or
        (None, "timeout" | "unreachable")."""
        invite = method == "INVITE"
        client = _Client(datagram, address, invite, self._loop.time() + self._timeout_s, outcome)
        self._clients[(branch, method)] = client
        if self.send(datagram, address):
            client.timer = self._loop.call_later(_T1_S, self._again, (branch, method))
        else:
            self._loop.call_soon(self._fail, (branch, method), "unreachable")

    def _again(self, key: tuple[str, str]) -> None:
        client = self._clients.get(key)
        if client is None:
            return
        now = self._loop.time()
        if now >= client.deadline:
            self._fail(key, "timeout")
            return
        self.send(client.datagram, client.address)
        client.interval = client.interval * 2 if client.invite else min(client.interval * 2, _T2_S)
        wait = min(client.interval, client.deadline - now)
        client.timer = self._loop.call_later(wait, self._again, key)

    def ack(self, datagram: bytes, address: Address, invite_branch: str) -> None:
        """Send the ACK of our INVITE, and again for each repeated final answer."""
        if len(self._acks) < _STORED_MAX:
            self._acks[invite_branch] = (datagram, address)
            self._loop.call_later(_STORED_S, self._acks.pop, invite_branch, None)
        self.send(datagram, address)

    def _fail(self, key: tuple[str, str], why: str) -> None:
        client = self._clients.pop(key, None)
        if client is not None:
            if client.timer:
                client.timer.cancel()
            client.outcome(None, why)

    def _readable(self) -> None:
        for _ in range(_BATCH):
            try:
                datagram, source = self._sock.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:
                self._read_errors()
                continue
            self._receive(datagram, source[:2])

    def _receive(self, datagram: bytes, source: Address) -> None:
        if not datagram.strip(b"\r\n\x00 "):
            return  # keep-alive
        try:
            message = SipMessage(datagram)
        except SipParseError:
            self.malformed += 1
            return
        if message.status:
            self._answered(message)
            return
        stored = self._stored.get((message.branch, message.method))
        if stored is not None and message.branch:
            self.send(*stored)
            return
        try:
            self._on_request(message, source)
        except SipParseError as error:
            self.malformed += 1
            sys.stderr.write(f"sip: {message.method} from {source[0]}: {error}\n")

    def _answered(self, message: SipMessage) -> None:
        key = (message.branch, message.cseq_method)
        client = self._clients.get(key)
        if client is None:
            if message.status >= 200 and key[1] == "INVITE" and key[0] in self._acks:
                self.send(*self._acks[key[0]])
            return
        if message.status >= 200:
            del self._clients[key]
        if client.timer and (message.status >= 200 or client.invite):
            client.timer.cancel()
            if message.status < 200:
                wait = max(client.deadline - self._loop.time(), 0)
                client.timer = self._loop.call_later(wait, self._fail, key, "timeout")
        client.outcome(message, "")

    def _read_errors(self) -> None:
        """ICMP errors carry our own request back: fail its transaction at once."""
        for _ in range(_BATCH):
            try:
                data, _, _, _ = self._sock.recvmsg(4096, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            try:
                message = SipMessage(data)
            except SipParseError:
                continue
            if message.method:
                key = (message.branch, message.method)
                self._loop.call_soon(self._fail, key, "unreachable")
