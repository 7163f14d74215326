"""What of a row must not reach FreeSWITCH as it is; that it dies of it: test_fatal_rows_real.py."""

from __future__ import annotations

import re

import pytest

from haclusterd.core.records import CallRecord
from haclusterd.freeswitch import fatal, mends, metadata
from tests.fixtures.freeswitch.fake_recovery import TONE

CONTACT = "sip_recover_contact"


def record(text: str = TONE, **variables: str) -> CallRecord:
    for name, value in variables.items():
        text = metadata.set_variable(text, name, value)
    return CallRecord("east", "u", 1, "pa", "core-a", text)


def read_by_freeswitch(contact: str) -> str:
    """sofia_glue_get_url_from_contact, of 1.11.1."""
    text = contact.partition("\0")[0].lstrip(" ")
    if text.startswith('"'):
        text = text[1:]
        if '"' in text:
            text = text.partition('"')[2]
    text = text.lstrip(" ")
    start, depth = text.find("<"), 0
    for at in range(start, len(text)) if start >= 0 else ():
        depth += (text[at] == "<") - (text[at] == ">")
        if depth == 0:
            return text[start + 1 : at]
    return text[1:] if start >= 0 else text


@pytest.mark.parametrize(
    ("contact", "address"),
    [
        ("<> <sip:1@h:5060>", "sip:1@h:5060"),
        ('"a\\"<>" <sip:1@h>', "sip:1@h"),
        ("< > <sip:1@h;x=<>>;expires=60", "sip:1@h;x=%3C%3E"),
        ("<sip:1@h;x=<>>", "sip:1@h;x=%3C%3E"),
        ("<;fs_path=a> <SIPS:1@h>", "SIPS:1@h"),
        ('<sip:1@h;x="a b">', "sip:1@h;x=%22a%20b%22"),
        ("<>", ""),
        ("<><", ""),
        ("> <sip:", ""),
        ('"<sip:1@h>', "sip:1@h"),
        ("*", ""),
        ("<sip:>", ""),
        ('<> <sip:1@h>;+sip.instance="<urn:uuid:0-1>"', "sip:1@h"),
        ('"Bob \\"<sip:bob@home>\\"" <sip:1@h>', "sip:1@h"),
        (' "a\\"<sip:b@home>" <sip:1@h>', "sip:1@h"),
        ('"<sip:b@home>" <tel:1>', ""),
        ('"\0" <sip:1@h>', "sip:1@h"),
        (" \0 <sip:1@h>", "sip:1@h"),
        ("<sip:1@h;x=\0>", "sip:1@h;x=%00"),
    ],
)
def test_s_the_address_of_a_contact_is_what_it_was_sent_as(contact: str, address: str) -> None:
    mended = fatal.mend(record(sip_recover_contact=contact))
    found = metadata.variable(mended.metadata, CONTACT)
    assert found == (f"<{address}>" if address else "")
    assert read_by_freeswitch(found) == address


@pytest.mark.parametrize(
    "contact",
    [
        "<sip:1@h:5060;transport=tcp>;expires=60",
        "Bob <sip:1@h>",
        '"Bob B." <sips:1@h>',
        "sip:1@h",
        "<SIP:1@[::1]:5060>",
        '<sip:1@h>;+sip.instance="<urn:uuid:0-1>";reg-id=1',
        '"Bob <sip:bob@home>" <sip:1@h:5060>',
        '"Bob <mobile>"<sip:1@h>',
        '"O%27Neill >" <sip:1@h>, <sip:2@h>',
        "<sip:1@[2001:db8::1]:5060;gr=urn:uuid:0-1;ob>",
    ],
)
def test_contacts_like_those_of_any_phone_stay(contact: str) -> None:
    whole = record(sip_recover_contact=contact)
    assert fatal.mend(whole) is whole
    assert re.match(r"sips?:1@", read_by_freeswitch(contact), re.IGNORECASE)


@pytest.mark.parametrize("name", ["sip_from_uri", "sip_req_uri", "sip_contact_params"])
def test_s_brackets_in_an_address_stay_encoded(name: str) -> None:
    mended = fatal.mend(record(**{name: '1@h;x=<> "'}))
    assert metadata.variable(mended.metadata, name) == "1@h;x=%3C%3E%20%22"


def test_s_a_contact_too_long_to_be_looked_at_is_refused() -> None:
    long = record(sip_recover_contact="<>" + "a" * metadata.VARIABLE_BYTES_MAX)
    for learnt in (False, True):
        if learnt:
            metadata.learn(long.metadata)
        with pytest.raises(metadata.MetadataError, match="sip_recover_contact has more than 8192"):
            fatal.mend(long)


@pytest.mark.parametrize("number", ["25", "26"])
def test_s_video_has_a_port_and_a_codec(number: str) -> None:
    video = record(TONE.replace("<flags>", f"<flags>{number}=1;", 1))
    mended = fatal.mend(video)
    assert metadata.variable(mended.metadata, "local_video_port") == "0"
    assert metadata.variable(mended.metadata, "rtp_use_video_codec_name") == "unknown"
    whole = record(video.metadata, local_video_port="16450", rtp_use_video_codec_name="VP8")
    assert fatal.mend(whole) is whole


def test_a_call_without_video_stays_as_it_is() -> None:
    for flags in ("126=1;1=1", "26=0;1=26", "1=1"):
        plain = record(TONE.replace("<flags>", f"<flags>{flags};", 1))
        assert fatal.mend(plain) is plain, flags


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (TONE.replace("<direction>inbound</direction>", "", 1), "its direction is missing"),
        (TONE.replace("<flags>", "<flags>-900000000=1;"), "its flags are no numbers"),
        (TONE.replace("<caps>", "<caps>-9=1;"), "its caps are no numbers"),
    ],
)
def test_s_what_no_freeswitch_writes_is_refused(text: str, why: str) -> None:
    assert text != TONE
    mended, refused = mends.mend_all([record(text)], mends.Mends())
    assert mended == []
    assert why in refused["u"]


@pytest.mark.parametrize("name", ["sip_req_uri[4000]", "sip_recover_contact[1]"])
def test_s_no_name_adds_a_value_to_a_guarded_variable(name: str) -> None:
    """FreeSWITCH died of both; it writes no such names itself."""
    text = TONE.replace("<variables>", f"<variables><{name}>%3C%3E</{name}>", 1)
    (mended,), _ = mends.mend_all([record(text)], mends.Mends())
    assert name not in mended.metadata


def test_s_of_several_values_freeswitch_takes_the_first_and_so_does_the_guard() -> None:
    """`Contact: ARRAY::<>|:b` becomes two elements of its row (seen on 1.11.1)."""
    two = "".join(f"<{CONTACT}>{value}</{CONTACT}>" for value in ("%3C%3E", "sip%3A1%40h"))
    text = TONE.replace("<variables>", f"<variables>{two}", 1)
    assert CONTACT not in fatal.mend(record(text)).metadata


def test_s_all_of_it_is_done_before_an_injection() -> None:
    hostile = record(sip_recover_contact="<> <sip:1@h>")
    (mended,), _ = mends.mend_all([hostile], mends.Mends())
    assert metadata.variable(mended.metadata, CONTACT) == "<sip:1@h>"
