"""A SIP profile that never runs at the owner: its registrations are settled all the same."""

from __future__ import annotations

import asyncio

import pytest

from haclusterd.agent import absent
from haclusterd.core.standby import Freshness
from haclusterd.freeswitch.esl import EventsLost
from haclusterd.freeswitch.registrations import wall_s
from haclusterd.sync import collect, replicator
from haclusterd.sync.codec import registration_of
from tests.fixtures.agent_parts import view
from tests.unit.sync_cluster import until
from tests.unit.test_registration_policy import (
    PHONES,
    Bench,
    Make,
    make,
    taken_over_without,
)
from tests.unit.test_sync_lanes import EAST

__all__ = ["make"]  # the fixture
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absent, "ABSENT_S", 0.2)
    monkeypatch.setattr(absent, "LOOK_S", 0.05)


def seen_by_c(bench: Bench) -> Freshness:
    lane = bench.c.registrations
    lane.owners = {EAST: ("b", 2)}
    return lane.freshness(EAST)


async def anew(bench: Bench) -> None:
    """c forgets everything, as at a start, and is filled from b alone."""
    bench.a.registrations.disown(EAST)
    store = bench.c.registrations.store
    store.services.clear()
    bench.b.mesh.sessions["c"].abort("test", "c starts")
    await until(lambda: EAST in store.services)


async def test_the_answers_of_a_node_that_starts_are_not_stale_for_ever(make: Make) -> None:
    bench = await make("recover", ("east", "west"))
    await taken_over_without(bench, "west")
    await anew(bench)
    await until(lambda: seen_by_c(bench).state == "in-sync")
    assert bench.b.registrations.change_log.logs[EAST].settled


async def test_what_the_former_owner_had_of_it_stays(make: Make) -> None:
    """Also where it is read of the new owner alone; and it is handed over when the profile runs."""
    bench = await make("recover", ("east", "west"))
    one, keeper = await taken_over_without(bench, "east")
    log = bench.b.registrations.change_log.logs[EAST]
    await until(lambda: log.settled)
    assert log.items.live == PHONES
    await anew(bench)
    await until(lambda: bench.held_by_c() == PHONES)
    bench.node.esl.running["east"] = 1
    await bench.node.send(EventsLost("connected"))
    await until(lambda: len(bench.node.users("east")) == PHONES)
    await until(lambda: one._waiting == set() and one._absent._told == {})
    assert log.items.live == PHONES
    assert "east" in keeper.plan.owned


async def test_who_is_not_there_when_the_profile_is_read_goes(make: Make) -> None:
    bench = await make("recover", ("east", "west"))
    one, keeper = await taken_over_without(bench, "east")
    log = bench.b.registrations.change_log.logs[EAST]
    await until(lambda: log.settled)
    for key in [k for k, r in keeper.plan.records.items() if r.user == "1003"]:
        keeper.drop(key)
    bench.node.esl.running["east"] = 1
    await bench.node.send(EventsLost("connected"))
    await until(lambda: log.items.live == PHONES - 1)
    live = [registration_of(i).user for i in log.items.items.values() if not i.dead]
    assert "1003" not in live
    await until(lambda: one._absent._told == {})


async def test_what_runs_out_meanwhile_goes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await make("recover", ("east", "west"))
    await taken_over_without(bench, "east")
    log = bench.b.registrations.change_log.logs[EAST]
    await until(lambda: log.items.live == PHONES)
    monkeypatch.setattr(absent, "wall_s", lambda: wall_s() + 10_000_000_000)
    await until(lambda: log.items.live == 0)


async def test_recycled_phones_are_not_told_on(make: Make) -> None:
    bench = await make("recycle", ("east", "west"))
    await taken_over_without(bench, "east")
    log = bench.b.registrations.change_log.logs[EAST]
    await until(lambda: log.settled)
    assert log.items.live == 0


async def test_another_nodes_again_it_is_as_before(make: Make) -> None:
    bench = await make("recover", ("east", "west"))
    one, keeper = await taken_over_without(bench, "east")
    log = bench.b.registrations.change_log.logs[EAST]
    await until(lambda: log.settled and log.items.live == PHONES)
    one.observe(view({"east": ("fs-a", 3)}, "fs-b"))
    await until(lambda: len(keeper.plan.records) == PHONES)
    assert one._absent._told == {}


async def test_an_agent_that_starts_waits_for_what_the_others_know_of_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no copy itself, and 5,000 phones are not told within the 20 ms of a takeover: what
    came later was in no stream any more."""
    bench = await make("recover", ("east", "west"))
    one = bench.policy
    assert one is not None
    assert one.keeper is not None
    plan = one.keeper.plan
    await until(lambda: set(plan.addresses) == {"east", "west"})
    del bench.node.esl.running["east"]
    await bench.node.send(EventsLost("connected"))
    await until(lambda: "east" not in plan.addresses)
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(
        replicator, "answer", lambda *words: loop.call_later(0.3, collect.answer, *words)
    )
    bench.b.registrations.store.services.clear()
    one.observe(view({"east": ("fs-b", 2)}, "fs-b"))
    logs = bench.b.registrations.change_log.logs
    await until(lambda: EAST in logs and logs[EAST].settled)
    assert logs[EAST].items.live == PHONES
