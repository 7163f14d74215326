"""Directed worlds about the set of voters: an owner that was left behind, and those who go on.

Sets: 1 is n0 n1 n2, with n0 as the owner of s0; 2 has n3 beside them; 3 is without n0. n0 hears n1
only, whose word decides whether it may go on serving while n2 and n3, who hear nothing of it, take
set 3 up.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable

from haclusterd.core.model import LastResort
from tests.sim import changes
from tests.sim.dramas import burn, calm, owners_of, stage
from tests.sim.swarm import spec_of
from tests.sim.world import World

SETS = ((0, 1, 2), (0, 1, 2, 3), (1, 2, 3))
GROWING = ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5, 6))
TWO_AT_ONCE = ((0, 1, 2), (2, 3, 4))


def begin_with(
    seed: int,
    sets: tuple[tuple[int, ...], ...],
    nodes: int,
    services: int = 1,
    last_resort: LastResort = LastResort.MASTERS,
) -> World:
    """Set 1 at rest, everybody speaking version 2."""
    rng = random.Random(seed)
    swarm = dataclasses.replace(
        calm(nodes, services, 1),
        delay_mean_us=100,
        members=len(sets[0]),
        last_resort=last_resort,
    )
    world = World(seed, swarm)
    stage.append(world)
    for host in world.hosts:
        world.at(rng.randrange(40_000), world.boot, host)
    world.play_until(6_500_000 + rng.randrange(50_000))
    world.sets[:] = sets
    return world


def _cut(world: World, left: Iterable[int], right: Iterable[int]) -> None:
    ways = [(a, b, 0) for a in left for b in right]
    world.network.add_cut(ways + [(b, a, 0) for a, b, _ in ways], world.now, 60_000_000)


def reload(world: World, revision: int, *nodes: int) -> None:
    for n in nodes:
        changes.bring(world.now, world.hosts[n], revision)


def _at_set_2(seed: int) -> World:
    """n1, n2 and n3 count by set 2; n0 has staged it and cannot take it up."""
    world = begin_with(seed, SETS, 4)
    world.hosts[0].stubborn = True
    _cut(world, [0], [2, 3])
    reload(world, 2, 0, 1, 2, 3)
    world.play_until(world.now + 4_000_000)
    return world


def _outcome(world: World, for_us: int = 3_000_000) -> list[str]:
    world.play_until(world.now + for_us)
    found = list(world.checkers.violations)
    if not found and not set(owners_of(world)) & {1, 2, 3}:
        found.append(f"V3: nobody of the newest set serves s0, but {owners_of(world)}")
    return found


def left_behind(seed: int) -> list[str]:
    """n1 has staged set 3 and does not get to take it up: may it still serve n0's lease?"""
    world = _at_set_2(seed)
    world.hosts[1].stubborn = True
    reload(world, 3, 1, 2, 3)
    return _outcome(world)


def lease_left_over(seed: int) -> list[str]:
    """n0 has an echo from just before n1 staged set 3, and n2 has long been waiting to claim."""
    world = _at_set_2(seed)
    world.hosts[1].stubborn = True
    reload(world, 3, 2, 3)
    world.play_until(world.now + 500_000)
    for host in world.hosts:
        host.swift = True
    reload(world, 3, 1)
    return _outcome(world)


def unwritten(seed: int) -> list[str]:
    """n1 has staged set 3, crashes, and comes back in reach of n0 alone."""
    world = _at_set_2(seed)
    world.hosts[1].stubborn = True
    reload(world, 3, 1, 2, 3)
    world.play_until(world.now + 400_000)
    world.hosts[1].kill(world.now, power=False)
    _cut(world, [1], [2, 3])
    world.play_until(world.now + 100_000)
    world.boot(world.now, world.hosts[1])
    return _outcome(world)


def two_at_once(seed: int) -> list[str]:
    """Set 2 would share one node with set 1, and a majority of each none at all."""
    world = begin_with(seed, TWO_AT_ONCE, 5)
    world.hosts[0].stubborn = world.hosts[1].stubborn = True
    _cut(world, [0, 1], [3, 4])
    _cut(world, [0], [2])
    reload(world, 2, 1, 2, 3, 4)
    world.play_until(world.now + 3_000_000)
    return list(world.checkers.violations)


def without_a_majority(seed: int) -> list[str]:
    """n2 alone has staged set 2, and then set 3 together with n3."""
    world = begin_with(seed, SETS, 4)
    _cut(world, [0, 1], [2, 3])
    reload(world, 2, 2, 3)
    world.play_until(world.now + 4_000_000)
    reload(world, 3, 2, 3)
    world.play_until(world.now + 3_000_000)
    return list(world.checkers.violations)


def late_file(seed: int) -> list[str]:
    """n2 lost its disk and n3 is new; both start with the file of set 3, which nobody agreed to."""
    world = begin_with(seed, SETS, 4)
    _cut(world, [0, 1], [2, 3])
    lost, new = world.hosts[2], world.hosts[3]
    lost.kill(world.now, power=True)
    lost.file = spec_of(world.swarm, SETS[2], 3, 2)
    lost.boot(world.now, remember=False)
    lost.run(world.now, lost.life)
    changes.bring(world.now, new, 3)
    world.play_until(world.now + 3_000_000)
    return list(world.checkers.violations)


def marked_beside_a_change(seed: int) -> list[str]:
    """n0 and n1 missed set 2, n2 to n5 have decided set 3, then n3 and n4 die. They are marked
    first by n0 and n1, who hear what n2 has staged, and then by those who go on."""
    world = begin_with(seed, GROWING, 7)
    hosts = world.hosts
    world.operators.apart = True
    hosts[0].stubborn = hosts[1].stubborn = True
    reload(world, 2, *GROWING[1])
    world.play_until(world.now + 5_000_000)
    hosts[2].stubborn = hosts[5].stubborn = True
    reload(world, 3, 2, 3, 4, 5)
    world.play_until(world.now + 140_000)
    burn(world, 3, 4)
    world.play_until(world.now + 600_000)
    mark(world, 0, 1)
    world.play_until(world.now + 50_000)
    _cut(world, [0, 1], [2, 5, 6])
    hosts[2].stubborn = hosts[5].stubborn = False
    reload(world, 3, 6)
    world.play_until(world.now + 4_000_000)
    mark(world, 2, 5, 6)
    world.play_until(world.now + 3_000_000)
    found = list(world.checkers.violations)
    if not found and (owners_of(world) == [] or hosts[2].spec.revision != 3):
        found.append(f"V3: {owners_of(world)} serve s0, n2 counts by {hosts[2].spec.revision}")
    return found


def agreed_twice(seed: int) -> list[str]:
    """n1 and n2 agree to a set without n3, and only n0 hears that it is decided. They start again
    with a file of revision 3, and are asked to agree to another revision 2, without n0."""
    world = begin_with(seed, SETS[1:2], 4)
    hosts = world.hosts
    without_3, without_0 = (0, 1, 2), (1, 2, 3)

    def tell(members: tuple[int, ...], *nodes: int) -> None:
        for n in nodes:
            hosts[n].reload(world.now, spec_of(world.swarm, members, 2, n))

    for host in hosts:
        host.swift = True
    tell(without_3, 1, 2)
    world.play_until(world.now + 300_000)
    _cut(world, [0], [1, 2, 3])
    tell(without_3, 0)
    world.play_until(world.now + 600_000)
    for n in (1, 2):
        hosts[n].kill(world.now, power=False)
        hosts[n].file = spec_of(world.swarm, without_0, 3, n)
    world.play_until(world.now + 100_000)
    for n in (1, 2):
        world.boot(world.now, hosts[n])
    world.play_until(world.now + 4_000_000)
    tell(without_0, 1)
    world.play_until(world.now + 120_000)
    _cut(world, [1], [2, 3])
    tell(without_0, 2, 3)
    world.play_until(world.now + 1_500_000)
    world.network.cut.pop((0, 1, 0), None)
    world.network.cut.pop((1, 0, 0), None)
    world.play_until(world.now + 2_500_000)
    return list(world.checkers.violations)


def mark(world: World, *tellers: int, dead: tuple[str, ...] = ("n3", "n4")) -> None:
    for n in tellers:
        for name in dead:
            world.operators.mark(world.hosts[n], world.now, name)


DRAMAS: dict[str, Callable[[int], list[str]]] = {
    f.__name__: f
    for f in (
        left_behind,
        lease_left_over,
        unwritten,
        two_at_once,
        without_a_majority,
        late_file,
        marked_beside_a_change,
        agreed_twice,
    )
}
