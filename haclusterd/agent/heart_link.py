"""The socketpair to heart: one msgpack message per SEQPACKET packet, never blocking.

Heart is never waited for: what its socket does not take at once waits in a bounded queue here, and
of reports only the newest. End of file means that heart is gone: the agent then ends too, and the
heart that comes next starts another (DESIGN section 3).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable

import msgspec

from haclusterd.agent.encoding import packed
from haclusterd.core.actions import ToAgent
from haclusterd.core.inputs import FromAgent, LocalReport

log = logging.getLogger(__name__)

PACKET_BYTES_MAX = 64 * 1024
PACKETS_PER_TURN = 64
UNSENT_MAX = 256

_decoder: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)


class HeartLink:
    """`take(message)` is called for each message of heart, in order; it must not block.

    `gone` is done when heart has closed its end. `counters` of what was thrown away.
    """

    def __init__(self, fd: int, take: Callable[[ToAgent], None]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._take = take
        self._unsent: deque[FromAgent] = deque()
        self._writing = False
        self.malformed = 0
        self.dropped = 0
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Begin to read."""
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Stop reading and close this end."""
        if self._socket.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket.fileno())
        loop.remove_writer(self._socket.fileno())
        self._socket.close()

    def send(self, message: FromAgent) -> None:
        """Send now or as soon as heart reads; an older unsent LocalReport is replaced."""
        if isinstance(message, LocalReport):
            self._unsent = deque(m for m in self._unsent if not isinstance(m, LocalReport))
        if len(self._unsent) >= UNSENT_MAX:
            self._unsent.popleft()
            self.dropped += 1
        self._unsent.append(message)
        if not self._writing:
            self._write()

    def _write(self) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            while self._unsent:
                self._socket.send(packed(self._unsent[0]))
                self._unsent.popleft()
        except BlockingIOError:
            self._watch_writable(True)
            return
        except OSError as error:
            self._lost(f"cannot write to heart: {error.strerror}")
        self._watch_writable(False)

    def _watch_writable(self, on: bool) -> None:
        if on == self._writing:
            return
        self._writing = on
        loop = asyncio.get_running_loop()
        if on:
            loop.add_writer(self._socket.fileno(), self._write)
        else:
            loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        for _ in range(PACKETS_PER_TURN):
            try:
                packet = self._socket.recv(PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(f"cannot read from heart: {error.strerror}")
                return
            if not packet:
                self._lost("heart closed its end")
                return
            try:
                message = _decoder.decode(packet)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                self.malformed += 1
                if self.malformed & (self.malformed - 1) == 0:
                    log.error("heart sent what is no message of this version: %s", error)
                continue
            self._take(message)

    def _lost(self, reason: str) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        if not self.gone.done():
            self.gone.set_result(reason)
