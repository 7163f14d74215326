"""The change log inside FreeSWITCH's core database: table `ha_log`, its triggers, short reads.

Only synchronous SQLite work on `core.db` for call capture belongs here (FREESWITCH.md 2.1); threads
and decisions are in `calls`. Three rules: a trigger must never make FreeSWITCH's own statement
fail, a read must be short (it blocks FreeSWITCH's writer), and the sequence never goes back,
because call versions are made of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .metadata import METADATA_BYTES_MAX

LOG_ROWS_MAX = 8192
READ_ROWS_MAX = 512
METADATA_READ_ROWS = 32  # about 300 kB: under 1 ms of shared lock
METADATA_READ_MAX = METADATA_BYTES_MAX + 1  # signs of one row: a caller's headers can be 2 MB
BUSY_MS = 100
SNAPSHOT_ROWS_MAX = 100_000
# A clock gives no such version. SQLite takes none above 2**63, and with that one as the last the
# triggers, and so FreeSWITCH's own writes, would find the database "full".
SEQ_INHERITED_MAX = 1 << 62

_TEXT = partial(str, encoding="utf-8", errors="replace")
_COLUMNS = ("runtime_uuid", "technology", "profile_name", "hostname", "uuid", "metadata")
_TRIGGERS = {"ha_log_insert": "INSERT", "ha_log_update": "UPDATE", "ha_log_delete": "DELETE"}


class CoreDbError(Exception):
    """core.db can not be used right now; the message names the file and the fix."""


class LogEntry(NamedTuple):
    """One change of table `recovery`; `op` is INSERT, UPDATE or DELETE."""

    seq: int
    op: str
    uuid: str
    runtime_uuid: str
    profile: str


class RecoveryRow(NamedTuple):
    uuid: str
    runtime_uuid: str
    profile: str
    metadata: str


def open_core_db(path: Path, *, busy_ms: int = BUSY_MS) -> sqlite3.Connection:
    """Open an existing core.db for short statements; never creates the file.

    Without fsync: an atomic commit is still one for every process, also when one of them is killed.
    Only a host that loses power may find the file damaged, and with it went every call that the
    rows could recover; FreeSWITCH itself writes them without waiting for a disk, too.
    Raises CoreDbError when it is missing or can not be opened.
    """
    try:
        present = path.is_file()
    except OSError as error:
        raise CoreDbError(
            f"{path}: {error.strerror}: let haclusterd read and write the file and its directory"
        ) from error
    if not present:
        raise CoreDbError(
            f"{path}: no such file: correct core_db in [freeswitch]; FreeSWITCH creates it at its"
            " start unless it runs with -nosql or another core-db-dsn"
        )
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=busy_ms / 1000,
            isolation_level=None,
            check_same_thread=False,
        )
        # One caller's name that is not UTF-8 must not make the rows of all others unreadable.
        connection.text_factory = _TEXT
        connection.execute("PRAGMA synchronous=OFF")
    except sqlite3.Error as error:
        raise explain(path, error) from error
    return connection


def explain(path: Path, error: sqlite3.Error) -> CoreDbError:
    """An SQLite error as a sentence with its fix."""
    text = str(error)
    if "locked" in text or "busy" in text:
        fix = f"another program holds it, see `fuser -v {path}`; it is tried again"
    elif "no such table" in text:
        fix = "this is not FreeSWITCH's core database, or FreeSWITCH has not created its tables yet"
    elif "readonly" in text or "unable to open" in text:
        fix = "let haclusterd read and write the file and its directory"
    elif "not a database" in text or "malformed" in text:
        fix = "the file is damaged: stop FreeSWITCH, remove it, start FreeSWITCH"
    else:
        fix = "see core_db in [freeswitch]"
    return CoreDbError(f"{path}: {text}: {fix}")


def _trigger_sql(name: str, op: str) -> str:
    row = "OLD" if op == "DELETE" else "NEW"
    return f"""
CREATE TRIGGER {name} AFTER {op} ON recovery BEGIN
  INSERT OR IGNORE INTO ha_log(op, uuid, runtime_uuid, profile_name)
    VALUES ('{op}', {row}.uuid, {row}.runtime_uuid, {row}.profile_name);
  DELETE FROM ha_log WHERE seq <= (SELECT max(seq) FROM ha_log) - {LOG_ROWS_MAX};
END"""


_CREATE_LOG = """
CREATE TABLE IF NOT EXISTS ha_log(
  seq INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT, uuid TEXT, runtime_uuid TEXT, profile_name TEXT)
"""
# A database that was thrown away must not restart the count: begin at the time in microseconds.
_SEED_LOG = """
INSERT INTO ha_log(seq, op) SELECT CAST(strftime('%s', 'now') AS INTEGER) * 1000000, 'BEGIN'
WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'ha_log')
"""


def installed(connection: sqlite3.Connection) -> bool:
    """True while the log and all three triggers are in place, as this version makes them."""
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE name LIKE 'ha_log%' AND type='trigger'"
        " AND tbl_name='recovery'"
    ).fetchall()
    present = {str(name): str(sql).strip() for name, sql in rows}
    table = connection.execute("SELECT 1 FROM sqlite_master WHERE name='ha_log'").fetchone()
    return table is not None and all(
        present.get(name) == _trigger_sql(name, op).strip() for name, op in _TRIGGERS.items()
    )


def install(connection: sqlite3.Connection, path: Path) -> None:
    """Create log and triggers in one transaction; harmless to repeat.

    Raises CoreDbError when table `recovery` is not as FREESWITCH.md 1.1 knows it.
    """
    columns = [str(row[1]) for row in connection.execute("PRAGMA table_info(recovery)")]
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        found = ", ".join(columns) or "no such table"
        raise CoreDbError(
            f"{path}: table recovery lacks {', '.join(missing)} (found: {found}): FreeSWITCH has"
            " not created it yet, or this FreeSWITCH version is not supported"
        )
    if installed(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for name in _TRIGGERS:
            connection.execute(f"DROP TRIGGER IF EXISTS {name}")
        connection.execute(_CREATE_LOG)
        connection.execute(_SEED_LOG)
        for name, op in _TRIGGERS.items():
            connection.execute(_trigger_sql(name, op))
        connection.execute("COMMIT")
    except sqlite3.Error:
        connection.execute("ROLLBACK")
        raise


def touch(connection: sqlite3.Connection, uuids: Sequence[str], runtime_uuid: str) -> None:
    """Log these calls as changed: what is known of them beside their rows has."""
    connection.executemany(
        "INSERT INTO ha_log(op, uuid, runtime_uuid, profile_name)"
        " SELECT 'UPDATE', uuid, runtime_uuid, profile_name FROM recovery"
        " WHERE uuid = ? AND runtime_uuid = ?",
        [(uuid, runtime_uuid) for uuid in uuids],
    )


def raise_sequence(connection: sqlite3.Connection, floor: int) -> None:
    """Make every later change count higher than `floor` (a version made by another node)."""
    floor = min(floor, SEQ_INHERITED_MAX)
    connection.execute(
        "UPDATE sqlite_sequence SET seq = ? WHERE name = 'ha_log' AND seq < ?", (floor, floor)
    )


def last_seq(connection: sqlite3.Connection) -> int:
    """The newest sequence number that was ever given out."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name='ha_log'").fetchone()
    return int(row[0]) if row else 0


def data_version(connection: sqlite3.Connection) -> int:
    """Changes whenever another connection committed (FREESWITCH.md 2.1: 3.7 us)."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def entries_after(connection: sqlite3.Connection, seq: int) -> tuple[list[LogEntry], bool]:
    """The next changes after `seq`, oldest first, and whether some before them were pruned."""
    rows = connection.execute(
        "SELECT seq, op, uuid, runtime_uuid, profile_name FROM ha_log WHERE seq > ?"
        " ORDER BY seq LIMIT ?",
        (seq, READ_ROWS_MAX),
    ).fetchall()
    oldest = connection.execute("SELECT min(seq) FROM ha_log").fetchone()[0]
    gap = oldest is not None and oldest > seq + 1 and bool(rows) and rows[0][0] == oldest
    return [LogEntry(int(r[0]), *(str(v or "") for v in r[1:])) for r in rows if r[2]], gap


def rows_by_uuid(
    connection: sqlite3.Connection, uuids: Sequence[str], runtime_uuid: str
) -> dict[str, RecoveryRow]:
    """The present rows of these calls that belong to `runtime_uuid`, read in short pieces."""
    found: dict[str, RecoveryRow] = {}
    for start in range(0, len(uuids), METADATA_READ_ROWS):
        part = uuids[start : start + METADATA_READ_ROWS]
        marks = ",".join("?" * len(part))
        rows = connection.execute(
            f"SELECT uuid, runtime_uuid, profile_name, substr(metadata, 1, {METADATA_READ_MAX})"
            f" FROM recovery WHERE uuid IN ({marks}) AND runtime_uuid = ? AND technology = 'sofia'",
            (*part, runtime_uuid),
        ).fetchall()
        found.update((str(row[0]), _row(row)) for row in rows)
    return found


def all_uuids(connection: sqlite3.Connection, runtime_uuid: str) -> list[str]:
    """Every call of this FreeSWITCH process that is in the table now."""
    rows: Iterable[tuple[str]] = connection.execute(
        "SELECT DISTINCT uuid FROM recovery WHERE runtime_uuid = ? AND technology = 'sofia'"
        " LIMIT ?",
        (runtime_uuid, SNAPSHOT_ROWS_MAX),
    ).fetchall()
    return [str(row[0]) for row in rows if row[0]]


def _row(row: tuple[object, ...]) -> RecoveryRow:
    return RecoveryRow(*(value if isinstance(value, str) else str(value or "") for value in row))
