"""Which calls a new owner sends on their way before it has asked the other slaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent.replication import AgentReplicator
from haclusterd.core.records import CallRecord, Tombstone
from tests.unit.sync_cluster import Cluster, call, collected, held, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in list(made.running):
        await made.kill(node)


def leg(number: int, version: int, partner: int) -> CallRecord:
    return msgspec.structs.replace(call(number, version), partner=f"uuid-{partner}")


async def test_the_quietest_calls_of_a_good_copy_bridged_ones_in_pairs(cluster: Cluster) -> None:
    a = await cluster.start("a")
    b = AgentReplicator(cluster.config("b"), 1)
    await b.start()
    cluster.running["b"] = b
    a.own("east", 1, settled=True)
    a.append([call(n, 100 + n) for n in range(5)])
    # 20 and 21 are a pair, 30's other leg is unknown, 40's is over, 50's says it has another.
    a.append([leg(20, 10, 21), leg(21, 90, 20), leg(30, 11, 31), leg(40, 12, 41), call(41, 13)])
    a.append([leg(50, 14, 51), leg(51, 200, 99), Tombstone("east", "uuid-41", 15)])
    a.append([call(0, 300)])
    await until(lambda: len(held(b)) == 11 and b.freshness("east").state == "in-sync")
    assert [r.uuid for r in b.quietest("east", 3)] == ["uuid-20", "uuid-21", "uuid-1"]
    assert b.quietest("west", 3) == []
    b.own("east", 2, settled=False)
    assert len(b.quietest("east", 3)) == 3
    b.append([call(1, 400)])
    assert b.quietest("east", 3) == [], "what was heard here since is newer"
    b.disown("east")
    newest = b.store.services["east"].newest()
    assert newest is not None
    assert [r.uuid for r in b.quietest("east", 3)] == ["uuid-1"]
    newest.lag_ms = 10_000
    assert b.quietest("east", 3) == [], "a copy that is behind"


async def test_a_new_owner_that_just_started_knows_whom_it_has_not_asked(cluster: Cluster) -> None:
    a = await cluster.start("a")
    b = await cluster.start("b")
    a.own("east", 1, settled=True)
    a.append([call(n) for n in range(40)])
    await until(lambda: len(held(b)) == 40)
    c = AgentReplicator(cluster.config("c"), 1)
    c.own("east", 2, settled=False)
    assert await collected(c) == []
    assert c.unasked("east") == ["a", "b"], "nobody was there, so nobody has told"
    await c.start()
    cluster.running["c"] = c
    c.append([call(1)])  # FreeSWITCH has it: recovered before this agent was started
    await until(lambda: len(c.mesh.sessions) == 2)
    c.observe({"east": ("c", 2)}, ["b", "c"])
    assert c.unasked("east") == ["b"], "the dead cannot tell"
    for _ in range(40):
        await c.ask("east", 0)  # more often than a peer would answer at once
    assert len(c._collector._rounds) == 1
    await until(lambda: c.unasked("east") == [])
    assert len(await c.inherited("east")) == 40
    assert len(await c.unrecovered("east")) == 39
    c.append([Tombstone("east", "uuid-1", 7)])
    assert len(await c.inherited("east")) == 39, "what ended here needs no verdict"
    c.own("east", 3)
    assert c.unasked("east") == ["b"]
    c.mesh.sessions["b"].abort("test", "cut")
    await c.ask("east", 20)
    assert c.unasked("east") == ["b"], "a peer that went away has not told"
