"""Percent signs of callers in rows that FreeSWITCH wrote, as FreeSWITCH reads them again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from haclusterd.freeswitch import metadata, synthesis

TONE_FILE = Path(__file__).parents[1] / "fixtures" / "freeswitch" / "recovery_metadata_tone.xml"
TONE = TONE_FILE.read_text()
UNSAFE = b'\r\n #%&+:;<=>?@[\\]^`{|}"'


def written(value: str) -> str:
    """As switch_url_encode writes it into a row: what looks encoded stays (measured)."""
    raw, out, at = value.encode(), "", 0
    while at < len(raw):
        one = raw[at : at + 1]
        encoded = re.match(rb"%[0-9A-F]{2}", raw[at : at + 3])
        plain = 32 <= raw[at] <= 126 and one not in [UNSAFE[n : n + 1] for n in range(len(UNSAFE))]
        out += one.decode() if plain or encoded else f"%{raw[at]:02X}"
        at += 1
    return out


def row(**values: str) -> str:
    lines = "".join(f"    <{name}>{written(value)}</{name}>\n" for name, value in values.items())
    return TONE.replace("  </variables>", lines + "  </variables>")


def read(xml: str, name: str) -> str:
    """As the FreeSWITCH that recovers reads a variable."""
    found = re.findall(rf"<{name}>([^<]*)</{name}>", xml)
    return unquote_to_bytes(found[-1]).decode()


@pytest.mark.parametrize(
    "user",
    [
        "x%0D%0AX-Evil%3A%201", "%00", "John%20Doe", "john%40corp.com", "a%41", "50%off",
        "%22%3Cx%3E", "+4930", "%2B4930", "#31#", "a%0db",
    ],
)  # fmt: skip
def test_s_a_callers_percent_signs_are_signs_of_his_name_not_line_breaks(user: str) -> None:
    whole = f'"some body" <sip:{user}@lab.test>;tag=9'
    xml = metadata.readable(
        row(sip_from_user=user, sip_from_uri=f"{user}@lab.test", sip_full_from=whole)
    )
    metadata.check(xml)
    user = user.replace("%2B", "+")  # the same, and nobody can tell
    assert read(xml, "sip_from_user") == user
    assert read(xml, "sip_from_uri") == f"{user}@lab.test"
    assert read(xml, "sip_full_from") == f'"some body" <sip:{user}@lab.test>;tag=9'


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sip_call_id", "1-2@10.0.0.1"),
        ("sip_call_id", "a%41b%0D%0Ac@h"),
        ("sip_to_tag", "ab%zz"),
        ("sip_to_tag", "ab%20c"),
        ("sip_h_X-Any", "one%0D%0AX-Evil: two"),
        ("sip_h_X-Tab", "a\tb"),
        ("sip_full_via", "SIP/2.0/TCP 10.0.0.1:5060;branch=z9hG4bK%0A"),
        ("rtp_local_sdp_str", "v=0\r\no=FreeSWITCH 1 1 IN IP4 10.0.0.1\r\n"),
        ("my_text", "two\nlines"),
        ("sip_multipart", "text/plain:two\r\nlines"),
    ],
)
def test_s_what_came_over_the_wire_has_no_line_breaks_and_the_rest_keeps_them(
    name: str, value: str
) -> None:
    xml = metadata.readable(row(**{name: value}))
    assert read(xml, name) == value
    assert read(xml, "switch_r_sdp").count("\r\n") == read(TONE, "switch_r_sdp").count("\r\n") > 3


@pytest.mark.parametrize("tag", ["a*b!~'()$,/", "x%0D%0Ay", "50%", "a b"])
def test_what_we_write_ourselves_is_read_as_it_was(tag: str) -> None:
    """Of tags that FreeSWITCH told over ESL, and of documents made of dumps."""
    xml = metadata.set_variable(TONE, "sip_to_tag", tag.replace(" ", ""))
    assert read(metadata.readable(xml), "sip_to_tag") == tag.replace(" ", "")
    dump = json.loads((TONE_FILE.parent / "uuid_dump_json.txt").read_text())
    dump |= {"variable_sip_from_user": tag.replace(" ", ""), "variable_my_text": f"{tag}\n"}
    made = metadata.readable(synthesis.document(dump))
    assert read(made, "sip_from_user") == tag.replace(" ", "")
    assert read(made, "my_text") == f"{tag}\n"


def test_a_name_that_reads_like_the_user_stays_a_name() -> None:
    whole = '"john doe" <sip:john%20doe@lab.test>;tag=9'
    xml = metadata.readable(
        row(sip_from_user="john%20doe", sip_from_display="john doe", sip_full_from=whole,
            presence_id="john%20doe@lab.test", my_text="john doe")
    )  # fmt: skip
    assert read(xml, "sip_full_from") == whole
    assert read(xml, "sip_from_display") == "john doe"
    assert read(xml, "presence_id") == "john%20doe@lab.test"
    assert read(xml, "my_text") == "john doe"


def test_an_ordinary_row_stays_as_it_is() -> None:
    assert metadata.readable(TONE) is TONE
