"""The core database: table `recovery`, written late as FreeSWITCH's SQL queue does.

Rows of an earlier process stay, that is what recovery lives on (FREESWITCH.md 1.1, 1.2).
Plain sqlite3, so that triggers other processes install in the file run here too.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

_SCHEMA = """
CREATE TABLE IF NOT EXISTS recovery (
   runtime_uuid    VARCHAR(255),
   technology      VARCHAR(255),
   profile_name    VARCHAR(255),
   hostname        VARCHAR(255),
   uuid            VARCHAR(255),
   metadata        text
);
CREATE INDEX IF NOT EXISTS recovery1 ON recovery(technology);
CREATE INDEX IF NOT EXISTS recovery2 ON recovery(profile_name);
CREATE INDEX IF NOT EXISTS recovery3 ON recovery(uuid);
CREATE INDEX IF NOT EXISTS recovery4 ON recovery(runtime_uuid);
"""
_BUSY_S = 5.0
_RETRIES = 20
QUEUE_MAX = 100_000

Statement = tuple[str, tuple[str, ...]]


class Row(NamedTuple):
    uuid: str
    profile: str
    metadata: str


class CoreDb:
    """One writer thread that commits every `flush_s`, and readers that recover."""

    def __init__(self, path: Path, core_uuid: str, switchname: str, flush_s: float) -> None:
        self.path = path
        self.core_uuid = core_uuid
        self.switchname = switchname
        self._flush_s = flush_s
        self._queue: queue.Queue[Statement] = queue.Queue(QUEUE_MAX)
        self._idle: list[sqlite3.Connection] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_loop, name="sql", daemon=True)

    def start(self) -> None:
        """Create the schema and start writing.

        :raises sqlite3.Error: the file cannot be opened or is no database.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(self._open()) as connection:
            connection.executescript(_SCHEMA)
        for _ in self.rows_to_recover("", ""):
            pass  # leaves a warm connection: the first recover is as fast as the next
        self._thread.start()

    def stop(self) -> None:
        """Write what is queued, then end."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_BUSY_S * 2)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous=OFF")
        return connection

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        """A connection of the pool, as FreeSWITCH keeps its handles; a failed one is dropped."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._open()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    def insert(self, profile: str, uuid: str, metadata: str) -> None:
        row = (self.core_uuid, "sofia", profile, self.switchname, uuid, metadata)
        self._push("INSERT INTO recovery VALUES (?,?,?,?,?,?)", row)

    def update(self, uuid: str, metadata: str) -> None:
        self._push("UPDATE recovery SET metadata=? WHERE uuid=?", (metadata, uuid))

    def delete(self, uuid: str) -> None:
        self._push("DELETE FROM recovery WHERE uuid=?", (uuid,))

    def _push(self, sql: str, arguments: tuple[str, ...]) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((sql, arguments))

    def _write_loop(self) -> None:
        with contextlib.closing(self._open()) as connection:
            stopping = False
            while not stopping:
                stopping = self._stop.wait(self._flush_s)
                self._flush(connection)

    def _flush(self, connection: sqlite3.Connection) -> None:
        batch: list[Statement] = []
        while len(batch) < QUEUE_MAX:
            try:
                batch.append(self._queue.get_nowait())
            except queue.Empty:
                break
        if not batch:
            return
        for _attempt in range(_RETRIES):
            try:
                connection.execute("BEGIN IMMEDIATE")
                for sql, arguments in batch:
                    connection.execute(sql, arguments)
                connection.execute("COMMIT")
                return
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                sys.stderr.write(f"core.db: {error}, trying again\n")
                time.sleep(self._flush_s)

    def rows_to_recover(self, technology: str, profile: str) -> Generator[Row]:
        """Rows of other processes, read one by one under a read lock, as FreeSWITCH does."""
        where, arguments = self._foreign(technology, profile)
        with self._borrowed() as connection:
            sql = f"SELECT uuid, profile_name, metadata FROM recovery WHERE {where}"
            for row in connection.execute(sql, arguments):
                yield Row(*(value or "" for value in row))

    def forget_recovered(self, technology: str, profile: str) -> None:
        """Delete the set that was recovered, whether it succeeded or not (FREESWITCH.md 1.3)."""
        where, arguments = self._foreign(technology, profile)
        with self._borrowed() as connection:
            connection.execute(f"DELETE FROM recovery WHERE {where}", arguments)

    def flush_rows(self, technology: str, profile: str) -> None:
        """`recover flush`: deletes own live rows too, as the real one."""
        clauses = [("technology", technology), ("profile_name", profile)]
        used = [(column, value) for column, value in clauses if value]
        where = " AND ".join(f"{column}=?" for column, _ in used) or "1"
        with self._borrowed() as connection:
            connection.execute(f"DELETE FROM recovery WHERE {where}", [v for _, v in used])

    def _foreign(self, technology: str, profile: str) -> tuple[str, list[str]]:
        where, arguments = "runtime_uuid != ?", [self.core_uuid]
        if technology:
            where += " AND technology=?"
            arguments.append(technology)
        if profile:
            where += " AND profile_name=?"
            arguments.append(profile)
        return where, arguments
