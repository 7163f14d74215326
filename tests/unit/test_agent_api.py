"""The Unix socket: answers, refusals, bounds, what a client may do wrong."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from haclusterd.agent import api as module
from haclusterd.agent import schema
from haclusterd.agent.api import Api, ApiError
from haclusterd.agent.commands import Commands
from haclusterd.freeswitch.risks import Ringing
from tests.fixtures.agent_source import FakeSource

pytestmark = pytest.mark.timeout(20)

STATUS_KEYS = ["cluster", "node", "quorum", "rank_hash", "nodes", "services", "alarms", "paused",
               "marked_dead", "registrations", "revision", "orphans", "stale",
               "drains"]  # fmt: skip
NODE_KEYS = ["id", "role", "services", "rank", "health", "links", "calls", "capacity", "sync",
             "version", "witness", "sensors"]  # fmt: skip


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
async def served(tmp_path: Path, source: FakeSource) -> AsyncIterator[Path]:
    api = Api(tmp_path / "s.sock", Commands(source))
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


async def test_e3_one_strange_name_keeps_no_answer_back(served: Path, source: FakeSource) -> None:
    """A Call-ID of a caller may be the name of a channel, and hold bytes that are no UTF-8."""
    source.rings = [("east", Ringing("u\udcff", "east", "inbound"))]
    source.history.add("A5", "fs-a cannot recover east: -ERR \udcff\x1b[2J")
    (answer, history) = await ask(served, line("calls", at_risk=True), line("history"))
    assert answer["result"]["calls"][-1]["uuid"] == "u?"
    assert history["result"][-1]["text"] == "fs-a cannot recover east: -ERR ?\x1b[2J"


async def test_e3_calls_at_risk_say_why(served: Path, source: FakeSource) -> None:
    source.lonely = {"east": "nobody is ready to take east over"}
    source.rings = [("east", Ringing("r1", "east", "inbound"))]
    (risk,) = await ask(served, line("calls", at_risk=True))
    found = {c["uuid"]: (c["here"], c["why"]) for c in risk["result"]["calls"]}
    assert found["u1"] == ("own", ["nobody is ready to take east over"])
    assert found["u2"][1][0] == "no standby has acknowledged it yet"
    assert found["r1"] == ("ringing", ["ringing: only answered calls can be taken over"])
    assert (risk["result"]["total"], risk["result"]["at_risk"]) == (4, 4)


@pytest.mark.parametrize(
    ("request_line", "code", "text"),
    [
        (b"not json", "usage", "not a request"),
        (b"[]", "usage", "not a request"),
        (b'{"method": 3}', "usage", "not a request"),
        (line("drop_tables"), "usage", "unknown method"),
        (line("history", count="x"), "usage", "must be a whole number from 0 to 10000"),
        (line("history", count=True), "usage", "must be a whole number"),
        (line("switchover"), "usage", "switchover needs parameter 'service'"),
        (line("switchover", service="e" * 300), "usage", "a text of 1 to 256 characters"),
        (line("maintenance", on="yes"), "usage", "true or false"),
        (line("switchover", service="west"), "refused", "nobody serves west"),
        (line("report"), "refused", "nothing has moved yet"),
        (line("report", which="east"), "refused", "nothing has moved yet"),
        (line("report", which="7"), "refused", "nothing has moved yet"),
        (line("report", which="nope"), "usage", "there is no service nope; known: east"),
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


async def test_a_takeover_of_another_node_is_listed_and_said_where(
    served: Path, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = schema.Calls(1, 1, 0, 0, [schema.Verdict("u1", "recovered", "", 9)])
    told = schema.Report(number=4, at="2026-11-22T18:00:00.000Z", service="east", from_="fs-a",
                         to="fs-c", epoch=8, cause="x", timeline=[], outage_ms=1.0,
                         calls=calls)  # fmt: skip
    monkeypatch.setattr(source, "known_reports", lambda: [told])
    every, last = await ask(served, line("reports"), line("report"))
    assert [(r["to"], r["calls"]["verdicts"]) for r in every["result"]] == [("fs-c", [])]
    assert "`haclusterctl report 4` on fs-c" in last["error"]["message"]
    later_by_its_clock = "2026-11-22T19:00:00.000Z"
    own = msgspec.structs.replace(told, number=2, to="fs-a", epoch=7, at=later_by_its_clock)
    monkeypatch.setattr(source.reports, "all", lambda: [own])
    asked = [line("report", which=which) for which in ("last", "east", "2")]
    newest, east, second = [answer["result"] for answer in await ask(served, *asked)]
    assert newest["newer"] == east["newer"]
    assert "east moved to fs-c at 2026-11-22T18" in east["newer"]
    behind = msgspec.structs.replace(told, number=6, to="fs-b", epoch=9, at="2026-11-22T16:00:00Z")
    monkeypatch.setattr(source, "known_reports", lambda: [behind, told])
    (newest,) = await ask(served, line("report", which="east"))
    assert "`haclusterctl report 6` on fs-b" in newest["result"]["newer"], "epochs tell, not clocks"
    assert second["newer"] == "", "who asks by number has chosen"
    later = msgspec.structs.replace(own, epoch=9)
    monkeypatch.setattr(source.reports, "all", lambda: [later])
    (newest,) = await ask(served, line("report", which="east"))
    assert newest["result"]["newer"] == ""


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
    source.history.add("A1", "fs-a goes on")
    event = json.loads(await reader.readline())["result"]
    assert (event["text"], event["row"], event["id"]) == ("fs-a goes on", "A1", "fs-a:1:1")
    writer.close()
    await asyncio.sleep(0.05)
    assert not source.events.waiters


async def test_ms24_events_go_on_after_an_id(served: Path, source: FakeSource) -> None:
    for text in ("one", "two", "three"):
        source.history.add("A1", text)
    reader, writer = await asyncio.open_unix_connection(str(served))
    writer.write(line("events", after="fs-a:1:1") + b"\n")
    assert json.loads(await reader.readline())["ok"]
    texts = [json.loads(await reader.readline())["result"]["text"] for _ in range(2)]
    assert texts == ["two", "three"]
    writer.close()
    (wrong,) = await ask(served, line("events", after="yesterday"))
    assert wrong["error"]["code"] == "usage"
    assert "fs-a:1790000000000:17" in wrong["error"]["message"]


async def test_the_socket_is_private_and_left_overs_are_replaced(
    tmp_path: Path, source: FakeSource
) -> None:
    path = tmp_path / "deep" / "s.sock"
    first = Api(path, Commands(source))
    await first.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    second = Api(path, Commands(source))
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
        await Api(tmp_path / ("x" * 120), Commands(source)).start()


async def test_registrations_are_the_contract(served: Path) -> None:
    (answer,) = await ask(served, line("registrations", limit=1))
    found = answer["result"]
    assert (found["total"], found["at_risk"], len(found["registrations"])) == (2, 1, 1)
    (first,) = found["registrations"]
    assert list(first) == ["user", "contact", "node", "service", "profile", "here", "expires",
                           "expires_s", "replicated", "user_agent", "network"]  # fmt: skip
    assert (first["user"], first["node"], first["replicated"]) == ("1000@lab.test", "fs-a", False)
    assert first["expires"] == "2038-01-19T03:14:08Z"
    (answer,) = await ask(served, line("registrations", limit=50_001))
    assert answer["error"]["code"] == "usage"


async def test_an_order_is_carried_out_to_its_end_whoever_goes_away(
    served: Path, source: FakeSource
) -> None:
    """Ctrl-C of haclusterctl closes its connection: nothing is left half done by that."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def switchover(service: str, to: str | None) -> str:
        began.set()
        await asyncio.sleep(0.1)
        ended.set()
        return "moved"

    source.operators.switchover = switchover  # type: ignore[method-assign]
    _, writer = await asyncio.open_unix_connection(str(served))
    writer.write(line("switchover", service="east") + b"\n")
    await began.wait()
    writer.close()
    await asyncio.wait_for(ended.wait(), 5)
    (answer,) = await ask(served, line("status"))
    assert answer["ok"]
