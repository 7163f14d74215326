"""Events over HTTP: a stream that browsers resume by themselves, and a page for those who poll."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from haclusterd.agent import events
from haclusterd.agent.http import Http
from tests.fixtures.agent_source import FakeSource
from tests.unit.test_agent_http import path_of

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def source() -> FakeSource:
    made = FakeSource()
    for text in ("one", "two", "three"):
        made.history.add("A1", text)
    return made


@pytest.fixture
async def http(source: FakeSource) -> AsyncIterator[Http]:
    server = Http("127.0.0.1", 0, source)
    await server.start()
    yield server
    await server.stop()


class Sse:
    """A client of the stream, as a browser is one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.last_id = ""

    @classmethod
    async def get(cls, http: Http, target: str, last_id: str = "") -> Sse:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        more = f"Last-Event-ID: {last_id}\r\n" if last_id else ""
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
        assert b"200" in await reader.readline()
        while await reader.readline() != b"\r\n":
            pass
        return cls(reader, writer)

    async def next(self) -> dict[str, Any]:
        while True:
            line = (await asyncio.wait_for(self._reader.readline(), 5)).decode().rstrip()
            if line.startswith("id: "):
                self.last_id = line.removeprefix("id: ")
            elif line.startswith("data: "):
                found: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return found

    def leave(self) -> None:
        self._writer.close()


async def test_ms24_a_stream_is_resumed_by_the_id_a_browser_sends(
    http: Http, source: FakeSource
) -> None:
    stream = await Sse.get(http, "/events?after=fs-a:1:1")
    assert [(await stream.next())["text"] for _ in range(2)] == ["two", "three"]
    assert stream.last_id == "fs-a:1:3"
    stream.leave()
    source.history.add("A1", "meanwhile")
    stream = await Sse.get(http, "/events?after=begin", stream.last_id)
    assert (await stream.next())["text"] == "meanwhile"
    source.history.add("A1", "now")
    assert (await stream.next())["text"] == "now"
    stream.leave()


async def test_ms24_only_what_comes_and_keepalives(
    http: Http, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events.Reader.next, "__defaults__", (0.05,))
    stream = await Sse.get(http, "/events")
    alive = await stream.next()
    assert (alive["kind"], alive["cursor"]) == ("keepalive", "fs-a:1:3")
    assert stream.last_id == "fs-a:1:3"
    source.history.add("A1", "now")
    found = await stream.next()
    while found["kind"] == "keepalive":
        found = await stream.next()
    assert found["text"] == "now"
    stream.leave()
    for _ in range(100):
        if not source.events.waiters:
            break
        await asyncio.sleep(0.02)
    assert not source.events.waiters, "whoever is gone takes no room"


async def test_ms24_polling(http: Http, source: FakeSource) -> None:
    code, _, body = await path_of(http, "/events.json")
    found = json.loads(body)
    assert code == 200
    assert [e["text"] for e in found["events"]] == ["one", "two", "three"]
    code, _, body = await path_of(http, f"/events.json?after={found['cursor']}")
    assert json.loads(body) == {"events": [], "cursor": "fs-a:1:3"}
    source.history.add("A1", "four")
    _, _, body = await path_of(http, f"/events.json?after={found['cursor']}&own=1")
    assert [e["text"] for e in json.loads(body)["events"]] == ["four"]


@pytest.mark.parametrize("path", ["/events?after=x", "/events.json?after=a:b:c"])
async def test_wrong_positions_are_refused_with_the_form(http: Http, path: str) -> None:
    code, _, body = await path_of(http, path)
    assert code == 400
    assert b"fs-a:1790000000000:17" in body
    assert (await path_of(http, "/events", "HEAD"))[0] == 200


@pytest.mark.parametrize("path", ["/events", "/events.json"])
async def test_too_many_parameters_get_an_answer(http: Http, path: str) -> None:
    """And not the end of the connection with a traceback in the log."""
    code, _, body = await path_of(http, f"{path}?own=1{'&' * 8}")
    assert code == 400
    assert b"at most 8" in body


async def test_nobody_writes_lines_of_the_stream_by_its_address(http: Http) -> None:
    code, _, body = await path_of(http, "/events?after=x%0adata%3A%20forged:1:2")
    assert code == 400
    assert b"is no event" in body


async def test_streams_are_bounded(http: Http, source: FakeSource) -> None:
    readers = [source.events.read() for _ in range(events.READERS_MAX)]
    for path in ("/events", "/events.json"):
        code, _, body = await path_of(http, path)
        assert (code, b"end one of them" in body) == (503, True)
    for reader in readers:
        reader.close()
