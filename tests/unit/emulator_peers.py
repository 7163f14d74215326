"""What talks to a FreeSWITCH, real or emulated, in tests: an ESL client and a SIP telephone.

Blocking sockets and no code of haclusterd, so that a mistake there cannot hide one here.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO
from urllib.parse import unquote


@dataclass
class Frame:
    headers: dict[str, str]
    body: str

    @property
    def kind(self) -> str:
        return self.headers["Content-Type"]

    def event(self) -> dict[str, str]:
        """Headers of a plain event, decoded."""
        head = self.body.partition("\n\n")[0]
        pairs = (line.split(": ", 1) for line in head.split("\n") if ": " in line)
        return {name: unquote(value) for name, value in pairs}


def read_frame(stream: BinaryIO) -> Frame | None:
    """One frame; None at the end of the stream."""
    headers: dict[str, str] = {}
    while True:
        line = stream.readline().decode()
        if not line:
            return None
        text = line.rstrip("\n")
        if text:
            name, _, value = text.partition(": ")
            headers[name] = value
        elif headers:
            break
    body = stream.read(int(headers.get("Content-Length", "0"))).decode()
    return Frame(headers, body)


class Esl:
    def __init__(self, host: str, port: int, password: str | None = None) -> None:
        self._sock = socket.create_connection((host, port), timeout=10)
        self._stream = self._sock.makefile("rb")
        self.greeting = self.read()
        if password is not None:
            assert self.ask(f"auth {password}").headers["Reply-Text"] == "+OK accepted"

    def __enter__(self) -> Esl:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        self._sock.close()

    def send(self, command: str) -> None:
        self._sock.sendall(command.encode() + b"\n\n")

    def read(self) -> Frame:
        frame = read_frame(self._stream)
        if frame is None:
            raise EOFError("closed")
        return frame

    def ask(self, command: str) -> Frame:
        """The reply; events before it are dropped."""
        self.send(command)
        while True:
            frame = self.read()
            if frame.kind in ("command/reply", "api/response"):
                return frame

    def api(self, command: str) -> str:
        return self.ask(f"api {command}").body

    def events(self, last: str, timeout_s: float = 10.0) -> list[dict[str, str]]:
        """Events up to and with the one called `last`."""
        found = []
        end = time.monotonic() + timeout_s
        self._sock.settimeout(timeout_s)
        while time.monotonic() < end:
            frame = self.read()
            if frame.kind == "text/event-plain":
                found.append(frame.event())
                if found[-1]["Event-Name"] == last:
                    return found
        raise TimeoutError(f"no {last} in {[e['Event-Name'] for e in found]}")


SDP = (
    "v=0\r\no=user1 53655765 2353687637 IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\n"
    "m=audio {rtp} RTP/AVP 0 101\r\na=rtpmap:0 PCMU/8000\r\n"
    "a=rtpmap:101 telephone-event/8000\r\n"
)


def header(message: str, name: str) -> str:
    found = re.search(rf"^{name}: *(.*?)\r$", message, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else ""


class Telephone:
    """One call at a time; every message it ever received is in `received`."""

    def __init__(self, ip: str, server: tuple[str, int], number: str = "9197") -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((ip, 0))
        self.sock.settimeout(5)
        self.rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.rtp.bind((ip, 0))
        self.rtp.settimeout(5)
        self.ip, self.port = ip, self.sock.getsockname()[1]
        self.server = server
        self.uri = f"sip:u1@{ip}:{self.port}"
        self.call_id = f"1-{self.port}@{ip}"
        self.number = number
        self.ours = f'"u1" <{self.uri}>;tag={self.port}SIPpTag001'
        self.theirs = f"<sip:{number}@{server[0]}:{server[1]}>"
        self.received: list[str] = []
        self._branch = 0

    def close(self) -> None:
        self.sock.close()
        self.rtp.close()

    def sdp(self) -> str:
        return SDP.format(ip=self.ip, rtp=self.rtp.getsockname()[1])

    def request(self, method: str, cseq: int, body: str = "", branch: str = "") -> str:
        self._branch += 1
        branch = branch or f"z9hG4bK-{self.port}-{self._branch}"
        lines = [
            f"{method} sip:{self.number}@{self.server[0]}:{self.server[1]} SIP/2.0",
            f"Via: SIP/2.0/UDP {self.ip}:{self.port};branch={branch}",
            f"From: {self.ours}",
            f"To: {self.theirs}",
            f"Call-ID: {self.call_id}",
            f"CSeq: {cseq} {method}",
            f"Contact: <{self.uri}>",
            "Max-Forwards: 70",
        ]
        if body:
            lines.append("Content-Type: application/sdp")
        lines.append(f"Content-Length: {len(body)}")
        message = "\r\n".join(lines) + "\r\n\r\n" + body
        self.send(message)
        return message

    def send(self, message: str) -> None:
        self.sock.sendto(message.encode(), self.server)

    def receive(self) -> str:
        data, _ = self.sock.recvfrom(65535)
        self.received.append(data.decode())
        return self.received[-1]

    def wait_for(self, start: str) -> str:
        """The next message that begins with `start`; others are only remembered."""
        for message in self._messages():
            if message.startswith(start):
                return message
        raise AssertionError("unreachable")

    def _messages(self) -> Iterator[str]:
        while True:
            yield self.receive()

    def answer(self, request: str, status: str = "200 OK", body: str = "") -> None:
        lines = [f"SIP/2.0 {status}"]
        lines += [f"{n}: {header(request, n)}" for n in ("Via", "From", "To", "Call-ID", "CSeq")]
        lines.append(f"Contact: <{self.uri}>")
        if body:
            lines.append("Content-Type: application/sdp")
        lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join(lines) + "\r\n\r\n" + body)

    def call(self) -> str:
        """INVITE, 200, ACK; the 200."""
        self.request("INVITE", 1, self.sdp())
        answer = self.wait_for("SIP/2.0 200")
        self.theirs = header(answer, "To")
        self.request("ACK", 1)
        return answer

    def hang_up(self, cseq: int = 2) -> None:
        self.request("BYE", cseq)
        self.wait_for("SIP/2.0 200")
