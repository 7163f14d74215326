"""The ESL client protocol without any I/O: bytes in, typed frames out, commands to bytes.

Only framing, typing and quoting belong here; sockets, time and retries live in `esl`. The shapes
follow FreeSWITCH's own frames (FREESWITCH.md sections 2.4 and 13). Everything a peer sends is
bounded and may be broken: the parser then raises `EslProtocolError` and refuses further input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import unquote_to_bytes

import msgspec

from .esl_frames import (
    ApiResponse,
    AuthRequest,
    CommandReply,
    Disconnect,
    Event,
    Frame,
    LogLine,
    RudeRejection,
    TooLarge,
    UnknownFrame,
)

__all__ = [
    "ApiResponse", "AuthRequest", "CommandReply", "Disconnect", "EslArgumentError", "EslProtocol",
    "EslProtocolError", "Event", "Frame", "LogLine", "RudeRejection", "TooLarge", "UnknownFrame",
    "api", "auth", "bgapi", "command", "event_filter", "parse_json_event", "parse_plain_event",
    "sendevent", "subscribe",
]  # fmt: skip

HEADER_BLOCK_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 16 * 1024 * 1024
SKIPPED_BYTES_MAX = 1 << 30  # of a body that is larger and goes by
BUFFER_BYTES_MAX = HEADER_BLOCK_BYTES_MAX + BODY_BYTES_MAX + 4096
COMMAND_BYTES_MAX = 64 * 1024


class EslProtocolError(Exception):
    """The peer broke the ESL framing; the connection can not be used any further."""


class EslArgumentError(ValueError):
    """A command argument would change the framing (line break, NUL) or is too long."""


_event_decoder = msgspec.json.Decoder(dict[str, str | list[str]])
_loose_decoder = msgspec.json.Decoder(dict[str, object])


def _text(raw: bytes) -> str:
    """Bytes of FreeSWITCH as text; bytes that are not UTF-8 survive as surrogates."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape")


def _header_lines(block: bytes) -> dict[str, str]:
    """Split a header block; values are left as they came (the outer envelope is not encoded)."""
    headers: dict[str, str] = {}
    for line in block.split(b"\n"):
        name, colon, value = line.partition(b":")
        if colon:
            headers[_text(name.strip())] = _text(value.strip())
    return headers


def _content_length(headers: Mapping[str, str]) -> int:
    raw = headers.get("Content-Length", "0")
    if not (raw.isascii() and raw.isdigit()) or len(raw) > 12:
        raise EslProtocolError(f"Content-Length is not a number: {raw[:40]!r}")
    if int(raw) > SKIPPED_BYTES_MAX:
        raise EslProtocolError(f"a body of {raw} bytes is over the limit {SKIPPED_BYTES_MAX}")
    return int(raw)


def _as_header(value: object) -> str | list[str]:
    if isinstance(value, list):
        return [item if isinstance(item, str) else str(item) for item in value]
    return value if isinstance(value, str) else str(value)


def parse_json_event(raw: bytes) -> Event:
    """Decode the body of a `text/event-json` frame. Raises EslProtocolError if it is no object.

    FreeSWITCH puts an event's own body into `_body` and repeated variables into arrays; raw bytes
    that are not UTF-8 do occur (LIBRARIES: msgspec refuses them, so they are kept as surrogates).
    """
    headers: dict[str, str | list[str]]
    try:
        headers = _event_decoder.decode(raw)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError):
        headers = {key: _as_header(value) for key, value in _decode_loosely(raw).items()}
    body = headers.pop("_body", "")
    return Event(headers, body if isinstance(body, str) else "\n".join(body), len(raw))


def _decode_loosely(raw: bytes) -> dict[str, object]:
    try:
        return _loose_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        decoded = json.loads(raw.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise EslProtocolError(f"an event is not valid JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise EslProtocolError("an event is not a JSON object")
    return decoded


def parse_plain_event(raw: bytes) -> Event:
    """Decode the body of a `text/event-plain` frame, `uuid_dump` output included.

    Header values are URL-encoded one by one; they are split before they are decoded, so an
    encoded line break can not forge a header. Raises EslProtocolError on a bad inner length.
    """
    block, _, rest = raw.partition(b"\n\n")
    headers: dict[str, str | list[str]] = {}
    for line in block.split(b"\n"):
        raw_name, colon, raw_value = line.partition(b":")
        if not colon:
            continue
        name = _text(raw_name.strip())
        value = raw_value.strip()
        decoded = _text(unquote_to_bytes(value) if b"%" in value else value)
        present = headers.get(name)
        if present is None:
            headers[name] = decoded
        elif isinstance(present, list):
            present.append(decoded)
        else:
            headers[name] = [present, decoded]
    length = headers.get("Content-Length")
    if isinstance(length, str):
        rest = rest[: _content_length({"Content-Length": length})]
    return Event(headers, _text(rest).rstrip("\n") if length is None else _text(rest))


def _log_level(raw: str) -> int:
    return int(raw) if raw.isascii() and raw.isdigit() and len(raw) < 4 else -1


def _typed_frame(headers: Mapping[str, str], body: bytes) -> Frame:
    content_type = headers.get("Content-Type", "")
    match content_type:
        case "text/event-json":
            return parse_json_event(body)
        case "text/event-plain":
            return parse_plain_event(body)
        case "api/response":
            return ApiResponse(_text(body))
        case "command/reply":
            return CommandReply(headers.get("Reply-Text", _text(body)), headers)
        case "auth/request":
            return AuthRequest()
        case "text/disconnect-notice":
            return Disconnect(_text(body))
        case "text/rude-rejection":
            return RudeRejection(_text(body))
        case "log/data":
            return LogLine(_log_level(headers.get("Log-Level", "")), _text(body))
        case _:
            return UnknownFrame(content_type, _text(body))


class EslProtocol:
    """Cuts the byte stream of one ESL connection into frames.

    >>> EslProtocol().receive_data(b"Content-Type: auth/request\\n\\n")
    [AuthRequest()]
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0  # bytes already searched for the end of the header block
        self._headers: dict[str, str] | None = None  # of the frame whose body is awaited
        self._length = self._skipped = 0
        self._broken: str | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes held back because their frame is not complete."""
        return len(self._buffer)

    def receive_data(self, data: bytes) -> list[Frame]:
        """Take bytes from the wire, return the frames they complete, in order.

        Raises EslProtocolError when framing or a limit is broken; from then on every call does.
        Frames before the broken one in the same `data` are lost with it.
        """
        if self._broken is not None:
            raise EslProtocolError(self._broken)
        self._buffer += data
        frames: list[Frame] = []
        try:
            while (frame := self._next_frame()) is not None:
                frames.append(frame)
            if len(self._buffer) > BUFFER_BYTES_MAX:
                raise EslProtocolError(f"more than {BUFFER_BYTES_MAX} bytes without a frame")
        except EslProtocolError as error:
            self._broken = str(error)
            self._buffer.clear()
            raise
        return frames

    def _next_frame(self) -> Frame | None:
        if self._headers is None and not self._read_headers():
            return None
        if self._length > BODY_BYTES_MAX:
            self._skipped += len(self._buffer)
            over = max(0, self._skipped - self._length)
            del self._buffer[: len(self._buffer) - over]
            self._skipped -= over
        if self._headers is None or len(self._buffer) + self._skipped < self._length:
            return None
        length, self._length = self._length - self._skipped, 0
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        headers, self._headers = self._headers, None
        if self._skipped:
            skipped, self._skipped = self._skipped, 0
            return TooLarge(headers.get("Content-Type", ""), skipped)
        return _typed_frame(headers, body)

    def _read_headers(self) -> bool:
        """Consume one header block; stray blank lines before it are skipped."""
        blank = 0
        while blank < len(self._buffer) and self._buffer[blank] in b"\r\n":
            blank += 1
        if blank:
            del self._buffer[:blank]
            self._scanned = 0
        end = self._buffer.find(b"\n\n", max(self._scanned - 1, 0))
        if end < 0:
            self._scanned = len(self._buffer)
            if len(self._buffer) > HEADER_BLOCK_BYTES_MAX:
                raise EslProtocolError(f"a header block is over {HEADER_BLOCK_BYTES_MAX} bytes")
            return False
        if end > HEADER_BLOCK_BYTES_MAX:
            raise EslProtocolError(f"a header block is over {HEADER_BLOCK_BYTES_MAX} bytes")
        headers = _header_lines(bytes(self._buffer[:end]))
        del self._buffer[: end + 2]
        self._scanned = 0
        self._length = _content_length(headers)
        self._headers = headers
        return True


def _checked(what: str, value: str) -> str:
    if "\n" in value or "\r" in value or "\0" in value:
        raise EslArgumentError(f"{what} must not contain line breaks or NUL: {value[:60]!r}")
    return value


def _encoded(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) > COMMAND_BYTES_MAX:
        raise EslArgumentError(f"a command of {len(raw)} bytes is over {COMMAND_BYTES_MAX}")
    return raw


def command(line: str) -> bytes:
    """Any one-line command, for example `nixevent HEARTBEAT`."""
    if not line or line != line.strip():
        raise EslArgumentError(f"not a command: {line[:60]!r}")
    return _encoded(_checked("a command", line) + "\n\n")


def auth(password: str) -> bytes:
    """`auth`; the error for a bad password deliberately does not show it."""
    if "\n" in password or "\r" in password or "\0" in password or not password:
        raise EslArgumentError("the ESL password is empty or contains a line break")
    return _encoded(f"auth {password}\n\n")


def api(line: str) -> bytes:
    """`api LINE`, for example `api("status")`."""
    return command(f"api {line}")


def bgapi(line: str, job_uuid: str = "") -> bytes:
    """`bgapi LINE`; the result comes as BACKGROUND_JOB with this `job_uuid`."""
    head = command(f"bgapi {line}")
    if not job_uuid:
        return head
    return head[:-1] + _encoded(f"Job-UUID: {_checked('a job uuid', job_uuid)}\n\n")


def subscribe(events: Sequence[str], style: str = "json") -> bytes:
    """`event STYLE NAMES`; CUSTOM subclasses after the plain names, never `all`.

    FreeSWITCH takes every word after CUSTOM as a subclass, so the order matters and is made here.
    """
    plain = [name for name in events if "::" not in name and name != "CUSTOM"]
    custom = [name for name in events if "::" in name]
    if not plain and not custom:
        raise EslArgumentError("no events to subscribe to")
    for name in (*plain, *custom):
        if name.lower() == "all" or " " in name or not name:
            raise EslArgumentError(f"subscribe to named events only, not {name!r}")
    words = [*plain, *(["CUSTOM", *custom] if custom else [])]
    return command(f"event {style} " + " ".join(words))


def event_filter(header: str, value: str) -> bytes:
    """`filter HEADER VALUE`: only events with this header value pass (filters are OR-ed)."""
    return command(f"filter {header} {value}")


def sendevent(name: str, headers: Mapping[str, str], body: str = "") -> bytes:
    """`sendevent NAME`; payload belongs in the body, headers are read slowly (FREESWITCH 2.4)."""
    lines = [f"sendevent {_checked('an event name', name)}"]
    for key, value in headers.items():
        if ":" in key or key.lower() == "content-length":
            raise EslArgumentError(f"not an event header: {key[:60]!r}")
        lines.append(f"{_checked('a header name', key)}: {_checked('a header value', value)}")
    payload = body.encode("utf-8", "surrogateescape")
    if len(payload) > BODY_BYTES_MAX:
        raise EslArgumentError(f"an event body of {len(payload)} bytes is over {BODY_BYTES_MAX}")
    if payload:
        lines.append(f"content-length: {len(payload)}")
    return _encoded("\n".join(lines) + "\n\n") + payload
