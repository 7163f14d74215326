"""Work that nobody waits for: a failure is said, and ends no more than it has to."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from haclusterd.agent.comparison import Comparison
from haclusterd.agent.daemon import Agent
from haclusterd.agent.feed import Feed
from haclusterd.agent.history import History
from haclusterd.agent.peers import Peers
from tests.fixtures.agent_parts import spec
from tests.unit.sync_cluster import until

pytestmark = pytest.mark.timeout(20)


class Mesh:
    """Answers by a bug of ours."""

    def register(self, method: str, answer: object) -> None: ...

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        raise KeyError(node)


async def test_what_ends_by_a_bug_is_in_the_log_at_once(caplog: pytest.LogCaptureFixture) -> None:
    comparison = Comparison("fs-a", spec().services, History(), lambda: None)
    own: Any = None
    peers = Peers(["fs-b"], Mesh(), own, own, comparison)
    await peers.start()
    await until(lambda: "peers failed" in caplog.text)
    assert "KeyError: 'fs-b'" in caplog.text
    await peers.stop()


async def test_open_pages_are_fed_again_after_a_word_that_could_not_be_made() -> None:
    words = iter([b"", b"one"])

    def make() -> bytes:
        word = next(words, b"two")
        if not word:
            raise RuntimeError("a bug")
        return word

    feed = Feed(lambda: object(), make)
    feed.enter()
    async with asyncio.timeout(5):
        assert await anext(feed.words()) == b"one"
    feed.leave()


async def test_a_part_that_cannot_stop_keeps_no_other_from_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was promised is still being written, and the next agent waits for the copies."""
    stopped: list[str] = []

    def stops(name: str) -> Any:
        async def stop() -> None:
            stopped.append(name)
            if name == "http":
                raise RuntimeError("a bug")

        return SimpleNamespace(stop=stop, close=lambda: stopped.append(name))

    agent: Any = SimpleNamespace(
        _tasks=[], _api=None, _stops=[stops("peers").stop, stops("http").stop],
        services=stops("services"), _promised=stops("promised"), voters=stops("voters"),
        link=stops("link"),
    )  # fmt: skip
    await Agent._stop_all(agent)
    assert stopped == ["http", "peers", "services", "promised", "voters", "link"]
    assert "a part did not stop in order" in caplog.text


async def test_a_part_that_fails_at_its_start_by_a_bug_is_an_alarm() -> None:
    told: list[str] = []
    agent: Any = SimpleNamespace(problems={}, changed=lambda: told.append("changed"))

    async def start() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await Agent._until_started(agent, "replication", start)
    assert "replication failed inside haclusterd" in agent.problems["replication"]
    assert told
