"""The Unix socket and HTTP: answers, refusals, bounds, what a client may do wrong."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from haclusterd.agent import api as module
from haclusterd.agent import feed, page, schema, status
from haclusterd.agent.api import Api, ApiError
from haclusterd.agent.commands import Commands
from haclusterd.agent.history import History
from haclusterd.agent.http import Http, HttpError
from haclusterd.agent.metrics import Outside
from haclusterd.agent.operators import OperatorError, Operators
from haclusterd.agent.peers import Word
from haclusterd.agent.reports import Reports
from haclusterd.agent.traces import Traces
from haclusterd.core.records import CallRecord
from haclusterd.core.view import View
from tests.fixtures.agent_parts import record, spec, view

pytestmark = pytest.mark.timeout(20)

STATUS_KEYS = ["cluster", "node", "quorum", "rank_hash", "nodes", "services", "alarms", "revision"]
NODE_KEYS = ["id", "role", "services", "rank", "health", "links", "calls", "capacity", "sync",
             "version"]  # fmt: skip


class FakeSource:
    """An agent with a view and three calls."""

    def __init__(self) -> None:
        self.history = History()
        self.spec = spec()
        self.reports = Reports(None)
        self.now: View | None = view({"east": ("fs-a", 7)})
        self.traces = Traces(spec(), Path("none"), lambda message: None)
        self.operators = Operators(spec(), self.history, lambda: self.now, lambda message: None)

    def view(self) -> View:
        if self.now is None:
            raise OperatorError("heart has not told its view yet")
        return self.now

    def status(self) -> schema.Status:
        word = {"fs-b": Word("0.2.0", schema.Sync("syncing", 40))}
        alarm = schema.Alarm("x<script>", "a & b")
        return status.status(self.view(), schema.Sync("in-sync", 3), word, [alarm])

    def about(self) -> schema.About:
        return schema.About("0.1.0", "fs-a", "voice1", 1, 2, "now", "c.toml", "ff", "/run")

    def sync(self) -> Any:
        raise OperatorError("there is no other node")

    def calls_here(self) -> Iterator[tuple[str, str, CallRecord]]:
        yield from (("east", "own", record(uuid)) for uuid in ("u1", "u2", "u3"))

    def at_risk(self) -> list[str]:
        return ["u2"]

    def not_ready(self) -> str:
        return "" if self.now else "this node is starting"

    def counters(self) -> dict[str, int]:
        return {"decisions": 4}

    def outside(self) -> Outside:
        return Outside({}, {})

    def known_reports(self) -> list[schema.Report]:
        return self.reports.all()


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
async def served(tmp_path: Path, source: FakeSource) -> AsyncIterator[Path]:
    api = Api(tmp_path / "s.sock", source.history, Commands(source))
    await api.start()
    yield tmp_path / "s.sock"
    await api.stop()
    assert not (tmp_path / "s.sock").exists()


async def ask(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    for line in lines:
        writer.write(line + b"\n")
    answers = [json.loads(await reader.readline()) for _ in lines]
    writer.close()
    return answers


def line(method: str, **params: Any) -> bytes:
    return json.dumps({"method": method, "params": params}).encode()


async def test_recordings_are_asked_for_with_the_right_words(served: Path) -> None:
    wrong = [line("trace", whole="no"), line("trace_read"), line("trace_read", name="../x")]
    answers = await ask(served, *wrong, line("trace_list"))
    codes = [answer.get("error", {}).get("code") for answer in answers[:3]]
    assert codes == ["usage", "usage", "refused"]
    assert answers[3]["result"] == []


async def test_status_is_the_contract(served: Path) -> None:
    (answer,) = await ask(served, line("status"))
    found = answer["result"]
    assert answer["ok"]
    assert list(found) == STATUS_KEYS
    assert found["quorum"] == {"policy": "majority", "voters": 3, "reachable": 3, "ok": True}
    assert found["rank_hash"] == "00000abc"
    assert list(found["nodes"][0]) == NODE_KEYS
    assert [n["role"] for n in found["nodes"]] == ["master", "slave", "slave"]
    assert [n["rank"] for n in found["nodes"]] == [None, 0, 1]
    assert found["nodes"][1]["sync"] == {"state": "syncing", "lag_ms": 40}
    assert found["nodes"][1]["version"] == "0.2.0"
    assert found["nodes"][1]["links"][0] == {
        "address": "10.1.0.1", "up": True, "rtt_ms": 0.4, "loss": 0.0
    }  # fmt: skip
    assert found["nodes"][2]["links"][1]["rtt_ms"] is None
    assert found["services"][1] == {
        "name": "west", "owner": None, "epoch": 0, "state": "unserved",
        "addresses": ["203.0.113.11/24 dev eth0"], "successors": ["fs-b", "fs-c"],
    }  # fmt: skip


async def test_one_connection_carries_many_requests(served: Path, source: FakeSource) -> None:
    source.history.add("T101", "fs-a claims east", 5, "east", 7)
    rank, history, calls, risk = await ask(
        served, line("rank"), line("history", count=5), line("calls", limit=2),
        line("calls", at_risk=True, limit=0),
    )  # fmt: skip
    assert rank["result"]["slaves"] == ["fs-b", "fs-c"]
    assert history["result"][0]["text"] == "fs-a claims east"
    assert (calls["result"]["total"], calls["result"]["at_risk"]) == (3, 1)
    assert [c["uuid"] for c in calls["result"]["calls"]] == ["u1", "u2"]
    assert [c["at_risk"] for c in calls["result"]["calls"]] == [False, True]
    assert risk["result"] == {"total": 1, "at_risk": 1, "calls": []}


@pytest.mark.parametrize(
    ("request_line", "code", "text"),
    [
        (b"not json", "usage", "not a request"),
        (b"[]", "usage", "not a request"),
        (b'{"method": 3}', "usage", "not a request"),
        (line("drop_tables"), "usage", "unknown method"),
        (line("history", count="x"), "usage", "must be 0..10000"),
        (line("history", count=True), "usage", "must be 0..10000"),
        (line("switchover"), "usage", "'service' is missing"),
        (line("switchover", service="e" * 300), "usage", "no text"),
        (line("maintenance", on="yes"), "usage", "true or false"),
        (line("switchover", service="west"), "refused", "nobody serves west"),
        (line("report"), "refused", "nothing has moved yet"),
        (line("sync"), "refused", "no other node"),
    ],
)
async def test_what_cannot_be_done_is_said(
    served: Path, request_line: bytes, code: str, text: str
) -> None:
    (answer,) = await ask(served, request_line)
    assert answer["ok"] is False
    assert answer["error"]["code"] == code
    assert text in answer["error"]["message"]


async def test_a_bug_in_one_command_is_its_own(
    served: Path, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "about", lambda: 1 / 0)
    failed, fine = await ask(served, line("about"), line("status"))
    assert "see its log" in failed["error"]["message"]
    assert fine["ok"]


async def test_endless_lines_and_too_many_clients_end(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(served))
    writer.write(b"x" * (schema.REQUEST_BYTES_MAX + 100))
    assert await reader.read() == b""
    writer.close()
    monkeypatch.setattr(module, "CLIENTS_MAX", 1)
    _, first = await asyncio.open_unix_connection(str(served))
    first.write(b"")
    await asyncio.sleep(0.05)
    reader, second = await asyncio.open_unix_connection(str(served))
    assert b"end one of them" in await reader.read()
    first.close()
    second.close()


async def test_events_are_followed_until_the_client_leaves(
    served: Path, source: FakeSource
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(served))
    writer.write(line("events") + b"\n")
    assert json.loads(await reader.readline())["ok"]
    source.history.add("M3", "fs-b is alive")
    assert json.loads(await reader.readline())["result"]["text"] == "fs-b is alive"
    writer.close()
    await asyncio.sleep(0.05)
    assert source.history._followers == []


async def test_the_socket_is_private_and_left_overs_are_replaced(
    tmp_path: Path, source: FakeSource
) -> None:
    path = tmp_path / "deep" / "s.sock"
    first = Api(path, source.history, Commands(source))
    await first.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    second = Api(path, source.history, Commands(source))
    with pytest.raises(ApiError, match="another daemon answers"):
        await second.start()
    assert (await ask(path, line("about")))[0]["ok"]
    if first._server is not None:
        first._server.close()  # as after a crash: the file stays
    await second.start()
    assert (await ask(path, line("about")))[0]["ok"]
    await first.stop()
    assert path.exists(), "an old daemon must not remove its successor's socket"
    await second.stop()
    with pytest.raises(ApiError, match="at most 107 bytes"):
        await Api(tmp_path / ("x" * 120), source.history, Commands(source)).start()


# -- HTTP --


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
    return await get(http, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


@pytest.mark.parametrize(
    ("path", "code"),
    [("/live", 200), ("/ready", 200), ("/master", 200), ("/slave", 503), ("/primary-slave", 503),
     ("/services/east", 200), ("/services/west", 503), ("/services/north", 404), ("/x", 404),
     ("/status", 200), ("/history", 200), ("/metrics", 200), ("/?a=b", 200)],
)  # fmt: skip
async def test_codes_by_role(http: Http, path: str, code: int) -> None:
    assert (await path_of(http, path))[0] == code


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
    writer.write(b"GET /page.events HTTP/1.1\r\nHost: x\r\n\r\n")
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
    writer.write(b"GET /page.events HTTP/1.1\r\nHost: x\r\n\r\n")
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
    long = b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    assert (await get(http, long))[0] in (400, 414, 431)
    big = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000
    assert (await get(http, big))[0] == 413


async def test_a_taken_port_names_the_fix(http: Http, source: FakeSource) -> None:
    with pytest.raises(HttpError, match="free the port"):
        await Http("127.0.0.1", http.port, source).start()
