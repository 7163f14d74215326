"""Several nodes, one voice: who tells what when all see the same, and when some do not."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from haclusterd.agent import notices, schema, status
from haclusterd.agent.clock import wall_text
from haclusterd.agent.hooks import Deliveries
from haclusterd.agent.notices import Notices
from haclusterd.agent.telling import STEP_S
from haclusterd.config import load_cluster
from haclusterd.core.view import View
from haclusterd.sync.rpc import RequestFailed
from tests.fixtures.agent_parts import view
from tests.unit.config_example import GOOD

HOOKS = """
[[hook]]
name = "one"
exec = ["true"]
[[hook]]
name = "each"
exec = ["true"]
every_node = true
"""
BEFORE = {"east": ("fs-a", 7), "west": ("fs-b", 3)}
AFTER = {"east": ("fs-c", 8), "west": ("fs-b", 3)}


class Net:
    """The mesh between all nodes; `cut` ones hear nothing."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {}
        self.cut: set[str] = set()


class Wire:
    def __init__(self, net: Net, me: str) -> None:
        self._net, self._me = net, me

    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        assert method == notices.METHOD
        self._net.answers[self._me] = answer

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        if {node, self._me} & self._net.cut:
            raise RequestFailed("cut")
        return await self._net.answers[node](self._me, payload)


class Source:
    def __init__(self, me: str) -> None:
        self.me = me
        self.now = view(BEFORE, me=me)
        self.reports: list[schema.Report] = []

    def status(self) -> schema.Status:
        return status.status(self.now, schema.Sync("in-sync", 0), {})

    def own_reports(self) -> Sequence[schema.Report]:
        return self.reports


class Trio:
    """Three nodes' notices, and what their hooks got: (node, hook, event, text)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = folder / "c.toml"
        path.write_text(GOOD.replace('esl_password_file = "esl.password"\n', "") + HOOKS)
        config = load_cluster(path)
        self.net = Net()
        self.got: list[tuple[str, str, str]] = []
        self.messages: list[dict[str, Any]] = []
        self.nodes: dict[str, Notices] = {}
        self.sources = {f"fs-{c}": Source(f"fs-{c}") for c in "abc"}
        for number, (name, source) in enumerate(self.sources.items()):
            made = Notices(config.bound_to(number), source, lambda: None)
            made.join(Wire(self.net, name))
            self._record(name, made._deliveries)
            self.nodes[name] = made
        self.clock = 100.0

    def _record(self, node: str, deliveries: Deliveries) -> None:
        for line in deliveries._lines:
            hook = line.hook.name

            def put(message: dict[str, Any], node: str = node, hook: str = hook) -> None:
                self.got.append((node, hook, message["event"]))
                self.messages.append(message)

            line.put = put  # type: ignore[method-assign]

    async def look(self, seconds: float = 0.0, only: Sequence[str] = ()) -> None:
        self.clock += seconds
        for name, node in self.nodes.items():
            if not only or name in only:
                node.look(self.sources[name].status(), self.clock)
        for _ in range(5):
            await asyncio.sleep(0)

    def see(self, word: View) -> None:
        for name, source in self.sources.items():
            source.now = msgspec.structs.replace(word, node=name)

    def of(self, hook: str, event: str = "service_owned") -> list[str]:
        return [node for node, h, e in self.got if (h, e) == (hook, event)]


@pytest.fixture
async def trio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trio:
    made = Trio(tmp_path, monkeypatch)
    # The times of the others' word are the loop's own; here one clock is all there is.
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda: made.clock)
    return made


async def test_exactly_one_node_tells_what_all_have_seen(trio: Trio) -> None:
    await trio.look()
    trio.see(view(AFTER))
    for _ in range(60):
        await trio.look(0.2)
    assert trio.of("one") == ["fs-a"]
    assert sorted(trio.of("each")) == ["fs-a", "fs-b", "fs-c"]
    assert len({m["id"] for m in trio.messages}) >= 4
    assert len({m["key"] for m in trio.messages if m["event"] == "service_owned"}) == 1


async def test_the_second_node_tells_when_the_first_one_does_not(trio: Trio) -> None:
    """An agent that dies with the news has told nobody: the next in line does, a little later."""
    await trio.look()
    trio.see(view(AFTER))
    alive = ["fs-b", "fs-c"]
    for _ in range(int(STEP_S / 0.2) - 1):
        await trio.look(0.2, alive)
    assert trio.of("one") == []
    for _ in range(30):
        await trio.look(0.2, alive)
    assert trio.of("one") == ["fs-b"]
    assert next(m for m in trio.messages if m.get("late"))["teller"] == "fs-b"


async def test_nodes_that_cannot_hear_each_other_tell_twice_rather_than_never(trio: Trio) -> None:
    await trio.look()
    trio.net.cut = {"fs-c"}
    trio.see(view(AFTER))
    for _ in range(60):
        await trio.look(0.2)
    assert sorted(trio.of("one")) == ["fs-a", "fs-c"]


async def test_a_minority_keeps_quiet_about_the_cluster_but_says_what_it_lacks(trio: Trio) -> None:
    await trio.look()
    trio.sources["fs-c"].now = view({}, me="fs-c", quorate=False, reachable=1)
    for _ in range(60):
        await trio.look(0.2)
    assert {(node, event) for node, hook, event in trio.got if hook == "one"} == {
        ("fs-c", "quorum_lost")
    }


async def test_a_report_is_told_by_the_new_owner_once_and_not_after_a_restart(trio: Trio) -> None:
    calls = schema.Calls(3, 3, 0, 0, [schema.Verdict("u1", "recovered", "", 9)])
    old = schema.Report(number=1, at="2020-01-01T00:00:00.000Z", service="east", from_="fs-a",
                        to="fs-c", epoch=5, cause="x", timeline=[], outage_ms=1.0,
                        calls=calls)  # fmt: skip
    source = trio.sources["fs-c"]
    source.reports = [old]
    await trio.look()
    new = msgspec.structs.replace(old, number=3, at=wall_text(), done=False)
    later = msgspec.structs.replace(old, number=2, at=wall_text(), done=False)
    cold = msgspec.structs.replace(old, number=4, at=wall_text(), from_=None)
    source.reports = [old, later, new, cold]
    await trio.look(0.2)
    source.reports = [old, later, msgspec.structs.replace(new, done=True), cold]
    await trio.look(0.2)
    source.reports = [old, msgspec.structs.replace(later, done=True), *source.reports[2:]]
    await trio.look(0.2)
    await trio.look(0.2)
    assert trio.of("one", "takeover") == ["fs-c", "fs-c"]
    assert [m["report"]["number"] for m in trio.messages if m["event"] == "takeover"][::2] == [3, 2]
    assert all(m["report"]["calls"]["verdicts"] == [] for m in trio.messages if "report" in m)


async def test_without_hooks_and_names_nothing_runs(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(GOOD)
    config = load_cluster(tmp_path / "c.toml").bound_to(0)
    idle = Notices(config, Source("fs-a"), lambda: None)
    idle.start()
    assert not idle._tasks
    assert (idle.alarms, idle.counts, idle.dns_counts) == ([], {}, {})
    await idle.stop()


async def test_a_hook_that_fails_is_an_alarm_until_it_is_told_something(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(GOOD + HOOKS)
    config = load_cluster(tmp_path / "c.toml").bound_to(0)
    path = tmp_path / "may"
    hook = dataclasses.replace(config.hooks[0], exec=("test", "-e", str(path)), retries=0)
    changes: list[int] = []
    node = Notices(dataclasses.replace(config, hooks=(hook,)), Source("fs-a"),
                   lambda: changes.append(1))  # fmt: skip
    node.start()
    for exists in (False, True):
        if exists:
            path.touch()
        node._deliveries.give({"event": "takeover"}, True)
        for _ in range(500):
            if len(changes) > exists:
                break
            await asyncio.sleep(0.01)
        assert [a.name for a in node.alarms] == ([] if exists else ["hook"])
    await node.stop()
