"""Table `sip_registrations` of one profile's database: short reads and writes beside mod_sofia.

Only synchronous SQLite work belongs here, meant for a worker thread; what the rows mean is in
`registrations`, when to do what in `registration_source` and `registration_keeper`. Values reach
SQL as parameters only. Transactions are short, because each holds up mod_sofia's own writer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

from .registrations import BY_US, COLUMNS, CONTACT_MAX, TEXT_MAX, Row

BUSY_MS = 2000
ROWS_MAX = 50_000  # registrations of one profile; what is beyond is not replicated, and counted
WRITE_ROWS = 250  # in one transaction: about 8 ms
READ_USERS = 100  # in one statement

_NUMBERS = frozenset({"expires", "force_ping"})
_CUT = {"contact": CONTACT_MAX + 1}  # in signs; the rest is cut behind TEXT_MAX


def _column(name: str) -> str:
    """As it is read: a phone's User-Agent of 2 MB is in the table (measured), and not for us."""
    return name if name in _NUMBERS else f"substr({name}, 1, {_CUT.get(name, TEXT_MAX + 1)})"


_SELECT = "SELECT " + ", ".join(map(_column, COLUMNS)) + " FROM sip_registrations"
_INSERT = (
    f"INSERT INTO sip_registrations({', '.join(COLUMNS)}, ping_status, ping_count, ping_time,"
    f" ping_expires) VALUES ({', '.join('?' * len(COLUMNS))}, 'Reachable', 0, 0,"
    " CAST(strftime('%s', 'now') AS INTEGER))"
)
_KEY = ("call_id", "sip_user", "sip_host", "contact", "profile_name")
_IS = "= CAST(? AS TEXT)"  # of what `_bound` gives: bytes that are no UTF-8 are no text to SQLite
# `expires`: not the row that the same phone has made anew meanwhile.
_DELETE, _DELETE_LONG = (
    "DELETE FROM sip_registrations WHERE expires = ? AND "
    + " AND ".join(f"{n} {_IS}" for n in names)
    for names in (_KEY, map(_column, _KEY))
)
# Phones with several users have one Call-ID for all of them (RFC 3261 10.2).
_PRESENT = (
    f"SELECT 1 FROM sip_registrations WHERE orig_hostname != '{BY_US}'"
    " AND sip_user = ? AND sip_host = ? AND (call_id = ? OR contact = ?) LIMIT 1"
)


class RegistrationDbError(Exception):
    """The database cannot be used right now; the message names the file and the fix."""


def database_of(core_db: Path, profile: str) -> Path:
    """Where mod_sofia keeps a profile's registrations unless `dbname` or `odbc-dsn` is set."""
    return core_db.with_name(f"sofia_reg_{profile}.db")


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise RegistrationDbError(
            f"{path}: no such file: the profile has not run yet, or it has a dbname or odbc-dsn of"
            " its own; registrations can be replicated from mod_sofia's own SQLite files only"
        )
    uri = f"{path.absolute().as_uri()}?mode=rw"
    try:
        with closing(
            sqlite3.connect(uri, uri=True, timeout=BUSY_MS / 1000, isolation_level=None)
        ) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            connection.execute("PRAGMA synchronous=OFF")
            yield connection
    except sqlite3.Error as error:
        raise RegistrationDbError(
            f"{path}: {error}: let haclusterd read and write it, and see `fuser -v {path}`"
        ) from error


def read_all(path: Path) -> list[Row]:
    """Every row, ROWS_MAX + 1 at most. Raises RegistrationDbError."""
    with _open(path) as connection:
        found = connection.execute(f"{_SELECT} LIMIT ?", (ROWS_MAX + 1,)).fetchall()
    return [_row(values) for values in found]


def read_users(path: Path, users: Iterable[tuple[str, str]]) -> list[Row]:
    """The rows of these (user, host). Raises RegistrationDbError."""
    rows: list[Row] = []
    left = iter(users)
    with _open(path) as connection:
        while part := list(islice(left, READ_USERS)):
            marks = " OR ".join([f"(sip_user {_IS} AND sip_host {_IS})"] * len(part))
            values = [_bound(value) for user in part for value in user]
            rows += map(_row, connection.execute(f"{_SELECT} WHERE {marks}", values).fetchall())
    return rows


def write(path: Path, gone: Sequence[Row], added: Sequence[Row]) -> None:
    """Delete rows, then insert rows, in short transactions. Raises RegistrationDbError.

    A row that is both deleted and inserted is replaced in one transaction: nobody sees it missing.
    """
    new = {row.key: row for row in added}
    replaced = [row for row in gone if row.key in new]
    first = [row for row in gone if row.key not in new]
    with _open(path) as connection:
        for part in _parts(first):
            _change(connection, part, [])
        for part in _parts(replaced):
            _change(connection, part, [new.pop(row.key) for row in part if row.key in new])
        for part in _parts(list(new.values())):
            _change(connection, [], part)


def hand_over(path: Path, gone: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Delete rows, then insert what mod_sofia does not have yet; the latter are returned.

    A phone that registered here meanwhile, with the same call-id or contact, has its row already.
    Raises RegistrationDbError.
    """
    added: list[Row] = []
    with _open(path) as connection:
        for part in _parts(gone):
            _change(connection, part, [])
        for part in _parts(rows):
            connection.execute("BEGIN IMMEDIATE")
            for row in part:
                here = connection.execute(_PRESENT, (*_user(row), row.call_id, row.contact))
                if here.fetchone() is None:
                    connection.execute(_INSERT, row)
                    added.append(row)
            connection.execute("COMMIT")
    return added


def _user(row: Row) -> tuple[str, str]:
    return row.sip_user, row.sip_host


def _change(connection: sqlite3.Connection, gone: Sequence[Row], added: Sequence[Row]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for row in gone:
        values = [getattr(row, name) for name in _KEY]
        cut = any(len(v) > TEXT_MAX for v in values)
        bound = (_bound(value) for value in values)
        connection.execute(_DELETE_LONG if cut else _DELETE, (row.expires, *bound))
    connection.executemany(_INSERT, added)
    connection.execute("COMMIT")


def _bound(text: str) -> str | bytes:
    """As SQLite takes it: a phone's Latin-1 has surrogates here, which no statement may have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")
    return text


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for at in range(0, len(rows), WRITE_ROWS):
        yield rows[at : at + WRITE_ROWS]


def _row(values: Sequence[object]) -> Row:
    found: list[str | int] = []
    for name, value in zip(COLUMNS, values, strict=True):
        if name in _NUMBERS:
            found.append(value if isinstance(value, int) else 0)
        else:
            found.append(value if isinstance(value, str) else str(value or ""))
    return Row(*found)  # type: ignore[arg-type]
