"""RTP of all calls: one timer, one precomputed payload, a few microseconds per packet.

Streams are spread over phases of the packet interval so that a tick stays short and the SIP and
ESL work between ticks waits little.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import struct
from typing import Final

_PHASES: Final = 4
_DRAIN_EVERY: Final = 25  # ticks; between them one datagram per stream and tick is read
_DRAIN_MAX: Final = 64
_ECHO_MAX: Final = 5
_SAMPLES: Final = 160
IP_FREEBIND: Final = 15
_HEADER = struct.Struct("!BBHII")


def _ulaw(sample: int) -> int:
    sign, magnitude = (0x80, -sample) if sample < 0 else (0, sample)
    magnitude = min(magnitude, 32635) + 132
    exponent = magnitude.bit_length() - 8
    return ~(sign | exponent << 4 | (magnitude >> (exponent + 3)) & 15) & 255


def _alaw(sample: int) -> int:
    sign, magnitude = (0, -sample - 1) if sample < 0 else (0x80, sample)
    magnitude = min(magnitude, 32767)
    exponent = max(magnitude.bit_length() - 8, 0)
    mantissa = (magnitude >> (exponent + 3 if exponent else 4)) & 15
    return (sign | exponent << 4 | mantissa) ^ 0x55


_WAVE = [int(8000 * math.sin(2 * math.pi * 400 * i / 8000)) for i in range(_SAMPLES)]
TONE: Final = {0: bytes(map(_ulaw, _WAVE)), 8: bytes(map(_alaw, _WAVE))}


def bind_udp(address: str, port: int, freebind: bool, *, reuse: bool = True) -> socket.socket:
    """A non-blocking UDP socket; `reuse` as FreeSWITCH's RTP has it (FREESWITCH.md 12).

    :raises OSError: the address is foreign and may not be bound, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if freebind:
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


class Stream:
    """The RTP of one call."""

    __slots__ = (
        "echo",
        "local",
        "packet",
        "received",
        "remote",
        "sent",
        "sequence",
        "sock",
        "ssrc",
        "timestamp",
    )

    def __init__(self, sock: socket.socket, remote: tuple[str, int], payload_type: int) -> None:
        self.sock = sock
        self.local: tuple[str, int] = sock.getsockname()[:2]
        self.remote = remote
        self.echo = False
        self.sequence = random.randrange(0x10000)
        self.timestamp = random.randrange(0x100000000)
        self.ssrc = random.randrange(0x100000000)
        self.sent = 0
        self.received = 0
        tone = TONE.get(payload_type, TONE[0])
        self.packet = bytearray(
            _HEADER.pack(0x80, payload_type, self.sequence, self.timestamp, self.ssrc) + tone
        )


class PortPool:
    """Hands out even ports; without `robust` it does not know those of recovered calls."""

    def __init__(self, low: int, high: int, robust: bool, freebind: bool) -> None:
        self._low = low + low % 2
        self._count = (high - self._low) // 2 + 1
        self._next = random.randrange(self._count)
        self._robust = robust
        self._freebind = freebind
        self._used: set[tuple[str, int]] = set()

    def take(self, address: str) -> socket.socket:
        """
        :raises OSError: every port is taken, or the address cannot be bound.
        """
        for _ in range(self._count):
            port = self._low + 2 * self._next
            self._next = (self._next + 1) % self._count
            if (address, port) in self._used or (self._robust and self._busy(address, port)):
                continue
            sock = bind_udp(address, port, self._freebind)
            self._used.add((address, port))
            return sock
        raise OSError(f"no free RTP port on {address}")

    def _busy(self, address: str, port: int) -> bool:
        probe = socket.socket(
            socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
        )
        with contextlib.closing(probe):
            if self._freebind:
                probe.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return True
        return False

    def give_back(self, local: tuple[str, int]) -> None:
        self._used.discard(local)


class MediaEngine:
    """Sends and drains every stream once per packet interval."""

    def __init__(self, pps: int) -> None:
        self._step_s = 1 / pps / _PHASES
        self._timestamp_step = 8000 // pps
        self._phases: list[list[Stream]] = [[] for _ in range(_PHASES)]
        self._buffer = bytearray(2048)
        self._tick = 0
        self._due = 0.0
        self._timer: asyncio.Handle | None = None

    def add(self, stream: Stream) -> None:
        min(self._phases, key=len).append(stream)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._due = loop.time()
            self._timer = loop.call_soon(self._run)

    def remove(self, stream: Stream) -> None:
        for phase in self._phases:
            if stream in phase:
                phase.remove(stream)
        stream.sock.close()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for phase in self._phases:
            for stream in phase:
                stream.sock.close()
            phase.clear()

    def _run(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._due > 10 * self._step_s:
            self._due = now  # a stall is not made up for with a burst
        while self._due <= now:
            self._serve(self._phases[self._tick % _PHASES], self._tick // _PHASES)
            self._tick += 1
            self._due += self._step_s
        if any(self._phases):
            self._timer = loop.call_at(self._due, self._run)
        else:
            self._timer = None

    def _serve(self, streams: list[Stream], turn: int) -> None:
        step = self._timestamp_step
        buffer = self._buffer
        drain = turn % _DRAIN_EVERY == 0
        for stream in streams:
            if stream.echo:
                self._echo(stream)
                continue
            stream.sequence = sequence = (stream.sequence + 1) & 0xFFFF
            stream.timestamp = timestamp = (stream.timestamp + step) & 0xFFFFFFFF
            struct.pack_into("!HI", stream.packet, 2, sequence, timestamp)
            try:
                stream.sock.sendto(stream.packet, stream.remote)
                stream.sent += 1
            except OSError:
                pass  # the address is gone or the peer is: the call lives on, as the real one's
            try:
                for _ in range(_DRAIN_MAX if drain else 1):
                    stream.sock.recv_into(buffer)
                    stream.received += 1
            except OSError:
                pass

    def _echo(self, stream: Stream) -> None:
        for _ in range(_ECHO_MAX):
            try:
                size = stream.sock.recv_into(self._buffer)
            except OSError:
                return
            if size < _HEADER.size:
                continue
            stream.received += 1
            stream.sequence = (stream.sequence + 1) & 0xFFFF
            _HEADER.pack_into(
                self._buffer,
                0,
                0x80,
                self._buffer[1],
                stream.sequence,
                int.from_bytes(self._buffer[4:8], "big"),
                stream.ssrc,
            )
            with contextlib.suppress(OSError):
                stream.sock.sendto(memoryview(self._buffer)[:size], stream.remote)
                stream.sent += 1
