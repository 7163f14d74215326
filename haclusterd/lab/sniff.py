"""The observer on the service network: who speaks for which address, and what happens to calls.

`python -m haclusterd.lab.sniff` in the switch namespace, see `main`. Commands on stdin, one line
each, an answer of one line each:

    arm      forget the speakers and gaps seen so far
    report   spans, calls, streams, and how many frames the kernel dropped since the last report
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

import msgspec

from haclusterd.lab.clock import now_ns
from haclusterd.lab.echo import ECHO_PORT
from haclusterd.lab.frames import speaks_for, udp_of
from haclusterd.lab.holders import Span, Speakers
from haclusterd.lab.packet_ring import PacketRing, filter_program
from haclusterd.lab.sip_watch import CallWatch

_BATCH_S = 0.05


class Observer:
    """Sorts frames: speakers of watched addresses, SIP messages, RTP packets."""

    def __init__(self, addresses: list[str], sip_port: int) -> None:
        self._watched = {ipaddress.ip_address(text).packed for text in addresses}
        self._sip_port = sip_port
        self.speakers = Speakers()
        self.calls = CallWatch(sip_port)

    def see(self, frame: memoryview, at_ns: int) -> None:
        address = speaks_for(frame)
        watched = address in self._watched
        if watched:
            self.speakers.seen(address, bytes(frame[6:12]), at_ns)
        udp = udp_of(frame)
        if udp is None:
            return
        source_port, target_port, payload = udp
        if self._sip_port in (source_port, target_port):
            ends = (socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34]))
            self.calls.sip(source_port, *ends, bytes(payload), at_ns)
        elif watched and source_port != ECHO_PORT and not source_port & 1:
            self.calls.rtp(address, source_port, at_ns, bytes(payload[:12]))

    def report(self) -> dict[str, Any]:
        return {
            "at_ns": now_ns(),
            "spans": [_span(span) for span in self.speakers.spans],
            **self.calls.report(),
        }


def _span(span: Span) -> dict[str, Any]:
    return {
        "address": str(ipaddress.ip_address(span.address)),
        "mac": span.mac.hex(":"),
        "first_ns": span.first_ns,
        "last_ns": span.last_ns,
        "frames": span.frames,
    }


def main(argv: list[str]) -> int:
    """`sniff BRIDGE SIP_PORT FIRST_IP LAST_IP ADDRESS..`: observe ADDRESS.. until stdin ends."""
    bridge, port, first_ip, last_ip, *addresses = argv
    ring = PacketRing(bridge, filter_program(int(port), first_ip, last_ip))
    observer = Observer(addresses, int(port))
    encode = msgspec.json.Encoder().encode
    print("ready", flush=True)
    while True:
        commanded = ring.wait(sys.stdin.fileno(), _BATCH_S)
        for at_ns, frame in ring.read():
            observer.see(frame, at_ns)
        if not commanded:
            continue
        command = sys.stdin.readline().strip()
        if not command:
            return 0
        answer: dict[str, Any] = {}
        if command == "arm":
            observer.speakers.forget()
            observer.calls.arm()
        elif command == "report":
            answer = {**observer.report(), "dropped": ring.dropped()}
        sys.stdout.buffer.write(encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
