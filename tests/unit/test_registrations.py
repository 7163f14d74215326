"""Which registrations travel: a SIP user wrote what ends in a neighbour's tables."""

from __future__ import annotations

import string
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haclusterd.core.records import Registration
from haclusterd.freeswitch.registrations import (
    BY_US,
    COLUMNS,
    Place,
    Refused,
    Row,
    check,
    contact_uri,
    harmless,
    key_of,
    record_of_row,
    row_here,
    row_via_owner,
    via_owner,
)

EAST = "sip:10.77.0.101:5060"
NAT = "sip:1000@192.168.1.5:5062;fs_nat=yes;fs_path=sip%3A1000%40198.51.100.9%3A31022"
LANE = "registrations:east"


def row(user: str = "1000", contact: str = '"" <sip:1000@10.77.0.21:5090>', **other: Any) -> Row:
    values: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    values |= {
        "call_id": f"reg-{user}", "sip_user": user, "sip_host": "lab.test", "contact": contact,
        "status": "Registered(UDP)", "rpid": "unknown", "expires": 4_000_000_000,
        "user_agent": "spike", "server_user": user, "server_host": "127.0.0.1",
        "profile_name": "east", "hostname": "fs-a", "network_ip": "10.77.0.21",
        "network_port": "5090", "sip_username": user, "sip_realm": "lab.test", "mwi_user": user,
        "mwi_host": "lab.test", "orig_server_host": "127.0.0.1", "orig_hostname": "fs-a",
        "sub_host": "lab.test", "force_ping": 0,
    } | other  # fmt: skip
    return Row(**values)


def record(user: str = "1000", **other: Any) -> Registration:
    return record_of_row(row(user, **other), LANE, 7)


@pytest.mark.parametrize(
    "contact",
    [
        '"" <sip:1000@10.77.0.21:5090>',
        '"Bob Miller" <sip:1000@10.77.0.21:5090;transport=tcp>',
        f'"" <{NAT}>',
        "<sip:1000@[2001:db8::5]:5060;ob>",
        "<sips:o1pv3k@df7jal23ls0d.invalid;transport=ws>",
        "<sip:1000@10.0.0.9:5060;rinstance=3f1b;fs_path=%3Csip%3A10.0.0.1%3A5060%3Blr%3E>",
    ],
)
def test_eg8_contacts_of_real_phones_travel(contact: str) -> None:
    assert record(contact=contact).contact == contact


HOSTILE_CONTACTS = [
    "sip:1000@10.77.0.21:5090",  # mod_sofia always writes <>
    "<sip:1000@10.77.0.21:5090>\r\nX-Evil: 1",
    "<sip:10\n00@10.77.0.21:5090>",
    "<sip:1000%0aevil@10.77.0.21:5090>",
    "<sip:1000%0D%0A@10.77.0.21:5090>",
    "<sip:1000%250a@10.77.0.21:5090>",  # line break after decoding twice
    "<sip:1000%25250a@10.77.0.21>",
    "<sip:1000@10.77.0.21:5090;x=%00>",
    "<sip:1000'--@10.77.0.21>",
    "<sip:1000%27@10.77.0.21>",
    '<sip:1000"@10.77.0.21>',
    "<sip:1000%22@10.77.0.21>",
    "<sip:1000@10.77.0.21,loopback/9999/default>",
    "<sip:1000%2Cloopback/9999@10.77.0.21>",
    "<sip:1000@10.77.0.21|sofia/gateway/trunk/00900>",
    "<sip:${system(reboot)}@10.77.0.21>",
    "<sip:1000@10.77.0.21;x=%24%7Bsystem%28reboot%29%7D>",
    "<sip:[origination_uuid=1]x@10.77.0.21>",
    "<sip:{a=b}x@10.77.0.21>",
    "<sip:1000@10.77.0.21;ha_to=x>",
    "<sip:1000@10.77.0.21:99999>",
    "<tel:+4930123>",
    "<sip:1000@>",
    "<sip:1000@10.77.0.21> <sip:x@y>",
    '"a" b" <sip:1000@10.77.0.21>',
    '"a\\" <sip:1000@10.77.0.21>',
    '"%0a" <sip:1000@10.77.0.21>',
    '"${x}" <sip:1000@10.77.0.21>',
    "<sip:1000@10.77.0.21;x=" + "a" * 1100 + ">",
    "<sip:1000@10.77.0.21;x=" + "ä" * 10 + ">",
    "<sip:1000@10.77.0.21;x=\udcff>",
    "",
]


@pytest.mark.parametrize("contact", HOSTILE_CONTACTS)
def test_eg8_hostile_contacts_are_refused(contact: str) -> None:
    with pytest.raises(Refused):
        contact_uri(contact)
    with pytest.raises(Refused):
        record(contact=contact)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sip_user", "10'00"), ("sip_user", ""), ("sip_user", "a" * 256), ("sip_user", "%0a"),
        ("sip_host", "lab.test'; DROP TABLE sip_registrations; --"), ("sip_host", ""),
        ("call_id", "x\ny"), ("call_id", "a\"b"), ("call_id", "a" * 256), ("call_id", ""),
        ("status", "Registered(UDP)', 1"), ("network_ip", "10.0.0.1\n"), ("network_ip", "x"),
        ("network_port", "50 60"), ("network_port", "123456"), ("sip_username", "a\x00"),
        ("sip_realm", "a\\"), ("mwi_host", "<x>"), ("sub_host", "a b"), ("expires", 0),
        ("presence_hosts", "a;b"), ("profile_name", "east/1"),
    ],
)  # fmt: skip
def test_eg8_other_fields_are_refused(field: str, value: Any) -> None:
    with pytest.raises(Refused):
        record_of_row(row()._replace(**{field: value}), LANE, 1)


def test_eg8_a_user_agent_is_made_harmless_not_refused() -> None:
    evil = "Phone/1.0\r\nX: '); DROP TABLE x; --%0a\"`${system(reboot)}\x1b[2J" + "x" * 300
    agent = record(user_agent=evil).user_agent
    assert agent.startswith("Phone/1.0??X: ?); DROP TABLE x; --?0a")
    assert len(agent) <= 255
    assert not set(agent) & set("\r\n'\"`$%{}<>\\\x1b")


@given(st.text(max_size=400))
def test_eg8_a_harmless_text_is_left_alone_and_any_becomes_one(text: str) -> None:
    once = harmless(text)
    assert harmless(once) == once
    assert len(once.encode()) <= 255


@given(st.text(alphabet=string.printable + "%0aàÿ\u2028", max_size=80))
def test_eg8_whatever_passes_has_nothing_that_ends_a_line_or_a_string(text: str) -> None:
    try:
        contact_uri(f"<sip:1000@10.0.0.1;x={text}>")
    except Refused:
        return
    assert not set(text) & set("\r\n'\"`\\,|{}<>$ ")


def test_eg8_a_record_that_was_changed_on_the_way_is_refused() -> None:
    good = record()
    for field, value in (
        ("user", "1001"), ("uuid", "0" * 32), ("contact", "<sip:x@y>\n"), ("user_agent", "'"),
        ("expires_s", -1),
    ):  # fmt: skip
        with pytest.raises(Refused):
            check(msgspec.structs.replace(good, **{field: value}))
    assert check(good).user == "1000"


def test_eg8_the_way_to_a_phone_leads_through_its_service() -> None:
    assert via_owner(record(), EAST) == (
        "<sip:1000@10.77.0.21:5090;ha_to=-;fs_path=sip%3A10.77.0.101%3A5060>"
    )
    behind_nat = via_owner(record(contact=f'"" <{NAT};transport=tcp>'), EAST)
    assert behind_nat.startswith("<sip:1000@192.168.1.5:5062;ha_to=fs_nat%3Dyes%3Bfs_path%3Dsip%25")
    assert behind_nat.count("fs_path=") == 1, "the first one is what FreeSWITCH goes to"
    with pytest.raises(Refused):
        via_owner(record(contact="<sip:1000@10.77.0.21;x=" + "%41" * 300 + ">"), EAST)


def test_eg8_rows_of_others_are_marked_and_not_pinged() -> None:
    place = Place("west", "fs-b", "10.77.0.102")
    row_there = row_via_owner(record(force_ping=1), place, EAST)
    assert row_there.orig_hostname == BY_US
    assert (row_there.status, row_there.force_ping) == ("Registered", 0)
    assert (row_there.profile_name, row_there.hostname) == ("west", "fs-b")
    here = row_here(record(force_ping=1), Place("east", "fs-b", "10.77.0.101"))
    assert (here.orig_hostname, here.hostname, here.force_ping) == ("fs-b", "fs-b", 1)
    assert here.contact == row().contact
    assert here.status == "Registered(UDP)"
    assert here.key == row().key == key_of("east", "1000", "lab.test", "reg-1000", row().contact)
    without = record(sub_host="")
    assert row_here(without, place).sub_host == "lab.test", "mod_sofia deletes rows without one"
