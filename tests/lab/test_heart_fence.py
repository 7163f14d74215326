"""The fence against a real kernel: opens, closes, and ends by itself when its process stops."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from haclusterd.heart.clock import jiffy_us
from haclusterd.heart.errors import HeartError
from haclusterd.heart.fence import FencedService, KernelLease, RuleFence, load_fence
from haclusterd.heart.nft import table_name
from tests.lab.heart_net import inside, needs_root, run, two_hosts

pytestmark = [pytest.mark.lab, needs_root]

V4, V6 = "10.9.0.50", "fd00:9::50"
OTHER = "10.9.0.51"
SERVICES = {0: FencedService(("eth0",), (V4, V6)), 1: FencedService(("eth0",), (OTHER,))}
TABLE = table_name("test", "fs-a")


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    with two_hosts(f"heartf{os.getpid()}") as pair:
        for address in (f"{V4}/24", f"{OTHER}/24", f"{V6}/64"):
            run("ip", "-n", pair[0], "addr", "add", address, "dev", "eth0", "nodad")
        yield pair


def sender(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 0))
    return made


class Ear:
    """A UDP socket in the right host: does what `left` sends arrive?"""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind((address, 4000))
        self.socket.setblocking(False)
        self.address = address

    def hears(self, source: socket.socket) -> bool:
        source.sendto(b"x", (self.address, 4000))
        ready, _, _ = select.select([self.socket], [], [], 0.03)
        if ready:
            self.socket.recv(10)
        return bool(ready)


@pytest.fixture
def ears(hosts: tuple[str, str]) -> tuple[Ear, Ear]:
    with inside(hosts[1]):
        return Ear("10.9.0.2"), Ear("fd00:9::2")


def hear_once_resolved(ear: Ear, source: socket.socket) -> bool:
    return any(ear.hears(source) for _try in range(20))


def test_closed_at_load_open_while_renewed_closed_at_once(
    hosts: tuple[str, str], ears: tuple[Ear, Ear]
) -> None:
    with inside(hosts[0]):
        four, six, other, own = sender(V4), sender(V6), sender(OTHER), sender("10.9.0.1")
        fence = KernelLease(TABLE, SERVICES, fence_ms=2000, arm_ms=10)
        fence.load()
        assert not ears[0].hears(four)
        assert not ears[1].hears(six)
        assert hear_once_resolved(ears[0], own), "the node's own address is nobody's business"
        assert fence.arm()
        assert fence.renew([0])
        assert hear_once_resolved(ears[0], four)
        assert hear_once_resolved(ears[1], six)
        assert not ears[0].hears(other), "service 1 was not renewed"
        assert fence.close([0])
        assert not ears[0].hears(four)
        assert not ears[1].hears(six)
        fence.unload()
        assert "haclusterd" not in run("nft", "list", "tables")
        assert hear_once_resolved(ears[0], four)


def test_renew_without_arm_or_after_a_pause_stays_closed(
    hosts: tuple[str, str], ears: tuple[Ear, Ear]
) -> None:
    arm_ms = 10
    with inside(hosts[0]):
        four = sender(V4)
        fence = KernelLease(TABLE, SERVICES, fence_ms=500, arm_ms=arm_ms)
        fence.load()
        time.sleep(0.02)  # load() itself arms once
        assert not fence.renew([0])
        for _again in range(5):
            assert fence.arm()
            time.sleep(arm_ms / 1000 + jiffy_us() / 1e6)  # frozen between check and send
            assert not fence.renew([0])
            assert not ears[0].hears(four)
        assert fence.arm()
        assert fence.renew([0])
        fence.unload()


def test_each_arming_has_an_element_of_its_own(hosts: tuple[str, str]) -> None:
    """What ran out fills one hash chain until the kernel's worker gets the CPU to sweep it."""
    with inside(hosts[0]):
        fence = KernelLease(TABLE, SERVICES, fence_ms=500, arm_ms=5000)
        fence.load()
        for _again in range(30):
            assert fence.arm()
            assert fence.renew([0])
        listed = run("nft", "list", "set", "netdev", TABLE, "armed")
        assert listed.count("expires") == 31  # load() itself arms once
        fence.unload()


def test_a_set_that_takes_no_element_is_not_a_table_that_is_gone(hosts: tuple[str, str]) -> None:
    marks = ", ".join(f"{number} timeout 60s" for number in range(1, 4097))
    with inside(hosts[0]):
        fence = KernelLease(TABLE, SERVICES, fence_ms=500, arm_ms=10)
        fence.load()
        assert fence.arm()
        assert fence.renew([0])
        script = f"add element netdev {TABLE} armed {{ {marks} }}"
        for _again in range(20):  # what load() armed has to be swept first
            filled = subprocess.run(
                ["nft", "-f", "-"], input=script, text=True, check=False, capture_output=True
            )
            if filled.returncode == 0:
                break
            time.sleep(0.25)
        assert filled.returncode == 0
        assert fence.arm()
        assert not fence.renew([0])
        fence.unload()


def test_arp_is_fenced(hosts: tuple[str, str]) -> None:
    with inside(hosts[0]):
        fence = KernelLease(TABLE, SERVICES, fence_ms=1000, arm_ms=10)
        fence.load()
    ping = ["ip", "netns", "exec", hosts[1], "ping", "-c1", "-W1", V4]
    assert subprocess.run(ping, capture_output=True, check=False).returncode
    assert "lladdr" not in run("ip", "-n", hosts[1], "neigh", "show", "to", V4)
    assert fence.arm()
    assert fence.renew([0])
    run("ip", "-n", hosts[1], "neigh", "flush", "all")
    assert not subprocess.run(ping, capture_output=True, check=False).returncode
    with inside(hosts[0]):
        fence.unload()


def test_foreign_frames_and_flushed_table_are_noticed(hosts: tuple[str, str]) -> None:
    with inside(hosts[0]):
        fence = KernelLease(TABLE, SERVICES, fence_ms=500, arm_ms=10)
        fence.load()
        assert fence.arm()
        assert fence.renew([0])
        run("nft", "flush", "ruleset")
        assert not fence.arm(), "a flushed ruleset must not look like a fence"
        assert not fence.close([0])
        fence.load()
        assert fence.arm()
        fence.unload()


def test_left_over_table_is_replaced_by_a_closed_one(
    hosts: tuple[str, str], ears: tuple[Ear, Ear]
) -> None:
    with inside(hosts[0]):
        four = sender(V4)
        first = KernelLease(TABLE, SERVICES, fence_ms=60_000, arm_ms=10)
        first.load()
        assert first.arm()
        assert first.renew([0])
        second = KernelLease(TABLE, SERVICES, fence_ms=60, arm_ms=10)
        second.load()
        assert not ears[0].hears(four)
        assert run("nft", "list", "tables").count("haclusterd") == 1
        second.unload()


def test_missing_nic_is_named_and_the_rest_is_fenced(hosts: tuple[str, str]) -> None:
    services = {0: SERVICES[0], 1: FencedService(("eth7",), ("10.9.1.1",))}
    with inside(hosts[0]):
        fence = KernelLease(TABLE, services, fence_ms=60, arm_ms=10)
        fence.load()
        assert fence.missing_devices == ("eth7",)
        fence.unload()


def test_loopback_down_is_a_message_with_its_fix(hosts: tuple[str, str]) -> None:
    run("ip", "-n", hosts[0], "link", "set", "lo", "down")
    with inside(hosts[0]):
        fence = KernelLease(TABLE, SERVICES, fence_ms=60, arm_ms=10)
        with pytest.raises(HeartError, match="ip link set lo up"):
            fence.load()


def test_rule_fence_stops_ipv4_and_ipv6(hosts: tuple[str, str], ears: tuple[Ear, Ear]) -> None:
    with inside(hosts[0]):
        four, six = sender(V4), sender(V6)
        fence = RuleFence(SERVICES)
        fence.load()
        for ear, source in ((ears[0], four), (ears[1], six)):
            with pytest.raises(OSError, match="denied"):
                ear.hears(source)
        assert fence.renew([0])
        assert hear_once_resolved(ears[0], four)
        assert hear_once_resolved(ears[1], six)
        assert fence.close([0])
        with pytest.raises(OSError, match="denied"):
            ears[1].hears(six)
        fence.unload()
        assert "prohibit" not in run("ip", "rule") + run("ip", "-6", "rule")


def test_without_nft_the_fallback_says_so(
    hosts: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with inside(hosts[0]):
        fence, sentence = load_fence(TABLE, SERVICES, fence_ms=60, arm_ms=10)
        assert fence.mode == "iprule"
        assert fence.overlap_bound_ms == 1100
        assert "apt-get install nftables" in sentence
        fence.unload()


_HOLDER = """
import sys, time
from haclusterd.heart.fence import FencedService, KernelLease
fence = KernelLease({table!r}, {{0: FencedService(("eth0",), ({v4!r}, {v6!r}))}}, {fence_ms}, 10)
fence.load()
while True:
    assert fence.arm()
    fence.renew([0])
    print(flush=True)
    time.sleep(0.02)
"""
_TALKER = """
import socket, struct, sys, time
from haclusterd.heart.announce import Announcer
from haclusterd.heart.netlink import Netlink
four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); four.bind(({v4!r}, 0))
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); six.bind(({v6!r}, 0))
announcer = Announcer("eth0", Netlink().link("eth0").mac, [{v4!r}, {v6!r}])
while True:
    for s, to in ((four, "10.9.0.2"), (six, "fd00:9::2")):
        try: s.sendto(b"x", (to, 4000))
        except OSError: pass
    announcer.announce({v4!r}); announcer.announce({v6!r})
    time.sleep(0.001)
"""


def _python(namespace: str, source: str) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[2])
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", source]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root)


def _last_output_ms(
    namespace: str, holder: subprocess.Popen[bytes], mac: bytes
) -> dict[str, float]:
    """SIGSTOP the holder; per kind, ms until the last frame of the service on the wire."""
    with inside(namespace):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.bind(("eth0", 3))
    last: dict[str, float] = {}
    stopped, end = 0.0, time.monotonic() + 0.1
    try:
        while (now := time.monotonic()) < end:
            wire.settimeout(max(end - now, 0.001))
            try:
                frame = wire.recv(2000)
            except TimeoutError:
                break
            finally:
                if not stopped and now > end - 0.05:
                    os.kill(holder.pid, signal.SIGSTOP)
                    stopped, end = time.monotonic(), time.monotonic() + 0.3
            kind = int.from_bytes(frame[12:14], "big")
            if frame[6:12] != mac:
                continue
            if kind == 0x0800 and socket.inet_ntoa(frame[26:30]) == V4:
                last["ipv4"] = time.monotonic()
            elif kind == 0x86DD and frame[22:38] == socket.inet_pton(socket.AF_INET6, V6):
                last["na" if frame[20] == 58 and frame[54] == 136 else "ipv6"] = time.monotonic()
            elif kind == 0x0806 and socket.inet_ntoa(frame[28:32]) == V4:
                last["arp"] = time.monotonic()
    finally:
        os.kill(holder.pid, signal.SIGCONT)
        wire.close()
    return {kind: (at - stopped) * 1000 for kind, at in last.items()}


def test_a_stopped_process_falls_silent(hosts: tuple[str, str], ears: tuple[Ear, Ear]) -> None:
    """SIGSTOP ends IPv4, IPv6, ARP and NA within fence_ms + 20 ms, ten times of ten."""
    fence_ms = 60
    values = {"table": TABLE, "v4": V4, "v6": V6, "fence_ms": fence_ms}
    holder = _python(hosts[0], _HOLDER.format(**values))
    talker = _python(hosts[0], _TALKER.format(**values))
    worst: dict[str, float] = {}
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        time.sleep(0.5)
        mac = bytes.fromhex(
            run("ip", "netns", "exec", hosts[0], "cat", "/sys/class/net/eth0/address")
            .strip()
            .replace(":", "")
        )
        for _again in range(10):
            ended = _last_output_ms(hosts[1], holder, mac)
            assert set(ended) == {"ipv4", "ipv6", "arp", "na"}, "all four kinds were flowing"
            assert max(ended.values()) <= fence_ms + 20, ended
            for kind, at in ended.items():
                worst[kind] = max(worst.get(kind, 0.0), at)
            time.sleep(0.15)
    finally:
        for process in (holder, talker):
            process.kill()
            process.wait()
    print("last frame after SIGSTOP, worst of 10, ms:", {k: round(v) for k, v in worst.items()})
