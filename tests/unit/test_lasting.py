"""Work that nobody waits for: a failure is said, and ends no more than it has to."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from haclusterd import lasting
from haclusterd.agent.comparison import Comparison
from haclusterd.agent.daemon import Agent
from haclusterd.agent.feed import Feed
from haclusterd.agent.history import History
from haclusterd.agent.peers import Peers
from haclusterd.agent.sensors import Sensors
from haclusterd.agent.switch import SwitchError
from haclusterd.lasting import unending
from haclusterd.sensors.reading import Reading
from tests.fixtures.agent_parts import spec
from tests.unit.sync_cluster import until

pytestmark = pytest.mark.timeout(20)


class Mesh:
    """Answers by a bug of ours."""

    asked = 0

    def register(self, method: str, answer: object) -> None: ...

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        self.asked += 1
        raise KeyError(node)


async def test_what_fails_by_a_bug_is_in_the_log_at_once_and_begins_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasting, "AGAIN_S", 0.01)
    comparison = Comparison("fs-a", spec().services, History(), lambda: None)
    own: Any = None
    mesh = Mesh()
    peers = Peers(["fs-b"], mesh, own, own, comparison)
    await peers.start()
    await until(lambda: "peers failed" in caplog.text)
    assert "KeyError: 'fs-b'" in caplog.text
    await until(lambda: mesh.asked > 1)
    await peers.stop()


async def test_it_begins_again_later_and_later_and_may_end_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lasting, "AGAIN_S", 0.02)
    monkeypatch.setattr(lasting, "AGAIN_MAX_S", 0.05)
    loop = asyncio.get_running_loop()
    begun: list[float] = []

    async def work() -> None:
        begun.append(loop.time())
        if len(begun) == 4:
            await asyncio.sleep(0.1)  # it went well for long
        if len(begun) < 6:
            raise RuntimeError("a bug")

    async with asyncio.timeout(5):
        await unending(work, "a duty")
    pauses = [after - before for before, after in pairwise(begun)]
    least_s = (0.02, 0.04, 0.05, 0.12, 0.04)  # of the fourth, 0.1 s are its work
    assert all(p > least - 0.005 for p, least in zip(pauses, least_s, strict=True)), pauses


async def test_a_cancelled_one_ends() -> None:
    task = unending(lambda: asyncio.sleep(60), "a duty")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=1)
    assert task.cancelled()


async def test_a_reading_that_is_cut_short_ends_no_sensor() -> None:
    """A result of a task that was cancelled raises what would have cancelled the sensor's own."""

    async def probe() -> Reading:
        raise asyncio.CancelledError

    watched = SimpleNamespace(name="x", timeout_ms=100)
    one: Any = SimpleNamespace(out=None, probe=probe, spec=watched)
    reading = await Sensors._read(Sensors.__new__(Sensors), one)
    assert reading == Reading("unknown", "it was cut short")


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


async def test_a_password_that_cannot_be_read_leaves_no_half_of_a_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The start is tried again: what it had begun would follow FreeSWITCH twice from then on."""
    begun: list[object] = []

    def unreadable(section: object) -> str:
        raise SwitchError("esl.password: No such file or directory")

    monkeypatch.setattr("haclusterd.agent.local_switch.read_password", unreadable)
    monkeypatch.setattr("haclusterd.agent.daemon.local_switch", lambda *_: begun.append(_))
    section = SimpleNamespace(esl_port=8021)
    agent: Any = SimpleNamespace(config=SimpleNamespace(freeswitch=section), life=object())
    with pytest.raises(SwitchError):
        await Agent._start_freeswitch(agent)
    assert begun == []


async def test_a_part_that_fails_at_its_start_by_a_bug_is_an_alarm() -> None:
    told: list[str] = []
    agent: Any = SimpleNamespace(problems={}, changed=lambda: told.append("changed"))

    async def start() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await Agent._until_started(agent, "replication", start)
    assert "replication failed inside haclusterd" in agent.problems["replication"]
    assert told
