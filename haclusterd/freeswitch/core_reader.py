"""The thread that watches core.db and hands over what changed, in small batches.

Only waiting, reading and retrying belong here; which change means what is decided in `calls`.
A thread, because SQLite blocks; one batch at a time, because the consumer sets the pace.

inotify says when to look, `PRAGMA data_version` whether there is anything to read. A change that
no event announced proves the watch deaf (FreeSWITCH behind another mount): polling takes over.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from haclusterd.core.text import brief

from . import changelog
from .changelog import CoreDbError, LogEntry, RecoveryRow
from .file_watch import FileWatch

log = logging.getLogger(__name__)

FILE_CHECK_S = 1.0
UNANNOUNCED_S = 0.25  # how often to look while nothing is announced
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
LOCKED_PATIENCE_S = 2.0


class Batch(NamedTuple):
    """Changes of one FreeSWITCH process, oldest first.

    `rows` are (version, row) as they are now; `ended` are deletions. With `snapshot` the rows are
    a part of the full state; the last part carries `present`, every uuid there is.
    """

    runtime_uuid: str
    rows: list[tuple[int, RecoveryRow]]
    ended: list[LogEntry]
    snapshot: bool = False
    present: frozenset[str] | None = None
    version: int = 0  # of the snapshot


class CoreReader(threading.Thread):
    """Looks at `PRAGMA data_version` when core.db is written, and reads the change log behind it.

    `poll_ms` is the pause between two looks while something goes on or the watch is deaf.
    `deliver(batch) -> bool` is called on this thread and may block; False asks for a full resync.
    `report(problem)` is called with a sentence, or with "" when all is well again.
    """

    def __init__(
        self,
        path: Path,
        poll_ms: int,
        deliver: Callable[[Batch], bool],
        report: Callable[[str], None],
    ) -> None:
        super().__init__(name="core-db-reader", daemon=True)
        self._path = path
        self._poll_s = poll_ms / 1000
        self._deliver = deliver
        self._report = report
        self._watch = FileWatch()
        self._halt = threading.Event()
        self._resync = threading.Event()
        self._runtime_uuid = ""
        self._connection: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._file_checked_at = 0.0
        self._data_version = -1
        self._schema_version = -1
        self._seq = 0
        self._fault = ""  # of ours, the last one

    def follow(self, runtime_uuid: str) -> None:
        """Watch the rows of this FreeSWITCH process from now on, starting with a full read."""
        self._runtime_uuid = runtime_uuid
        self.resync()

    def resync(self) -> None:
        """Read everything again, now."""
        self._resync.set()
        self._watch.wake()

    def halt(self) -> None:
        self._halt.set()
        self._watch.wake()

    @property
    def halted(self) -> bool:
        return self._halt.is_set()

    def run(self) -> None:
        """Follow until halted; every error is reported and tried again, later and later."""
        retry_s = RETRY_FIRST_S
        failing_since: float | None = None
        calm = False
        while not self._halt.is_set():
            announced = self._pause(calm)
            if not self._runtime_uuid:
                continue
            try:
                # One more look follows an announced one: the event may come before the commit.
                calm = self._look(announced or not calm) and not announced
            except Exception as error:  # noqa: BLE001
                calm = False
                now = time.monotonic()
                failing_since = failing_since if failing_since is not None else now
                locked = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
                if not locked or now - failing_since > LOCKED_PATIENCE_S:
                    self._fail(error)
                    self._halt.wait(retry_s)
                    retry_s = min(retry_s * 2, RETRY_MAX_S)
            else:
                if failing_since is not None:
                    failing_since, retry_s = None, RETRY_FIRST_S
                    self._report("")
        self._close()
        self._watch.close()

    def _pause(self, calm: bool) -> bool:
        """Wait for the next look; True if it is because something was announced.

        A writer that never rests is looked at every `poll_ms`: each look delays its commit.
        """
        if calm and self._watch.watching:
            return self._watch.wait(max(UNANNOUNCED_S, self._poll_s))
        time.sleep(self._poll_s)  # a third of the CPU of Event.wait, and as good at these times
        return self._watch.wait(0)

    def _fail(self, error: Exception) -> None:
        """A fault of ours is said with its traceback once, and else as a problem, like any other:
        without this thread no call has a copy anywhere."""
        self._close()
        if isinstance(error, sqlite3.Error):
            error = changelog.explain(self._path, error)
        problem = str(error)
        if not isinstance(error, CoreDbError):
            problem = brief(f"calls are not followed: haclusterd failed ({error!r}); see its log")
            if problem != self._fault:
                self._fault = problem
                log.error("%s", self.name, exc_info=error)
        self._report(problem)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._watch.unwatch()

    def _open(self) -> sqlite3.Connection:
        connection = changelog.open_core_db(self._path)
        try:
            changelog.install(connection, self._path)
        except (CoreDbError, sqlite3.Error):
            connection.close()
            raise
        self._connection = connection
        # In WAL mode what is written is the log; core.db itself follows at some checkpoint.
        self._watch.watch((self._path, self._path.with_name(self._path.name + "-wal")))
        self._inode = self._file_identity()
        self._data_version = self._schema_version = -1
        self._resync.set()
        return connection

    def _file_identity(self) -> tuple[int, int]:
        try:
            stat = self._path.stat()
        except OSError:
            return (0, 0)
        return (stat.st_dev, stat.st_ino)

    def _look(self, expected: bool) -> bool:
        """Read what changed; True when nothing is left. `expected`: a change was announced."""
        now = time.monotonic()
        if self._connection is not None and now - self._file_checked_at > FILE_CHECK_S:
            self._file_checked_at = now
            if self._file_identity() != self._inode:
                self._close()  # the file was replaced under us
        connection = self._connection or self._open()
        version = changelog.data_version(connection)
        if version == self._data_version and not self._resync.is_set():
            return True
        announced = expected or self._resync.is_set() or self._watch.wait(0)
        if not announced and self._watch.watching:
            log.info("%s changes without the kernel saying so: polling from now on", self._path)
            self._watch.unwatch()
        schema = int(connection.execute("PRAGMA schema_version").fetchone()[0])
        if schema != self._schema_version:
            if not changelog.installed(connection):
                changelog.install(connection, self._path)
                self._resync.set()
            self._schema_version = schema
        if self._resync.is_set():
            self._resync.clear()
            try:
                self._read_all(connection)
            except BaseException:
                self._resync.set()  # locked half way: what else is told by nobody is still to come
                raise
        done = self._read_changes(connection)
        if done:
            self._data_version = version
        # An event taken just now may be of a commit that the version above did not have yet.
        return done and (expected or not announced)

    def _read_changes(self, connection: sqlite3.Connection) -> bool:
        """Read up to one batch after `_seq`; True when nothing more is left to read."""
        runtime_uuid = self._runtime_uuid
        entries, gap = changelog.entries_after(connection, self._seq)
        if gap:
            log.warning("the change log was pruned before it was read: reading all calls again")
            self._resync.set()
            return False
        if not entries:
            return True
        seq_of: dict[str, int] = {}
        ended: dict[str, LogEntry] = {}
        for entry in entries:
            if entry.runtime_uuid != runtime_uuid:
                continue
            if entry.op == "DELETE":
                seq_of.pop(entry.uuid, None)
                ended[entry.uuid] = entry
            else:
                ended.pop(entry.uuid, None)
                seq_of[entry.uuid] = entry.seq
        rows = changelog.rows_by_uuid(connection, list(seq_of), runtime_uuid)
        changed = [(seq_of[uuid], row) for uuid, row in rows.items()]
        done = True
        if changed or ended:
            done = self._deliver(Batch(runtime_uuid, changed, list(ended.values())))
        if not done:
            self._resync.set()
            return False
        self._seq = entries[-1].seq
        return len(entries) < changelog.READ_ROWS_MAX

    def _read_all(self, connection: sqlite3.Connection) -> None:
        runtime_uuid = self._runtime_uuid
        seq = changelog.last_seq(connection)
        uuids = changelog.all_uuids(connection, runtime_uuid)
        step = changelog.METADATA_READ_ROWS
        for start in range(0, len(uuids), step):
            rows = changelog.rows_by_uuid(connection, uuids[start : start + step], runtime_uuid)
            part = [(seq, row) for row in rows.values()]
            if not self._deliver(Batch(runtime_uuid, part, [], snapshot=True, version=seq)):
                self._resync.set()
                return
        present = frozenset(uuids)
        last = Batch(runtime_uuid, [], [], snapshot=True, present=present, version=seq)
        if self._deliver(last):
            self._seq = seq
        else:
            self._resync.set()
