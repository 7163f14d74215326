"""Promises and reports on disk, the pid file, the history: small parts with an edge each."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent.history import History
from haclusterd.agent.logs import REPEATS_MAX, JournalFormat, RateLimit
from haclusterd.agent.pid import ExitWatch, Process, read_process, running
from haclusterd.agent.reports import FILE_BYTES_MAX, Reports
from haclusterd.agent.starting import Starter
from haclusterd.core.actions import Persist
from haclusterd.core.inputs import Restored
from haclusterd.core.model import NOBODY, Identity
from haclusterd.core.promises import FILE_BYTES_MAX as PROMISES_BYTES_MAX
from haclusterd.core.promises import FILE_NAME as NAME
from haclusterd.core.promises import PromisesError, decode, encode
from haclusterd.files import write_atomically
from haclusterd.heart.promised import read_promises
from tests.fixtures.agent_parts import spec


def test_heart_reads_what_the_agent_wrote(tmp_path: Path) -> None:
    cluster = spec()
    given = (Identity(7, 1, 2**63), NOBODY)
    write_atomically(tmp_path / NAME, encode(cluster, "boot", Persist(given, (9, 0))))
    assert read_promises([tmp_path], cluster) == (Restored(given, (9, 0)), "")
    assert oct((tmp_path / NAME).stat().st_mode)[-3:] == "600"
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_promises_follow_names_not_positions() -> None:
    cluster = spec()
    known = Persist((Identity(7, 1, 5), Identity(3, 2, 6)), (7, 2))
    content = encode(cluster, "boot", known)
    turned = msgspec.structs.replace(
        cluster, nodes=cluster.nodes[::-1], services=cluster.services[::-1]
    )
    assert decode(content, turned) == Restored((Identity(3, 0, 6), Identity(7, 1, 5)), (2, 7))


def test_a_missing_state_file_is_none_a_foreign_or_damaged_one_says_why(tmp_path: Path) -> None:
    path, cluster = tmp_path / NAME, spec()
    assert read_promises([tmp_path], cluster) == (None, "")
    path.write_text("{")
    promises, complaint = read_promises([tmp_path], cluster)
    assert promises is None
    assert re.search(rf"{path}: is damaged .*not known.*Fix", complaint)
    other = msgspec.structs.replace(cluster, name="other")
    with pytest.raises(PromisesError, match="cluster 'other'"):
        decode(encode(other, "boot", Persist(())), cluster)
    with pytest.raises(PromisesError, match="larger than"):
        decode(b" " * (PROMISES_BYTES_MAX + 1), cluster)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_atomically(path, b"old")
    path.with_name(f".{NAME}.{os.getpid()}").mkdir()
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_ml10_what_is_written_has_its_name_on_the_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a host that loses power a second later starts with the old file."""
    path, done, fsync = tmp_path / NAME, list[tuple[bool, bytes]](), os.fsync

    def watched(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append((folder, path.read_bytes() if path.exists() else b""))
        fsync(descriptor)

    monkeypatch.setattr("haclusterd.files.os.fsync", watched)
    write_atomically(path, b"new")
    assert done == [(False, b""), (True, b"new")]


def test_reports_that_cannot_be_read_are_no_reason_not_to_start(tmp_path: Path) -> None:
    (tmp_path / "reports.json").write_text("not json")
    reports = Reports(tmp_path)
    assert reports.all() == []
    with pytest.raises(KeyError, match="nothing has moved yet"):
        reports.find("last")
    assert len(reports.encode()) < FILE_BYTES_MAX


def test_a_pid_file_counts_only_while_its_process_lives(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    assert read_process(path) is None
    path.write_text(f"{os.getpid()}\n")
    process = read_process(path)
    assert process is not None
    assert process.pid == os.getpid()
    assert process.start > 0
    for text in ("", "x", "-1", "0", "1", "99999999", "7 7"):
        path.write_text(text)
        assert read_process(path) is None
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    path.write_text(str(child.pid))
    assert read_process(path) is None, "a zombie is no FreeSWITCH"
    child.wait()


async def test_the_end_of_a_process_is_news_at_once_and_another_one_is_not_mistaken_for_it() -> (
    None
):
    child = subprocess.Popen(["sleep", "20"])
    process = running(child.pid)
    assert process is not None
    watch = ExitWatch()
    assert not watch.watch(Process(child.pid, process.start + 1)), "the pid was reused"
    assert watch.watch(process)
    waiting = asyncio.create_task(watch.wait(10))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    child.kill()
    await asyncio.wait_for(waiting, 2)
    child.wait()
    assert not watch.watch(process), "it is gone"
    watch.close()


def test_history_is_bounded_and_its_watchers_hear_of_what_is_kept() -> None:
    history = History(kept=5)
    heard: list[str] = []
    history.watchers.append(lambda d: heard.append(history.last(1)[0].text + d.row))
    for number in range(20):
        history.add("T101", f"decision {number}", service="east", epoch=0)
    assert heard[-1] == "decision 19T101"
    assert [d.text for d in history.last(2)] == ["decision 18", "decision 19"]
    assert len(history.last()) == 5
    assert history.total == 20
    assert history.last(1)[0].epoch is None


def test_repeated_lines_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("haclusterd.agent.logs.time.monotonic", lambda: now[0])
    limit = RateLimit()

    def line() -> logging.LogRecord:
        return logging.LogRecord("x", logging.INFO, "f", 1, "ESL: %s", ("down",), None)

    passed = sum(limit.filter(line()) for _ in range(50))
    assert passed == REPEATS_MAX
    now[0] += 60
    late = line()
    assert limit.filter(late)
    assert late.getMessage() == "ESL: down (40 more like this were left out)"


async def test_freeswitch_is_started_until_it_is_up(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    told: list[str] = []
    starter = Starter(
        ["sh", "-c", f"echo x >> {marks}"],
        lambda: marks.exists() and len(marks.read_text().split()) >= 2,
        told.append,
        patience_s=0.05,
    )
    starter.exited()
    starter.exited()
    for _ in range(100):
        await asyncio.sleep(0.02)
        if starter.attempts == 2:
            break
    await asyncio.sleep(0.1)
    assert marks.read_text().split() == ["x", "x"]
    assert told == [
        "started FreeSWITCH again (attempt 1)", "started FreeSWITCH again (attempt 2)"
    ]  # fmt: skip
    await starter.stop()


async def test_a_freeswitch_that_loads_is_not_started_twice(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    starter = Starter(
        ["sh", "-c", f"echo x >> {marks}; exec sleep 1"], lambda: False, lambda text: None,
        patience_s=0.05,
    )  # fmt: skip
    starter.exited()
    await asyncio.sleep(0.9)
    assert marks.read_text().split() == ["x"]
    await starter.stop()


async def test_a_start_command_that_fails_says_why() -> None:
    told: list[str] = []
    starter = Starter(["sh", "-c", "echo no licence >&2; exit 3"], lambda: False, told.append, 9.0)
    starter.exited()
    await asyncio.sleep(0.6)
    assert starter.problem == "start_command ended with status 3: no licence"
    await starter.stop()
    missing = Starter(["/nonexistent/freeswitch"], lambda: False, told.append, 9.0)
    missing.exited()
    await asyncio.sleep(0.5)
    assert "correct start_command" in missing.problem
    await missing.stop()


async def test_what_was_shut_down_on_purpose_stays_down(tmp_path: Path) -> None:
    starter = Starter(["touch", str(tmp_path / "mark")], lambda: False, lambda text: None)
    starter.stopped_on_purpose = True
    starter.exited()
    await asyncio.sleep(0.5)
    assert not (tmp_path / "mark").exists()
    await starter.stop()


@pytest.mark.parametrize("journal", [True, False])
def test_what_others_wrote_is_shown_in_the_log_as_it_is(journal: bool) -> None:
    record = logging.LogRecord(
        "a", logging.WARNING, "", 1, "ESL: %s", ("no\x1b[2J\u202e\nx",), None
    )
    text = JournalFormat(journal).format(record)
    assert r"no\x1b[2J\u202e" in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert ("\n" in text) is not journal
