"""What in a row kills the FreeSWITCH that recovers it, and with it all calls of the takeover. Pure.

Each was seen on 1.11.1 (`tests/freeswitch/test_fatal_rows_real.py`). A phone can send the first:

* It answers with `Contact: %3C%3E <sip:...>`. FreeSWITCH decodes that in `sip_recover_contact` and
  takes what is between the first brackets, nothing, for the address of the re-INVITE; sofia-sip
  reads from nowhere. `sip_req_uri` and `sip_from_uri` are taken apart in the same way.
* A channel with video (`CF_VIDEO`) without its port or codec (`switch_core_media_recover_session`).
* No direction, or a flag with a number below zero: no FreeSWITCH writes these.
"""

from __future__ import annotations

import re
from urllib.parse import quote

import msgspec

from haclusterd.core.records import CallRecord

from . import metadata

_ADDRESSES = ("sip_from_uri", "sip_req_uri", "sip_contact_uri", "sip_contact_params")
_NOT_OF_A_URI = re.compile(r'[<>"\s\0]')
_CONTACT = "sip_recover_contact"
_ONE_URI = r'sips?:[^<>"\s\0]+'
# FreeSWITCH passes over a name in quotes, but knows no escaped ones, and cuts a value at a NUL.
_PLAIN_CONTACT = re.compile(rf'(?:"[^"\\\0]*" *|[^"<>\0]*)<{_ONE_URI}>.*|{_ONE_URI}', re.IGNORECASE)
# What the phone meant: behind the whole name, whose quotes may be escaped.
_NAME = r'\s*"(?:[^"\\]|\\.)*"\s*(?=<)'
_BEGIN = re.compile(rf"(?:{_NAME})?+.*?(?=<sips?:)", re.IGNORECASE | re.DOTALL)
# CF_VIDEO is 25 until FreeSWITCH 1.10.0 and 26 today; what is added is read of video alone.
_VIDEO = re.compile(r"[>;]2[56]=0*[1-9]")
_VIDEO_NEEDS = {"local_video_port": "0", "rtp_use_video_codec_name": "unknown"}
_DIRECTION = re.compile(r"<direction>[^<>]+</direction>")
_NUMBERS = re.compile(r"<(flags|caps)>([^<]*)</")
_PLAIN_NUMBERS = re.compile(r"(?:\d{1,5}=\d{1,10};?)*", re.ASCII)


def check(xml: str) -> None:
    """Refuse what cannot be mended. Raises metadata.MetadataError."""
    head = xml[: xml.find("<variables>")]
    if "<channel_data>" in head and not _DIRECTION.search(head):
        raise metadata.MetadataError("its direction is missing: FreeSWITCH would crash on it")
    for name, numbers in _NUMBERS.findall(head):
        if not _PLAIN_NUMBERS.fullmatch(numbers):
            raise metadata.MetadataError(f"its {name} are no numbers: FreeSWITCH could crash on it")


def mend(record: CallRecord) -> CallRecord:
    """A record of which FreeSWITCH can make a call. Raises metadata.MetadataError."""
    text = record.metadata
    check(text)
    for name in _ADDRESSES:
        value = _whole(text, name)
        if _NOT_OF_A_URI.search(value):
            text = metadata.set_variable(text, name, _uri(value))
    contact = _whole(text, _CONTACT)
    if contact and not _PLAIN_CONTACT.fullmatch(contact):
        text = metadata.without_variable(text, _CONTACT)  # then it asks where it asked before
        if address := _address_in(contact):
            text = metadata.set_variable(text, _CONTACT, f"<{address}>")
    if _VIDEO.search(text, 0, text.find("</flags>")):
        for name, value in _VIDEO_NEEDS.items():
            if not metadata.variable(text, name):
                text = metadata.set_variable(text, name, value)
    return record if text is record.metadata else msgspec.structs.replace(record, metadata=text)


def _whole(xml: str, name: str) -> str:
    """A variable's value, of which nobody must see a part only."""
    if metadata.too_long(xml, name):
        raise metadata.MetadataError(f"{name} has more than {metadata.VARIABLE_BYTES_MAX} signs")
    return metadata.variable(xml, name)


def _uri(value: str) -> str:
    """With the signs that no URI has as its phone wrote them: FreeSWITCH decodes what it reads."""
    return _NOT_OF_A_URI.sub(lambda found: quote(found[0]), value)


def _address_in(contact: str) -> str:
    """The address in a Contact whose display name has brackets too; empty where there is none."""
    found = _BEGIN.match(contact)
    start, depth = found.end() if found else len(contact), 0
    for at in range(start, len(contact)):
        depth += (contact[at] == "<") - (contact[at] == ">")
        if depth == 0:
            address = _uri(contact[start + 1 : at])
            return address if _PLAIN_CONTACT.fullmatch(address) else ""
    return ""
