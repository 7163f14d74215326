"""What the wire shows of calls: their SIP messages and the gaps in their RTP, call by call.

A call is its Call-ID; its media are the packets that FreeSWITCH sends from the address and port in
its SDP (a recovered call keeps both, so a takeover shows as a gap, not as another stream).
"""

from __future__ import annotations

import re
import struct
from typing import Any

import msgspec

CALLS_MAX = 20_000
STREAMS_MAX = 40_000
MESSAGES_PER_CALL_MAX = 400

# What tells numbers that one sender skipped from another sender: a recovered call of a real
# FreeSWITCH keeps its SSRC and numbers from anywhere, so RFC 3550's bound of 3000 is too wide.
_PACKET_NS = 20_000_000  # the callers ask for it (a=ptime)
_BURST_MAX = 10
_MISORDER_MAX = 100
_MISORDER_NS = 60_000_000

_RTP = struct.Struct("!xxHxxxxI")  # sequence number, SSRC

_CALL_ID = re.compile(rb"^(?:Call-ID|i)\s*:\s*(\S+)", re.I | re.M)
_CSEQ = re.compile(rb"^CSeq\s*:\s*\d+\s+(\w+)", re.I | re.M)
_AUDIO = re.compile(rb"^m=audio (\d+)", re.M)
_CONNECTION = re.compile(rb"^c=IN IP4 (\S+)", re.M)


class Message(msgspec.Struct, array_like=True):
    """One SIP message. `what` is a method, or "200 INVITE"; `sent_by_service`: from FreeSWITCH."""

    at_ns: int
    what: str
    sent_by_service: bool


class Stream(msgspec.Struct):
    """RTP from one address and port. Gaps since the last `arm`, in ns of BOOTTIME.

    `lost`: packets that their sender numbered and the wire never saw, since the last `arm`.
    `restarts`: how often another sender (SSRC or numbering) went on with the stream since then; it
    numbers anew, so what was missing between the two is in the gap and not in `lost`.
    """

    first_ns: int
    last_ns: int
    packets: int = 0
    gap_ns: int = 0
    gap_end_ns: int = 0
    ssrc: int = 0
    sequence: int = 0
    lost: int = 0
    restarts: int = 0

    def arm(self) -> None:
        self.gap_ns = self.gap_end_ns = self.lost = self.restarts = 0

    def arrived(self, sequence: int, ssrc: int, at_ns: int) -> None:
        gap_ns = at_ns - self.last_ns
        if gap_ns > self.gap_ns:
            self.gap_ns, self.gap_end_ns = gap_ns, at_ns
        self.last_ns = at_ns
        self.packets += 1
        ahead = (sequence - self.sequence) & 0xFFFF
        if ssrc == self.ssrc and ahead <= gap_ns // _PACKET_NS + _BURST_MAX:
            self.sequence = sequence
            self.lost += max(0, ahead - 1)
        elif ssrc == self.ssrc and 0x10000 - ahead <= _MISORDER_MAX and gap_ns < _MISORDER_NS:
            self.lost = max(0, self.lost - 1)  # one of those counted as lost was only late
        else:
            self.ssrc, self.sequence = ssrc, sequence
            self.restarts += 1


class Call(msgspec.Struct):
    """One call as seen on the wire; `media` is "IP:PORT" of FreeSWITCH, empty if unknown."""

    service_ip: str
    media: str = ""
    messages: list[Message] = msgspec.field(default_factory=list)


class CallWatch:
    """Collects calls and streams from frames already cut out of their headers."""

    def __init__(self, sip_port: int) -> None:
        self._sip_port = sip_port
        self.calls: dict[str, Call] = {}
        self.streams: dict[tuple[bytes, int], Stream] = {}

    def rtp(self, source: bytes, port: int, at_ns: int, head: bytes) -> None:
        """`head` is the 12 bytes of RTP header; what is shorter or of another version is none."""
        if len(head) < _RTP.size or head[0] >> 6 != 2:
            return
        sequence, ssrc = _RTP.unpack_from(head)
        stream = self.streams.get((source, port))
        if stream is None:
            if len(self.streams) >= STREAMS_MAX:
                raise OverflowError("more RTP streams than can be recorded")
            self.streams[source, port] = Stream(at_ns, at_ns, 1, ssrc=ssrc, sequence=sequence)
        else:
            stream.arrived(sequence, ssrc, at_ns)

    def sip(self, source_port: int, source: str, target: str, text: bytes, at_ns: int) -> None:
        call_id = _CALL_ID.search(text)
        if call_id is None:
            return
        from_service = source_port == self._sip_port
        name = call_id[1].decode("ascii", "replace")
        call = self.calls.get(name)
        if call is None:
            if len(self.calls) >= CALLS_MAX:
                raise OverflowError("more calls than can be recorded")
            call = self.calls[name] = Call(source if from_service else target)
        what = _what(text)
        if len(call.messages) < MESSAGES_PER_CALL_MAX:
            call.messages.append(Message(at_ns, what, from_service))
        if from_service and (audio := _AUDIO.search(text)):
            connection = _CONNECTION.search(text)
            host = connection[1].decode() if connection else source
            call.media = f"{host}:{int(audio[1])}"

    def arm(self) -> None:
        """Forget gaps and losses, not calls."""
        for stream in self.streams.values():
            stream.arm()

    def report(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "streams": {
                f"{'.'.join(map(str, source))}:{port}": stream
                for (source, port), stream in self.streams.items()
            },
        }


def _what(text: bytes) -> str:
    first = text.partition(b"\r\n")[0].decode("ascii", "replace").split(" ")
    if first[0].startswith("SIP/"):
        method = _CSEQ.search(text)
        return f"{first[1] if len(first) > 1 else '?'} {method[1].decode() if method else '?'}"
    return first[0]
