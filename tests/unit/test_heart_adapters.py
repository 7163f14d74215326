"""Small adapters of the heart: frames, ruleset text, pidfd, sd_notify, clock, errors."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from haclusterd.heart import clock, realtime, sdnotify
from haclusterd.heart.announce import (
    advertisement_frame,
    arp_frame,
    parse_speaker,
    solicitation_frame,
)
from haclusterd.heart.errors import HeartError, refused
from haclusterd.heart.fence import least_life_us
from haclusterd.heart.nft import ruleset, table_name
from haclusterd.heart.pidfd import WatchedProcess, start_time_ticks
from haclusterd.heart.realtime import use_huge_pages
from haclusterd.heart.sdnotify import ServiceNotifier

MAC = bytes.fromhex("020000000001")


def test_gratuitous_arp_is_62_bytes_of_rfc_826() -> None:
    frame = arp_frame(1, MAC, "203.0.113.10", "203.0.113.10")
    assert frame.hex() == (
        "ffffffffffff020000000001" + "0806" + "00010800060400010200" + "00000001"
        "cb00710a" + "000000000000" + "cb00710a"
    )
    assert parse_speaker(frame) == ("203.0.113.10", MAC)


def test_advertisement_has_a_valid_checksum_and_names_the_address() -> None:
    frame = advertisement_frame(MAC, "2001:db8::10")
    source, destination, body = frame[22:38], frame[38:54], frame[54:]
    words = source + destination + len(body).to_bytes(4, "big") + (58).to_bytes(4, "big") + body
    total = sum(int.from_bytes(words[i : i + 2], "big") for i in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    assert frame[:6] == bytes.fromhex("333300000001")
    assert parse_speaker(frame) == ("2001:db8::10", MAC)


def test_solicitation_goes_to_the_solicited_node_group_and_speaks_for_nobody() -> None:
    frame = solicitation_frame(MAC, "2001:db8::12:3456")
    assert frame[:6] == bytes.fromhex("3333ff123456")
    assert frame[22:38] == bytes(16)
    assert parse_speaker(frame) is None


@pytest.mark.parametrize(
    "frame", [b"", b"x" * 41, bytes(42), arp_frame(1, MAC, "1.2.3.4", "1.2.3.4")[:41]]
)
def test_broken_frames_speak_for_nobody(frame: bytes) -> None:
    assert parse_speaker(frame) is None


def test_ruleset_without_ipv6_has_no_ipv6_rules() -> None:
    text = ruleset("t", 5, ["eth0"], ["203.0.113.10"], 60, 10)
    assert "ip6" not in text
    assert "arp saddr ip" in text
    assert 'devices = { "eth0" }' in text


def test_table_names_are_plain_and_unique() -> None:
    assert table_name("a-b", "c") != table_name("a", "b-c")
    assert table_name("vöice/1", "fs-a").isascii()


def test_watched_process_ends_and_is_seen() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    watched = WatchedProcess(child.pid, start_time_ticks(child.pid))
    assert not watched.ended()
    assert watched.kill(signal.SIGKILL)
    child.wait(5)
    assert watched.ended()
    assert not watched.kill()
    watched.close()


def test_a_reused_pid_is_refused() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(HeartError, match="reused"):
            WatchedProcess(child.pid, start_time_ticks(child.pid) + 1)
        with pytest.raises(HeartError):
            WatchedProcess(1)
    finally:
        child.kill()
        child.wait()
    with pytest.raises(HeartError, match="No such"):
        WatchedProcess(child.pid)


def test_notifier_reaches_systemds_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        notifier = ServiceNotifier(path)
        assert notifier.notify("READY=1", "STATUS=x")
        assert systemd.recv(100) == b"READY=1\nSTATUS=x"
    assert not notifier.notify("WATCHDOG=1"), "nobody listens: no error, no wait"
    notifier.close()
    assert not ServiceNotifier("").notify("READY=1")


def test_watchdog_is_for_this_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert sdnotify.watchdog_interval_ms() == 1000
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert sdnotify.watchdog_interval_ms() == 0
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert sdnotify.watchdog_interval_ms() == 0


def test_a_kernel_lease_lives_up_to_two_ticks_less_than_it_was_given() -> None:
    assert least_life_us(60, 4000) == 56_000
    assert least_life_us(10, 4000) == 4_000, "shorter than a beat of preset fast"
    assert least_life_us(10, 1000) == 9_000
    assert least_life_us(3, 10_000) == 0


def test_clock_runs_on_and_a_jiffy_is_one_to_ten_ms() -> None:
    before = clock.now_us()
    time.sleep(0.002)
    assert clock.now_us() - before >= 2000
    assert 1000 <= clock.jiffy_us() <= 10_000


def test_refusals_carry_text_and_fix() -> None:
    error = refused("adding 10.0.0.1", OSError(errno.EPERM, ""))
    assert "Operation not permitted" in str(error)
    assert "CAP_NET_ADMIN" in error.fix


def huge_kib() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(next(line.split()[1] for line in rollup.splitlines() if "AnonHuge" in line))


def test_memory_is_gathered_into_huge_pages_where_the_kernel_can() -> None:
    block = mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, len(block), 4096):
        block[page] = 1
    before = huge_kib()
    gathered = use_huge_pages()
    if not gathered:
        pytest.skip("this kernel has no MADV_COLLAPSE (Linux 6.1) or no huge pages")
    assert gathered >= 7  # of 8 at most one is cut by where the block lies
    assert huge_kib() >= before + 7 * 2048 or before >= 7 * 2048
    assert block[0] == 1


@pytest.mark.parametrize(
    ("limit", "got", "said"),
    [
        (99, 99, ""),
        (10, 10, "real-time priority 10, below FreeSWITCH's own threads; "
                 "grant CAP_SYS_NICE or LimitRTPRIO=99"),
        (0, 0, "real-time scheduling refused: Operation not permitted; "
               "grant CAP_SYS_NICE or LimitRTPRIO=99, preset `fast` needs it"),
    ],
)  # fmt: skip
def test_heart_takes_the_highest_priority_that_it_may_have(
    monkeypatch: pytest.MonkeyPatch, limit: int, got: int, said: str
) -> None:
    held = [0]

    def schedule(pid: int, policy: int, param: os.sched_param) -> None:
        if not 0 < param.sched_priority <= limit:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        held[0] = param.sched_priority

    monkeypatch.setattr(os, "sched_setscheduler", schedule)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    assert realtime.raise_priority() == said
    assert held == [got]
