"""rtnetlink, announcements and probes against a real kernel, in namespaces."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from haclusterd.core.model import AddressSpec, ServiceSpec
from haclusterd.heart.addresses import ANNOUNCE_ROUNDS, ServiceAddresses
from haclusterd.heart.announce import Alien, Announcer
from haclusterd.heart.clock import now_us
from haclusterd.heart.errors import HeartError
from haclusterd.heart.netlink import FOREVER_S, Address, Link, Netlink, NetlinkEvents
from tests.lab.heart_net import inside, needs_root, run, two_hosts

pytestmark = [pytest.mark.lab, needs_root]

SECOND_US = 1_000_000
# Linux looks at IPv6 lifetimes at least a second after its last look, and waits for whoever holds
# the lock of all NICs meanwhile: 3.1 s were too few on a machine that took namespaces down.
GONE_WITHIN_S = 10.0
V4, V6 = "10.9.0.50", "fd00:9::50"


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    with two_hosts(f"heartn{os.getpid()}") as pair:
        yield pair


def eth0(netlink: Netlink) -> Link:
    link = netlink.link("eth0")
    assert link is not None
    return link


def test_add_renew_list_remove(hosts: tuple[str, str]) -> None:
    with inside(hosts[0]):
        netlink = Netlink()
        nic = eth0(netlink)
        assert nic.up
        assert nic.carrier
        assert len(nic.mac) == 6
        for address, prefix in ((V4, 24), (V6, 64)):
            netlink.add_address(nic.index, address, prefix, 2)
            netlink.add_address(nic.index, address, prefix, 2, 0)  # renewal, deprecated
            assert Address(nic.index, address, prefix) in netlink.addresses(nic.index)
        shown = run("ip", "-n", hosts[0], "addr", "show", "dev", "eth0")
        assert "nodad" in shown
        assert "valid_lft 2sec" in shown
        assert "tentative" not in shown.split(V6)[1].split("\n")[0]
        assert netlink.delete_address(nic.index, V4, 24)
        assert not netlink.delete_address(nic.index, V4, 24), "already gone"
        left = [V6]
        deadline = time.monotonic() + GONE_WITHIN_S
        while V6 in left and time.monotonic() < deadline:
            time.sleep(0.1)
            left = [a.address for a in netlink.addresses(nic.index)]
        assert V6 not in left, "an address that nobody renews ends by itself"
        assert "10.9.0.1" in left
        netlink.close()


def test_refusals_name_the_fix(hosts: tuple[str, str]) -> None:
    with inside(hosts[0]):
        netlink = Netlink()
        with pytest.raises(HeartError, match=r"No such device.*NIC name"):
            netlink.add_address(4711, V4, 24, 2)
        assert netlink.link("eth7") is None
        netlink.close()


def test_changes_arrive_as_events(hosts: tuple[str, str]) -> None:
    with inside(hosts[0]):
        netlink, events = Netlink(), NetlinkEvents()
        nic = eth0(netlink)
        netlink.add_address(nic.index, V4, 24, FOREVER_S)
        netlink.delete_address(nic.index, V4, 24)
        found, lost = events.receive()
        assert not lost
        assert Address(nic.index, V4, 24) in found
        assert Address(nic.index, V4, 24, removed=True) in found
        run("ip", "-n", hosts[1], "link", "set", "eth0", "down")
        changes: list[Link] = []
        while not changes:  # the kernel tells a loss of carrier within a second
            assert select.select([events], [], [], 3.0)[0]
            changes = [e for e in events.receive()[0] if isinstance(e, Link) and not e.carrier]
        assert changes[-1].name == "eth0"
        assert not eth0(netlink).carrier
        events.close()
        netlink.close()


def test_announcements_move_the_neighbours_cache(hosts: tuple[str, str]) -> None:
    left, right = hosts
    wrong = "02:00:00:00:00:99"
    for address in (V4, V6):
        entry = ["neigh", "replace", address, "lladdr", wrong, "dev", "eth0", "nud", "reachable"]
        run("ip", "-n", right, *entry)
    # A fresh IPv4 entry is protected from gratuitous replies for a second (locktime).
    time.sleep(1.1)
    with inside(left):
        netlink = Netlink()
        mac = eth0(netlink).mac
        announcer = Announcer("eth0", mac, [V4, V6])
        assert announcer.announce(V4) == 2
        assert announcer.announce(V6, 3) == 3
        announcer.close()
    time.sleep(0.1)
    for address in (V4, V6):
        assert mac.hex(":") in run("ip", "-n", right, "neigh", "show", address)


@pytest.mark.parametrize("address", [V4, V6])
def test_probe_finds_the_alien_and_not_ourselves(hosts: tuple[str, str], address: str) -> None:
    left, right = hosts
    with inside(right):
        alien = Netlink()
        nic = eth0(alien)
    with inside(left):
        own = eth0(Netlink())
        announcer = Announcer("eth0", own.mac, [V4, V6])
    announcer.announce(address)
    assert announcer.probe(address)
    assert not select.select(announcer.sockets, [], [], 0.1)[0], "nobody else has it"
    alien.add_address(nic.index, address, 32 if address == V4 else 128, FOREVER_S)
    time.sleep(0.05)  # the kernel joins the IPv6 address's group in a work queue
    assert announcer.probe(address)
    assert select.select(announcer.sockets, [], [], 1.0)[0]
    assert announcer.receive() == [Alien(address, nic.mac.hex(":"))]
    announcer.close()
    alien.close()


def test_only_frames_about_our_addresses_wake_us(hosts: tuple[str, str]) -> None:
    left, right = hosts
    with inside(left):
        announcer = Announcer("eth0", eth0(Netlink()).mac, [V4, V6])
    with inside(right):
        nic = eth0(Netlink())
        other = Announcer("eth0", nic.mac, ["10.9.0.60", "fd00:9::60", V4])
    for address in ("10.9.0.60", "fd00:9::60"):
        other.announce(address, 5)
    assert not select.select(announcer.sockets, [], [], 0.1)[0]
    other.announce(V4)
    assert announcer.receive() == [Alien(V4, nic.mac.hex(":"))] * 2
    announcer.close()
    other.close()


@pytest.mark.parametrize("address", [V4, V6])
def test_a_war_of_macs_is_told_seldom_and_answered_once(
    hosts: tuple[str, str], address: str
) -> None:
    left, right = hosts
    with inside(right):
        rivals = [Announcer("eth0", bytes([2, 0, 0, 0, 9, n]), [address]) for n in (1, 2)]
        netlink = Netlink()
        listener = Announcer("eth0", eth0(netlink).mac, [address])
    with inside(left):
        ours = eth0(Netlink()).mac
        addresses = service_addresses(address)
    addresses.add(0, now_us())
    told = []
    for _round in range(140):
        for rival in rivals:
            rival.announce(address)
        time.sleep(0.005)
        told += addresses.receive("eth0", now_us())
        assert addresses.look_after(now_us()) == []
    assert [alien.mac[-2:] for alien in told] in (["01", "02"], ["01", "02", "02"])
    assert addresses.flooded("eth0") is (address == V4)  # two frames a round for IPv4
    spoken = [alien.mac for alien in listener.receive(limit=1000)]
    assert spoken.count(ours.hex(":")) == ANNOUNCE_ROUNDS * (2 if address == V4 else 1)
    addresses.listen_again()
    assert not addresses.flooded("eth0")
    addresses.remove(0)
    addresses.close()


def service_addresses(*addresses: str) -> ServiceAddresses:
    specs = tuple(AddressSpec(a, 64 if ":" in a else 24, "eth0") for a in addresses)
    services = [ServiceSpec("east", specs)]
    made = ServiceAddresses(services, Netlink(), valid_s=5, renew_us=SECOND_US)
    made.refresh_links()
    return made


def test_an_address_that_failed_duplicate_detection_is_replaced(hosts: tuple[str, str]) -> None:
    left, right = hosts
    run("ip", "-n", right, "addr", "add", f"{V6}/64", "dev", "eth0", "nodad")
    run("ip", "-n", left, "addr", "add", f"{V6}/64", "dev", "eth0")
    end = time.monotonic() + 10
    while "dadfailed" not in run("ip", "-n", left, "-6", "addr", "show", "dev", "eth0"):
        assert time.monotonic() < end
        time.sleep(0.05)
    with inside(left):
        addresses = service_addresses(V6)
    assert addresses.add(0, now_us()) == ""
    shown = run("ip", "-n", left, "-6", "addr", "show", "dev", "eth0")
    line = next(text for text in shown.splitlines() if V6 in text)
    assert "dadfailed" not in line
    assert "tentative" not in line
    assert "nodad" in line
    addresses.close()


def test_disabled_ipv6_is_named_with_its_fix(hosts: tuple[str, str]) -> None:
    with inside(hosts[0]):
        Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").write_text("1\n")
        addresses = service_addresses(V6)
        assert "disable_ipv6 to 0" in addresses.add(0, now_us())
        addresses.close()


def test_source_rules_are_set_once(hosts: tuple[str, str]) -> None:
    with inside(hosts[0]):
        netlink = Netlink()
        for address in (V4, V6):
            assert netlink.prohibit_source(address, 71, on=True)
            assert not netlink.prohibit_source(address, 71, on=True)
            assert netlink.prohibit_source(address, 71, on=False)
            assert not netlink.prohibit_source(address, 71, on=False)
        netlink.close()


def test_cost_of_an_address_and_of_an_announcement(hosts: tuple[str, str]) -> None:
    """Figures for the report; the limits only catch an order of magnitude."""
    with inside(hosts[0]):
        netlink = Netlink()
        nic = eth0(netlink)
        announcer = Announcer("eth0", nic.mac, [V4, V6])
        costs: dict[str, float] = {}
        for name, call in (
            ("add v4", lambda: netlink.add_address(nic.index, V4, 24, 2)),
            ("add v6", lambda: netlink.add_address(nic.index, V6, 64, 2)),
            ("announce v4 x3", lambda: announcer.announce(V4, 3)),
        ):
            taken = []
            for _again in range(200):
                before = time.perf_counter_ns()
                call()
                taken.append((time.perf_counter_ns() - before) / 1000)
            costs[name] = sorted(taken)[100]
        print("median us:", {k: round(v, 1) for k, v in costs.items()})
        assert max(costs.values()) < 2000
        announcer.close()
        netlink.close()
