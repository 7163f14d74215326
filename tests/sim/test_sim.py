"""The simulator itself: it repeats itself exactly and finds nothing in the core."""

from __future__ import annotations

import pytest

from tests.sim.faults import KINDS
from tests.sim.two_losses import lose_two
from tests.sim.world import World


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_seed_is_clean(seed: int) -> None:
    """All invariants after every event of a simulated minute."""
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


@pytest.mark.parametrize("seed", [3, 11, 40])
def test_a_plan_that_was_written_down_plays_the_same(seed: int) -> None:
    """What `shrink` leaves faults out of is the run itself, not another one."""
    world = World(seed)
    world.run(0.3)
    again = World(seed, world.swarm, world.nemesis.plan())
    again.run(0.3)
    assert again.trace == world.trace
    assert len(world.nemesis.plan()) > 0


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
    assert {swarm.links for swarm in swarms} == {1, 2, 3}
    assert {swarm.ending for swarm in swarms} == {"whole", "core", "minority"}
    assert any(swarm.through_wire for swarm in swarms)
    assert min(min(s.rates_ppm) for s in swarms) == -9000
    assert max(max(s.rates_ppm) for s in swarms) == 9000


def test_damaged_and_replayed_datagrams_change_counters_only() -> None:
    """S11: through the real wire, with bits flipped, cut short, drawn out and mere noise."""
    seed = next(s for s in range(100) if World(s).swarm.damage > 0.01)
    world = World(seed)
    assert world.run(0.5) == []
    opened = {outcome.name for outcome in world.network.opened}
    assert {"MALFORMED", "BAD_MAC", "REPLAY"} <= opened
