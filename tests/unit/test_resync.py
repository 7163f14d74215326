"""A slave that joins, returns or lags: progress, honest lag, overflow alarm, stale answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from haclusterd.agent.answers import Answers
from haclusterd.agent.commands import Commands
from haclusterd.agent.history import History
from haclusterd.agent.registrations import Registrations
from haclusterd.agent.replication import AgentReplicator
from haclusterd.agent.routes import Routes
from haclusterd.agent.schema import Sync
from haclusterd.agent.syncing import alarms, is_stale, tell_repairs
from haclusterd.cli import tables
from haclusterd.core.replication import (
    Ack,
    Chunk,
    Delta,
    Item,
    ItemSet,
    Limits,
    SnapshotBegin,
    StreamId,
)
from haclusterd.core.standby import StreamCopy
from haclusterd.sync.audit import Repair
from haclusterd.sync.codec import Head, Message
from haclusterd.sync.lane import REGISTRATIONS, Lane
from haclusterd.sync.replicator import Replicator
from haclusterd.sync.session import SyncTiming
from haclusterd.sync.status import PeerStatus
from tests.fixtures.agent_parts import spec
from tests.fixtures.agent_source import FakeSource
from tests.unit.sync_cluster import TIMING, Cluster, call, held, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in list(made.running):
        await made.kill(node)


def lag_shown(one: Replicator) -> int:
    status = one.status()
    return max([p.lag_ms for p in status.peers] + [row.lag_ms for row in status.incoming])


async def test_ms21_a_stream_in_sync_that_says_nothing_shows_no_lag(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(10)])
    assert await a.wait_acked("east", 3000)
    await until(lambda: b.in_sync_services() == ["east"])
    seen = []
    for _ in range(60):
        await asyncio.sleep(0.01)
        b.calls.judge(None)  # at any moment between two beats, not only when its turn comes
        seen.append(max(lag_shown(a), lag_shown(b)))
    assert seen.count(0) >= 55, seen  # a busy machine may lose a beat
    assert b.mesh.sessions["a"]._transport is not None
    b.mesh.sessions["a"]._transport.pause_reading()
    await asyncio.sleep(TIMING.beat_ms * 3 / 1000)
    b.calls.judge(None)
    assert b.freshness("east").lag_ms >= TIMING.beat_ms, "silence is no proof any more"


def test_ms18_progress_and_time_left_of_a_snapshot() -> None:
    stream = StreamId("east", "a", 1, 1)
    copy = StreamCopy(stream, 1, Limits())
    assert copy.left_ms(0) is None
    copy.begin(SnapshotBegin(stream, 100, 100, 1, True), 1000)
    assert copy.left_ms(1000) is None, "nothing came yet: who could tell"
    copy.chunk(Chunk(stream, [Item(f"u{n}", 1, 1, 1, False, b"") for n in range(25)]), 1500)
    assert copy.left_ms(1500) == 1500
    copy.age(1500, 750)
    copy.delta(Delta(stream, 101, 101, [Item("u99", 1, 1, 1, False, b"")]), 1500)
    assert copy.left_ms(1520) == 1480


async def test_ms21_progress_is_shown_on_both_sides(cluster: Cluster) -> None:
    a = await cluster.start("a")
    a.own("east", 1, settled=True)
    a.append([call(n, size=3000) for n in range(2000)])
    await until(lambda: not a.change_log.waiting("east"))
    b = await cluster.start("b")
    sent, got = [], []
    while b.in_sync_services() != ["east"]:
        await asyncio.sleep(0)
        sent += a.status().peers[0].outgoing
        got += b.status().incoming
    under_way = [row for row in got if row.state == "syncing" and 0 < row.percent < 100]
    assert under_way
    assert all(row.want == 2000 and row.data == "calls" for row in under_way)
    assert any(row.eta_ms is not None for row in under_way)
    assert any(0 < row.percent < 100 and row.eta_ms is not None for row in sent)
    assert [row.percent for row in under_way] == sorted(row.percent for row in under_way)
    assert b.status().incoming[0].have == b.status().incoming[0].want == 2000


async def test_ms19_overflow_is_an_alarm_until_the_copy_is_whole_again(cluster: Cluster) -> None:
    limits = Limits(buffer_entries=20)
    a, b = await cluster.start("a", limits=limits), await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(10)])
    assert await a.wait_acked("east", 3000)
    await cluster.kill("b")
    await until(lambda: a.status().peers[0].state == "suspended")
    a.append([call(n) for n in range(10, 20)])
    await asyncio.sleep(0.3)
    assert a.overflowed() == [], "what is kept still brings it up"
    a.append([call(n) for n in range(20, 60)])
    await until(lambda: a.overflowed() == [("b", "east")])
    (alarm,) = alarms(a.overflowed())
    assert alarm.name == "sync_suspended"
    assert "b has missed more changes to the calls of east" in alarm.text
    b = await cluster.start("b")
    await until(lambda: a.overflowed() == [])
    assert held(b) == {f"uuid-{n}": 1 for n in range(60)}
    assert a.status().peers[0].outgoing[0].snapshots == 1
    assert not a.status().peers[0].outgoing[0].overflow


async def test_ms19_overflow_of_a_peer_that_is_connected_and_slow(cluster: Cluster) -> None:
    a = await cluster.start("a", limits=Limits(buffer_entries=20))
    b = await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(1)])
    assert await a.wait_acked("east", 3000)
    session = b.mesh.sessions["a"]
    send = session.send

    def without_acks(message: Message) -> None:
        if not isinstance(message, Ack):
            send(message)

    session.send = without_acks  # type: ignore[method-assign]
    a.append([call(n) for n in range(2, 60)])
    await until(lambda: a.overflowed() == [("b", "east")])
    session.send = send  # type: ignore[method-assign]
    a.append([call(60)])
    await until(lambda: a.overflowed() == [])


async def test_ms20_answers_of_a_node_that_is_being_filled_say_so() -> None:
    assert is_stale(Sync("syncing", 0), True)
    assert is_stale(Sync("suspended", 0), True)
    assert not is_stale(Sync("in-sync", 0), True)
    assert not is_stale(Sync("none", 0), False), "a witness holds no copies"
    source = FakeSource()
    for filled in (False, True):
        source.being_filled = filled
        commands = Commands(source)
        for method in ("status", "rank", "calls", "registrations"):
            answer = await commands.run(method, {})
            assert answer.stale is filled, method
        for path in ("/status", "/services/east"):
            body = json.loads(Routes(source).answer(path).body)
            assert body.get("stale", False) is filled, path
    shown = tables.status(json.loads(Routes(source).answer("/status").body))
    assert "STALE" in str(shown[0])


async def test_ms20_answers_are_stale_while_registrations_are_on_their_way(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not keep a node with all calls from taking over: all nodes may lack them at once."""
    a = await cluster.start("a")
    b = AgentReplicator(cluster.config("b"), 7)
    await b.start()
    cluster.running["b"] = b
    lane, east = a.registrations, REGISTRATIONS + "east"
    a.own("east", 5, settled=True)
    a.append([call(1)])
    lane.own(east, 5, settled=False)  # as an owner's agent that has not read its FreeSWITCH's yet
    owners = {"east": ("a", 5)}
    for one in (a, b):
        one.observe(owners, ["a", "b"])
    registrations = Registrations(spec(1), b, lambda name: "")
    agent = SimpleNamespace(
        replicator=b, shared=SimpleNamespace(registrations=registrations), problems={}, me="b",
        owners=lambda: owners, spec=spec(1), history=None, reports=None, operators=None,
        orders=None, upkeep=SimpleNamespace(maintaining=None, failover=None, rotation=None),
        traces=None,
        config=SimpleNamespace(freeswitch=object(), node=SimpleNamespace(witness=False)),
    )  # fmt: skip
    answers = Answers(cast(Any, agent))
    await until(lambda: b.in_sync_services() == ["east"])
    await until(lambda: east in b.registrations.store.services)
    assert not answers.stale(), "none are kept here"
    registrations.keeper = cast(Any, object())
    assert set(registrations.freshness()) == {"east", "west"}
    assert answers.stale()
    assert answers._own_sync().state == "in-sync"
    lane.change_log.settle(east)
    await until(lambda: not answers.stale())
    owners["west"] = ("b", 1)
    assert not answers.stale(), "its own are no copies"
    owners["west"] = ("a", 1)
    b.store.services["west"] = b.store.services["east"]
    b.observe(owners, ["a", "b"])
    assert answers.stale(), "none of west have come"


async def test_ms21_a_peer_is_in_sync_when_it_has_the_registrations_as_well(
    cluster: Cluster,
) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    a.own("east", 5, settled=True)
    a.registrations.own(REGISTRATIONS + "east", 5, settled=True)
    a.append([call(1)])

    def peer() -> PeerStatus:
        return a.status().peers[0]

    await until(lambda: [r.state for r in peer().outgoing] == ["in-sync"] * 2)
    assert (peer().state, peer().lag_ms) == ("in-sync", 0)
    ((cursors),) = a.registrations.outgoing._cursors.values()
    for cursor in cursors.values():
        cursor.acked = -1
    assert [(r.data, r.state) for r in peer().outgoing] == [
        ("calls", "in-sync"), ("registrations", "syncing"),
    ]  # fmt: skip
    assert (peer().state, peer().lag_ms > 0) == ("syncing", True)
    await cluster.kill("b")
    await until(lambda: peer().state == "suspended")
    assert b.store.services


async def test_ms17_what_was_mended_is_in_the_history(cluster: Cluster) -> None:
    one = Replicator(cluster.config("a"), 1)
    history = History()
    tell_repairs(one, history, "a")
    (told,) = one.auditor.told
    told(Repair("east", "b", ["u1", "u2"], False))
    told(Repair("registrations:east", "b", [], True))
    texts = [(d.row, d.text) for d in history.last()]
    assert texts == [
        ("A17", "a mended 2 silent differences in its copy of the calls of east from b"),
        ("A17", "a asks anew for all of its copy, which differed in too much, of the registrations"
         " of east from b"),
    ]  # fmt: skip


def test_a_dead_link_is_replaced_before_its_copies_count_as_too_old() -> None:
    timing = SyncTiming()
    noticed_ms = timing.dead_ms + timing.beat_ms  # silence is counted in beats
    assert noticed_ms + timing.connect_ms <= timing.lag_ms_max


async def test_ms17_a_snapshot_that_does_not_fit_is_asked_for_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its origin is quiet: nothing else would ever tell it that its snapshot was not taken."""
    monkeypatch.setattr("haclusterd.sync.store.RESYNC_MS", 200)
    a = await cluster.start("a", limits=Limits(buffer_entries=10))
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(40)])
    digest, asked = ItemSet.digest, 0

    def damaged(items: ItemSet) -> int:
        nonlocal asked
        if items is not a.change_log.items("east"):
            return digest(items)
        asked += 1
        return digest(items) + (asked <= 2)

    def heads(lane: Lane) -> list[Head]:
        return [Head(o.stream, o.head, digest(o.items)) for o in lane.change_log.logs.values()]

    monkeypatch.setattr(ItemSet, "digest", damaged)
    monkeypatch.setattr(Lane, "heads", heads)
    b = await cluster.start("b")
    await until(lambda: b.store.counters["mismatch"] == 2)
    at = time.monotonic()
    assert held(b) == {}
    await until(lambda: len(held(b)) == 40)
    assert b.store.counters["mismatch"] == 2
    assert time.monotonic() - at > 0.1, "the third was not asked for at once"
    await until(lambda: b.in_sync_services() == ["east"])
    assert "malformed" not in b.mesh.counters
