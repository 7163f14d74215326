"""The fence without nf_tables against a real kernel, and the watchdog beside it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from haclusterd.heart.fallback import RuleFence, load_fence
from haclusterd.heart.fence import FencedService
from haclusterd.heart.netlink import Netlink
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

V4, V6 = "10.9.0.50", "fd00:9::50"
OTHER = "10.9.0.51"
SERVICES = {0: FencedService(("eth0",), (V4, V6)), 1: FencedService(("eth0",), (OTHER,))}


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    with two_hosts(f"heartw{os.getpid()}") as pair:
        yield pair


@pytest.fixture
def ears(hosts: tuple[str, str]) -> tuple[Ear, Ear]:
    with inside(hosts[1]):
        return Ear("10.9.0.2"), Ear("fd00:9::2")


def add_addresses(*addresses: str) -> None:
    netlink = Netlink()
    link = netlink.link("eth0")
    assert link is not None
    for address in addresses:
        netlink.add_address(link.index, address, 64 if ":" in address else 24, 1000)
    netlink.close()


def present(namespace: str) -> set[str]:
    shown = run("ip", "-n", namespace, "addr", "show")
    return {address for address in (V4, V6, OTHER) if f" {address}/" in shown}


def watchdog_ran(fence: RuleFence) -> int:
    """The watchdog's process, once it looks at the page."""
    end = time.monotonic() + 10
    while not fence.watchdog_turned_us:
        assert time.monotonic() < end
        time.sleep(0.01)
    return fence.watchdog_pid


def test_closing_silences_open_sockets_and_takes_the_addresses_off(
    hosts: tuple[str, str], ears: tuple[Ear, Ear]
) -> None:
    with inside(hosts[0]):
        fence = RuleFence(SERVICES, fence_ms=2000)
        fence.load()
        assert fence.arm()
        assert fence.renew([0, 1])
        add_addresses(V4, V6, OTHER)
        four, six, other = sender(V4), sender(V6), sender(OTHER)
        assert hear_once_resolved(ears[0], four)
        assert hear_once_resolved(ears[1], six)
        six.connect((ears[1].address, 4000))  # has its route, and must not keep it
        six.send(b"x")
        assert fence.close([0])
        assert present(hosts[0]) == {OTHER}
        with pytest.raises(OSError, match=r"denied|unreachable"):
            ears[0].hears(four)
        with pytest.raises(OSError, match="denied"):
            six.send(b"x")
        assert hear_once_resolved(ears[0], other)
        assert fence.arm()
        assert fence.renew([0])
        add_addresses(V4, V6)
        assert hear_once_resolved(ears[0], four), "the same socket, after a reclaim"
        six.send(b"x")
        fence.unload()
    assert "prohibit" not in run("ip", "-n", hosts[0], "rule") + run(
        "ip", "-n", hosts[0], "-6", "rule"
    )


@pytest.mark.parametrize("address", [V4, V6])
def test_a_closed_node_hears_from_the_address_where_it_lives_now(
    hosts: tuple[str, str], address: str
) -> None:
    with inside(hosts[0]):
        fence = RuleFence(SERVICES, fence_ms=2000)
        fence.load()
        ear = Ear("10.9.0.1" if address == V4 else "fd00:9::1")
    with inside(hosts[1]):
        add_addresses(address)
        elsewhere = sender(address)
    assert hear_once_resolved(ear, elsewhere)
    with inside(hosts[0]):
        fence.unload()


def test_a_pause_between_arm_and_renew_opens_nothing(hosts: tuple[str, str]) -> None:
    with inside(hosts[0]):
        fence = RuleFence(SERVICES, fence_ms=50)
        fence.load()
        assert fence.arm()
        time.sleep(0.06)
        assert not fence.renew([0])
        assert run("ip", "rule").count("prohibit") == 2
        fence.unload()


def test_a_short_stall_is_mended_by_the_next_renewal(
    hosts: tuple[str, str], ears: tuple[Ear, Ear]
) -> None:
    with inside(hosts[0]):
        fence = RuleFence(SERVICES, fence_ms=50)
        fence.load()
        watchdog_ran(fence)
        fence.arm()
        assert fence.renew([0])
        add_addresses(V6)
        six = sender(V6)
        assert fence.arm()
        time.sleep(0.15)
        with pytest.raises(OSError, match="denied"):
            ears[1].hears(six)
        assert present(hosts[0]) == set()
        fence.arm()
        assert fence.renew([0])
        add_addresses(V6)
        fence.arm()
        assert fence.renew([0])
        ears[1].hears(six)  # is not refused
        fence.unload()


_SUCCESSOR = """
import time
from haclusterd.heart.fallback import RuleFence
from haclusterd.heart.fence import FencedService
fence = RuleFence({{0: FencedService(("eth0",), ({v4!r}, {v6!r}))}}, 50)
fence.arm()
while not fence.watchdog_turned_us:
    time.sleep(0.01)
print(flush=True)
time.sleep(60)
"""


def test_a_successor_that_is_given_up_silences_nothing(hosts: tuple[str, str]) -> None:
    with inside(hosts[0]):
        fence = RuleFence(SERVICES, fence_ms=20_000)
        fence.load()
        fence.arm()
        assert fence.renew([0])
        add_addresses(V4, V6)
        successor = python_in(hosts[0], _SUCCESSOR.format(v4=V4, v6=V6))
        assert successor.stdout is not None
        successor.stdout.readline()
        successor.kill()
        successor.wait()
        time.sleep(0.2)
        assert present(hosts[0]) == {V4, V6}
        assert (run("ip", "rule") + run("ip", "-6", "rule")).count("prohibit") == 1
        fence.unload()


def test_flushed_rules_of_a_closed_service_come_back(hosts: tuple[str, str]) -> None:
    with inside(hosts[0]):
        fence = RuleFence(SERVICES, fence_ms=50)
        fence.load()
        for address, family in ((V4, "-4"), (V6, "-6"), (OTHER, "-4")):
            run("ip", family, "rule", "del", "from", address, "priority", "71")
        time.sleep(1.05)
        fence.arm()
        assert (run("ip", "rule") + run("ip", "-6", "rule")).count("prohibit") == 3
        fence.unload()


def test_a_dead_watchdog_is_said_and_started_again(hosts: tuple[str, str]) -> None:
    with inside(hosts[0]):
        fence = RuleFence(SERVICES, fence_ms=50)
        fence.load()
        first = watchdog_ran(fence)
        fence.arm()
        assert fence.fault == ""
        os.kill(first, signal.SIGKILL)
        time.sleep(1.1)
        fence.arm()
        assert "started again" in fence.fault
        second = watchdog_ran(fence)
        assert second != first
        os.kill(second, signal.SIGSTOP)
        time.sleep(3.6)
        fence.arm()
        assert "stands still" in fence.fault
        os.kill(second, signal.SIGCONT)
        fence.unload()
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)


def test_without_nft_the_fallback_says_so(
    hosts: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with inside(hosts[0]):
        fence, sentence = load_fence(table_name("test", "fs-a"), SERVICES, fence_ms=60, arm_ms=10)
        assert fence.mode == "iprule"
        assert f"{RuleFence.overlap_bound_ms} ms" in sentence
        assert "apt-get install nftables" in sentence
        fence.unload()


def lives_ms(host: str, address: str) -> float:
    """For how long an address with a lifetime of one second lives that nobody renews."""
    with inside(host):
        netlink = Netlink()
        link = netlink.link("eth0")
        assert link is not None
        netlink.add_address(link.index, address, 64 if ":" in address else 24, 1)
        renewed_s = time.monotonic()
        while any(found.address == address for found in netlink.addresses()):
            time.sleep(0.01)
        netlink.close()
    return (time.monotonic() - renewed_s) * 1000


@pytest.mark.parametrize("address", [V4, V6])
def test_the_bound_covers_what_the_kernel_takes_to_end_a_lifetime(
    hosts: tuple[str, str], address: str
) -> None:
    lives = [lives_ms(hosts[0], address) for _ in range(4)]
    print("a lifetime of one second ended after", *(f"{ms:.0f}" for ms in lives), "ms")
    assert min(lives) > 950, "it must outlive heart's renewals"
    assert max(lives) <= RuleFence.overlap_bound_ms


_HOLDER = """
import time
from haclusterd.heart.fallback import RuleFence
from haclusterd.heart.fence import FencedService
from haclusterd.heart.netlink import Netlink
netlink = Netlink()
index = netlink.link("eth0").index
fence = RuleFence({{0: FencedService(("eth0",), ({v4!r}, {v6!r}))}}, {fence_ms})
fence.load()
while True:
    fence.arm()
    fence.renew([0])
    netlink.add_address(index, {v4!r}, 24, 1)
    netlink.add_address(index, {v6!r}, 64, 1, 0)
    print(fence.watchdog_turned_us, flush=True)
    time.sleep(0.02)
"""
_TALKER = """
import socket, time
def opened(family, address):
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND, of IPv6 sockets as well
    made.bind((address, 0))
    return made
four, six = opened(socket.AF_INET, {v4!r}), opened(socket.AF_INET6, {v6!r})
while True:
    for s, to in ((four, "10.9.0.2"), (six, "fd00:9::2")):
        try: s.sendto(b"x", (to, 4000))
        except OSError: pass
    time.sleep(0.001)
"""
_ASKER = """
import time
from haclusterd.heart.announce import Announcer
from haclusterd.heart.netlink import Netlink
announcer = Announcer("eth0", Netlink().link("eth0").mac, [{v4!r}, {v6!r}])
while True:
    announcer.probe({v4!r}); announcer.probe({v6!r})
    time.sleep(0.001)
"""


def test_a_frozen_holder_is_silenced_by_the_watchdog(hosts: tuple[str, str]) -> None:
    """SIGSTOP ends IPv4, IPv6 and the kernel's ARP and NA answers; SIGCONT brings them back."""
    fence_ms = 60
    values = {"v4": V4, "v6": V6, "fence_ms": fence_ms}
    holder = python_in(hosts[0], _HOLDER.format(**values))
    others = [
        python_in(hosts[0], _TALKER.format(**values)),
        python_in(hosts[1], _ASKER.format(**values)),
    ]
    worst: dict[str, float] = {}
    try:
        assert holder.stdout is not None
        while int(holder.stdout.readline()) == 0:
            continue  # the watchdog is still starting
        time.sleep(1.0)
        for _again in range(10):
            ended = last_output_ms(hosts[1], holder, mac_of(hosts[0]), V4, V6)
            assert set(ended) == {"ipv4", "ipv6", "arp", "na"}, "all four kinds were flowing"
            assert max(ended.values()) <= fence_ms + 40, ended
            for kind, at in ended.items():
                worst[kind] = max(worst.get(kind, 0.0), at)
            time.sleep(0.3)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        time.sleep(0.2)
        assert present(hosts[0]) == set(), "also a heart that ended is cleared up after"
    finally:
        for process in (holder, *others):
            process.kill()
            process.wait()
    print("last frame after SIGSTOP, worst of 10, ms:", {k: round(v) for k, v in worst.items()})
