"""What is no loss moves nothing (S5): the scenarios of docs/reliability.md that end in an alarm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.dramas import calm, owners_of
from tests.sim.swarm import WAN
from tests.sim.world import World

LINKS = 3


def _at_rest(links: int = LINKS, **swarm: Any) -> World:
    world = World(3, dataclasses.replace(calm(4, 2, links), **swarm))
    for host in world.hosts:
        world.at(7_000 * host.me, world.boot, host)
    world.play_until(60 * world.swarm.timing.heartbeat_us + 2_500_000)
    assert [owners_of(world, k) for k in range(2)] == [[0], [1]]
    return world


def _ways(world: World, wanted: Callable[[int, int, int], bool]) -> list[tuple[int, int, int]]:
    nodes = range(world.swarm.nodes)
    every = [(a, b, x) for a in nodes for b in nodes for x in range(world.swarm.links) if a != b]
    return [way for way in every if wanted(*way)]


def short_freezes() -> World:
    """6: shorter than the lease, a hundred times."""
    world = _at_rest()
    for i in range(100):
        world.hosts[0].freeze(world.now, 60_000)
        world.play_until(world.now + 100_000 + 370 * i)
    return world


def one_pair_apart() -> World:
    """11: slave and master do not hear each other, everybody else hears both."""
    world = _at_rest()
    world.network.add_cut(_ways(world, lambda a, b, x: {a, b} == {0, 2}), world.now, 20_000_000)
    world.play_until(world.now + 25_000_000)
    return world


def one_nic_down_everywhere() -> World:
    """15."""
    world = _at_rest()
    world.network.add_cut(_ways(world, lambda a, b, x: x == 0), world.now, 20_000_000)
    world.play_until(world.now + 25_000_000)
    return world


def nic_flaps() -> World:
    """16: 1 Hz for a minute, on all nodes."""
    world = _at_rest()
    for _ in range(60):
        world.network.add_cut(_ways(world, lambda a, b, x: x == 1), world.now, 500_000)
        world.play_until(world.now + 1_000_000)
    return world


def lossy_and_late() -> World:
    """19, an excerpt: 20 % loss and 50 ms of jitter on three links, preset `wan`."""
    world = _at_rest(timing=WAN, loss=0.2, delay_mean_us=50_000)
    world.play_until(world.now + 300_000_000)
    return world


def everything_five_times() -> World:
    """20: and of some there is one more copy, much later."""
    world = _at_rest(duplicate=1.0, copies=4, replay=0.3, delay_mean_us=300)
    world.play_until(world.now + 30_000_000)
    return world


def clocks_apart() -> World:
    """28: owner fast, slaves slow, by 0.9 % each."""
    world = _at_rest(rates_ppm=(9000, -9000, -9000, 9000))
    world.play_until(world.now + 60_000_000)
    return world


STORIES = (
    short_freezes,
    one_pair_apart,
    one_nic_down_everywhere,
    nic_flaps,
    lossy_and_late,
    everything_five_times,
    clocks_apart,
)


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_nothing_moves(story: Callable[[], World]) -> None:
    world = story()
    assert world.checkers.violations == []
    assert [owners_of(world, k) for k in range(2)] == [[0], [1]]
    assert len(world.recoveries) == 2, "calls were taken up at the start, and never again"
    lines = [line for line in world.history if " T405 " in line or " T201 " in line]
    assert len(lines) == 2, "\n".join(lines)
