"""Directed worlds about nodes marked dead: one of four is back, and not cleared yet.

Whoever leaves it out needs two of the other three, whoever hears it needs three of all four: two
such sets share a node. So none of this may break anything, although operators are told to let
the network rest while somebody is still marked (docs/design.md, Marked dead). Agents tell each
other nothing meanwhile: what one heart has cleared they would clear for all.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import partial

from haclusterd.core.inputs import MaintenanceRequested, SwitchoverRequested
from tests.sim.dramas import SERVED_WITHIN_MS, all_ways, begin, burn, owners_of
from tests.sim.host import Host
from tests.sim.windows import (
    FOR_LONG_US,
    MS,
    cut,
    no_candidates,
    others,
    start_again,
    stop_now,
    watch,
)
from tests.sim.world import World

HOLD_DOWN_US = 250 * MS
# A beat, the claim of who is back, which comes to nothing and paces the others, and the next one.
VOTED_WITHIN_MS = 225


@dataclasses.dataclass(frozen=True)
class Cast:
    """`marked` is down and no voter, `owner` has s0, `taker` s1 if there is one."""

    world: World
    rng: random.Random
    marked: int
    owner: int
    taker: int
    third: int


def _burn(seed: int, services: int) -> Cast:
    """A node burns, the owner of s1 if there is one, and the other three count by its mark."""
    world, rng = begin(seed, 4, services)
    (owner,) = owners_of(world)
    last = services - 1
    marked = rng.choice([n for n in others(world, owner) if not last or n in owners_of(world, 1)])
    burn(world, marked)
    world.play_until(world.now + 600 * MS)
    living = others(world, marked)
    world.operators.mark(world.hosts[rng.choice(living)], world.now, f"n{marked}")
    world.play_until(world.now + 1_000 * MS + rng.randrange(25) * MS)
    taker = rng.choice([n for n in living if n != owner and (not last or n in owners_of(world, 1))])
    (third,) = others(world, marked, owner, taker)
    return Cast(world, rng, marked, owner, taker, third)


def _return(cast: Cast) -> None:
    """The marked node starts; no agent tells another anything any more."""
    cast.world.operators.burnt.discard(cast.marked)
    cast.world.operators.apart = True
    start_again(cast.world.now, cast.world.hosts[cast.marked])


def _return_to(cast: Cast, friend: int) -> None:
    """It hears `friend` alone. So it does not learn who has s1 now, and is not cleared, but echoes
    and grants as anybody."""
    cut(cast.world, [(cast.marked, n) for n in others(cast.world, cast.marked, friend)])
    _return(cast)
    after_us = HOLD_DOWN_US + cast.rng.randrange(60, 100) * MS
    cast.world.play_until(cast.world.now + after_us)


def _is_marked(cast: Cast, by: int) -> bool:
    node = cast.world.hosts[by].node
    return node is not None and cast.marked in node.unvoting


def _outcome(cast: Cast, for_ms: int = 1_000) -> list[str]:
    cast.world.play_until(cast.world.now + for_ms * MS)
    return list(cast.world.checkers.violations)


def marked_carries_a_lease(seed: int) -> list[str]:
    """Only the marked node hears the owner: its echo alone carries no lease, for the owner counts
    it, and the others are a majority (S1)."""
    cast = _burn(seed, 2)
    _return_to(cast, cast.owner)
    if not _is_marked(cast, cast.owner):
        return ["the drama did not take place: it is cleared"]
    cut(cast.world, [(cast.owner, cast.taker), (cast.owner, cast.third)])
    return _outcome(cast)


def marked_grants(seed: int) -> list[str]:
    """A slave that lost the owner alone asks the marked node and one that hears the owner: the vote
    of the former is not enough, for it counts as one of four (S1)."""
    cast = _burn(seed, 2)
    _return_to(cast, cast.third)
    if not _is_marked(cast, cast.third):
        return ["the drama did not take place: it is cleared"]
    cut(cast.world, [(cast.third, cast.owner)])
    return _outcome(cast)


def alone_with_the_marked(seed: int) -> list[str]:
    """A slave is left alone with the marked node, just when its turn has come (S1)."""
    cast = _burn(seed, 2)
    _return_to(cast, cast.third)
    cut(cast.world, [(cast.third, cast.owner)])
    cast.world.play_until(cast.world.now + cast.rng.randrange(20, 60) * MS)
    cut(cast.world, [(cast.third, cast.taker)])
    return _outcome(cast)


def marked_dies_again(seed: int) -> list[str]:
    """The owner serves with one of two others. The marked node starts and dies again before it has
    echoed anything: its mark has not gone, or there is no way out of the gap (V2)."""
    cast = _burn(seed, 1)
    world = cast.world
    world.hosts[cast.third].kill(world.now, power=True)
    world.play_until(world.now + 500 * MS)
    _return(cast)
    deaf_us = world.now + HOLD_DOWN_US - cast.rng.randrange(2, 20) * MS
    world.at(deaf_us, partial(_deafen, world), (cast.owner, cast.marked, 0))
    world.at(deaf_us + 60 * MS, stop_now, world.hosts[cast.marked])
    found = _outcome(cast)
    return found or ([] if owners_of(world) else ["V2: a node that gave no vote is needed"])


def _deafen(world: World, t: int, way: tuple[int, int, int]) -> None:
    world.network.add_cut([way], t, FOR_LONG_US)


def owner_dies_as_the_marked_starts(seed: int) -> list[str]:
    """Who is in its hold-down votes for nobody, and the others do not win without it once they hear
    it: they do when the hold-down ends (V2).
    """
    cast = _burn(seed, 1)
    world = cast.world
    _return(cast)
    votes = world.now + HOLD_DOWN_US
    world.play_until(world.now + cast.rng.randrange(40, 80) * MS)
    began = world.now
    served: list[float] = []
    watch(world, lambda host, row: served.append(world.now) if row == "T301" else None)
    world.hosts[cast.owner].kill(began, power=True)
    found = _outcome(cast)
    after_ms = (served[0] - began) / MS if served else float("inf")
    if after_ms > max(SERVED_WITHIN_MS, (votes - began) / MS + VOTED_WITHIN_MS):
        found.append(f"V2: s0 is served {after_ms:.1f} ms after its owner died")
    return found


def marked_is_slow_to_vote(seed: int) -> list[str]:
    """The owner serves with one of two others, and does not need the third, who starts, before its
    hold-down is over: the agents, who tell each other of it, do not say so either (V2)."""
    cast = _burn(seed, 1)
    world = cast.world
    world.hosts[cast.third].kill(world.now, power=True)
    world.play_until(world.now + 500 * MS + cast.rng.randrange(400) * MS)
    began = len(world.history)
    world.operators.burnt.discard(cast.marked)
    start_again(world.now, world.hosts[cast.marked])
    found = _outcome(cast)
    gaps = [line.strip() for line in world.history[began:] if " T401 " in line]
    return found + [f"V2: a gap for a node that does not vote yet: {g}" for g in gaps]


def alone(seed: int, owner: int = 0) -> tuple[World, random.Random]:
    """n0 of three serves by marks, and the other two start. `owner` was it when they died."""
    rng = random.Random(seed)
    world, _ = begin(seed, 3)
    if owners_of(world) != [owner]:
        world.hosts[owners_of(world)[0]].give(world.now, SwitchoverRequested(1, 0, owner))
        world.play_until(world.now + 1_000 * MS)
    burn(world, 1, 2)
    world.play_until(world.now + 600 * MS)
    for n in (1, 2):
        world.operators.mark(world.hosts[0], world.now, f"n{n}")
    world.play_until(world.now + 1_500 * MS)
    world.operators.burnt.clear()
    for n in (1, 2):
        world.at(world.now + 1 + rng.randrange(5_000), world.boot, world.hosts[n])
    return world, rng


def stand_still(world: World, in_ms: float, for_ms: int, n: int = 0) -> None:
    def freeze(t: int, host: Host) -> None:
        host.freeze(t, for_ms * MS)

    world.at(world.now + int(in_ms * MS), freeze, world.hosts[n])


def stunned_as_they_return(seed: int) -> list[str]:
    """It stands still for less than its lease when their hold-down ends: they have heard it."""
    world, rng = alone(seed)
    world.operators.apart = True
    stand_still(world, rng.randrange(205, 260), rng.randrange(75, 99))
    world.play_until(world.now + 2_000 * MS)
    return list(world.checkers.violations)


def thaws_when_they_are_back(seed: int) -> list[str]:
    """It stands still for longer, and they take s0 over: no vote is needed, as far as it knows."""
    world, rng = alone(seed)
    stand_still(world, rng.randrange(10, 250), rng.randrange(300, 1_500))
    world.play_until(world.now + 3_000 * MS)
    return list(world.checkers.violations)


def alone_as_they_return(seed: int) -> list[str]:
    """They start and vote: there is no moment without an owner (V2)."""
    world, _ = alone(seed)
    began = len(world.history)
    world.play_until(world.now + 1_000 * MS)
    gaps = [line.strip() for line in world.history[began:] if " T401 " in line]
    return world.checkers.violations + [f"V2: a gap for those who are back: {g}" for g in gaps]


def stunned_again_as_it_thaws(seed: int) -> list[str]:
    """n0 stands still while they take s0 over, thaws, and is stunned for less than its lease before
    it has heard anybody: what waits in its socket is too old to be two-way."""
    world, rng = alone(seed)
    asleep_ms, for_ms = rng.randrange(10, 250), rng.randrange(300, 1_500)
    stand_still(world, asleep_ms, for_ms)
    thawed_us = world.now + (asleep_ms + for_ms) * MS + rng.randrange(1, 200)

    def stun(t: int, host: Host) -> None:
        host.freeze(t, rng.randrange(77, 99) * MS)

    world.at(thawed_us, stun, world.hosts[0])
    world.play_until(world.now + 3_000 * MS)
    return list(world.checkers.violations)


def stunned_in_a_row(seed: int) -> list[str]:
    """n0 runs for a few ms now and then, from before they start until after their hold-down. Most
    of what it hears, and of what they hear of it, is too old to be two-way."""
    world, rng = alone(seed)
    world.play_until(world.now + 6 * MS)
    for n in (1, 2):
        world.hosts[n].kill(world.now, power=True)
    began = world.now
    back_us = began + rng.randrange(100, 200) * MS
    for n in (1, 2):
        world.at(back_us + rng.randrange(1, 15 * MS), world.boot, world.hosts[n])
    stunned_us = began + rng.randrange(1, 60) * MS
    at_least_ms, awake_us = rng.choice((60, 76, 85, 92)), rng.choice((40, 200, 1_000, 3_000))
    end_us = back_us + rng.randrange(300, 1_200) * MS
    while stunned_us < end_us:
        for_ms = rng.randrange(at_least_ms, 99)
        stand_still(world, (stunned_us - world.now) / MS, for_ms)
        stunned_us += for_ms * MS + rng.randrange(20, awake_us)
    world.play_until(back_us + 2_500 * MS)
    return list(world.checkers.violations)


def asleep_after_they_took_over(seed: int) -> list[str]:
    """n0 stands still while they take s0 over. Then both do, and n0 thaws and hears nobody; so it
    takes an epoch that was taken, and knows of no calls (S2, S4): but it never serves beside them.
    """
    world, rng = alone(seed)
    world.checkers.muted = frozenset(("S2", "S4"))
    world.operators.apart = bool(seed % 2)
    asleep_ms, thawed_ms = rng.randrange(10, 240), rng.randrange(600, 900)
    stand_still(world, asleep_ms, thawed_ms - asleep_ms)
    they_ms, thaw_ms = rng.randrange(480, thawed_ms), thawed_ms + rng.randrange(300, 1_500)
    for n in (1, 2):
        stand_still(world, they_ms, thaw_ms - they_ms, n)
    world.play_until(world.now + (thaw_ms + 1_500) * MS)
    return list(world.checkers.violations)


def asleep_in_their_hold_down(seed: int) -> list[str]:
    """Both stand still before the end of their hold-down and beyond it. When they thaw, n1 asks for
    what was its own, and n0, which has s0 by marks, stands still for less than its lease."""
    world, rng = alone(seed, owner=1)
    world.operators.apart = bool(seed % 2)
    asleep_in, thawed_in = rng.randrange(20, 200), rng.randrange(350, 600)
    for n in (1, 2):
        stand_still(world, asleep_in, thawed_in - asleep_in, n)
    stand_still(world, thawed_in - rng.randrange(0, 30), rng.randrange(75, 99))
    world.play_until(world.now + 2_000 * MS)
    return list(world.checkers.violations)


def claims_as_they_return(seed: int) -> list[str]:
    """Nobody has s0. n2, in maintenance, counts without the other two; just as n0, which is back,
    claims what was its own, n2 is a candidate again, and needs no other vote by its marks. A beat
    is lost on the way."""
    world, rng = begin(seed, 3)
    world.hosts[2].give(world.now, MaintenanceRequested(1, True))
    burn(world, 0, 1)
    world.play_until(world.now + 600 * MS)
    for n in (0, 1):
        world.operators.mark(world.hosts[2], world.now, f"n{n}")
    world.play_until(world.now + 1_500 * MS)
    world.operators.burnt.clear()
    world.operators.apart = True
    for n in (0, 1):
        world.at(world.now + 1 + rng.randrange(3_000), world.boot, world.hosts[n])

    def heard(who: int, row: str) -> None:
        if row == "T101" and who != 2:
            watch(world, lambda *told: None)
            world.network.add_cut([(0, 2, 0), (1, 2, 0)], world.now, 5 * MS)
            world.at(world.now + rng.randrange(MS), ends, world.hosts[2])

    def ends(t: int, host: Host) -> None:
        host.give(t, MaintenanceRequested(2, False))

    watch(world, heard)
    world.play_until(world.now + 1_000 * MS)
    return list(world.checkers.violations)


def claims_as_they_hold_down(seed: int) -> list[str]:
    """Two of four thaw. A third, alone by marks, hears them for less than a lease, and wins by its
    own vote; they hear nothing of that, and vote as their hold-down ends."""
    world, rng = begin(seed, 4)
    (owner,) = owners_of(world)
    lone, other, gone = others(world, owner)
    no_candidates(world, [lone, other])
    burn(world, gone)
    world.play_until(world.now + 600 * MS)
    world.operators.mark(world.hosts[lone], world.now, f"n{gone}")
    world.play_until(world.now + 1_500 * MS)
    thawed_us = world.now + 3_000 * MS
    for n in (owner, other):
        stand_still(world, 0, 3_000, n)
    world.play_until(world.now + 700 * MS)
    for n in (owner, other):
        world.operators.mark(world.hosts[lone], world.now, f"n{n}")
    world.operators.apart = True
    world.play_until(thawed_us - 5 * MS)
    heard_us = rng.randrange(85, 99) * MS
    ready_us = heard_us + rng.randrange(85, 99) * MS
    for end, for_us in ((0, 320 * MS), (1, heard_us)):  # it is heard later than it hears
        ways = [way for way in all_ways(world) if way[end] == lone]
        world.network.add_cut(ways, world.now, thawed_us + for_us - world.now)
    world.at(thawed_us + ready_us, _is_ready, world.hosts[lone])
    world.play_until(thawed_us + 900 * MS)
    return list(world.checkers.violations)


def _is_ready(t: int, host: Host) -> None:
    host.give(t, MaintenanceRequested(2, False))


def starts_deaf_with_old_marks(seed: int) -> list[str]:
    """n0's power fails before the marks of those who are back are cleared there. Later it starts,
    and hears nobody yet, as behind a port that comes up late: they serve, and it has to wait."""
    world, rng = alone(seed)
    world.play_until(world.now + rng.randrange(60, 240) * MS)
    world.hosts[0].kill(world.now, power=True)
    world.play_until(world.now + 5_000 * MS)
    cut(world, [(0, 1), (0, 2)], rng.randrange(500, 5_000) * MS)
    world.boot(world.now, world.hosts[0])
    world.play_until(world.now + 8_000 * MS)
    found = list(world.checkers.violations)
    if not found and owners_of(world) not in ([1], [2]):
        found.append(f"V3: {owners_of(world)} serve s0")
    return found


DRAMAS: dict[str, Callable[[int], list[str]]] = {
    f.__name__: f
    for f in (
        marked_carries_a_lease,
        marked_grants,
        alone_with_the_marked,
        marked_dies_again,
        owner_dies_as_the_marked_starts,
        marked_is_slow_to_vote,
        alone_as_they_return,
        stunned_again_as_it_thaws,
        stunned_in_a_row,
        asleep_after_they_took_over,
        asleep_in_their_hold_down,
        claims_as_they_return,
        claims_as_they_hold_down,
        starts_deaf_with_old_marks,
        stunned_as_they_return,
        thaws_when_they_are_back,
    )
}
