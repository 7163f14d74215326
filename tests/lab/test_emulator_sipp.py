"""SIPp, which nobody here wrote, calls the emulator: answers, media, a move to another process.

Loopback addresses only; needs `sipp` (Debian: sip-tester), no namespaces and no root.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import haclusterd
from tests.unit.emulator_lab import Emulator, eventually, loopback

pytestmark = pytest.mark.skipif(
    shutil.which("sipp") is None, reason="sipp is missing: apt-get install sip-tester"
)
SCENARIOS = Path(haclusterd.__file__).parent / "lab" / "scenarios"


class Callers:
    """SIPp calls that echo what they hear and hang up after `hold_ms` without a request."""

    def __init__(self, directory: Path, server: tuple[str, int], calls: int, hold_ms: int) -> None:
        self.ip = loopback()
        self.directory = directory
        directory.mkdir()
        command = ["sipp", f"{server[0]}:{server[1]}", "-sf", str(SCENARIOS / "uac_echo.xml")]
        command += ["-i", self.ip, "-mi", self.ip, "-s", "9197", "-m", str(calls), "-r", "100"]
        command += ["-l", str(calls), "-rtp_echo", "-mp", "6000", "-nostdin", "-trace_err"]
        command += ["-recv_timeout", str(hold_ms)]
        with open(directory / "log", "wb") as log:
            self.process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)

    def succeed(self, timeout_s: float = 30.0) -> None:
        status = self.process.wait(timeout_s)
        errors = "".join(p.read_text() for p in self.directory.glob("*errors*"))
        assert status == 0, errors or (self.directory / "log").read_text()[-2000:]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def emulators(tmp_path: Path) -> Iterator[list[Emulator]]:
    made: list[Emulator] = []
    yield made
    for emulator in made:
        emulator.kill()


def complete_rows(emulator: Emulator) -> int:
    return sum("sip_full_to" in row[5] for row in emulator.rows())


def test_sixty_calls_move_to_another_process(tmp_path: Path, emulators: list[Emulator]) -> None:
    calls = 60
    first = Emulator(tmp_path / "a").start()
    emulators.append(first)
    callers = Callers(tmp_path / "sipp", first.sip, calls, hold_ms=2500)
    try:
        eventually(lambda: complete_rows(first) == calls, 10)
        rows = first.rows()
        second = Emulator(tmp_path / "b", first.ip, profile={"standby": True})
        emulators.append(second)
        first.kill()
        second.start()
        for row in rows:
            second.sql("INSERT INTO recovery VALUES (?,?,?,?,?,?)", *row)
        begin = time.monotonic()
        assert second.api("sofia profile pa recover") == f"Recovered {calls} session(s)\n"
        took_ms = (time.monotonic() - begin) * 1000
        assert took_ms > calls * 2  # serial, some 3 ms per leg (FREESWITCH.md 3)
        eventually(lambda: complete_rows(second) == calls)
        assert {row[0] for row in second.rows()} == {second.api("global_getvar core_uuid")}
        with second.esl() as esl:
            esl.ask("event plain CHANNEL_HANGUP_COMPLETE")
            callers.succeed()
            ended = [esl.events("CHANNEL_HANGUP_COMPLETE")[-1] for _ in range(calls)]
        for event in ended:
            assert event["Hangup-Cause"] == "NORMAL_CLEARING"
            assert int(event["variable_rtp_audio_out_packet_count"]) > 20
            assert int(event["variable_rtp_audio_in_packet_count"]) > 20
        eventually(lambda: second.rows() == [])
    finally:
        callers.end()


def test_hupall_says_bye_to_every_caller(tmp_path: Path, emulators: list[Emulator]) -> None:
    emulator = Emulator(tmp_path / "a").start()
    emulators.append(emulator)
    callers = Callers(tmp_path / "sipp", emulator.sip, 30, hold_ms=20_000)
    try:
        eventually(lambda: complete_rows(emulator) == 30, 10)
        reply = emulator.api("hupall NORMAL_CLEARING sofia_profile_name pa")
        assert reply.startswith("+OK hangup all channels matching [sofia_profile_name]=[pa]")
        callers.succeed(10)
        eventually(lambda: emulator.rows() == [])
    finally:
        callers.end()
