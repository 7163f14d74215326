"""The HTTP interface: codes by role, the page and its feed, bounds."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from haclusterd.agent import feed, page
from haclusterd.agent.http import Http, HttpError
from tests.fixtures.agent_parts import view
from tests.fixtures.agent_source import FakeSource

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
async def http(source: FakeSource) -> AsyncIterator[Http]:
    server = Http("127.0.0.1", 0, source)
    await server.start()
    yield server
    await server.stop()


async def get(http: Http, request: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, _, v in (text.partition(": ") for text in lines[1:])}
    return int(lines[0].split()[1]), headers, body


async def path_of(http: Http, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    return await get(http, f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())


@pytest.mark.parametrize(
    ("path", "code"),
    [("/live", 200), ("/ready", 200), ("/master", 200), ("/slave", 503), ("/primary-slave", 503),
     ("/services/east", 200), ("/services/west", 503), ("/services/north", 404), ("/x", 404),
     ("/status", 200), ("/history", 200), ("/metrics", 200), ("/?a=b", 200),
     ("/best-node", 200)],
)  # fmt: skip
async def test_codes_by_role(http: Http, path: str, code: int) -> None:
    assert (await path_of(http, path))[0] == code


async def test_no_node_for_a_call_is_503_with_the_reason(http: Http, source: FakeSource) -> None:
    best = json.loads((await path_of(http, "/best-node"))[2])
    assert (best["node"], best["addresses"]) == ("fs-a", ["203.0.113.10"])
    source.now = view({})
    code, _, body = await path_of(http, "/best-node")
    assert (code, b"no node can take a call" in body) == (503, True)


async def test_a_node_whose_heart_says_nothing_has_no_role(http: Http, source: FakeSource) -> None:
    source.silent = "heart has said nothing for 12 s: what is shown is of then"
    for path in ("/ready", "/master", "/slave", "/primary-slave", "/best-node"):
        code, _, body = await path_of(http, path)
        assert (path, code, body.decode().strip()) == (path, 503, source.silent)
    code, _, body = await path_of(http, "/services/east")
    assert (code, json.loads(body)["owner"]) == (503, "fs-a")
    assert (await path_of(http, "/live"))[0] == (await path_of(http, "/status"))[0] == 200


async def test_a_primary_slave_says_so(http: Http, source: FakeSource) -> None:
    source.now = view({"east": ("fs-b", 7)})
    assert (await path_of(http, "/primary-slave"))[0] == 200
    assert (await path_of(http, "/slave"))[0] == 200
    source.now = view({"east": ("fs-b", 7)}, me="fs-c")
    assert (await path_of(http, "/primary-slave"))[0] == 503


async def test_before_hearts_first_word_everything_but_live_is_503(
    http: Http, source: FakeSource
) -> None:
    source.now = None
    paths = ("/page.json", "/status", "/ready", "/metrics", "/live")
    codes = [(await path_of(http, p))[0] for p in paths]
    assert codes == [503, 503, 503, 503, 200]


async def test_bodies_and_headers(http: Http, source: FakeSource) -> None:
    source.history.add("T101", "<b>claims</b>\x1b[2J\u202e")
    code, headers, body = await path_of(http, "/")
    assert code == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert b"<script type" in body
    assert json.loads((await path_of(http, "/status"))[2])["node"] == "fs-a"
    raw = (await path_of(http, "/history"))[2].decode().rstrip("\n")
    assert raw.isprintable()
    assert json.loads(raw)[-1]["text"] == "<b>claims</b>\x1b[2J\u202e"
    metrics = (await path_of(http, "/metrics"))[2].decode()
    assert 'haclusterd_node_role{node="fs-a",role="master"} 1.0' in metrics
    assert 'haclusterd_events_total{event="decisions"} 4.0' in metrics


async def test_the_page_is_whole_and_knows_nothing_inline(http: Http) -> None:
    """Every file that one of them names is served, and none of them holds style or script."""
    named = {"/"}
    for path, file in page.files().items():
        code, headers, body = await path_of(http, path)
        assert (code, headers["content-type"], body) == (200, file.type, file.body)
        named |= {found.decode() for found in re.findall(rb"""["'](/[a-z]+\.(?:js|css|svg))["']""",
                                                         body)}  # fmt: skip
    assert named == set(page.files())
    document = page.files()["/"].body
    assert not re.search(rb"<style|<script>|\bon\w+=|style=|https?:", document)
    assert page.build().encode() in document


async def test_the_page_is_fed_at_once_when_something_changes(
    http: Http, source: FakeSource
) -> None:
    """WEB: what an open page shows is never older than a second, and a change comes sooner."""
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(b"GET /page.events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"text/event-stream" in head
    first = await event_of(reader)
    assert first["build"] == page.build()
    assert first["status"]["services"][0]["owner"] == "fs-a"
    source.now = view({"east": ("fs-b", 8)})
    began = asyncio.get_running_loop().time()
    while (await event_of(reader))["status"]["services"][0]["owner"] != "fs-b":
        pass
    assert asyncio.get_running_loop().time() - began < 0.9
    assert http.feed.followers == 1
    writer.close()
    for _ in range(40):
        await asyncio.sleep(0.1)
        if not http.feed.followers:
            break
    assert http.feed.followers == 0
    assert http.feed._task is None, "nothing is made while nobody looks"


async def event_of(reader: asyncio.StreamReader) -> dict[str, Any]:
    while not (text := await reader.readline()).startswith(b"data: "):
        pass
    found: dict[str, Any] = json.loads(text.removeprefix(b"data: "))
    return found


async def test_open_pages_are_bounded(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "FOLLOWERS_MAX", 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(b"GET /page.events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    await event_of(reader)
    assert (await path_of(http, "/page.events"))[0] == 503
    assert (await path_of(http, "/page.json"))[0] == 200, "one more page asks instead"
    writer.close()


@pytest.mark.parametrize("path", ["/live", "/ready", "/master", "/slave", "/primary-slave",
                                  "/services/east", "/services/west", "/services/north", "/",
                                  "/status", "/metrics", "/page.events"])  # fmt: skip
async def test_head_and_options_answer_as_get_would(http: Http, path: str) -> None:
    """HTTP checks of load balancers ask by HEAD or OPTIONS: the code is what counts."""
    code = 200 if path == "/page.events" else (await path_of(http, path))[0]
    for method in ("HEAD", "OPTIONS"):
        found, headers, body = await path_of(http, path, method)
        assert (found, body) == (code, b"")
        assert ("allow" in headers) == (method == "OPTIONS")
    _, headers, _ = await path_of(http, "/status", "HEAD")
    assert int(headers["content-length"]) > 100


async def test_options_for_the_server_as_a_whole(http: Http) -> None:
    code, headers, _ = await path_of(http, "*", "OPTIONS")
    assert (code, headers["allow"]) == (200, "GET, HEAD, OPTIONS")


async def test_nothing_can_be_changed_or_overrun(http: Http) -> None:
    code, headers, _ = await path_of(http, "/status", "POST")
    assert (code, headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert (await get(http, b"nonsense\r\n\r\n"))[0] == 400
    long = b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    assert (await get(http, long))[0] in (400, 414, 431)
    big = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000
    assert (await get(http, big))[0] == 413


async def test_a_taken_port_names_the_fix(http: Http, source: FakeSource) -> None:
    with pytest.raises(HttpError, match="free the port"):
        await Http("127.0.0.1", http.port, source).start()
