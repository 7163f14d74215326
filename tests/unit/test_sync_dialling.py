"""Heart's news of links moves the connection with a peer at once, and rarely."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.sync import dialling
from haclusterd.sync.dialling import LOOK_S, MOVE_PAUSE_S, STEADY_S, LinksHeard
from haclusterd.sync.replicator import Replicator
from haclusterd.sync.transport import MeshConfig
from tests.unit.sync_cluster import TIMING, Cluster, call, held, until

PATIENT = msgspec.structs.replace(TIMING, dead_ms=5000)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def heard(count: int = 3) -> tuple[LinksHeard, Clock]:
    clock = Clock()
    return LinksHeard(count, clock), clock


async def test_m1_without_a_word_of_heart_all_links_are_as_good() -> None:
    links, _ = await heard()
    assert links.order(1) == [1, 2, 0]
    assert [links.better(link) for link in range(3)] == [None] * 3


async def test_m1_what_carries_beats_is_dialled_first() -> None:
    links, _ = await heard()
    links.hear([False, True, False])
    assert links.order(0) == [1, 0, 2]
    links.hear([False, False, False])
    assert links.order(2) == [2, 0, 1]


async def test_m1_a_silent_link_is_left_for_one_that_was_never_silent() -> None:
    links, clock = await heard()
    links.hear([True, False, True])
    clock.now_s += 60
    links.hear([True, True, True])
    clock.now_s += 0.5
    links.hear([False, True, True])
    assert links.better(0) == 2, "the other one was silent lately"
    assert links.better(1) is None, "nothing is wrong with it"
    assert links.better(2) is None


async def test_m1_a_link_that_comes_back_a_moment_before_the_others_is_no_better() -> None:
    links, clock = await heard()
    links.hear([False] * 3)
    assert not links.is_silent(0), "all are: there is nowhere to go"
    clock.now_s += 3
    links.hear([False, True, False])
    assert links.is_silent(0)
    assert links.better(0) is None
    clock.now_s += STEADY_S
    links.hear([False, True, False])
    assert links.better(0) == 1


async def test_m1_a_link_that_could_not_be_dialled_comes_last() -> None:
    links, clock = await heard()
    clock.now_s += 1
    links.hear([False, True, True])
    links.failed(1)
    assert links.better(0) == 2
    clock.now_s += 0.1
    links.failed(2)
    assert links.better(0) is None
    clock.now_s += STEADY_S
    assert links.better(0) == 1


async def test_m1_words_of_more_links_than_there_are_and_of_fewer_are_harmless() -> None:
    links, _ = await heard(2)
    links.hear([True, True, False])
    links.hear([False])
    assert links.order(0) == [1, 0]


def two_nodes(cluster: Cluster, node: str) -> MeshConfig:
    config = cluster.config(node)
    links = {n: addresses for n, addresses in config.links.items() if n != "c"}
    return msgspec.structs.replace(config, links=links, timing=PATIENT)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Replicator, Replicator]]:
    """By its own time-outs this would take five seconds."""
    cluster = Cluster(tmp_path)
    b, a = [await cluster.start(n, config=two_nodes(cluster, n)) for n in ("b", "a")]
    yield a, b
    for node in list(cluster.running):
        await cluster.kill(node)


def link_of(one: Replicator, peer: str) -> int:
    session = one.mesh.sessions.get(peer)
    return -1 if session is None else list(one.config.links[peer]).index(session.address)


async def test_m1_calls_go_on_over_the_other_link_without_a_gap_or_a_snapshot(
    pair: tuple[Replicator, Replicator],
) -> None:
    a, b = pair
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(50)])
    assert await a.wait_acked("east", 3000)
    first = link_of(a, "b")
    old = a.mesh.sessions["b"]
    assert old._transport is not None
    old._transport.pause_reading()  # dead in both directions, as far as this side can tell
    old.send = lambda message: None  # type: ignore[method-assign]
    old.wake = lambda: None  # type: ignore[method-assign]
    await asyncio.sleep(0.5)
    began = time.perf_counter()
    a.append([call(n, 2) for n in range(25)])
    await asyncio.sleep(0.1)
    a.mesh.hear("b", [link != first for link in range(2)])
    lags_ms: list[int] = []
    acked = asyncio.create_task(a.wait_acked("east", 3000))
    while not acked.done():
        lags_ms.append(a.status().peers[0].lag_ms)
        await asyncio.sleep(0)
    assert await acked
    assert max(lags_ms) <= (time.perf_counter() - began) * 1000 + 1, "not since ever"
    assert time.perf_counter() - began < 2.5, "not by time-outs"
    assert link_of(a, "b") == 1 - first
    assert held(b) == {f"uuid-{n}": 2 if n < 25 else 1 for n in range(50)}
    assert a.status().peers[0].outgoing[0].snapshots == 0
    assert a.mesh.counters["moved"] == 1
    assert a.mesh.counters["dead"] == b.mesh.counters["dead"] == 0
    a.mesh.hear("b", [True, True])
    await asyncio.sleep(0.2)
    assert link_of(a, "b") == 1 - first, "nothing moves back by itself"


async def test_m1_the_side_that_is_dialled_leaves_it_to_the_other(
    pair: tuple[Replicator, Replicator],
) -> None:
    _, b = pair
    await until(lambda: "a" in b.mesh.sessions)
    b.mesh.hear("a", [False, True])
    b.mesh.hear("a", [True, False])
    b.mesh.hear("nobody", [False])
    await asyncio.sleep(0.1)
    assert b.mesh.counters["moved"] == 0


async def test_m1_links_that_flap_cost_few_connections(
    pair: tuple[Replicator, Replicator], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    await until(lambda: link_of(a, "b") >= 0)
    for turn in range(20):  # none of them is any good for long: it stays where it is
        a.mesh.hear("b", [turn % 2 == 0, turn % 2 == 1])
        await asyncio.sleep(0.01)
    assert a.mesh.counters["moved"] == a.mesh.counters["dial"] == 0
    monkeypatch.setattr(dialling, "STEADY_S", 0.0)
    began = time.monotonic()
    for turn in range(40):
        a.mesh.hear("b", [turn % 2 == 0, turn % 2 == 1])
        await asyncio.sleep(0.03)
    took_s = time.monotonic() - began
    assert 1 <= a.mesh.counters["moved"] <= took_s / MOVE_PAUSE_S + 1
    await until(lambda: "b" in a.mesh.sessions and "a" in b.mesh.sessions)


async def test_m1_where_the_other_link_cannot_be_dialled_the_connection_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "MOVE_PAUSE_S", 0.05)
    cluster = Cluster(tmp_path)
    config = cluster.config("b")
    links = {n: list(addresses) for n, addresses in config.links.items()}

    second_only = msgspec.structs.replace(config, links={**links, "b": links["b"][1:]})
    b = await cluster.start("b", config=second_only)
    a = await cluster.start("a")
    await until(lambda: link_of(a, "b") == 1)
    session, failed = a.mesh.sessions["b"], a.mesh.counters["dial"]
    a.mesh.hear("b", [True, False])
    await until(lambda: a.mesh.counters["dial"] > failed)
    await asyncio.sleep(3 * LOOK_S)
    assert a.mesh.sessions["b"] is session
    assert "a" in b.mesh.sessions
    assert a.mesh.counters["moved"] == 0
    for node in list(cluster.running):
        await cluster.kill(node)


async def test_m1_news_of_a_link_ends_the_wait_for_the_next_attempt(tmp_path: Path) -> None:

    cluster = Cluster(tmp_path)
    slow = msgspec.structs.replace(TIMING, backoff_ms_min=300, backoff_ms_max=60_000)
    a = await cluster.start("a", config=msgspec.structs.replace(cluster.config("a"), timing=slow))
    await until(lambda: a.mesh.counters["dial"] >= 8)  # four rounds: the next one in seconds
    await cluster.start("b")
    a.mesh.hear("b", [False, False])
    await asyncio.sleep(0.02)
    a.mesh.hear("b", [True, False])
    await until(lambda: "b" in a.mesh.sessions, within_s=1)
    for node in list(cluster.running):
        await cluster.kill(node)
