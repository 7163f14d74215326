"""Bytes of the replication wire format, version 1: frames, messages, record blobs.

A frame is four bytes of length (big endian, without themselves) and one msgpack array whose first
element is the message's tag. A wire format is never edited: a change means a new VERSION here.
Blobs are compressed per record, once, at the origin, and stay so in every standby store.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from haclusterd.core.records import CallRecord, Registration, Tombstone
from haclusterd.core.replication import (
    Ack,
    Chunk,
    Delta,
    Item,
    Offer,
    Outdated,
    Resume,
    SnapshotBegin,
    SnapshotEnd,
    StreamId,
)

VERSION = 1
FRAME_BYTES_MAX = 256 * 1024
BLOB_BYTES_MAX = 160 * 1024
RECORD_BYTES_MAX = 1024 * 1024  # of one record when unpacked
REGISTRATION_BYTES_MAX = 8 * 1024  # of one registration when unpacked: 16 texts of 255 and contact
PAYLOAD_BYTES_MAX = 192 * 1024  # of one request or response
_PACK_FROM_BYTES = 512
_RAW, _ZLIB = b"\x00", b"\x01"


class Malformed(Exception):
    """Bytes that are no frame, no message or no record of this version."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """First message of both sides; the node id must be the certificate's."""

    version: int
    cluster: str
    node: str


class Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where one of the origin's streams is; compared by standbys that are at that position."""

    stream: StreamId
    head: int
    digest: int


class Beat(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Keepalive. `echo_us` is `sent_us` of the peer's newest beat (it alone can read it), which
    came `held_us` ago; -1 before the first."""

    sent_us: int
    echo_us: int
    held_us: int
    heads: list[Head]


class Request(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Ask the other agent something; answered by a Response of the same number."""

    number: int
    method: str
    payload: bytes


class Response(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """`payload` is the answer, or the reason (UTF-8) where not `ok`."""

    number: int
    ok: bool
    payload: bytes


class Want(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Which calls of a service do you know better? `marks`: 64 bit digest per bucket."""

    number: int
    service: str
    marks: list[int]


class Found(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Items in buckets that differed; `last` ends the answer."""

    number: int
    items: list[Item]
    last: bool


Message: TypeAlias = (
    Hello
    | Beat
    | Request
    | Response
    | Want
    | Found
    | Offer
    | Resume
    | Delta
    | SnapshotBegin
    | Chunk
    | SnapshotEnd
    | Ack
    | Outdated
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_record_decoder = msgspec.msgpack.Decoder(CallRecord)
_registration_decoder = msgspec.msgpack.Decoder(Registration)


def frame(message: Message) -> bytes:
    """One message as bytes to send."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


def decode(body: bytes | memoryview) -> Message:
    """One frame's body. Raises Malformed."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise Malformed(str(error)) from None


class FrameReader:
    """Cuts a byte stream into frame bodies; holds at most one incomplete frame."""

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    def feed(self, received: bytes) -> Iterator[bytes]:
        """Bodies that are complete now. Raises Malformed on an empty or oversize frame."""
        buffer = self._buffer
        buffer += received
        at = 0
        try:
            while len(buffer) - at >= 4:
                length = int.from_bytes(buffer[at : at + 4], "big")
                if not 0 < length <= self._bytes_max:
                    raise Malformed(f"frame of {length} bytes, at most {self._bytes_max} allowed")
                if len(buffer) - at - 4 < length:
                    break
                body = bytes(buffer[at + 4 : at + 4 + length])
                at += 4 + length
                yield body
        finally:
            del buffer[:at]


def item_of(record: CallRecord | Registration | Tombstone, epoch: int, incarnation: int) -> Item:
    """A record as a log item. Raises Malformed if it is too large to send, or no text."""
    try:
        packed = _encoder.encode(record)
    except UnicodeEncodeError as error:
        raise Malformed(f"{record.uuid!a}: {error.reason}") from None
    blob = _RAW + packed
    if len(packed) > _PACK_FROM_BYTES:
        blob = _ZLIB + zlib.compress(packed, 1)
    most = REGISTRATION_BYTES_MAX if isinstance(record, Registration) else RECORD_BYTES_MAX
    if len(blob) > BLOB_BYTES_MAX or len(packed) > most:
        raise Malformed(f"{record.uuid}: {len(packed)} bytes, more than can be replicated")
    dead = isinstance(record, Tombstone)
    return Item(record.uuid, epoch, incarnation, record.version, dead, blob)


def record_of(item: Item) -> CallRecord:
    """The call record in a live item. Raises Malformed."""
    try:
        return _record_decoder.decode(_unpacked(item, RECORD_BYTES_MAX))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"call {item.uuid}: {error}") from None


def registration_of(item: Item) -> Registration:
    """The registration in a live item, its texts as they came. Raises Malformed."""
    try:
        return _registration_decoder.decode(_unpacked(item, REGISTRATION_BYTES_MAX))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"registration {item.uuid}: {error}") from None


def _unpacked(item: Item, most: int) -> bytes:
    packed = item.blob[1:]
    if item.blob[:1] == _ZLIB:
        inflater = zlib.decompressobj()
        try:
            packed = inflater.decompress(packed, most)
        except zlib.error as error:
            raise Malformed(f"{item.uuid}: {error}") from None
        if not inflater.eof:
            raise Malformed(f"{item.uuid}: record is cut or too large")
    if len(packed) > most:
        raise Malformed(f"{item.uuid}: record of {len(packed)} bytes")
    return packed
