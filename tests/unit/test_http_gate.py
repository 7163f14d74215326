"""HTTP under attack: half-open requests shut out nobody, and no other site may read the page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from haclusterd.agent.http import Http
from haclusterd.agent.http_gate import CLIENTS_MAX, OF_ONE_CLIENT_MAX, Gate, client_of, is_ours
from tests.fixtures.agent_source import FakeSource

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    server = Http("127.0.0.1", 0, FakeSource(), ["status.example.org"])
    await server.start()
    yield server
    await server.stop()


async def code_of(http: Http, path: str, host: str = "127.0.0.1", version: str = "1.1") -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    name = f"Host: {host}\r\n" if host else ""
    writer.write(f"GET {path} HTTP/{version}\r\n{name}\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return int(answer.split()[1])


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
async def test_300_half_open_requests_shut_out_nobody(http: Http, said: bytes) -> None:
    """Neither the metrics nor a health check, although they come from the same address."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(300):
            _, writer = await asyncio.open_connection("127.0.0.1", http.port)
            stack.callback(writer.close)
            writer.write(said)
        for path in ("/metrics", "/live", "/master"):
            assert await code_of(http, path) == 200
        assert len(http._clients) <= CLIENTS_MAX
        assert http.gate.ended >= 300 - OF_ONE_CLIENT_MAX


async def test_a_half_open_request_ends_by_itself(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.http.REQUEST_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(b"GET / HTTP/1.1\r\n")
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 3) == b""
    writer.close()
    assert http._clients == set()


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:7802", 200), ("10.1.0.1", 200), ("[::1]:7802", 200), ("[fd00::5]", 200),
        ("localhost", 200), ("LocalHost.:7802", 200), ("status.example.org", 200),
        ("evil.example", 421), ("evil.example:7802", 421), ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421), ("[::1].evil.example", 421), ("status.example.orgx", 421),
        ("x" * 8000, 421),
    ],
)  # fmt: skip
async def test_only_those_who_mean_this_server_are_answered(
    http: Http, host: str, code: int
) -> None:
    """DNS rebinding: evil.example leads to 127.0.0.1, and its script reads the page."""
    feed = ["/page.events"] if code != 200 else []  # it would not end
    for path in ("/", "/status", "/live", *feed):
        assert await code_of(http, path, host) == code


async def test_the_refusal_names_the_fix(http: Http) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert b'this is not "evil.example": ask by address, or add that name to hosts in' in answer


async def test_a_health_check_that_says_no_host_is_answered(http: Http) -> None:
    assert await code_of(http, "/live", host="", version="1.0") == 200


def test_a_configured_host_name_is_ours() -> None:
    assert is_ours("fs-a.example.org:7802", {"fs-a.example.org"})
    assert not is_ours("", set())


def test_one_client_makes_room_for_itself_and_the_greediest_for_others() -> None:
    ended: list[str] = []

    def ends(name: str) -> Callable[[], None]:
        return lambda: ended.append(name)

    gate = Gate(most=5, of_one=3)
    places = [gate.enter("10.0.0.1", ends(f"a{n}")) for n in range(3)]
    gate.keep(places[0])
    gate.enter("10.0.0.1", ends("a3"))
    assert ended == [], "an open page does not count among its client's"
    gate.enter("10.0.0.2", ends("b0"))
    gate.enter("10.0.0.2", ends("b1"))
    assert ended == ["a1"], "the oldest one that is not an open page"
    assert gate.enter("10.0.0.3", ends("c0"))
    assert ended == ["a1", "a2"], "of whoever has the most"
    for place in places:
        gate.leave(place)
    assert gate.enter("10.0.0.4", ends("d0"))
    assert ended == ["a1", "a2"]


def test_where_all_are_open_pages_there_is_no_place() -> None:
    gate = Gate(most=2, of_one=2)
    for _ in range(2):
        gate.keep(gate.enter("10.0.0.1", lambda: None))
    assert gate.enter("10.0.0.1", lambda: None) == 0
    assert gate.enter("10.0.0.2", lambda: None) == 0


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"), ("2001:db8::ffff", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"), ("", ""),
    ],
)  # fmt: skip
def test_what_counts_as_one_client(address: str, client: str) -> None:
    assert client_of(address) == client
