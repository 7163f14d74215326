"""What [recovery] registrations says of the lost master's phones (M11, one test per row; M12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent import registrations
from haclusterd.agent.registrations import Registrations
from haclusterd.agent.replication import AgentReplicator
from haclusterd.config import FreeSwitch
from haclusterd.core.standby import StreamCopy
from haclusterd.freeswitch.esl import EventsLost
from haclusterd.freeswitch.registration_keeper import RegistrationKeeper
from haclusterd.sync.codec import registration_of
from haclusterd.sync.replicator import Replicator
from tests.fixtures.agent_parts import spec, view
from tests.unit.sync_cluster import Cluster, until
from tests.unit.test_registration_keeper import Node
from tests.unit.test_registrations import LANE, record
from tests.unit.test_registrations import row as raw_row
from tests.unit.test_sync_lanes import EAST

PHONES = 5
assert LANE == EAST
Make = Callable[..., Awaitable["Bench"]]
pytestmark = pytest.mark.timeout(30)


class Bench:
    """fs-b, a slave of a (as the mesh knows it), under one policy; c looks on."""

    def __init__(self, folder: Path, a: Replicator, b: AgentReplicator, c: Replicator) -> None:
        self.a, self.b, self.c = a, b, c
        self.node = Node(folder)
        self.spec = spec(1)
        self.policy: Registrations | None = None

    async def begin(self, policy: str) -> Registrations:
        one = self.policy = Registrations(self.spec, self.b, lambda service: "", policy)
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

    async def bench(policy: str, profiles: tuple[str, ...] = ("east",)) -> Bench:
        a, c = await cluster.start("a"), await cluster.start("c")
        b = AgentReplicator(cluster.config("b"), 50)
        await b.start()
        cluster.running["b"] = b
        one = Bench(tmp_path, a, b, c)
        made.append(one)
        if len(profiles) > 1:
            whole = msgspec.structs.replace(one.spec.services[0], profiles=profiles)
            one.spec = msgspec.structs.replace(one.spec, services=(whole,))
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


@pytest.mark.parametrize("down", ["east", "west"])
async def test_eg8_a_profile_that_does_not_run_keeps_no_other_from_being_replicated(
    make: Make, down: str
) -> None:
    """Nothing of the whole service was told, for as long as one profile of it was down."""
    bench = await make("recover", ("east", "west"))
    up = "west" if down == "east" else "east"
    await taken_over_without(bench, down)
    bench.node.insert(raw_row("7000", profile_name=up))
    await bench.node.fire("register", "7000", up)
    logs = bench.b.registrations.change_log.logs
    await until(
        lambda: "7000" in {registration_of(i).user for i in logs[EAST].items.items.values()}
    )
    assert not logs[EAST].settled, "what the lost owner had of the other stays at the others"
    bench.node.esl.running[down] = 1
    await bench.node.send(EventsLost("connected"))
    await until(lambda: logs[EAST].settled)


async def test_eg8_what_such_a_service_had_is_kept_when_it_is_another_nodes_again(
    make: Make,
) -> None:
    bench = await make("recover", ("east", "west"))
    one, keeper = await taken_over_without(bench, "west")
    assert len(bench.node.users("east")) == PHONES
    one.observe(view({"east": ("fs-a", 3)}, "fs-b"))
    assert "east" not in keeper.plan.owned
    await until(lambda: len(keeper.plan.placed) == PHONES)


async def taken_over_without(bench: Bench, down: str) -> tuple[Registrations, RegistrationKeeper]:
    """b owns the service of two profiles, of which one does not run."""
    one = bench.policy
    assert one is not None
    assert one.keeper is not None
    plan = one.keeper.plan
    await until(lambda: set(plan.addresses) == {"east", "west"})
    del bench.node.esl.running[down]
    await bench.node.send(EventsLost("connected"))
    await until(lambda: down not in plan.addresses)
    one.recover("east", 2)
    await until(lambda: len(plan.owned) == 1)
    return one, one.keeper


def copies(bench: Bench) -> list[StreamCopy]:
    """What c holds of the service's phones: only the new owner's once it has settled."""
    held = bench.c.registrations.store.services[EAST].copies
    return list(held.values())
