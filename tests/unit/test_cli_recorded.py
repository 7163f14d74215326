"""`haclusterctl trace`, `explain`, `replay`, `simulate`: words in, text or JSON and a code out."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from haclusterd.cli.main import main
from haclusterd.core import claimant
from haclusterd.trace import folder
from haclusterd.trace.replay import replay
from tests.fixtures.recorded import Recordings, a_takeover, recorded
from tests.unit.test_cli import ANSWERS, FakeDaemon

pytestmark = pytest.mark.timeout(60)
Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def takeover() -> Recordings:
    return a_takeover()


@pytest.fixture(scope="module")
def calm() -> bytes:
    with recorded() as (player, recordings):
        player.play(["cluster masters=2 slaves=2", "boot all", "run 3000ms"])
    return recordings.file(3, whole=False)


@pytest.fixture
def file(tmp_path: Path, takeover: Recordings) -> str:
    path = tmp_path / "n2.trace"
    path.write_bytes(takeover.file(2))
    return str(path)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    made = FakeDaemon(tmp_path / "s.sock")
    made.start()
    monkeypatch.setenv("HACLUSTERD_SOCKET", str(tmp_path / "s.sock"))
    yield made
    made.listener.close()


def content(data: bytes) -> dict[str, str]:
    return {"content": base64.b64encode(data).decode()}


def test_save_and_list(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    saved = {"name": "x", "path": "/var/lib/x.trace", "bytes": 70_000, "reason": "owner",
             "saved": "2026-11-28T18:00:00.000Z", "node": "n2", "version": "0.1.0"}  # fmt: skip
    monkeypatch.setitem(ANSWERS, "trace_save", saved)
    monkeypatch.setitem(ANSWERS, "trace_list", [saved])
    assert main(["trace", "save"]) == 0
    assert capsys.readouterr().out == "saved /var/lib/x.trace (68 KiB)\n"
    assert main(["trace", "list"]) == 0
    assert "owner" in capsys.readouterr().out
    assert main(["trace", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [saved]
    assert main(["trace", "list", "FILE"]) == 2


def test_a_file_of_ones_own_is_written_by_oneself(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path
) -> None:
    """Not by the daemon, which may be root."""
    monkeypatch.setitem(ANSWERS, "trace", content(b"recorded"))
    path = tmp_path / "mine.trace"
    assert main(["trace", "save", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(path), "bytes": 8}
    assert path.read_bytes() == b"recorded"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_uid == os.getuid()
    assert all("path" not in str(request) for request in daemon.requests)
    assert main(["trace", "save", str(tmp_path / "no" / "such")]) == 1
    assert "name a file in a folder of yours" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "link", "link to nothing"])
def test_a_recording_is_written_over_nothing(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setitem(ANSWERS, "trace", content(b"recorded"))
    kept, path = tmp_path / "keep.toml", tmp_path / "there"
    kept.write_text("mine")
    make: dict[str, Callable[[], object]] = {
        "file": lambda: path.write_text("mine"),
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(kept),
        "link to nothing": lambda: path.symlink_to(tmp_path / "absent"),
    }
    make[kind]()
    before = path.lstat()
    assert main(["trace", "save", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"haclusterctl: {path}: is there already. Fix: name a new file\n"
    )
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert kept.read_text() == "mine"
    assert not (tmp_path / "absent").exists()


def test_a_recording_that_does_not_fit_leaves_no_file(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path
) -> None:
    monkeypatch.setitem(ANSWERS, "trace", content(b"recorded"))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["trace", "save", str(tmp_path / "mine.trace")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob("*mine.trace*"))


def test_replay_needs_no_daemon(file: str, capsys: Printed, takeover: Recordings) -> None:
    assert main(["replay", file]) == 0
    out = capsys.readouterr().out
    assert "n2 claims s0 at epoch 2: n0 silent on 2/2 links" in out
    assert out.endswith(f"the same actions in all {takeover.steps[2]} steps\n")
    assert main(["replay", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == found["steps_recorded"] == takeover.steps[2]
    assert found["difference"] is None
    assert found["decided"][-1]["row"] == "T301"


@pytest.mark.parametrize("words", [["replay"], ["explain", "--trace"], ["simulate", "--fail",
                                   "n0", "--trace"]], ids=lambda words: words[0])  # fmt: skip
def test_a_pipe_that_nobody_writes_to_is_not_waited_for_for_ever(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.setattr(folder, "SILENT_S", 0.2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main([*words, str(pipe)]) == 1
    assert capsys.readouterr().err == (
        f"haclusterctl: {pipe}: nothing came out of it for 0.2 s: name a file, or a pipe "
        "that a recording is written to\n"
    )


def test_a_recording_comes_out_of_a_pipe_as_well(
    tmp_path: Path, takeover: Recordings, capsys: Printed
) -> None:
    """As of `<(ssh n2 cat FILE)`: later than it is opened, and in pieces."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    whole = takeover.file(2)

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            time.sleep(0.2)
            file.write(whole[:100])
            time.sleep(0.2)
            file.write(whole[100:])

    writer = threading.Thread(target=write)
    writer.start()
    assert main(["replay", str(pipe)]) == 0
    writer.join()
    assert f"the same actions in all {takeover.steps[2]} steps" in capsys.readouterr().out


def test_replay_names_the_first_step_that_differs(
    file: str, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    due = claimant._due

    def sooner(*words: Any) -> int:
        return due(*words) - 1_000

    monkeypatch.setattr(claimant, "_due", sooner)
    assert main(["replay", file]) == 1
    out = capsys.readouterr().out
    assert "DIFFERENT at step " in out
    assert "    input    Tick()" in out
    assert main(["replay", file, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["difference"]["step"] > 0


@pytest.mark.parametrize("saved", ["yesterday", "0001-01-01T00:00:00Z"])
def test_a_time_of_day_that_is_none(
    tmp_path: Path, takeover: Recordings, capsys: Printed, saved: str
) -> None:
    first, second, rest = takeover.file(2).split(b"\n", 2)
    header = {**msgspec.json.decode(second), "saved": saved}
    path = tmp_path / "odd.trace"
    path.write_bytes(b"\n".join([first, json.dumps(header).encode(), rest]))
    assert main(["explain", "1", "--trace", str(path)]) == 0
    assert re.search(r"^-\d+\.\d{4} s  T301  n2 serves", capsys.readouterr().out)


@pytest.mark.parametrize("late_us", [0, 33_000, None])
def test_times_of_day_do_not_hang_on_how_long_it_took_to_save(
    tmp_path: Path, takeover: Recordings, capsys: Printed, late_us: int | None
) -> None:
    """A recording of before it knew that is as good as it was."""
    trace = takeover.trace(2)
    first, second, rest = takeover.file(2).split(b"\n", 2)
    saved = datetime.fromisoformat(trace.header.saved) + timedelta(microseconds=late_us or 0)
    header = {**msgspec.json.decode(second), "saved": saved.isoformat(timespec="milliseconds"),
              "saved_us": None if late_us is None else trace.ended_us + late_us}  # fmt: skip
    path = tmp_path / "late.trace"
    path.write_bytes(b"\n".join([first, json.dumps(header).encode(), rest]))
    (last,) = replay(trace).decided[-1:]
    at = datetime.fromisoformat(trace.header.saved)
    at += timedelta(microseconds=last.at_us - trace.ended_us)
    said = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for words in (["explain", "1", "--trace"], ["replay"]):
        assert main([*words, str(path)]) == 0
        assert f"{said}  {last.row}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["replay"], ["explain", "--trace"],
                                   ["simulate", "--fail", "n0", "--trace"]])  # fmt: skip
def test_a_file_that_is_none_is_named(words: list[str], capsys: Printed, tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text("hello")
    assert main([*words, str(path)]) == 1
    assert f"{path}: is no recording of haclusterd" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "absent")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_explain_a_file(file: str, capsys: Printed) -> None:
    assert main(["explain", "2", "--trace", file]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^2026-11-28T17:59:5\d\.\d{3}Z  T201  n2 won s0 at epoch 2", out, re.M)
    assert "    rule     CLAIMING -> ACQUIRING: a majority granted the claim in time" in out
    assert "    known    votes for the claim of epoch 2: " in out
    assert main(["explain", "--trace", file, "--json", "--all"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 5


def test_explain_live_finds_what_heart_has_forgotten_in_saved_recordings(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Printed, takeover: Recordings
) -> None:
    decided = [*replay(takeover.trace(2)).decided]
    history = [{"at": "then", "at_us": d.at_us, "row": d.row, "text": d.text, "service": "s0",
                "epoch": d.epoch} for d in decided]  # fmt: skip
    old = {**history[0], "row": "T405", "at_us": 5, "text": "n2 gives s0 up", "epoch": None}
    agents = {**old, "row": "A21", "text": "of the agent"}
    monkeypatch.setitem(ANSWERS, "history", [old, *history, agents])
    monkeypatch.setitem(ANSWERS, "trace", content(takeover.file(2, whole=False)))
    saved = {"name": "20261128T180000000Z-owner.trace", "path": "/x"}
    monkeypatch.setitem(ANSWERS, "trace_list", [saved])
    monkeypatch.setitem(ANSWERS, "trace_read", content(takeover.file(2)))
    assert main(["explain", "1000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = [h["row"] for h in history if h["row"] not in ("M1", "M2", "M3")]
    assert [x["row"] for x in found] == ["T405", *rows]
    assert found[0]["trigger"] == "no recording has it any more"
    assert all(x["facts"] for x in found[1:])
    assert {"method": "trace_read", "params": {"name": saved["name"]}} in daemon.requests
    assert main(["explain", "1"]) == 0
    assert capsys.readouterr().out.startswith("then  T301  n2 serves s0 at epoch 2")


def test_recordings_that_cannot_be_read_are_named_and_left_out(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Printed, takeover: Recordings
) -> None:
    saved = {"name": "n", "path": "/x/n", "bytes": 1, "reason": "asked", "saved": "then"}
    pipe = {**saved, "path": "/x/p", "wrong": "/x/p: is no regular file: move it away"}
    monkeypatch.setitem(ANSWERS, "trace_list", [pipe, saved])
    assert main(["trace", "list"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "haclusterctl: left out: /x/p: is no regular file: move it away\n"
    assert "/x/n" in shown.out
    assert "/x/p" not in shown.out
    old = {"at": "then", "at_us": 5, "row": "T405", "text": "n2 gives s0 up", "service": "s0",
           "epoch": None}  # fmt: skip
    monkeypatch.setitem(ANSWERS, "history", [old])
    monkeypatch.setitem(ANSWERS, "trace", content(takeover.file(2, whole=False)))
    monkeypatch.setitem(ANSWERS, "trace_read", content(b"damaged"))
    assert main(["explain"]) == 0
    shown = capsys.readouterr()
    assert "n2 gives s0 up" in shown.out
    assert "left out: /x/p: is no regular file" in shown.err
    assert "left out: /x/n: is no recording" in shown.err


def test_simulate(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Printed, calm: bytes
) -> None:
    monkeypatch.setitem(ANSWERS, "trace", content(calm))
    assert main(["simulate", "--fail", "n0"]) == 0
    out = capsys.readouterr().out
    assert "s0" in out
    assert "moved" in out
    assert "n2 claims s0 at epoch 2" in out
    assert "It is no promise." in out
    assert daemon.requests == [{"method": "trace", "params": {"whole": False}}]
    assert main(["--json", "simulate", "--fail", "n0,n1", "--cut", "nic2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["outcome"] for s in found["services"]] == ["unserved", "unserved"]
    assert "no quorum" in found["services"][0]["reason"]
    assert "nothing was changed" in found["note"]
    assert main(["simulate", "--fail-freeswitch", "n0"]) == 0
    assert "n2 claims s0 at epoch 2: n0 released it" in capsys.readouterr().out


def test_simulate_names_all_that_is_unknown_and_what_is_known(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Printed, calm: bytes
) -> None:
    monkeypatch.setitem(ANSWERS, "trace", content(calm))
    assert main(["simulate", "--fail", "n0,n9", "--stop", "x", "--cut", "nic7"]) == 2
    error = capsys.readouterr().err
    assert "there is no node n9, x; known: n0, n1, n2, n3" in error
    assert "there is no heartbeat NIC nic7; known: nic1, nic2" in error
    assert main(["simulate"]) == 2
    assert "say what shall fail" in capsys.readouterr().err


def test_simulate_refuses_what_nobody_can_lose_and_what_is_lost_already(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    with recorded() as (player, recordings):
        player.play(["cluster masters=1 slaves=3 quorum=witness", "boot all", "run 3000ms"])
    monkeypatch.setitem(ANSWERS, "trace", content(recordings.file(0, whole=False)))
    words = ["--fail", "n0,n1", "--stop", "n0,n2", "--fail-freeswitch", "n3,n1,n0"]
    assert main(["simulate", *words]) == 2
    assert capsys.readouterr().err == (
        "haclusterctl: n0 is lost by --fail: leave it out of --fail-freeswitch and --stop\n"
        "haclusterctl: n1 is lost by --fail: leave it out of --fail-freeswitch\n"
        "haclusterctl: n3 is a witness and has no FreeSWITCH: say --fail n3\n"
    )
    assert main(["simulate", "--fail", "n3", "--stop", "n0", "--fail-freeswitch", "n1"]) == 0


def test_a_trace_of_another_version_is_replayed_and_said(
    tmp_path: Path, takeover: Recordings, capsys: Printed
) -> None:
    first, second, rest = takeover.file(2).split(b"\n", 2)
    header = {**msgspec.json.decode(second), "version": "0.0.9"}
    path = tmp_path / "old.trace"
    path.write_bytes(b"\n".join([first, json.dumps(header).encode(), rest]))
    assert main(["replay", str(path)]) == 0
    assert "recorded by version 0.0.9, replayed by " in capsys.readouterr().out
