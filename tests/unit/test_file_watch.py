"""Waiting for writes by inotify, and the core.db reader that trusts it only while it is right."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haclusterd.freeswitch import core_reader
from haclusterd.freeswitch.core_reader import Batch, CoreReader
from haclusterd.freeswitch.file_watch import FileWatch

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def watch() -> Iterator[FileWatch]:
    made = FileWatch()
    yield made
    made.close()


def test_only_writes_to_the_watched_file_end_a_wait(watch: FileWatch, tmp_path: Path) -> None:
    file, other = tmp_path / "core.db", tmp_path / "sofia.db"
    file.write_text("1")
    other.write_text("1")
    assert watch.watch((file, tmp_path / "core.db-wal"))
    assert not watch.wait(0)
    other.write_text("2")
    assert file.read_text() == "1"
    assert not watch.wait(0.02)
    file.write_text("2")
    assert watch.wait(5)
    assert not watch.wait(0)
    file.unlink()
    assert watch.wait(5)


def test_what_is_missing_is_not_watched(watch: FileWatch, tmp_path: Path) -> None:
    assert not watch.watch((tmp_path / "none",))
    assert not watch.watching
    file = tmp_path / "core.db"
    file.write_text("1")
    assert watch.watch((file,))
    watch.unwatch()
    file.write_text("2")
    assert not watch.wait(0.02)


def test_anybody_may_wake_also_when_it_is_over(watch: FileWatch) -> None:
    threading.Timer(0.05, watch.wake).start()
    assert watch.wait(5)
    for _ in range(10_000):
        watch.wake()
    while watch.wait(0):
        pass
    watch.close()
    watch.wake()


class Reading:
    """A reader on a core.db that this writes."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute(
            "CREATE TABLE recovery (runtime_uuid, technology, profile_name, hostname, uuid,"
            " metadata)"
        )
        self.seen: list[str] = []
        self.reader = CoreReader(path, 10, self.take, lambda problem: None)
        self.reader.follow("core")
        self.reader.start()

    def take(self, batch: Batch) -> bool:
        self.seen += [row.uuid for _version, row in batch.rows]
        return True

    def answer(self, uuid: str) -> None:
        self.db.execute("INSERT INTO recovery VALUES ('core','sofia','p','h',?,'<x/>')", (uuid,))

    def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"timed out, seen: {self.seen}"
            time.sleep(0.002)

    def close(self) -> None:
        self.reader.halt()
        self.reader.join(5)
        assert not self.reader.is_alive()
        self.db.close()


def test_each_commit_is_read_though_nobody_polls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_reader, "UNANNOUNCED_S", 60.0)
    reading = Reading(tmp_path / "core.db")
    try:
        for number in range(30):
            reading.answer(str(number))
            if number % 3:
                time.sleep(0.001 * number)
            else:
                reading.until(lambda n=number: str(n) in reading.seen)  # type: ignore[misc]
        reading.until(lambda: len(set(reading.seen)) == 30)
        reading.reader.resync()
        reading.until(lambda: len(reading.seen) >= 60)
    finally:
        reading.close()


def test_a_deaf_watch_is_found_out_and_polling_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("")
    honest = FileWatch.watch
    monkeypatch.setattr(FileWatch, "watch", lambda self, paths: honest(self, (elsewhere,)))
    caplog.set_level(logging.INFO, logger=core_reader.__name__)
    reading = Reading(tmp_path / "core.db")
    try:
        time.sleep(0.3)  # calm
        reading.answer("late")
        reading.until(lambda: "late" in reading.seen)
        monkeypatch.setattr(core_reader, "UNANNOUNCED_S", 60.0)
        for uuid in ("a", "b"):
            time.sleep(0.05)
            reading.answer(uuid)
            reading.until(lambda u=uuid: u in reading.seen)  # type: ignore[misc]
    finally:
        reading.close()
    assert caplog.text.count("polling from now on") == 1


def test_without_inotify_it_polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileWatch, "watch", lambda self, paths: False)
    monkeypatch.setattr(core_reader, "UNANNOUNCED_S", 60.0)
    reading = Reading(tmp_path / "core.db")
    try:
        for uuid in ("a", "b"):
            time.sleep(0.05)
            reading.answer(uuid)
            reading.until(lambda u=uuid: u in reading.seen)  # type: ignore[misc]
    finally:
        reading.close()
