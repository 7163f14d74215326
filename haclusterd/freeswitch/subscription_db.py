"""Table `sip_subscriptions` of one profile's database, and which of its rows may travel.

mod_sofia makes each NOTIFY from the row alone: Call-ID, both tags, the Contact, and a CSeq by the
clock (sofia_presence.c). A row that is copied to the new owner therefore keeps the dialogue of the
phone (measured on 1.11.1); without it the phone hears nothing until it subscribes again.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from .registrations import CALL_ID, CONTACT_MAX, HOSTS, TEXT_MAX, Refused, contact_uri, harmless

BUSY_MS = 2000
ROWS_MAX = 1000  # of one profile

_DIALOGUE = re.compile(
    r'(?:"[^"\\<>]{0,80}"\s*)?<sips?:[A-Za-z0-9_.!~*+=&/@:;\[\]-]{1,200}>'
    r"(?:;tag=[A-Za-z0-9_.!~*+-]{1,80}){1,2}"
)
_WORD = re.compile(r"[A-Za-z0-9_.+*/;=, -]{0,255}")
_USER = re.compile(r"[A-Za-z0-9_.!~*+=&/-]{1,120}")
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")
_PORT = re.compile(r"[0-9]{0,5}")


class Subscription(NamedTuple):
    """The columns of a row that matter, all but the host's, in the order of COLUMNS."""

    proto: str
    sip_user: str
    sip_host: str
    sub_to_user: str
    sub_to_host: str
    presence_hosts: str
    event: str
    contact: str
    call_id: str
    full_from: str
    full_via: str
    expires: int
    user_agent: str
    accept: str
    profile_name: str
    network_port: str
    network_ip: str
    version: int
    orig_proto: str
    full_to: str


COLUMNS = Subscription._fields
_NUMBERS = ("expires", "version")
_FORMS = {
    "proto": _WORD, "event": _WORD, "accept": _WORD, "orig_proto": _WORD, "network_ip": _HOST,
    "sip_user": _USER, "sub_to_user": _USER, "sip_host": _HOST, "sub_to_host": _HOST,
    "presence_hosts": HOSTS, "call_id": CALL_ID, "network_port": _PORT,
    "full_from": _DIALOGUE, "full_to": _DIALOGUE,
}  # fmt: skip


def check(row: Subscription) -> Subscription:
    """A row that may travel, its free texts made harmless. Raises registrations.Refused."""
    for name, form in _FORMS.items():
        value = getattr(row, name)
        if not isinstance(value, str) or not form.fullmatch(value):
            raise Refused(f"{name} is not as it has to be: {str(value)[:40]!a}")
    for name in ("contact", "full_via", "user_agent", "profile_name"):
        if not isinstance(getattr(row, name), str):
            raise Refused(f"{name} is no text")
    if not (0 < row.expires < 1 << 40 and -1 <= row.version < 1 << 31):
        raise Refused("a number is out of range")
    contact_uri(row.contact)
    # Parts of it stand in nothing that is sent; what is kept is for people.
    return row._replace(full_via=harmless(row.full_via), user_agent=harmless(row.user_agent))


def read(path: Path, profile: str) -> tuple[list[Subscription], int]:
    """Rows that may travel, ROWS_MAX at most, and how many were refused. Raises sqlite3.Error."""
    with closing(_open(path)) as connection:
        found = connection.execute(
            f"SELECT {', '.join(COLUMNS)} FROM sip_subscriptions WHERE profile_name = ?"
            " AND expires > CAST(strftime('%s', 'now') AS INTEGER) ORDER BY call_id LIMIT ?",
            (profile, ROWS_MAX + 1),
        ).fetchall()
    rows, refused = [], max(0, len(found) - ROWS_MAX)
    for values in found[:ROWS_MAX]:
        try:
            rows.append(check(_row(values)))
        except Refused:
            refused += 1
    return rows, refused


def _row(values: tuple[object, ...]) -> Subscription:
    found: list[str | int] = []
    for name, value in zip(COLUMNS, values, strict=True):
        if name in _NUMBERS:
            found.append(value if isinstance(value, int) else 0)
        else:
            found.append(str(value or "")[: max(TEXT_MAX, CONTACT_MAX) + 1])
    return Subscription(*found)  # type: ignore[arg-type]


def hand_over(path: Path, rows: Iterable[Subscription], switchname: str) -> int:
    """Put in what mod_sofia does not have newer; how many that were. Raises sqlite3.Error."""
    names = [*COLUMNS, "hostname"]
    insert = f"INSERT INTO sip_subscriptions({', '.join(names)}) VALUES ({_marks(len(names))})"
    added = 0
    with closing(_open(path)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        for row in rows:
            key = (row.call_id, row.profile_name, row.event)
            where = "WHERE call_id = ? AND profile_name = ? AND event = ?"
            newer = connection.execute(
                f"SELECT 1 FROM sip_subscriptions {where} AND expires > ?", (*key, row.expires)
            ).fetchone()
            if newer is None:
                connection.execute(f"DELETE FROM sip_subscriptions {where}", key)
                connection.execute(insert, (*row, switchname))
                added += 1
    return added


def clear(path: Path, profile: str) -> None:
    """Another node has the service: nothing is to be told to its phones from here."""
    with closing(_open(path)) as connection, connection:
        connection.execute("DELETE FROM sip_subscriptions WHERE profile_name = ?", (profile,))


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _open(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_MS / 1000, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    return connection
