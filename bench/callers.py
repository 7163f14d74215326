"""Telephones that call and hang up at a steady pace, all behind one socket: cheaper than SIPp's
processes, so that what is measured is not what the callers cost.

Each call is INVITE, ACK, and BYE when its time has come. Nothing is repeated: the lab loses
nothing, and a call that gets no answer in time counts as failed.
"""

from __future__ import annotations

import re
import selectors
import socket
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

from haclusterd.lab import netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.switches import EXTENSION

_ANSWER_S = 5.0
_RECEIVE_BYTES = 1 << 22
_CALL_ID = re.compile(rb"(?i)\r\ncall-id: *(\S+)")
_CSEQ = re.compile(rb"(?i)\r\ncseq: *(\d+) +(\w+)")
_TO = re.compile(rb"(?i)\r\nto: *([^\r]+)")


@dataclass(slots=True)
class _Call:
    began: float
    to: str = ""


class Callers(threading.Thread):
    """`per_s` new calls a second; once `keep(n)` was said, the oldest end as new ones come."""

    def __init__(self, lab: Laboratory, server: str, per_s: float) -> None:
        super().__init__(daemon=True)
        with netns.inside(lab.topology.client):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.bind((lab.plan.client_ip, 0))
            self._media = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # swallows RTP
            self._media.bind((lab.plan.client_ip, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        self._socket.setblocking(False)
        self._server, self._ip = server, lab.plan.client_ip
        self._port, self._rtp = self._socket.getsockname()[1], self._media.getsockname()[1]
        self._pause_s = 1 / per_s
        self._ringing: OrderedDict[str, _Call] = OrderedDict()
        self._talking: OrderedDict[str, _Call] = OrderedDict()
        self._most = 0  # 0: nobody hangs up
        self._churning, self._open = True, True
        self.started = 0
        self.failed = 0

    @property
    def up(self) -> int:
        """Calls that talk."""
        return len(self._talking)

    def keep(self, most: int) -> None:
        """From now on the oldest calls end where there are more."""
        self._most = most

    def stop_churn(self) -> None:
        """No new calls, no hang-ups; those that are up stay."""
        self._churning = False

    def close(self) -> None:
        self._open = False
        self.join(5)
        self._socket.close()
        self._media.close()

    def run(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._socket, selectors.EVENT_READ)
            due = time.monotonic()
            while self._open:
                now = time.monotonic()
                if now >= due:
                    due = max(due + self._pause_s, now - 1.0)
                    self._turn(now)
                    continue
                if ready.select(max(0.0, due - now)):
                    self._receive()

    def _turn(self, now: float) -> None:
        while self._ringing and now - next(iter(self._ringing.values())).began > _ANSWER_S:
            self._ringing.popitem(last=False)
            self.failed += 1
        if not self._churning:
            return
        self.started += 1
        call_id = f"load-{self.started}@{self._ip}"
        self._ringing[call_id] = _Call(now)
        self._send("INVITE", call_id, "", 1, self._sdp())
        while self._most and len(self._talking) > self._most:
            ended, call = self._talking.popitem(last=False)
            self._send("BYE", ended, call.to, 2)

    def _receive(self) -> None:
        with suppress(BlockingIOError):
            while True:
                data = self._socket.recv(65535)
                call_id, cseq = _CALL_ID.search(data), _CSEQ.search(data)
                if call_id is None or cseq is None or not data.startswith(b"SIP/2.0 "):
                    continue
                status, key = int(data[8:11]), call_id[1].decode()
                if cseq[2] == b"INVITE" and status >= 200:
                    self._answered(key, status, data)

    def _answered(self, key: str, status: int, data: bytes) -> None:
        call = self._ringing.pop(key, None)
        to = _TO.search(data)
        if call is None:
            return
        if status != 200 or to is None:
            self.failed += 1
            return
        call.to = to[1].decode()
        self._send("ACK", key, call.to, 1)
        self._talking[key] = call

    def _sdp(self) -> str:
        return (
            f"v=0\r\no=load 1 1 IN IP4 {self._ip}\r\ns=-\r\nc=IN IP4 {self._ip}\r\nt=0 0\r\n"
            f"m=audio {self._rtp} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
        )

    def _send(self, method: str, call_id: str, to: str, cseq: int, body: str = "") -> None:
        kind = "Content-Type: application/sdp\r\n" if body else ""
        uri = f"sip:{EXTENSION}@{self._server}:5060"
        text = (
            f"{method} {uri} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {self._ip}:{self._port};branch=z9hG4bK{method}{call_id};rport\r\n"
            f"From: <sip:load@{self._ip}>;tag=l{call_id}\r\nTo: {to or f'<{uri}>'}\r\n"
            f"Call-ID: {call_id}\r\nCSeq: {cseq} {method}\r\n"
            f"Contact: <sip:load@{self._ip}:{self._port}>\r\nMax-Forwards: 70\r\n"
            f"{kind}Content-Length: {len(body)}\r\n\r\n{body}"
        )
        self._socket.sendto(text.encode(), (self._server, 5060))
