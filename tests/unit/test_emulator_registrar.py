"""The emulator as a registrar: the captured events, the rows, and when they go."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.emulator_lab import Emulator, eventually
from tests.unit.emulator_peers import Telephone, header

CAPTURE = Path(__file__).parent.parent / "fixtures" / "freeswitch" / "sofia_register_plain.esl"
_COMMON = "Event-Subclass Event-Name Core-UUID FreeSWITCH- Event-Date- Event-Calling- Event-Seq"


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    profile = {"blind_reg": True, "ireg_seconds": 0.2, "expires_late_margin_s": 0}
    one = Emulator(tmp_path / "emulator", profile=profile).start()
    yield one
    one.kill()


@pytest.fixture
def phone(emulator: Emulator) -> Iterator[Telephone]:
    one = emulator.telephone("u1")
    yield one
    one.close()


def register(phone: Telephone, cseq: int, expires: int, contact: str = "") -> str:
    contact = contact or f"<{phone.uri}>"
    phone.send(
        f"REGISTER sip:{phone.server[0]} SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP {phone.ip}:{phone.port};branch=z9hG4bK-{phone.port}-r{cseq}\r\n"
        f"From: <sip:u1@{phone.server[0]}>;tag=1\r\nTo: <sip:u1@{phone.server[0]}>\r\n"
        f"Call-ID: reg-u1\r\nCSeq: {cseq} REGISTER\r\nContact: {contact}\r\n"
        f"Expires: {expires}\r\nUser-Agent: spike\r\nContent-Length: 0\r\n\r\n"
    )
    return phone.receive()


def rows(emulator: Emulator) -> list[tuple[str, ...]]:
    path = emulator.directory / "sofia_reg_pa.db"
    with closing(sqlite3.connect(path, timeout=5)) as connection:
        return connection.execute(
            "SELECT sip_user, contact, hostname, sub_host, status FROM sip_registrations"
        ).fetchall()


def captured(subclass: str) -> list[str]:
    """The names of the headers that only this event has, in the captured order."""
    encoded = subclass.replace(":", "%3A")
    text = CAPTURE.read_text().partition(f"Event-Subclass: {encoded}\n")[2].partition("\n\n")[0]
    names = re.findall(r"^([\w-]+): ", text, re.MULTILINE)
    return [name for name in names if not name.startswith(tuple(_COMMON.split()))]


def test_the_events_have_the_captured_headers(emulator: Emulator, phone: Telephone) -> None:
    with emulator.esl() as esl:
        esl.ask("event plain CUSTOM sofia::register sofia::unregister")
        assert "200 OK" in register(phone, 1, 3600)
        assert "200 OK" in register(phone, 2, 0)
        found: dict[str, dict[str, str]] = {}
        while len(found) < 2:
            frame = esl.read()
            if frame.kind == "text/event-plain":
                found[frame.event()["Event-Subclass"]] = frame.event()
    for subclass in ("sofia::register", "sofia::unregister"):
        names = [n for n in found[subclass] if not n.startswith(tuple(_COMMON.split()))]
        assert names == captured(subclass), subclass
    assert found["sofia::register"]["contact"] == f'"" <{phone.uri}>'
    assert found["sofia::register"]["status"] == "Registered(UDP)"


def test_a_phone_is_in_the_table_until_it_leaves_or_runs_out(
    emulator: Emulator, phone: Telephone
) -> None:
    answer = register(phone, 1, 60)
    assert header(answer, "Contact") == f"<{phone.uri}>;expires=60"
    domain = emulator.ip
    assert rows(emulator) == [
        ("u1", f'"" <{phone.uri}>', "nodea", domain, "Registered(UDP)")
    ]  # fmt: skip
    assert emulator.api(f"sofia_contact */u1@{domain}") == f"sofia/pa/{phone.uri}"
    assert emulator.api(f"sofia_contact pa/u2@{domain}") == "error/user_not_registered"
    register(phone, 2, 60)
    assert len(rows(emulator)) == 1, "a refresh is no second one"
    register(phone, 3, 0, "*")
    assert rows(emulator) == []
    with emulator.esl() as esl:
        esl.ask("event plain CUSTOM sofia::expire")
        register(phone, 4, 1)
        began = time.monotonic()
        while (frame := esl.read()).kind != "text/event-plain":
            pass
        assert frame.event()["Event-Subclass"] == "sofia::expire"
        assert time.monotonic() - began < 3
    eventually(lambda: rows(emulator) == [])


def test_rows_outlive_the_process_but_those_without_sub_host(
    emulator: Emulator, phone: Telephone
) -> None:
    register(phone, 1, 3600)
    path = emulator.directory / "sofia_reg_pa.db"
    with closing(sqlite3.connect(path, timeout=5)) as connection, connection:
        connection.execute(
            "INSERT INTO sip_registrations(sip_user, hostname) VALUES ('u2', 'nodea')"
        )
    assert len(rows(emulator)) == 2
    emulator.kill()
    emulator.start()
    assert [row[0] for row in rows(emulator)] == ["u1"]
    emulator.api("sofia profile pa flush_inbound_reg")
    eventually(lambda: rows(emulator) == [])


def test_without_blind_reg_it_challenges_as_before(tmp_path: Path) -> None:
    one = Emulator(tmp_path / "strict").start()
    phone = one.telephone("u1")
    try:
        assert register(phone, 1, 60).startswith("SIP/2.0 401")
        assert rows(one) == []
    finally:
        phone.close()
        one.kill()
