"""Answers, events and words to heart as bytes, whatever callers and FreeSWITCH wrote into them.

Bytes that are no UTF-8 are shown as "?"; they never keep the rest of an answer back.
"""

from __future__ import annotations

import json

import msgspec

_encoder = msgspec.json.Encoder()
_packer = msgspec.msgpack.Encoder()


def encoded(value: object) -> bytes:
    """One line of JSON."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return encodable(json.dumps(msgspec.to_builtins(value), ensure_ascii=False)).encode()


def packed(value: object) -> bytes:
    """One message of msgpack. Where a text is no UTF-8, nothing else in it may be bytes."""
    try:
        return _packer.encode(value)
    except UnicodeEncodeError:
        return _packer.encode(msgspec.json.decode(encoded(value)))


def encodable(text: str) -> str:
    """`text` without what cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode()
