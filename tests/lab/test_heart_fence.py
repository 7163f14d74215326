"""The fence against a real kernel: opens, closes, and ends by itself when its process stops."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from haclusterd.heart.clock import jiffy_us
from haclusterd.heart.errors import HeartError
from haclusterd.heart.fence import FencedService, KernelLease
from haclusterd.heart.nft import table_name
from tests.lab.heart_net import (
    Ear,
    hear_once_resolved,
    inside,
    last_output_ms,
    mac_of,
    needs_root,
    python_in,
    run,
    sender,
    two_hosts,
)

pytestmark = [pytest.mark.lab, needs_root]

IP_RECVERR, IPV6_RECVERR = 11, 25  # not in the socket module
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


@pytest.fixture
def ears(hosts: tuple[str, str]) -> tuple[Ear, Ear]:
    with inside(hosts[1]):
        return Ear("10.9.0.2"), Ear("fd00:9::2")


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


def test_a_closed_fence_is_no_error_to_who_wants_to_hear_of_errors(
    hosts: tuple[str, str], ears: tuple[Ear, Ear]
) -> None:
    """A SIP socket of FreeSWITCH has IP_RECVERR: an error would end the call, silence does not."""
    with inside(hosts[0]):
        four, six = sender(V4), sender(V6)
        four.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        six.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        fence = KernelLease(TABLE, SERVICES, fence_ms=2000, arm_ms=10)
        fence.load()
        if 'fwd to "lo"' not in run("nft", "list", "table", "netdev", TABLE):
            pytest.skip("this kernel has no nft_fwd_netdev: what it drops is an error")
        for _again in range(5):
            assert not ears[0].hears(four)
            assert not ears[1].hears(six)
            assert four.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert six.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        fence.unload()


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


def test_a_service_of_ipv6_only(hosts: tuple[str, str], ears: tuple[Ear, Ear]) -> None:
    with inside(hosts[0]):
        fence = KernelLease(TABLE, {0: FencedService(("eth0",), (V6,))}, fence_ms=2000, arm_ms=10)
        fence.load()
        six, four = sender(V6), sender(V4)
        assert not ears[1].hears(six)
        assert hear_once_resolved(ears[0], four), "it is no service's"
        assert fence.arm()
        assert fence.renew([0])
        assert hear_once_resolved(ears[1], six)
        assert fence.close([0])
        assert not ears[1].hears(six)
        fence.unload()


@pytest.mark.parametrize("address", [V4, V6])
def test_the_kernel_answers_neighbours_only_while_open(
    hosts: tuple[str, str], address: str
) -> None:
    with inside(hosts[0]):
        fence = KernelLease(TABLE, SERVICES, fence_ms=1000, arm_ms=10)
        fence.load()
    ping = ["ip", "netns", "exec", hosts[1], "ping", "-c1", "-W1", address]
    assert subprocess.run(ping, capture_output=True, check=False).returncode
    assert "lladdr" not in run("ip", "-n", hosts[1], "neigh", "show", "to", address)
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


def test_a_stopped_process_falls_silent(hosts: tuple[str, str], ears: tuple[Ear, Ear]) -> None:
    """SIGSTOP ends IPv4, IPv6, ARP and NA within fence_ms + 20 ms, ten times of ten."""
    fence_ms = 60
    values = {"table": TABLE, "v4": V4, "v6": V6, "fence_ms": fence_ms}
    holder = python_in(hosts[0], _HOLDER.format(**values))
    talker = python_in(hosts[0], _TALKER.format(**values))
    worst: dict[str, float] = {}
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        time.sleep(0.5)
        mac = mac_of(hosts[0])
        for _again in range(10):
            ended = last_output_ms(hosts[1], holder, mac, V4, V6)
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
