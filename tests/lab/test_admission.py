"""What the kernel lets through to a service while its calls are recovered (E18)."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
from collections.abc import Iterator

import pytest

from haclusterd.agent.admission import FROM_LEGS, TABLE, Admission, ruleset
from haclusterd.core.model import AddressSpec, ServiceSpec
from haclusterd.lab import netns

_numbers = itertools.count(7700)
REASON = netns.why_not() or ("" if shutil.which("nft") else "nft is missing: apt install nftables")
pytestmark = [pytest.mark.skipif(bool(REASON), reason=REASON or "ready"), pytest.mark.timeout(30)]
SERVICE = ServiceSpec("east", (AddressSpec("10.9.9.1", 32, "lo"), AddressSpec("::1", 128, "lo")))
REGISTER = b"REGISTER sip:east SIP/2.0\r\n\r\n"
INVITE = b"INVITE sip:9196@east SIP/2.0\r\n\r\n"
BYE = b"BYE sip:9196@east SIP/2.0\r\n\r\n"


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"{netns.own_name()}-{next(_numbers)}"
    netns.ip("netns", "add", name)
    try:
        netns.ip("link", "set", "lo", "up", namespace=name)
        netns.ip("addr", "add", "10.9.9.1/32", "dev", "lo", namespace=name)
        yield name
    finally:
        netns.ip("netns", "del", name)


class Server:
    """A socket on the service address; `got` counts what comes of several equal datagrams."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.server = socket.socket(family, socket.SOCK_DGRAM)
        self.server.bind((address, 5060))
        self.server.settimeout(0.05)
        self.client = socket.socket(family, socket.SOCK_DGRAM)
        self.address = address

    def got(self, datagram: bytes, times: int = 20) -> int:
        for _ in range(times):
            self.client.sendto(datagram, (self.address, 5060))
        count = 0
        try:
            while True:
                count += self.server.recv(100) == datagram
        except TimeoutError:
            return count

    def close(self) -> None:
        self.server.close()
        self.client.close()


async def passed(admission: Admission) -> None:
    """Wait for nft."""
    while admission._tasks:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("address", ["10.9.9.1", "::1"])
def test_e18_calls_before_new_calls_before_registrations(namespace: str, address: str) -> None:
    async def work() -> None:
        admission = Admission(5, 8)
        server = Server(address)
        assert (server.got(INVITE), server.got(REGISTER)) == (20, 20)
        with admission.of(SERVICE, FROM_LEGS):
            await passed(admission)
            assert server.got(REGISTER) == 0
            assert 1 <= server.got(INVITE) <= 7
            assert server.got(BYE) == 20
        await passed(admission)
        assert server.got(INVITE) == 20
        assert 1 <= server.got(REGISTER) <= 10
        await admission.stop()
        assert (server.got(INVITE), server.got(REGISTER)) == (20, 20)
        server.close()

    with netns.inside(namespace):
        asyncio.run(work())


def test_a_few_calls_and_no_rates_hold_nobody_back(namespace: str) -> None:
    async def work() -> None:
        server = Server("10.9.9.1")
        for admission, legs in ((Admission(5, 5), FROM_LEGS - 1), (Admission(0, 0), 1000)):
            with admission.of(SERVICE, legs):
                await passed(admission)
                assert (server.got(INVITE), server.got(REGISTER)) == (20, 20)
        server.close()

    with netns.inside(namespace):
        asyncio.run(work())


def test_without_nft_everybody_gets_through(namespace: str) -> None:
    async def work() -> None:
        for command in ("/nonexistent/nft", "false"):
            admission = Admission(5, 5, command)
            with admission.of(SERVICE, 1000):
                await passed(admission)
            await admission.stop()

    with netns.inside(namespace):
        asyncio.run(work())


def test_rules_are_left_out_where_all_is_let_through() -> None:
    assert "drop" not in ruleset(0, 0)
    assert ruleset(5, 0).count("drop") == 1
    assert f"table inet {TABLE}" in ruleset(5, 5)
