"""Events: the common header set, plain and json encoding, and who gets them.

An event is built only if a listener subscribed to it, so idle subscriptions cost nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol
from urllib.parse import quote

import msgspec

Headers = Iterable[tuple[str, str]]
VERSION = "1.11.3-dev+git~20260821T141014Z~cc93a683ca~64bit"


class Source(NamedTuple):
    """Where in FreeSWITCH an event is made (`Event-Calling-*`)."""

    file: str
    function: str
    line: int


class Event:
    """One event; each encoding is made at most once however many listeners want it."""

    __slots__ = ("_frames", "body", "headers", "name", "subclass")

    def __init__(self, name: str, headers: list[tuple[str, str]], body: str = "") -> None:
        self.name = name
        self.headers = headers
        self.body = body
        self.subclass = next((v for k, v in headers if k == "Event-Subclass"), "")
        self._frames: dict[str, bytes] = {}

    def header(self, name: str) -> str | None:
        wanted = name.lower()
        return next((v for k, v in self.headers if k.lower() == wanted), None)

    def frame(self, style: str) -> bytes:
        """The whole ESL frame, `style` plain, json or xml (xml is sent as plain: nobody asks)."""
        if style not in self._frames:
            encode = self._json if style == "json" else self._plain
            content = encode()
            kind = "json" if style == "json" else "plain"
            head = f"Content-Length: {len(content)}\nContent-Type: text/event-{kind}\n\n"
            self._frames[style] = head.encode() + content
        return self._frames[style]

    def _plain(self) -> bytes:
        return plain_text(self.headers, self.body).encode("utf-8", "surrogateescape")

    def _json(self) -> bytes:
        fields = dict(self.headers)
        if self.body:
            fields["Content-Length"] = str(_size(self.body))
            fields["_body"] = self.body
        try:
            return msgspec.json.encode(fields)
        except UnicodeEncodeError:  # bytes that are not UTF-8: passed on as they came, as there
            return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def url_encode(value: str) -> str:
    """Encode as FreeSWITCH does in plain events and in the recovery metadata."""
    return quote(value, safe="/,()*!'$~", errors="surrogateescape")


def plain_text(headers: Headers, body: str = "") -> str:
    lines = "".join(f"{k}: {url_encode(v)}\n" for k, v in headers)
    if body:
        return f"{lines}Content-Length: {len(body.encode('utf-8', 'surrogateescape'))}\n\n{body}"
    return lines + "\n"


class Listener(Protocol):
    def wants(self, name: str, subclass: str) -> bool: ...

    def deliver(self, event: Event) -> None: ...


class EventBus:
    """Numbers events and hands them to the listeners that want them."""

    def __init__(self, core_uuid: str, hostname: str, switchname: str) -> None:
        self.core_uuid = core_uuid
        self._identity = [
            ("Core-UUID", core_uuid),
            ("FreeSWITCH-Hostname", hostname),
            ("FreeSWITCH-Switchname", switchname),
            ("FreeSWITCH-IPv4", "127.0.0.1"),
            ("FreeSWITCH-IPv6", "::1"),
        ]
        self._sequence = 0
        self.listeners: list[Listener] = []

    def make(self, name: str, source: Source, headers: Headers, body: str = "") -> Event:
        now_us = time.time_ns() // 1000
        seconds = now_us // 1_000_000
        full = [("Event-Name", name), *self._identity]
        full += [
            ("Event-Date-Local", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))),
            ("Event-Date-GMT", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))),
            ("Event-Date-Timestamp", str(now_us)),
            ("Event-Calling-File", source.file),
            ("Event-Calling-Function", source.function),
            ("Event-Calling-Line-Number", str(source.line)),
            ("Event-Sequence", str(self._sequence)),
        ]
        full += headers
        return Event(name, full, body)

    def fire(
        self, name: str, source: Source, headers: Callable[[], Headers], body: str = ""
    ) -> None:
        self._sequence += 1
        takers = [taker for taker in self.listeners if taker.wants(name, "")]
        if takers:
            event = self.make(name, source, headers(), body)
            for taker in takers:
                taker.deliver(event)

    def fire_custom(self, subclass: str, source: Source, headers: Headers, body: str = "") -> None:
        self._sequence += 1
        takers = [taker for taker in self.listeners if taker.wants("CUSTOM", subclass)]
        if takers:
            event = self.make("CUSTOM", source, headers, body)
            event.headers.insert(0, ("Event-Subclass", subclass))
            event.subclass = subclass
            for taker in takers:
                taker.deliver(event)
