"""Rows into and out of the local core.db around a recovery: inject, attempts, stale rows.

Only synchronous SQLite transactions belong here (FREESWITCH.md 2.3 and 3.3). Every function opens,
does one transaction and closes, raises CoreDbError, and is meant for a worker thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from haclusterd.core.records import CallRecord

from . import changelog

WRITE_BUSY_MS = 3000
SLICE = 500  # values in one statement: the oldest SQLite takes 999

_CREATE_ATTEMPTS = """
CREATE TABLE IF NOT EXISTS ha_injected(service TEXT, epoch INTEGER, uuid TEXT, core_uuid TEXT,
  sip_cseq TEXT, PRIMARY KEY(service, uuid))
"""


class StreamRow(NamedTuple):
    """A call record under the (pseudo) profile name of the stream that will recover it."""

    stream: str
    record: CallRecord


class Attempt(NamedTuple):
    """An earlier injection of a call in the same epoch; `waiting` while its row is still there.

    `sip_cseq` is the one that was injected: it changes once the phone has answered.
    """

    core_uuid: str
    waiting: bool
    sip_cseq: str


@contextmanager
def _transaction(
    path: Path, begin: str = "BEGIN IMMEDIATE", busy_ms: int = WRITE_BUSY_MS
) -> Iterator[sqlite3.Connection]:
    """`synchronous` is off here (see open_core_db): a takeover does not wait for a disk."""
    connection = changelog.open_core_db(path, busy_ms=busy_ms)
    try:
        connection.execute(begin)
        yield connection
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise changelog.explain(path, error) from error
    finally:
        connection.close()  # rolls back what was not committed


def _stream_clause(profiles: Sequence[str]) -> tuple[str, list[str]]:
    """Rows of these profiles and of their pseudo names `profile#i`."""
    parts = " OR ".join("profile_name = ? OR substr(profile_name, 1, ?) = ?" for _ in profiles)
    values: list[str] = []
    for profile in profiles:
        values += [profile, str(len(profile) + 1), profile + "#"]
    return f"({parts})", values


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    row = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    return row is not None


def inject(
    path: Path,
    core_uuid: str,
    service: str,
    epoch: int,
    profiles: Sequence[str],
    rows: Sequence[StreamRow],
    *,
    first: bool = False,
    beside_head: bool = False,
    busy_ms: int = WRITE_BUSY_MS,
) -> bool:
    """Replace whatever foreign rows these profiles have by `rows`, in this order, at once.

    Remembers the attempt beside them and lifts the change log above the injected versions, so that
    what this node tells about the calls later counts as newer. With `first` False, and nothing
    done, if there was an injection in this epoch before; `beside_head` adds to such a one.
    """
    with _transaction(path, busy_ms=busy_ms) as connection:
        connection.execute(_CREATE_ATTEMPTS)
        if first and _attempted(connection, service, epoch):
            return False
        if not beside_head:
            clause, values = _stream_clause(profiles)
            _drop_rows(connection, f"runtime_uuid != ? AND {clause}", (core_uuid, *values))
        connection.executemany(
            "DELETE FROM recovery WHERE uuid = ? AND runtime_uuid != ?",
            [(row.record.uuid, core_uuid) for row in rows],
        )
        connection.executemany(
            "INSERT INTO recovery(runtime_uuid, technology, profile_name, hostname, uuid, metadata)"
            " VALUES (?, 'sofia', ?, 'haclusterd', ?, ?)",
            [
                (_foreign(r.record, core_uuid), r.stream, r.record.uuid, r.record.metadata)
                for r in rows
            ],
        )
        connection.execute(
            "DELETE FROM ha_injected WHERE service = ? AND epoch != ?", (service, epoch)
        )
        connection.executemany(
            "INSERT OR REPLACE INTO ha_injected(service, epoch, uuid, core_uuid, sip_cseq)"
            " VALUES (?, ?, ?, ?, ?)",
            [(service, epoch, r.record.uuid, core_uuid, r.record.sip_cseq) for r in rows],
        )
        if rows and _has_table(connection, "ha_log"):
            changelog.raise_sequence(connection, max(row.record.version for row in rows))
    return True


def _attempted(connection: sqlite3.Connection, service: str, epoch: int) -> bool:
    found = connection.execute(
        "SELECT 1 FROM ha_injected WHERE service = ? AND epoch = ? LIMIT 1", (service, epoch)
    ).fetchone()
    return found is not None


def _drop_rows(connection: sqlite3.Connection, rows: str, values: Sequence[str] = ()) -> int:
    """Delete unused rows; who comes next in this epoch may inject these calls anew."""
    if _has_table(connection, "ha_injected"):
        connection.execute(
            "UPDATE ha_injected SET core_uuid = ''"
            f" WHERE uuid IN (SELECT uuid FROM recovery WHERE {rows})",
            values,
        )
    return connection.execute(f"DELETE FROM recovery WHERE {rows}", values).rowcount


def _foreign(record: CallRecord, core_uuid: str) -> str:
    """FreeSWITCH only recovers rows of another process than itself."""
    own = record.runtime_uuid in ("", core_uuid)
    return f"taken-over-{record.uuid}" if own else record.runtime_uuid


def withdraw(path: Path, uuids: Sequence[str], *, again: bool = False) -> None:
    """Delete rows that FreeSWITCH has not looked at yet: nobody is to recover these calls.

    They stay noted as injected, so that no later run of this epoch does it; unless `again`.
    """
    with _transaction(path) as connection:
        for start in range(0, len(uuids), SLICE):
            part = uuids[start : start + SLICE]  # of attempts each time all are looked through
            rows = f"hostname = 'haclusterd' AND uuid IN ({', '.join('?' * len(part))})"
            if again:
                _drop_rows(connection, rows, part)
            else:
                connection.execute(f"DELETE FROM recovery WHERE {rows}", part)


def attempts(path: Path, service: str, epoch: int) -> dict[str, Attempt]:
    """What an earlier run in this epoch injected already, by call uuid."""
    with _transaction(path, "BEGIN") as connection:
        if not _has_table(connection, "ha_injected"):
            return {}
        found = connection.execute(
            "SELECT a.uuid, a.core_uuid, EXISTS(SELECT 1 FROM recovery r WHERE r.uuid = a.uuid"
            " AND r.runtime_uuid != a.core_uuid), a.sip_cseq"
            " FROM ha_injected a WHERE a.service = ? AND a.epoch = ?",
            (service, epoch),
        ).fetchall()
    return {
        str(uuid): Attempt(str(core), bool(waiting), str(cseq or ""))
        for uuid, core, waiting, cseq in found
    }


def clear_stale(path: Path, core_uuid: str | None) -> int:
    """Delete rows that do not belong to the running process; all, if none runs (None).

    Returns how many. Such rows would be recovered by any `recover` (FREESWITCH.md 2.3). What was
    injected into a process that is gone counts for nothing any more, either.
    """
    with _transaction(path) as connection:
        if _has_table(connection, "ha_injected"):
            connection.execute("DELETE FROM ha_injected WHERE core_uuid != ?", (core_uuid or "",))
        if core_uuid is None:
            return _drop_rows(connection, "1")
        return _drop_rows(connection, "runtime_uuid != ?", (core_uuid,))
