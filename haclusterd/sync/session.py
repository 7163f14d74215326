"""One authenticated connection between two agents: frames in, frames out at the peer's pace.

What is sent comes from two places: short messages that are answers (acknowledgements, beats,
requests), and sources that are asked for their next message only while the peer keeps reading, so
that nothing piles up for a slow one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Protocol, cast
from zlib import crc32

import msgspec

from haclusterd.sync.codec import (
    VERSION,
    Beat,
    FrameReader,
    Head,
    Hello,
    Malformed,
    Message,
    decode,
    frame,
)

log = logging.getLogger(__name__)

PUMP_BYTES = 64 * 1024  # per turn of the loop and connection
BUFFER_BYTES_HIGH = 256 * 1024
URGENT_BYTES_MAX = 1024 * 1024

Source = Callable[[], Message | None]


class SyncTiming(msgspec.Struct, frozen=True):
    """Times of the replication mesh, all in ms.

    `dead_ms` of silence end a connection, so that the next link is tried; `lag_ms_max` is how far
    behind a copy may be and still count as in sync: longer than it takes to notice a dead link and
    to connect over the next one, or every slave is unready for that moment.
    """

    beat_ms: int = 500
    dead_ms: int = 1500
    connect_ms: int = 500
    backoff_ms_min: int = 50
    backoff_ms_max: int = 2000
    lag_ms_max: int = 2500


class SessionOwner(Protocol):
    """Who uses the sessions: the replicator."""

    def session_ready(self, session: Session) -> None:
        """The peer proved who it is."""

    def session_message(self, session: Session, message: Message) -> None:
        """A message came. Raises Malformed to end the session."""

    def session_batch(self, session: Session) -> None:
        """All that was received together has been handed over."""

    def session_lost(self, session: Session, reason: str) -> None:
        """The connection ended; only after session_ready."""

    def session_heads(self) -> list[Head]:
        """Where the own streams are, for the beat."""


class Session(asyncio.Protocol):
    """See the module. `expect` is the node that was dialled, None on the accepting side."""

    def __init__(
        self,
        node: str,
        cluster: str,
        nodes: frozenset[str],
        expect: str | None,
        timing: SyncTiming,
        owner: SessionOwner,
        counters: Counter[str],
    ) -> None:
        self.node = node
        self.cluster = cluster
        self.expect = expect
        self.peer = ""
        self.address = ""
        self.rtt_ms = -1.0
        self.ready = False
        self.sources: list[Source] = []
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.became_ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._nodes = nodes
        self._timing = timing
        self._owner = owner
        self._counters = counters
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._urgent: list[bytes] = []
        self._urgent_bytes = 0
        self._writable = True
        self._scheduled = False
        self._turn = 0
        self._quiet_ticks = 0
        self._echo_us = self._heard_us = -1
        self._tick: asyncio.TimerHandle | None = None
        self._reason = "closed by the peer"

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up: the certificate names the peer."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(BUFFER_BYTES_HIGH, BUFFER_BYTES_HIGH // 4)
        self.address = str((transport.get_extra_info("peername") or ("?",))[0])
        self.peer = certified_node(transport.get_extra_info("peercert"), self._nodes)
        if not self.peer or self.peer == self.node or self.expect not in (None, self.peer):
            self.abort("certificate", f"certificate of {self.peer or 'no configured node'}")
            return
        self.send(Hello(VERSION, self.cluster, self.node))
        self._schedule_tick()

    def data_received(self, received: bytes) -> None:
        """Frames, or parts of them."""
        self._quiet_ticks = 0
        if self.closed.done():
            return
        try:
            for body in self._reader.feed(received):
                self._message(decode(body))
                if self._reason != "closed by the peer":
                    return
        except Malformed as error:
            self.abort("malformed", str(error))
            return
        if self.ready:
            self._owner.session_batch(self)

    def connection_lost(self, error: Exception | None) -> None:
        """End of the session, for whatever reason."""
        if self._tick is not None:
            self._tick.cancel()
        self.sources.clear()
        self._urgent.clear()
        if self.closed.done():
            return
        reason = self._reason if error is None else str(error)
        self.closed.set_result(reason)
        if not self.became_ready.done():
            self.became_ready.set_result(False)
        if self.ready:
            self.ready = False
            self._owner.session_lost(self, reason)

    def pause_writing(self) -> None:
        """The peer reads slower than we write."""
        self._writable = False

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable = True
        self.wake()

    # -- sending --

    def send(self, message: Message) -> None:
        """Send soon, before anything from the sources. Bounded: a peer that never reads is cut."""
        if self.closed.done():
            return
        packed = frame(message)
        self._urgent.append(packed)
        self._urgent_bytes += len(packed)
        if self._urgent_bytes > URGENT_BYTES_MAX:
            self.abort("slow", "the peer does not read")
            return
        self.wake()

    def wake(self) -> None:
        """There may be something to send."""
        if not self._scheduled and not self.closed.done():
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def abort(self, counter: str, reason: str) -> None:
        """End the session at once; `counter` says what kind of fault it was."""
        self._counters[counter] += 1
        self._reason = reason
        log.info("sync connection with %s (%s) ended: %s", self.peer or "?", self.address, reason)
        if self._transport is not None:
            self._transport.abort()

    def _pump(self) -> None:
        self._scheduled = False
        transport = self._transport
        if transport is None or self.closed.done() or not self._writable:
            return
        out, size = self._urgent, self._urgent_bytes
        self._urgent, self._urgent_bytes = [], 0
        while size < PUMP_BYTES:
            message = self._next()
            if message is None:
                break
            out.append(frame(message))
            size += len(out[-1])
        else:
            self.wake()
        if out:
            transport.write(b"".join(out))

    def _next(self) -> Message | None:
        for _ in range(len(self.sources)):
            self._turn = (self._turn + 1) % len(self.sources)
            message = self.sources[self._turn]()
            if message is not None:
                return message
        return None

    # -- receiving --

    def _message(self, message: Message) -> None:
        if isinstance(message, Hello):
            self._hello(message)
        elif not self.ready:
            raise Malformed("the first message is not a hello")
        else:
            if isinstance(message, Beat):
                self._heard(message)
            self._owner.session_message(self, message)

    def _heard(self, beat: Beat) -> None:
        now_us = _now_us()
        self._echo_us, self._heard_us = beat.sent_us, now_us
        if beat.echo_us >= 0:
            self.rtt_ms = max(0, now_us - beat.echo_us - beat.held_us) / 1000

    def _hello(self, hello: Hello) -> None:
        if self.ready:
            raise Malformed("a second hello")
        if hello.version != VERSION:
            self.abort("version", f"speaks sync version {hello.version}, this is {VERSION}")
        elif hello.cluster != self.cluster:
            self.abort("cluster", f"belongs to cluster {hello.cluster!r}")
        elif hello.node != self.peer:
            self.abort("certificate", f"says {hello.node!r}, certificate says {self.peer!r}")
        else:
            self.ready = True
            if not self.became_ready.done():
                self.became_ready.set_result(True)
            self._owner.session_ready(self)

    def _schedule_tick(self) -> None:
        """All sessions of a node tick together, to wake it once; those of others at other times."""
        loop = asyncio.get_running_loop()
        beat_s = self._timing.beat_ms / 1000
        phase_s = crc32(self.node.encode()) % self._timing.beat_ms / 1000
        ticks = math.floor((loop.time() - phase_s) / beat_s + 1e-3) + 1
        self._tick = loop.call_at(ticks * beat_s + phase_s, self._beat)

    def _beat(self) -> None:
        self._quiet_ticks += 1  # ticks, not time: a loop that was held up saw no silence
        if self._quiet_ticks > self._timing.dead_ms // self._timing.beat_ms:
            self.abort("dead", f"silent for {self._timing.dead_ms} ms")
            return
        if self.ready and self._writable:
            now_us = _now_us()
            held_us = now_us - self._heard_us if self._echo_us >= 0 else 0
            self.send(Beat(now_us, self._echo_us, held_us, self._owner.session_heads()))
        self._schedule_tick()


def certified_node(certificate: object, nodes: frozenset[str]) -> str:
    """The configured node that a verified certificate names (common name, or a DNS name)."""
    if not isinstance(certificate, dict):
        return ""
    names = [
        value
        for part in certificate.get("subject", ())
        for key, value in part
        if key == "commonName"
    ]
    names += [value for key, value in certificate.get("subjectAltName", ()) if key == "DNS"]
    return next((name for name in names if name in nodes), "")


def _now_us() -> int:
    return int(asyncio.get_running_loop().time() * 1_000_000)
