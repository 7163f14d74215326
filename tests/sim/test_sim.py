"""The simulator itself: it repeats itself exactly, finds nothing in the core, and is not blind."""

from __future__ import annotations

import multiprocessing

import pytest

from haclusterd.core.model import Identity
from tests.sim.drills import AIM, DRILLS, aimed_swarm, hunt
from tests.sim.swarm import KINDS
from tests.sim.two_losses import lose_two
from tests.sim.world import World

AIMED_SEEDS_MAX = 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_seed_is_clean(seed: int) -> None:
    """S1, S2, S3 and V3 after every event of a simulated minute."""
    world = World(seed)
    assert world.run(1.0) == [], "\n".join([str(world.swarm), *world.history[-40:]])


@pytest.mark.parametrize("seed", [3, 8])
def test_same_seed_same_trace(seed: int) -> None:
    """S14."""
    first, second, other = World(seed), World(seed), World(seed + 1)
    for world in (first, second, other):
        world.run(0.3)
    assert first.trace == second.trace != other.trace
    assert first.history == second.history != []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_eg25_each_slave_takes_exactly_one_of_two_lost_masters(seed: int) -> None:
    result = lose_two(seed)
    assert result.good, result
    assert max(result.served_ms) < 190


def test_seeds_differ_in_what_they_are_about() -> None:
    swarms = [World(seed).swarm for seed in range(200)]
    assert {kind for swarm in swarms for kind in swarm.kinds} == set(KINDS)
    assert {swarm.nodes for swarm in swarms} == {3, 4, 5}
    assert {swarm.services for swarm in swarms} == {1, 2, 3}
    assert any(swarm.through_wire for swarm in swarms)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRILLS)
def test_drill_is_caught(name: str) -> None:
    """Without this guard the aimed world breaks an invariant within few seeds."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        _, seeds, violation, _ = pool.apply(hunt, ((name, AIMED_SEEDS_MAX, 1.0, True),))
    assert seeds > 0, f"{name}: not caught in {AIMED_SEEDS_MAX} aimed seeds"
    assert violation


@pytest.mark.slow
@pytest.mark.parametrize("name", AIM)
def test_aimed_world_is_clean_with_every_guard(name: str) -> None:
    """The same worlds, nothing taken away: or a drill would prove nothing."""
    for seed in range(2):
        assert World(seed, aimed_swarm(name, seed)).run(1.0) == []


def test_checkers_see_two_holders_two_winners_and_two_promises() -> None:
    world = World(1)
    checkers = world.checkers
    checkers.may_emit(0, 0, 0, 100_000)
    checkers.may_emit(50_000, 0, 1, 100_000)
    assert "S1" in checkers.violations[-1]
    checkers.won(1, 0, Identity(1, 0, 5))
    checkers.won(2, 0, Identity(1, 1, 6))
    assert "S2" in checkers.violations[-1]
    checkers.promise(1, 2, 0, Identity(1, 0, 5))
    checkers.promise(1, 2, 0, Identity(1, 1, 6))
    assert "S3" in checkers.violations[-1]
