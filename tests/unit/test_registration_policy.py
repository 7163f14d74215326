"""What [recovery] registrations says of the lost master's phones (M11, one test per row; M12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from haclusterd.agent import registrations
from haclusterd.agent.registrations import Registrations
from haclusterd.agent.replication import AgentReplicator
from haclusterd.config import FreeSwitch
from haclusterd.core.standby import StreamCopy
from haclusterd.sync.codec import registration_of
from haclusterd.sync.replicator import Replicator
from tests.fixtures.agent_parts import spec, view
from tests.unit.sync_cluster import Cluster, until
from tests.unit.test_registration_keeper import Node
from tests.unit.test_registrations import LANE, record
from tests.unit.test_sync_lanes import EAST

PHONES = 5
assert LANE == EAST
Make = Callable[[str], Awaitable["Bench"]]
pytestmark = pytest.mark.timeout(30)


class Bench:
    """fs-b, a slave of a (as the mesh knows it), under one policy; c looks on."""

    def __init__(self, folder: Path, a: Replicator, b: AgentReplicator, c: Replicator) -> None:
        self.a, self.b, self.c = a, b, c
        self.node = Node(folder)
        self.policy: Registrations | None = None

    async def begin(self, policy: str) -> Registrations:
        one = self.policy = Registrations(spec(1), self.b, lambda service: "", policy)
        there = self.node.core_db
        section = FreeSwitch("127.0.0.1", 8021, there, there, there, ())
        self.a.registrations.own(EAST, 1, settled=True)
        self.a.registrations.change_log.append([record(str(1000 + n)) for n in range(PHONES)])
        for store in (self.b.registrations.store, self.c.registrations.store):
            await until(lambda s=store: len(s.items(EAST)) == PHONES)  # type: ignore[misc]
        one.observe(view({"east": ("fs-a", 1)}, "fs-b"))
        await one.start(section, self.node._esl)
        return one

    def held_by_c(self) -> int:
        return sum(not i.dead for i in self.c.registrations.store.items(EAST).values())


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    cluster = Cluster(tmp_path)
    made: list[Bench] = []

    async def bench(policy: str) -> Bench:
        a, c = await cluster.start("a"), await cluster.start("c")
        b = AgentReplicator(cluster.config("b"), 50)
        await b.start()
        cluster.running["b"] = b
        one = Bench(tmp_path, a, b, c)
        made.append(one)
        await one.begin(policy)
        return one

    yield bench
    for one in made:
        if one.policy is not None:
            await one.policy.stop()
    for node in list(cluster.running):
        await cluster.kill(node)


async def test_m11_recover(make: Make) -> None:
    bench = await make("recover")
    node, one = bench.node, bench.policy
    assert one is not None
    await until(lambda: len(node.users("east")) == PHONES)
    one.recover("east", 2)
    await until(lambda: "a" not in {c.stream.origin for c in copies(bench)})
    assert len(node.users("east")) == PHONES
    assert bench.held_by_c() == PHONES
    assert one.counters()["registrations_recycled"] == 0


async def test_m11_recycle(make: Make) -> None:
    """M12: nothing of the dead master remains, here and on every other node."""
    bench = await make("recycle")
    node, one = bench.node, bench.policy
    assert one is not None
    await until(lambda: len(node.users("east")) == PHONES)
    one.recover("east", 2)
    await until(lambda: node.users("east") == [])
    await until(lambda: "a" not in {c.stream.origin for c in copies(bench)})
    assert bench.held_by_c() == 0
    assert one.counters()["registrations_recycled"] == PHONES
    assert list(one.listed()) == []


async def test_m11_ignore(make: Make) -> None:
    bench = await make("ignore")
    one = bench.policy
    assert one is not None
    one.recover("east", 2)
    await asyncio.sleep(0.3)
    assert bench.node.users("east") == []
    assert one.keeper is None
    assert "registrations:east" not in bench.b.registrations.change_log.logs


async def test_eg8_registrations_run_out_by_the_clock_of_the_node_that_has_them(make: Make) -> None:
    """The owner's clock is 45 s ahead: what ends at its 12:00:45 ends at our 12:00:00."""
    bench = await make("recover")
    node, one = bench.node, bench.policy
    assert one is not None

    def ends() -> set[int]:
        return {row[0] for row in node.sql("east", "SELECT expires FROM sip_registrations")}

    await until(lambda: len(node.users("east")) == PHONES)
    (at_a,) = ends()
    clocks = one.clocks
    clocks._used_s = {"a": 45.2}
    clocks._changed("a")
    await until(lambda: ends() == {at_a - 45})
    one.recover("east", 2)
    await until(lambda: "a" not in {c.stream.origin for c in copies(bench)})
    held = bench.c.registrations.store.items(EAST).values()
    assert {registration_of(item).expires_s for item in held} == {at_a - 45}
    clocks._used_s = {"a": 0.0}
    clocks._changed("a")
    await asyncio.sleep(0.1)
    assert ends() == {at_a - 45}, "they are ours now, by our clock"


async def test_eg8_a_clock_that_changes_while_copies_are_read_loses_track_of_none(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the keeper was given and nobody knows of would stay when its phone is gone."""
    bench = await make("recover")
    one = bench.policy
    assert one is not None
    await until(lambda: len(bench.node.users("east")) == PHONES)
    monkeypatch.setattr(registrations, "SLICE", 1)
    given = set(one._taken[EAST])
    one._taken[EAST].clear()
    reading = asyncio.create_task(one._load(EAST, None))
    await asyncio.sleep(0)
    one.clocks._changed("a")
    await reading
    assert set(one._taken[EAST]) == given


def copies(bench: Bench) -> list[StreamCopy]:
    """What c holds of the service's phones: only the new owner's once it has settled."""
    held = bench.c.registrations.store.services[EAST].copies
    return list(held.values())
