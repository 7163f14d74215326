"""Links over the loopback: who may speak, what is counted, how a link comes back."""

from __future__ import annotations

import socket
import time

import pytest

from haclusterd.heart.former import Former
from haclusterd.heart.links import DATAGRAM_BYTES_MAX, Links

NODES = [["127.0.71.1", "127.0.72.1"], ["127.0.71.2", "127.0.72.2"], ["127.0.71.3", "127.0.72.3"]]


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.71.1", 0))
        return int(probe.getsockname()[1])


def opened(port: int, me: int, nodes: list[list[str]] = NODES) -> Links:
    links = Links(port, nodes, me)
    assert links.reopen() == list(range(len(nodes[me])))
    return links


def test_send_to_all_and_to_one(port: int) -> None:
    a, b, c = (opened(port, me) for me in range(3))
    assert a.send(0, b"all") == 2
    assert a.send(1, b"one", to=(2,)) == 1
    assert b.receive(10) == [(0, b"all", "127.0.71.1")]
    assert c.receive(10) == [(0, b"all", "127.0.71.1"), (1, b"one", "127.0.72.1")]
    assert a.counters(0).sent == 2
    for links in (a, b, c):
        links.close()


def test_strangers_and_oversized_datagrams_only_count(port: int) -> None:
    a, b = opened(port, 0), opened(port, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.71.9", 0))
        stranger.sendto(b"who", ("127.0.71.1", port))
    # The right node on the wrong link is a stranger there, too.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as crossed:
        crossed.bind(("127.0.72.2", 0))
        crossed.sendto(b"who", ("127.0.71.1", port))
    b.send(0, bytes(DATAGRAM_BYTES_MAX + 1), to=(0,))
    b.send(0, bytes(DATAGRAM_BYTES_MAX), to=(0,))
    assert [len(data) for _link, data, _node in a.receive(10)] == [DATAGRAM_BYTES_MAX]
    counters = a.counters(0)
    assert (counters.alien_sources, counters.oversized, counters.received) == (2, 1, 1)
    a.close()
    b.close()


def test_a_removed_node_is_answered_once_a_second(port: int) -> None:
    gone, present = NODES[2], NODES[:2]
    a = Links(port, present, 0, [gone])
    assert a.reopen() == [0, 1]
    back = opened(port, 2)
    back.send(0, b"early", to=(0,))
    assert a.receive(10) == []
    assert back.receive(10) == []  # nothing was sent yet that could be sent again
    a.send(0, b"newest")
    for _ in range(5):
        back.send(0, b"here", to=(0,))
        assert a.receive(10) == []
    assert back.receive(10) == [(0, b"newest", "127.0.71.1")]
    counters = a.counters(0)
    assert (counters.alien_sources, counters.received, counters.sent) == (6, 0, 2)
    a.close()
    back.close()


def test_who_was_removed_before_a_nic_was_added_has_no_address_on_it(port: int) -> None:
    """And a heart that knows of it starts all the same."""
    a = Links(port, NODES[:2], 0, [NODES[2][:1]])
    assert a.reopen() == [0, 1]
    a.send(0, b"newest")
    back = opened(port, 0, [NODES[2][:1], NODES[0][:1]])
    back.send(0, b"here")
    assert a.receive(10) == []
    assert back.receive(10) == [(0, b"newest", "127.0.71.1")]
    a.close()
    back.close()


def test_former_nodes_are_answered_by_their_own_addresses_only() -> None:
    now = [5_000_000]
    former = Former(("10.1.0.3", "fd00::3"), clock=lambda: now[0])
    assert not former.is_due("10.1.0.4")
    assert former.is_due("10.1.0.3")
    assert former.is_due("fd00::3")
    now[0] += 999_999
    assert not former.is_due("10.1.0.3")
    now[0] += 1
    assert former.is_due("10.1.0.3")
    assert not former.is_due("10.1.0.3")


def test_receive_is_bounded_and_flush_empties(port: int) -> None:
    a, b = opened(port, 0), opened(port, 1)
    for number in range(20):
        b.send(0, bytes([number]), to=(0,))
    assert [data[0] for _l, data, _n in a.receive(5)] == [0, 1, 2, 3, 4]
    assert a.flush() == 15
    assert a.receive(5) == []
    a.close()
    b.close()


def test_one_link_absent_the_other_goes_on(port: int) -> None:
    nodes = [["192.0.2.77", "127.0.72.1"], ["192.0.2.78", "127.0.72.2"]]
    a, b = Links(port, nodes, 0), Links(port, nodes, 1)
    assert a.reopen() == [1]
    assert b.reopen() == [1]
    assert "give this host the address" in a.fault(0)
    assert a.send(0, b"x") == 0
    assert a.send(1, b"x") == 1
    assert b.receive(4) == [(1, b"x", "127.0.72.1")]
    a.close()
    b.close()


def test_port_taken_is_named(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.bind(("127.0.71.1", port))
        links = Links(port, NODES, 0)
        assert links.reopen() == [1]
        assert "ss -lunp" in links.fault(0)
    assert links.reopen() == [0]
    assert links.fault(0) == ""
    links.close()


def test_address_lost_and_back(port: int) -> None:
    a = opened(port, 0)
    assert a.address_removed("127.0.72.1") == [1]
    assert a.opened(1) is None
    assert a.send(1, b"x") == 0
    assert a.reopen() == [1]
    a.close()


def test_refused_send_is_counted(port: int) -> None:
    """Nobody listens at the peers: ICMP brings ECONNREFUSED back, nothing raises."""
    a = opened(port, 0)
    for _again in range(10):
        a.send(0, b"x")
        time.sleep(0.001)
        assert a.receive(2) == []
    a.close()


def test_ipv6_peers() -> None:
    nodes = [["::1"], ["::1"]]
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1", 0))
        port = probe.getsockname()[1]
    a = opened(port, 0, nodes)
    assert a.send(0, b"six", to=(1,)) == 1  # both are ::1: it comes back to us
    assert a.receive(2) == [(0, b"six", "::1")]
    a.close()
