"""Replication between agents over TLS on loopback: restarts, cuts, takeovers, slow readers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.core.replication import Limits
from haclusterd.sync.rpc import RequestFailed
from haclusterd.sync.transport import MeshConfig
from tests.unit.sync_cluster import NODES, TIMING, Cluster, call, collected, held, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in list(made.running):
        await made.kill(node)


async def test_calls_reach_every_node_and_are_acknowledged(cluster: Cluster) -> None:
    a, b, c = [await cluster.start(n) for n in NODES]
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(300)])
    assert await a.wait_acked("east", 3000)
    assert a.replicated("uuid-7", 1)
    assert not a.replicated("uuid-7", 2)
    assert not a.replicated("unknown", 1)
    await until(lambda: len(held(b)) == len(held(c)) == 300)
    assert a.at_risk() == []
    assert b.store.records("east")[5] == call(5)
    assert b.in_sync_services() == ["east"] == c.in_sync_services()
    a.append([call(7, 2), Tombstone("east", "uuid-8", 2)])
    assert await a.wait_acked("east", 3000)
    await until(lambda: held(b).get("uuid-7") == 2 and "uuid-8" not in held(b))
    status = a.status()
    assert [p.state for p in status.peers] == ["in-sync", "in-sync"]
    assert status.at_risk == 0
    assert b.status().store[0].digest == a.change_log.logs["east"].items.digest()


async def test_nothing_is_replicated_without_an_eligible_standby(cluster: Cluster) -> None:
    a, _ = await cluster.start("a"), await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(1)])
    assert await a.wait_acked("east", 3000)
    a.observe({"east": ("a", 1)}, ["a", "b"], eligible=["c"])
    assert a.at_risk() == ["uuid-1"]
    assert not a.replicated("uuid-1", 1)
    assert not await a.wait_acked("east", 50)


async def test_restarted_standby_is_filled_again(cluster: Cluster) -> None:
    """MS17: kill, change, return, compare."""
    a, b = await cluster.start("a"), await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(50)])
    assert await a.wait_acked("east", 3000)
    await cluster.kill("b")
    await until(lambda: a.status().peers[0].state == "suspended")
    assert len(a.at_risk()) == 50
    a.append([call(n, 2) for n in range(25)] + [Tombstone("east", "uuid-49", 2)])
    b = await cluster.start("b")
    assert await a.wait_acked("east", 3000)
    assert held(b) == {f"uuid-{n}": 2 if n < 25 else 1 for n in range(49)}


async def test_short_disconnection_resumes_without_a_snapshot(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(1)])
    assert await a.wait_acked("east", 3000)
    b.mesh.sessions["a"].abort("test", "cut")
    a.append([call(2)])
    await until(lambda: held(b) == {"uuid-1": 1, "uuid-2": 1})
    await until(lambda: "b" in a.mesh.sessions)
    assert a.status().peers[0].outgoing[0].snapshots == 0
    assert b.in_sync_services() == ["east"]  # too short to matter


async def test_overflow_while_away_ends_in_a_snapshot(cluster: Cluster) -> None:
    """MS19."""
    limits = Limits(buffer_entries=20)
    a = await cluster.start("a", limits=limits)
    b = await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(10)])
    assert await a.wait_acked("east", 3000)
    b.mesh.sessions["a"].abort("test", "cut")
    await until(lambda: "b" not in a.mesh.sessions)
    a.append([call(n) for n in range(10, 400)])
    a.append([Tombstone("east", "uuid-3", 2)])
    assert await a.wait_acked("east", 3000)
    assert held(b) == {f"uuid-{n}": 1 for n in range(400) if n != 3}
    assert a.status().peers[0].outgoing[0].snapshots == 1


async def test_origin_restart_replaces_its_stream_when_settled(cluster: Cluster) -> None:
    """The agent is killed and reads its calls anew; until then the old copy stands (E1)."""
    a, b = await cluster.start("a"), await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(20)])
    assert await a.wait_acked("east", 3000)
    await cluster.kill("a")
    a = await cluster.start("a")
    a.own("east", 1)
    a.append([call(n) for n in range(5)])
    assert await a.wait_acked("east", 3000)
    assert len(held(b)) == 20
    assert b.in_sync_services() == ["east"]
    a.append([call(n) for n in range(5, 19)])
    a.settle("east")
    assert await a.wait_acked("east", 3000)
    await until(lambda: len(held(b)) == 19)
    assert len(b.store.services["east"].copies) == 1


async def test_origin_whose_clock_went_back_renews_its_stream(cluster: Cluster) -> None:
    a, b = await cluster.start("a", 1000), await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(1), call(2)])
    assert await a.wait_acked("east", 3000)
    await cluster.kill("a")
    a = await cluster.start("a", 500)
    a.own("east", 1, settled=True)
    a.append([call(2, 9)])
    assert await a.wait_acked("east", 3000)
    await until(lambda: held(b) == {"uuid-2": 9})
    assert a.change_log.incarnation == 1001


async def test_takeover_keeps_the_lower_epoch_until_settled(cluster: Cluster) -> None:
    """31, 35: b takes over and dies in the middle; c holds everything, then takes over itself."""
    a, b, c = [await cluster.start(n) for n in NODES]
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(10)])
    assert await a.wait_acked("east", 3000)
    await until(lambda: len(held(b)) == len(held(c)) == 10)
    await cluster.kill("a")
    b.own("east", 2)
    assert len(await collected(b, 200)) == 10
    moved = CallRecord("east", "uuid-1", 1, "east", "core-b", "<new/>")
    b.append([moved, Tombstone("east", "uuid-2", 1, "lost")])
    assert await b.wait_acked("east", 3000)
    assert {r.uuid for r in await b.unrecovered("east")} == {
        f"uuid-{n}" for n in range(10) if n not in (1, 2)
    }
    await cluster.kill("b")
    c.own("east", 3)
    inherited = {r.uuid: r for r in await collected(c)}
    assert set(inherited) == {f"uuid-{n}" for n in range(10) if n != 2}
    assert inherited["uuid-1"] == moved
    c.append([CallRecord("east", u, 1, "east", "core-c", "<c/>") for u in inherited])
    c.settle("east")
    assert await c.unrecovered("east") == []
    assert c.store.services["east"].copies == {}
    a = await cluster.start("a")
    await until(lambda: len(held(a)) == 9)
    await until(lambda: a.in_sync_services() == ["east"])


async def test_reclaim_goes_on_without_a_snapshot(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(1)])
    a.advance("east", 3)
    a.append([call(2)])
    assert await a.wait_acked("east", 3000)
    await until(lambda: b.status().incoming[0].epoch == 3)
    b.observe({"east": ("a", 3)}, ["a", "b"])
    assert b.in_sync_services() == ["east"]
    assert a.status().peers[0].outgoing[0].snapshots == 0


async def test_replaced_owner_disowns_and_follows(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(1), call(2)])
    assert await a.wait_acked("east", 3000)
    b.own("east", 2)
    a.append([Tombstone("east", "uuid-1", 9)])  # after b's claim: must not reach what b inherited
    await asyncio.sleep(0.1)
    assert {r.uuid for r in await b.unrecovered("east")} == {"uuid-1", "uuid-2"}
    a.observe({"east": ("b", 2)}, ["a", "b"])
    assert "east" not in a.change_log.logs
    b.append([CallRecord("east", "uuid-1", 1, "east", "core-b", "<b/>")])
    b.settle("east")
    await until(lambda: held(a) == {"uuid-1": 1} and a.in_sync_services() == ["east"])
    a.append([call(5)])
    assert a.change_log.counters["unowned"] == 1


async def test_collect_fetches_what_only_another_standby_has(cluster: Cluster) -> None:
    """33, 34: b lacks a newer version and a tombstone that c has."""
    a, b, c = [await cluster.start(n) for n in NODES]
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(40)])
    assert await a.wait_acked("east", 3000)
    await until(lambda: len(held(b)) == len(held(c)) == 40)
    a.mesh.sessions["b"].sources.clear()  # b hears no more changes
    a.append([call(3, 2), Tombstone("east", "uuid-4", 2), call(99)])
    await until(lambda: "uuid-99" in held(c))
    assert "uuid-99" not in held(b)
    await cluster.kill("a")
    b.own("east", 2)
    began = time.perf_counter()
    records = {r.uuid: r.version for r in await collected(b, 500)}
    assert time.perf_counter() - began < 0.4
    assert records == held(c)


async def test_collect_never_waits_longer_than_told(cluster: Cluster) -> None:
    b, c = await cluster.start("b"), await cluster.start("c")
    await until(lambda: "c" in b.mesh.sessions)
    c.mesh.sessions["b"].send = lambda message: None  # type: ignore[method-assign]
    began = time.perf_counter()
    assert await collected(b, 20) == []
    assert 0.015 < time.perf_counter() - began < 0.15


async def test_collect_does_not_wait_for_the_dead(cluster: Cluster) -> None:
    b, c = await cluster.start("b"), await cluster.start("c")
    await until(lambda: "c" in b.mesh.sessions)
    c.mesh.sessions["b"].send = lambda message: None  # type: ignore[method-assign]
    began = time.perf_counter()
    asleep = asyncio.create_task(collected(b, 2000))
    await asyncio.sleep(0.02)
    b.observe({}, ["b"])  # heart's word of the death comes while it is being asked
    assert await asleep == []
    assert await collected(b, 2000) == []  # and before
    b.observe({}, ["b", "c"])
    assert await collected(b, 2000, without=("c",)) == []
    assert time.perf_counter() - began < 1.0


async def test_slow_reader_costs_no_memory_and_catches_up(cluster: Cluster) -> None:
    limits = Limits(buffer_entries=100, buffer_bytes=64 * 1024)
    a = await cluster.start("a", limits=limits)
    b = await cluster.start("b")
    a.own("east", 1, settled=True)
    await until(lambda: "a" in b.mesh.sessions)
    session = b.mesh.sessions["a"]
    assert session._transport is not None
    session._transport.pause_reading()
    noise = os.urandom(6000).hex()
    for version in range(1, 60):
        a.append(
            [CallRecord("east", f"uuid-{n}", version, "east", "core", noise) for n in range(40)]
        )
        await asyncio.sleep(0.001)
    log = a.change_log.logs["east"]
    assert len(log._kept) <= 100
    session._transport.resume_reading()
    assert await a.wait_acked("east", 5000)
    assert held(b) == {f"uuid-{n}": 59 for n in range(40)}


async def test_copy_of_a_dead_owner_stays_in_sync_of_a_living_one_not(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    changes: list[str] = []
    b.on_change(lambda changed: changes.extend(f.state for f in changed.values()))
    a.own("east", 1, settled=True)
    a.append([call(1)])
    assert await a.wait_acked("east", 3000)
    await until(lambda: b.in_sync_services() == ["east"])
    b.observe({"east": ("a", 1)}, ["b"])  # heart no longer hears a
    await cluster.kill("a")
    await asyncio.sleep(TIMING.lag_ms_max / 1000 + 0.3)
    assert b.in_sync_services() == ["east"]
    b.observe({"east": ("a", 1)}, ["a", "b"])  # it does: only replication is broken
    await until(lambda: b.freshness("east").state == "suspended")
    await until(lambda: changes[-1] == "suspended")
    assert "in-sync" in changes


async def test_digest_that_differs_is_mended_by_a_snapshot(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(5)])
    assert await a.wait_acked("east", 3000)
    newest = b.store.services["east"].newest()
    assert newest is not None
    newest.items._forget(newest.items.items.pop("uuid-3"))
    await until(lambda: len(held(b)) == 5)
    assert b.store.counters["mismatch"] == 1


async def test_second_link_is_used_when_the_first_is_dead(cluster: Cluster) -> None:
    config = cluster.config("b")
    links = {n: list(addresses) for n, addresses in config.links.items()}
    second_only = {**links, "b": links["b"][1:]}
    b = await cluster.start(
        "b",
        config=MeshConfig(config.cluster, "b", second_only, config.port, config.identity, TIMING),
    )
    a = await cluster.start("a")
    await until(lambda: "b" in a.mesh.sessions)
    assert a.mesh.sessions["b"].address == links["b"][1]
    assert a.mesh.counters["dial"] >= 1
    assert "a" in b.mesh.sessions


async def test_an_idle_node_says_one_beat_per_peer_and_wakes_once_for_all(cluster: Cluster) -> None:
    a, *_ = [await cluster.start(n) for n in NODES]
    sessions = a.mesh.sessions
    await until(lambda: len(sessions) == 2 and all(s.rtt_ms >= 0 for s in sessions.values()))
    assert all(s.rtt_ms < TIMING.beat_ms for s in sessions.values()), "the time it was held counts"
    sent: list[float] = []
    for session in sessions.values():
        session.wake = lambda: sent.append(time.monotonic())  # type: ignore[method-assign]
    await asyncio.sleep(TIMING.beat_ms * 3 / 1000)
    assert 4 <= len(sent) <= 8
    assert all(second - first < 0.005 for first, second in zip(sent[::2], sent[1::2], strict=False))


async def test_requests(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    gate = asyncio.Event()

    async def echo(peer: str, payload: bytes) -> bytes:
        return peer.encode() + b":" + payload

    async def refuse(peer: str, payload: bytes) -> bytes:
        raise ValueError("service west is not mine")

    async def bug(peer: str, payload: bytes) -> bytes:
        raise KeyError("secret")

    async def wait(peer: str, payload: bytes) -> bytes:
        await gate.wait()
        return b""

    async def huge(peer: str, payload: bytes) -> bytes:
        return b"x" * 1_000_000

    for method, served in [
        ("echo", echo),
        ("refuse", refuse),
        ("bug", bug),
        ("wait", wait),
        ("huge", huge),
    ]:
        b.register(method, served)
    await until(lambda: "b" in a.mesh.sessions)
    assert await a.request("b", "echo", b"hi", 1000) == b"a:hi"
    for method, reason in [
        ("refuse", "west is not mine"),
        ("bug", "see the log"),
        ("unknown", "unknown method"),
        ("huge", "too large"),
    ]:
        with pytest.raises(RequestFailed, match=reason):
            await a.request("b", method, b"", 1000)
    with pytest.raises(RequestFailed, match="no answer"):
        await a.request("b", "wait", b"", 30)
    with pytest.raises(RequestFailed, match="not connected"):
        await a.request("c", "echo", b"", 1000)
    with pytest.raises(RequestFailed, match="allowed"):
        await a.request("b", "echo", b"x" * 500_000, 1000)
    waiting = [asyncio.ensure_future(a.request("b", "wait", b"", 2000)) for _ in range(30)]
    await asyncio.sleep(0.1)
    gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(o, RequestFailed) for o in outcomes) == 15  # one was open before
    lost = asyncio.ensure_future(a.request("b", "echo", b"", 2000))
    await asyncio.sleep(0)
    a.mesh.sessions["b"].abort("test", "cut")
    with pytest.raises(RequestFailed):
        await lost


async def test_snapshot_of_ten_thousand_calls(cluster: Cluster) -> None:
    """MS18, 47: 10,000 calls of 8 kB, >= 5,000 a second, and the event loop stays responsive."""
    a = await cluster.start("a")
    a.own("east", 1, settled=True)
    a.append([call(n, size=8000) for n in range(10_000)])
    longest, last = 0.0, time.perf_counter()
    while a.change_log.waiting("east"):
        await asyncio.sleep(0)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    began = time.perf_counter()
    b = await cluster.start("b")
    while len(b.store.items("east")) < 10_000 or b.in_sync_services() != ["east"]:
        await asyncio.sleep(0)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
        assert last - began < 2
    assert longest < 0.1  # measured 0.005-0.012 on a quiet machine
    assert b.status().store[0].digest == a.change_log.logs["east"].items.digest()
