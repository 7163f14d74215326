"""The probes against this host and against peers played here: slow, hostile, gone."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from haclusterd.config.watching import Sensor
from haclusterd.sensors import look, program
from haclusterd.sensors.network import ProbeFailed, carrier, options, ping
from haclusterd.sensors.probes import probe_of
from haclusterd.sensors.program import OUTPUT_BYTES_MAX, Program, Ran
from haclusterd.sensors.reading import CRITICAL, IDLE, OK, UNKNOWN, WARN, Reading
from tests.unit.test_sensor_readings import SENSOR

pytestmark = pytest.mark.timeout(30)

Answer = Callable[[bytes], list[bytes]]


def run(words: list[str], timeout_s: float = 5.0, **environment: str) -> Ran:
    return asyncio.run(Program(words, environment).run(timeout_s))


def read(sensor: Sensor, own: list[tuple[str, str]] | None = None) -> Reading:
    async def once() -> Reading:
        return await probe_of(sensor, "fs-a", lambda: own or [], list)()

    return asyncio.run(once())


def script(text: str, timeout_ms: int = 5000) -> Sensor:
    return replace(SENSOR, kind="exec", exec=("/bin/sh", "-c", text), timeout_ms=timeout_ms)


# -- programs --


@pytest.mark.parametrize(
    ("text", "level", "said"),
    [
        ("echo fine", OK, "fine"),
        ("echo so so; exit 1", WARN, "so so"),
        ("echo bad >&2; exit 2", CRITICAL, "bad"),
        ("exit 2", CRITICAL, "exit status 2"),
        ("exit 3", UNKNOWN, "exit status 3"),
        ("exit 77", CRITICAL, "exit status 77: it said nothing"),
        ("kill -9 $$", CRITICAL, "exit status -9"),
        ("printf '\\033[2J\\n'; exit 1", WARN, "?[2J"),
    ],
)
def test_a_script_says_how_things_are(text: str, level: str, said: str) -> None:
    found = read(script(text))
    assert found.level == level
    assert said in found.text


def test_a_script_that_is_not_there_is_critical() -> None:
    sensor = replace(script(""), exec=("/nonexistent/check",))
    found = read(sensor)
    assert found.level == CRITICAL
    assert "/nonexistent/check" in found.text


def test_a_script_that_hangs_is_ended_with_all_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    began = time.monotonic()
    found = read(script(f"sleep 60 & echo $! > {pid}; wait", timeout_ms=300))
    assert (found.level, time.monotonic() - began < 5) == (CRITICAL, True)
    assert "did not end within 0.3 s" in found.text
    status = Path(f"/proc/{pid.read_text().strip()}/stat")
    until = time.monotonic() + 3
    while status.exists() and " Z " not in status.read_text() and time.monotonic() < until:
        time.sleep(0.02)
    assert not status.exists() or " Z " in status.read_text()


def test_a_child_that_keeps_the_pipe_open_holds_nothing_up() -> None:
    began = time.monotonic()
    assert run(["/bin/sh", "-c", "echo done; sleep 60 &"]) == Ran(0, "done")
    assert time.monotonic() - began < 5


def test_endless_output_is_read_and_forgotten() -> None:
    found = run(["/bin/sh", "-c", "yes | head -c 20000000; exit 1"], 20.0)
    assert found == Ran(1, "y")
    assert OUTPUT_BYTES_MAX <= 65536


def test_a_program_gets_neither_capabilities_nor_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("SECRET", "x")
    found = run(["/bin/sh", "-c", "grep CapEff /proc/self/status; env >&2"], HACLUSTERD_NODE="fs-a")
    assert found.said == "CapEff:?0000000000000000"
    words = run(["/bin/sh", "-c", "env | cut -d= -f1 | sort | tr '\\n' ' '"], HACLUSTERD_NODE="a")
    assert set(words.said.split()) <= {
        "HACLUSTERD_NODE",
        "LANG",
        "PATH",
        "PWD",
        "SHLVL",
        "_",
        "OLDPWD",
    }


def test_what_not_even_sigkill_ends_is_left_and_not_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a process that waits for a dead file server: here nobody kills it."""

    async def twice() -> tuple[Ran, Ran, Ran]:
        hanging = Program(["/bin/sleep", "60"], {})
        with monkeypatch.context() as patch:
            patch.setattr("os.killpg", lambda pid, number: None)
            patch.setattr(program, "_REAPED_S", 0.05)
            first = await hanging.run(0.1)
        second = await hanging.run(0.1)
        left = hanging._left
        if left is not None:
            left.kill()
            await left.wait()
        third = await hanging.run(0.1)
        return first, second, third

    first, second, third = asyncio.run(twice())
    assert "did not end" in first.said
    assert "still hangs, not even SIGKILL" in second.said
    assert "did not end" in third.said, "once it is gone, it is tried again"


# -- disks and mounts --


def test_a_disk_is_as_full_as_df_says(tmp_path: Path) -> None:
    """MS4."""
    disk = replace(SENSOR, kind="disk", path=str(tmp_path), warn=0, critical=0)
    assert read(disk).level == OK
    assert read(replace(disk, warn=1)).level in (OK, WARN)
    assert read(replace(disk, path="/proc", warn=1, critical=2)).level == OK, "it has no blocks"
    gone = read(replace(disk, path=str(tmp_path / "gone")))
    assert (gone.level, "No such file" in gone.text) == (CRITICAL, True)
    assert look.disk(str(tmp_path), 0, 1)[0] == 2


def test_a_mount_is_there_and_can_be_written(tmp_path: Path) -> None:
    mount = replace(SENSOR, kind="mount", path="/dev/shm")
    assert read(mount).level == OK
    assert read(replace(mount, write=True)).level == OK
    assert not list(Path("/dev/shm").glob(".haclusterd*"))
    nothing = read(replace(mount, path=str(tmp_path)))
    assert (nothing.level, "nothing is mounted" in nothing.text) == (CRITICAL, True)


def test_a_file_system_that_hangs_is_critical_in_time() -> None:
    """EG13: the look is a process of its own, and its time is bounded."""
    disk = replace(SENSOR, kind="disk", path="/", timeout_ms=1)
    began = time.monotonic()
    found = read(disk)
    assert (found.level, "hangs" in found.text) == (CRITICAL, True)
    assert time.monotonic() - began < 3


def test_look_says_what_is_wrong_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert look.main(["mount", "/proc/1/fd"]) == 2
    assert "nothing is mounted" in capsys.readouterr().out
    table = (
        "36 35 98:0 / /srv rw,noatime master:1 - ext4 /dev/a rw,errors=remount-ro\n"
        "37 35 98:1 / /srv/rec\\040s ro,nosuid - nfs4 nas:/rec rw,vers=4.2\n"
        "38 36 98:2 / /srv ro - xfs /dev/b ro\n"
    )
    assert look.options_of(table, "/srv") == ["ro"], "what is on top counts"
    assert look.options_of(table, "/srv/rec s") == ["rw", "vers=4.2"], "ProtectSystem's is not it"
    assert look.options_of(table, "/opt") is None
    assert look._unescaped("/a\\040b\\134") == "/a b\\"


# -- the network --


def test_carrier_is_asked_of_the_kernel() -> None:
    assert carrier("lo") == ""
    assert carrier("nonexistent0") == "nonexistent0: No such device"


def test_the_load_is_per_cpu() -> None:
    load = replace(SENSOR, kind="load", warn=0, critical=0)
    assert read(load).level == OK
    assert f"on {os.cpu_count()} CPUs" in read(load).text


def _may_ping() -> bool:
    try:
        asyncio.run(ping("127.0.0.1", 1.0))
    except ProbeFailed as failed:
        return "ICMP socket" not in str(failed)
    return True


@pytest.mark.skipif(not _may_ping(), reason="no ICMP socket for this user")
def test_a_next_hop_answers_or_not() -> None:
    host = replace(SENSOR, kind="ping", host="127.0.0.1", timeout_ms=1000)
    assert read(host).level == OK
    assert read(replace(host, host="::1")).level == OK
    silent = read(replace(host, host="240.0.0.1", timeout_ms=200))
    assert silent.level == CRITICAL


@contextmanager
def sip_server(answer: Answer) -> Iterator[int]:
    """The port of a UDP server that answers by `answer`."""
    import threading

    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    server.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                asked, peer = server.recvfrom(65535)
            except TimeoutError:
                continue
            for packet in answer(asked):
                server.sendto(packet, peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        over.set()
        thread.join()
        server.close()


def reply(status: str) -> Answer:
    def answer(asked: bytes) -> list[bytes]:
        lines = asked.decode().split("\r\n")
        kept = [line for line in lines if line.startswith(("Via:", "From:", "To:", "Call-ID:"))]
        return ["\r\n".join([f"SIP/2.0 {status}", *kept, "", ""]).encode()]

    return answer


@pytest.mark.parametrize(
    ("status", "level"),
    [
        ("200 OK", OK),
        ("404 Not Found", OK),
        ("503 Maintenance", WARN),
        ("500 Oops", CRITICAL),
        ("600 No", CRITICAL),
    ],
)
def test_options_tells_whether_somebody_serves_there(status: str, level: str) -> None:
    """MS10."""
    with sip_server(reply(status)) as port:
        sensor = replace(SENSOR, kind="options", target=f"127.0.0.1:{port}", timeout_ms=2000)
        assert read(sensor).level == level
        own = replace(sensor, target="self", port=port)
        assert read(own, [("east", "127.0.0.1")]).level == level
        assert "east (127.0.0.1)" in read(own, [("east", "127.0.0.1")]).text
        none_on_ipv6 = [("east", "::1"), ("east", "127.0.0.1")]
        assert read(own, none_on_ipv6).level == level, "no profile there, another one serves"
        deaf = read(own, [*none_on_ipv6, ("west", "::1")])
        assert deaf.level == CRITICAL
        assert level != OK or "west (::1): OPTIONS: nobody listens" in deaf.text
    assert read(own).level == IDLE


def test_only_the_final_answer_to_the_own_question_counts() -> None:
    """Strangers, answers to others, provisional and broken ones are passed over."""

    def answer(asked: bytes) -> list[bytes]:
        (right,) = reply("200 OK")(asked)
        (early,) = reply("100 Trying")(asked)
        other = right.replace(b"Call-ID: ", b"Call-ID: x").replace(b"branch=z9hG4bK", b"branch=y")
        return [b"", b"\xff" * 1400, b"SIP/2.0 999 \r\n\r\n", early, asked, right, other]

    with sip_server(answer) as port:
        status, _ = asyncio.run(options("127.0.0.1", port, 2.0))
    assert status == 200
    with sip_server(lambda asked: [b"SIP/2.0 200 OK\r\n\r\n"] * 50) as port:
        began = time.monotonic()
        with pytest.raises(ProbeFailed, match=r"no answer within 0.3 s"):
            asyncio.run(options("127.0.0.1", port, 0.3))
        assert time.monotonic() - began < 3


def test_nobody_there_is_known_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ProbeFailed, match="refused"):
        asyncio.run(options("127.0.0.1", port, 2.0))


def test_the_loop_goes_on_while_a_probe_waits() -> None:
    """Nothing here may hold up the agent: the longest pause of the loop is measured."""

    async def measure() -> float:
        probes: list[Awaitable[Reading]] = [
            probe_of(script("sleep 0.4"), "fs-a", list, list)(),
            probe_of(replace(SENSOR, kind="disk", path="/"), "fs-a", list, list)(),
            probe_of(replace(SENSOR, kind="nic", nic="lo"), "fs-a", list, list)(),
        ]
        work = asyncio.gather(*probes)
        worst, loop = 0.0, asyncio.get_running_loop()
        while not work.done():
            began = loop.time()
            await asyncio.sleep(0.005)
            worst = max(worst, loop.time() - began)
        await work
        return worst

    assert asyncio.run(measure()) < 0.35, f"on {sys.platform}"
