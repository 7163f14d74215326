"""Directed worlds about nodes marked dead that return beside a change of the voters.

Who marked them counts without them until they stand by what it owns. They may count by another set
of voters meanwhile, or be about to, and need not be heard by who has joined since.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from haclusterd.core.inputs import SwitchoverRequested
from haclusterd.core.model import LastResort
from tests.sim.dramas import burn, owners_of
from tests.sim.dramas_changes import SETS, begin_with, mark, reload
from tests.sim.world import World

SHRUNK_AND_GROWING = ((0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 4))
WITHOUT_N1 = ((0, 1, 2, 3, 4), (0, 2, 3, 4))
ONE_MORE = ((0, 1, 2, 3), (0, 1, 2, 3, 4))


def _begin(seed: int, sets: tuple[tuple[int, ...], ...], nodes: int, **more: Any) -> World:
    """`begin_with`; upgrades take no time, but on hosts that are made stubborn."""
    world = begin_with(seed, sets, nodes, **more)
    for host in world.hosts:
        host.swift = True
    return world


def back_with_a_staged_set(seed: int) -> list[str]:
    """n1 and n2 have staged set 3, die one after the other, and n0 serves without their votes. Back
    together they decide set 3 at once, in which they do not hear n0 as their owner any more."""
    world = _begin(seed, SHRUNK_AND_GROWING, 5)
    hosts = world.hosts
    reload(world, 2, 0, 1, 2, 3)
    world.play_until(world.now + 4_000_000)
    for n in (1, 2):
        reload(world, 3, n)
        world.play_until(world.now + 100_000)
        burn(world, n)
    world.play_until(world.now + 600_000)
    mark(world, 0, dead=("n1", "n2"))
    world.play_until(world.now + 1_500_000)
    world.operators.burnt.clear()
    world.operators.apart = True
    for n in (1, 2):
        world.boot(world.now, hosts[n])
    reload(world, 3, 4)
    world.play_until(world.now + 1_500_000)
    found = list(world.checkers.violations)
    if not found and (not owners_of(world) or hosts[1].spec.revision != 3):
        found.append(f"V3: {owners_of(world)} serve s0, n1 counts by {hosts[1].spec.revision}")
    return found


def returned_with_who_was_removed(seed: int) -> list[str]:
    """n0 and n3 count by set 2, without n1, and have marked n2 and n4 dead. All start at once, the
    hosts of n0 and n3 having run on, so that these two remember: n1 does not know that it was
    removed, n2, which does, is asked for its vote, and n4, which has not staged set 2, cannot hear
    n3."""
    world = _begin(seed, WITHOUT_N1, 5)
    hosts, rng = world.hosts, random.Random(seed)
    hosts[2].stubborn = True
    reload(world, 2, 0, 2, 3)
    world.play_until(world.now + 3_000_000)
    burn(world, 1, 2, 4)
    world.play_until(world.now + 600_000)
    mark(world, 3, dead=("n2", "n4"))
    world.play_until(world.now + 2_000_000)
    world.operators.burnt.clear()
    world.operators.apart = True
    for n in (0, 3):
        hosts[n].kill(world.now, power=False)
    world.play_until(world.now + 500_000)
    for host in hosts:
        world.at(world.now + rng.randrange(2_000), world.boot, host)
    world.play_until(world.now + 1_000_000)
    return list(world.checkers.violations)


def joined_with_old_marks(seed: int) -> list[str]:
    """n3 has heard that n1 and n2 are marked dead, and not that they are back, when n0 takes set 2
    up and n3 joins. n0 releases s0 to n3, which cannot hear n1 and n2: they are at set 1 still."""
    world = _begin(seed, SETS[:2], 4)
    hosts = world.hosts
    reload(world, 2, 3)
    burn(world, 1, 2)
    world.play_until(world.now + 600_000)
    mark(world, 0, dead=("n1", "n2"))
    for name in ("n1", "n2"):  # as a node that has lost its sets, and kept its orders
        world.operators.agreed[3].order_mark(name, "an operator", dead=True)
    world.operators.tell(hosts[3], world.now)
    world.play_until(world.now + 1_500_000)
    world.operators.burnt.clear()
    world.operators.apart = True
    for n in (1, 2):
        world.boot(world.now, hosts[n])
        hosts[n].stubborn = True
    world.play_until(world.now + 5_000_000)
    reload(world, 2, 0, 1, 2)
    world.play_until(world.now + 700_000)
    hosts[0].give(world.now, SwitchoverRequested(1, 0, 3))
    world.play_until(world.now + 500_000)
    return list(world.checkers.violations)


def returned_before_it_takes_up(seed: int) -> list[str]:
    """n0, n2 and n3 have agreed to set 2 and die before they take it up; n4, which has joined by
    it, would serve with n1, by their marks. They come back, and n4 cannot hear them in set 1."""
    world = _begin(seed, ONE_MORE, 5)
    hosts, rng = world.hosts, random.Random(seed)
    for n in (0, 2, 3):
        hosts[n].stubborn = True
    reload(world, 2, *ONE_MORE[1])
    world.play_until(world.now + 3_000_000)
    burn(world, 0, 2, 3)
    for n in (0, 2, 3):
        hosts[n].stubborn = False
    world.play_until(world.now + 600_000)
    mark(world, 1, dead=("n0", "n2", "n3"))
    world.play_until(world.now + 3_000_000)
    if owners_of(world) == [1]:
        hosts[1].give(world.now, SwitchoverRequested(1, 0, 4))
        world.play_until(world.now + 500_000)
    found: list[str] = []
    world.operators.burnt.clear()
    world.operators.apart = True
    for n in (0, 2, 3):
        world.at(world.now + rng.randrange(10_000), world.boot, hosts[n])
    world.play_until(world.now + 1_500_000)
    found += world.checkers.violations
    if not found and (owners_of(world) == [] or hosts[0].spec.revision != 2):
        found.append(f"V3: {owners_of(world)} serve s0, n0 counts by {hosts[0].spec.revision}")
    return found


def agrees_as_the_marked_returns(seed: int) -> list[str]:
    """n0 has taken set 2 up, and n3 has joined and may serve; n1 had agreed, died, and is marked;
    n2 was not told. n1 returns while n2 is told: until n1 counts by set 2 it does not hear n3."""
    world = _begin(seed, SETS[:2], 4)
    hosts, rng = world.hosts, random.Random(seed)
    hosts[1].stubborn = True
    reload(world, 2, 0, 1, 3)
    world.play_until(world.now + 3_000_000)
    burn(world, 1)
    hosts[1].stubborn = False
    world.play_until(world.now + 600_000)
    world.operators.apart = True
    mark(world, 0, 3, dead=("n1",))
    world.play_until(world.now + 1_500_000)
    if owners_of(world) == [0]:
        hosts[0].give(world.now, SwitchoverRequested(1, 0, 3))
        world.play_until(world.now + 700_000)
    world.operators.burnt.clear()
    world.boot(world.now, hosts[1])
    world.play_until(world.now + rng.randrange(100, 500) * 1_000)
    reload(world, 2, 2)
    world.play_until(world.now + 1_500_000)
    return list(world.checkers.violations)


def returned_and_own_something_else(seed: int) -> list[str]:
    """n1 and n2 had agreed to set 2, died one after the other, and are marked by n0, which serves
    s0. They come back and take s1 and s2, then set 2, which n0 does not know: it needs them."""
    world = _begin(seed, SETS[:2], 4, services=3, last_resort=LastResort.NONE)
    hosts, rng = world.hosts, random.Random(seed)
    for n in (1, 2):
        reload(world, 2, n)
        world.play_until(world.now + 100_000)
        burn(world, n)
    world.play_until(world.now + 600_000)
    world.operators.apart = True
    mark(world, 0, dead=("n1", "n2"))
    world.play_until(world.now + 1_500_000)
    world.operators.burnt.clear()
    for n in (1, 2):
        world.at(world.now + rng.randrange(10_000), world.boot, hosts[n])
    reload(world, 2, 3)
    world.play_until(world.now + 2_500_000)
    return list(world.checkers.violations)


def alone_in_a_set_it_came_with(seed: int) -> list[str]:
    """n2 has taken set 2 up and n3 came with it; n0 and n1 have agreed to it only. All but n3 die
    and are marked there. They come back, n2 without any mark, and n3 cannot read n0 and n1."""
    world = _begin(seed, ((0, 1, 2), (0, 1, 2, 3)), 4)
    hosts, rng = world.hosts, random.Random(seed)
    for n in (0, 1):
        hosts[n].stubborn = True
    reload(world, 2, 0, 1, 2, 3)
    world.play_until(world.now + 3_000_000)
    burn(world, 0, 1, 2)
    for n in (0, 1):
        hosts[n].stubborn = False
    world.play_until(world.now + 600_000)
    mark(world, 3, dead=("n0", "n1", "n2"))
    world.play_until(world.now + 2_500_000)
    world.operators.burnt.clear()
    for n in (0, 1, 2):
        world.at(world.now + 1 + rng.randrange(20_000), world.boot, hosts[n])
    world.play_until(world.now + 2_500_000)
    return list(world.checkers.violations)


def thaws_when_it_is_removed(seed: int) -> list[str]:
    """All have agreed to set 2, without n0, which serves alone by marks when the other two died.
    It stands still while they come back, take set 2 up and s0 over."""
    world = _begin(seed, ((0, 1, 2), (1, 2)), 3)
    hosts, rng = world.hosts, random.Random(seed)
    for n in (1, 2):
        reload(world, 2, n)
        world.play_until(world.now + 100_000)
        burn(world, n)
    world.play_until(world.now + 600_000)
    reload(world, 2, 0)
    world.play_until(world.now + 200_000)
    world.operators.apart = True
    mark(world, 0, dead=("n1", "n2"))
    world.play_until(world.now + 1_500_000)
    world.operators.burnt.clear()
    began = world.now
    hosts[0].freeze(began, rng.randrange(300, 1_500) * 1_000)
    for n in (1, 2):
        world.at(began + 1 + rng.randrange(5_000), world.boot, hosts[n])
    world.play_until(began + 3_500_000)
    return list(world.checkers.violations)


DRAMAS: dict[str, Callable[[int], list[str]]] = {
    f.__name__: f
    for f in (
        back_with_a_staged_set,
        returned_with_who_was_removed,
        joined_with_old_marks,
        returned_before_it_takes_up,
        agrees_as_the_marked_returns,
        returned_and_own_something_else,
        alone_in_a_set_it_came_with,
        thaws_when_it_is_removed,
    )
}
