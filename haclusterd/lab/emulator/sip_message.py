"""SIP messages: tolerant parsing of what peers send, building of what we send (RFC 3261)."""

from __future__ import annotations

import re
import secrets
import string
from typing import Final

_COMPACT: Final = {
    "i": "call-id",
    "f": "from",
    "t": "to",
    "v": "via",
    "m": "contact",
    "l": "content-length",
    "c": "content-type",
    "k": "supported",
    "s": "subject",
}
_HEADERS_MAX: Final = 200
_URI: Final = re.compile(
    r"^sips?:(?:(?P<user>[^@;?<>\s]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^:;?<>@\s]+)"
    r"(?::(?P<port>\d{1,5}))?(?P<params>[;?][^<>\s]*)?$"
)
_TAG: Final = re.compile(r";\s*tag=([^;\s]+)", re.IGNORECASE)
_ALPHABET: Final = string.ascii_letters + string.digits
USER_AGENT: Final = "FreeSWITCH-mod_sofia/1.11.3-dev+git~20260821T141014Z~cc93a683ca~64bit"
ALLOW: Final = "INVITE, ACK, BYE, CANCEL, OPTIONS, MESSAGE, INFO, UPDATE, REGISTER, REFER, NOTIFY"


class SipParseError(ValueError):
    """The datagram is not a SIP message that can be answered."""


class Uri:
    """A SIP URI in parts; `port` is 5060 where none is given."""

    __slots__ = ("given_port", "host", "params", "port", "text", "user")

    def __init__(self, text: str) -> None:
        found = _URI.match(text)
        if found is None:
            raise SipParseError(f"not a SIP URI: {text[:80]!r}")
        self.text = text
        self.user = found["user"] or ""
        self.host = found["host"].strip("[]")
        self.given_port = found["port"] or ""
        self.port = int(found["port"] or 5060)
        self.params = found["params"] or ""
        if not 0 < self.port < 65536:
            raise SipParseError(f"port out of range in {text[:80]!r}")

    @property
    def host_port(self) -> str:
        return f"{self.host}:{self.given_port}" if self.given_port else self.host

    @property
    def user_host_port(self) -> str:
        return f"{self.user}@{self.host_port}" if self.user else self.host_port


def address_uri(header: str) -> str:
    """The URI inside a name-addr or addr-spec header value."""
    if "<" in header:
        return header.partition("<")[2].partition(">")[0]
    return header.partition(";")[0].strip()


def display_name(header: str) -> str:
    return header.partition("<")[0].strip().strip('"') if "<" in header else ""


def tag_of(header: str) -> str:
    found = _TAG.search(header.rpartition(">")[2] if ">" in header else header)
    return found[1] if found else ""


def new_tag() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(13))


def new_branch() -> str:
    return "z9hG4bK" + new_tag()


class SipMessage:
    """One message. Header names are kept in lower case, their order is kept."""

    __slots__ = ("body", "headers", "method", "reason", "status", "uri")

    def __init__(self, datagram: bytes) -> None:
        head, _, body = datagram.partition(b"\r\n\r\n")
        lines = head.decode("utf-8", "surrogateescape").split("\r\n")
        self.method = self.uri = self.reason = ""
        self.status = 0
        self._start_line(lines[0])
        self.headers: list[tuple[str, str]] = []
        for line in lines[1:]:
            self._header_line(line)
        for needed in ("via", "from", "to", "call-id", "cseq"):
            if not self.get(needed):
                raise SipParseError(f"no {needed} header")
        number, _, method = self.get("cseq").partition(" ")
        if not (number.isascii() and number.isdigit() and len(number) <= 10 and method.strip()):
            raise SipParseError("CSeq is not a number and a method")
        length = self.get("content-length")
        if length.isascii() and length.isdigit() and len(length) < 6:
            body = body[: int(length)]
        self.body = body

    def _start_line(self, line: str) -> None:
        parts = line.split(" ", 2)
        if len(parts) >= 2 and parts[0] == "SIP/2.0":
            if not (parts[1].isascii() and parts[1].isdigit() and len(parts[1]) == 3):
                raise SipParseError("status is not a number of three digits")
            self.status = int(parts[1])
            self.reason = parts[2] if len(parts) == 3 else ""
        elif len(parts) == 3 and parts[2] == "SIP/2.0":
            self.method, self.uri = parts[0].upper(), parts[1]
        else:
            raise SipParseError("no SIP start line")

    def _header_line(self, line: str) -> None:
        if line[:1] in (" ", "\t") and self.headers:
            name, value = self.headers[-1]
            self.headers[-1] = (name, f"{value} {line.strip()}")
            return
        name, colon, value = line.partition(":")
        if not colon or len(self.headers) >= _HEADERS_MAX:
            raise SipParseError("a header without a colon, or too many headers")
        name = name.strip().lower()
        self.headers.append((_COMPACT.get(name, name), value.strip()))

    def get(self, name: str) -> str:
        return next((v for k, v in self.headers if k == name), "")

    def all(self, name: str) -> list[str]:
        return [v for k, v in self.headers if k == name]

    @property
    def cseq(self) -> int:
        return int(self.get("cseq").split()[0])

    @property
    def cseq_method(self) -> str:
        return self.get("cseq").split()[1].upper()

    @property
    def branch(self) -> str:
        return via_parameter(self.get("via"), "branch")


def via_parameter(via: str, name: str) -> str:
    for part in via.split(",")[0].split(";")[1:]:
        key, _, value = part.partition("=")
        if key.strip().lower() == name:
            return value.strip()
    return ""


def build(start: str, headers: list[tuple[str, str]], body: str = "") -> bytes:
    content = body.encode("utf-8", "surrogateescape")
    lines = [start, *(f"{name}: {value}" for name, value in headers)]
    lines.append(f"Content-Length: {len(content)}")
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("utf-8", "surrogateescape") + content


def response(
    request: SipMessage,
    status: int,
    reason: str,
    *,
    source: tuple[str, int],
    to_tag: str = "",
    extra: list[tuple[str, str]] | None = None,
    body: str = "",
) -> bytes:
    """The answer to `request`; received/rport are filled in as RFC 3581 says."""
    headers: list[tuple[str, str]] = []
    for index, via in enumerate(request.all("via")):
        headers.append(("Via", _mark_received(via, source) if index == 0 else via))
    headers += [("Record-Route", value) for value in request.all("record-route")]
    to = request.get("to")
    if to_tag and not tag_of(to):
        to += f";tag={to_tag}"
    headers += [
        ("From", request.get("from")),
        ("To", to),
        ("Call-ID", request.get("call-id")),
        ("CSeq", request.get("cseq")),
    ]
    headers += extra or []
    headers.append(("User-Agent", USER_AGENT))
    if status != 100:
        headers += [("Allow", ALLOW), ("Supported", "timer, path, replaces")]
    return build(f"SIP/2.0 {status} {reason}", headers, body)


def _mark_received(via: str, source: tuple[str, int]) -> str:
    parts = via.split(";")
    marked = [f"rport={source[1]}" if p.strip().lower() == "rport" else p for p in parts]
    sent_by = parts[0].split(" ")[-1].partition(":")[0]
    if marked != parts or sent_by != source[0]:
        marked.append(f"received={source[0]}")
    return ";".join(marked)


def response_target(via: str, source: tuple[str, int]) -> tuple[str, int]:
    """Where an answer goes: the source where `rport` is there, else the source's sent-by port."""
    fields = via.split(",")[0].split(";")
    if any(f.strip().lower().startswith("rport") for f in fields[1:]):
        return source
    port = fields[0].split(" ")[-1].rpartition(":")[2]
    return source[0], int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 5060


class RemoteSdp:
    """What we need of a peer's SDP: where its audio is and the first codec we share."""

    __slots__ = ("address", "payload_type", "port", "telephone_event")

    def __init__(self, text: str) -> None:
        self.address = ""
        self.port = 0
        self.payload_type = -1
        self.telephone_event = 0
        in_audio = False
        for line in text.splitlines():
            kind, _, value = line.strip().partition("=")
            fields = value.split()
            if kind == "m":
                in_audio = fields[:1] == ["audio"] and not self.port
                if in_audio:
                    self._media(fields)
            elif kind == "c" and len(fields) == 3 and (in_audio or not self.address):
                self.address = fields[2].partition("/")[0]
            elif in_audio and kind == "a" and "telephone-event/8000" in value.lower():
                number = value.partition(":")[2].split(" ")[0]
                self.telephone_event = int(number) if number.isdigit() and len(number) < 4 else 0

    def _media(self, fields: list[str]) -> None:
        if len(fields) < 4 or not fields[1].isdigit() or not 0 <= int(fields[1]) < 65536:
            raise SipParseError("broken m= line in the SDP")
        self.port = int(fields[1])
        shared = [f for f in fields[3:] if f in ("0", "8")]
        self.payload_type = int(shared[0]) if shared else -1
