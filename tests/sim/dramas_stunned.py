"""Directed worlds about nodes that stand still more than once, beside an owner by marks.

What they send between is of an incarnation that nobody has met, or too old to be two-way.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from haclusterd.core import actions as act
from haclusterd.core.inputs import SwitchoverRequested
from haclusterd.core.model import Quorum
from tests.sim.dramas import begin, burn, calm, owners_of, stage
from tests.sim.dramas_marks import alone, stand_still
from tests.sim.host import Host
from tests.sim.windows import MS, start_again
from tests.sim.world import World

AWAKE_US = (40, 100, 200)
AWAKE_US_LONG = (2_000, 5_000, 10_000)
MUTED = frozenset(("S2", "S4"))  # of what nobody in reach has heard nothing can be remembered


def _in_pieces(world: World, from_ms: float, pieces_ms: list[int], awake_us: int) -> float:
    """n1 and n2 stand still again and again, from `from_ms` on; when they wake for good (ms)."""
    for piece_ms in pieces_ms:
        for n in (1, 2):
            stand_still(world, from_ms, piece_ms, n)
        from_ms += piece_ms + awake_us / 1_000
    return from_ms


def _taken_over(seed: int) -> tuple[World, random.Random, int]:
    """n0, which serves by marks, stands still while they take s0 over; when it thaws (ms)."""
    world, rng = alone(seed)
    world.checkers.muted = MUTED
    world.operators.apart = True
    asleep_ms, thawed_ms = rng.randrange(10, 240), rng.randrange(750, 900)
    stand_still(world, asleep_ms, thawed_ms - asleep_ms)
    return world, rng, thawed_ms


def asleep_in_pieces(seed: int) -> list[str]:
    """n0 stands still while they take s0 over. Then both do, several times for less than `dead`;
    n0 thaws, hears nobody and serves by marks, and is stunned as they wake."""
    world, rng, thawed_ms = _taken_over(seed)
    pieces_ms = rng.choice(((138, 149), (138, 149, 138, 149), (142, 149, 85, 98, 85, 98)))
    drawn = [rng.randrange(*pieces_ms[i : i + 2]) for i in range(0, len(pieces_ms), 2)]
    if len(drawn) == 1:
        drawn *= 2
    end_ms = _in_pieces(world, thawed_ms - rng.uniform(0.5, 20), drawn, rng.choice(AWAKE_US))
    stand_still(world, end_ms - rng.uniform(0, 12), rng.randrange(70, 99))
    world.play_until(world.now + int(end_ms * MS) + 1_500 * MS)
    return list(world.checkers.violations)


def unmet_while_it_is_stunned(seed: int) -> list[str]:
    """As `asleep_in_pieces`, but they run for a beat between, and n0 is stunned just then:
    what it reads afterwards is of an incarnation that it has not met, and too old to prove it."""
    world, rng, thawed_ms = _taken_over(seed)
    end_ms, pieces = thawed_ms - rng.uniform(0.5, 20), rng.choice((2, 3))
    for piece in range(pieces):
        for_ms = rng.randrange(138, 149)
        for n in (1, 2):
            stand_still(world, end_ms, for_ms, n)
        end_ms += for_ms
        if piece < pieces - 1:
            stand_still(world, end_ms - rng.uniform(1, 10), rng.randrange(60, 98))
            end_ms += rng.uniform(25.1, 30)
    stand_still(world, end_ms - rng.uniform(0, 12), rng.randrange(70, 99))
    world.play_until(world.now + int(end_ms * MS) + 1_500 * MS)
    return list(world.checkers.violations)


def unheard_between_pieces(seed: int) -> list[str]:
    """As `asleep_in_pieces`, but they run for some ms between, and what they say then is lost."""
    world, rng, thawed_ms = _taken_over(seed)
    from_ms = at_ms = thawed_ms - rng.uniform(0.5, 20)
    pieces_ms, awake_us = [rng.randrange(130, 147) for _ in range(3)], rng.choice(AWAKE_US_LONG)
    for piece_ms in pieces_ms[:-1]:
        at_ms += piece_ms
        _lose(world, world.now + int((at_ms - 0.2) * MS), 3 * MS, ((1, 0), (2, 0)))
        at_ms += awake_us / 1_000
    end_ms = _in_pieces(world, from_ms, pieces_ms, awake_us)
    stand_still(world, end_ms - rng.uniform(0, 12), rng.randrange(70, 99))
    world.play_until(world.now + int(end_ms * MS) + 1_500 * MS)
    return list(world.checkers.violations)


def _lose(world: World, at_us: int, for_us: int, ways: tuple[tuple[int, int], ...]) -> None:
    def cut(t: int, _: object) -> None:
        world.network.add_cut([(a, b, 0) for a, b in ways], t, for_us)

    world.at(at_us, cut, None)


class _StopsBefore:
    """Hosts stop before they carry out an action of this kind, once, from a time on."""

    def __init__(self, kind: type, plan: dict[int, tuple[int, int]]) -> None:
        """`plan`: by host, from when on and for how long (us)."""
        self._kind, self._plan = kind, plan

    def strikes(self, host: Host, t: int, action: act.Action) -> str:
        from_us, for_us = self._plan.get(host.me, (0, 0))
        if not for_us or t < from_us or not isinstance(action, self._kind):
            return ""
        del self._plan[host.me]
        host.actions.appendleft(action)
        host.stop_here(t, for_us)
        return "stop"


def stopped_before_their_beats(seed: int) -> list[str]:
    """As `asleep_in_pieces`, nothing lost: they have read the clock, and stand still again before
    they have said a word."""
    world, rng, thawed_ms = _taken_over(seed)
    from_ms = thawed_ms - rng.uniform(0.5, 20)
    one_ms, other_ms = rng.randrange(142, 149), rng.randrange(142, 149)
    wake_us = world.now + int((from_ms + one_ms - 1) * MS)
    for n in (1, 2):
        stand_still(world, from_ms, one_ms, n)
    plan = dict.fromkeys((1, 2), (wake_us, other_ms * MS))
    world.failpoint = _StopsBefore(act.FlushSockets, plan)
    end_ms = from_ms + one_ms + other_ms
    stand_still(world, end_ms - rng.uniform(0, 12), rng.randrange(70, 99))
    world.play_until(world.now + int(end_ms * MS) + 1_500 * MS)
    return list(world.checkers.violations)


def unheard_as_they_hold_down(seed: int) -> list[str]:
    """n1 and n2, which own s0, thaw and hold down. n0 runs twice meanwhile, between stuns shorter
    than its lease: it hears them, renews without them while it may, and is not heard."""
    world, rng, thawed_ms = _taken_over(seed)
    from_ms, long_ms = thawed_ms - rng.uniform(0.5, 20), rng.randrange(400, 700)
    woken_us = world.now + int(_in_pieces(world, from_ms, [long_ms], 0) * MS)
    at_us = woken_us - rng.randrange(1_000, 4_000)
    for _ in range(3):
        until_us = at_us + rng.randrange(94_000, 98_500)
        _stun(world, at_us, until_us)
        _lose(world, until_us - 50, 1 * MS, ((0, 1), (0, 2)))
        at_us = until_us + rng.randrange(100, 300)
    world.play_until(woken_us + 1_500 * MS)
    return list(world.checkers.violations)


def _about_to_listen(seed: int, piece_ms: tuple[int, int]) -> tuple[World, random.Random, int]:
    """n1 and n2, which own s0, stand still for long, n0 serves by marks, they run for some us and
    stand still once more in their hold-down; when they wake for good (us)."""
    world, rng, thawed_ms = _taken_over(seed)
    from_ms, long_ms = thawed_ms - rng.uniform(0.5, 20), rng.randrange(400, 700)
    pieces_ms = [long_ms, rng.randrange(*piece_ms)]
    awake_us = rng.choice(AWAKE_US)
    end_ms = _in_pieces(world, from_ms, pieces_ms, awake_us) - awake_us / 1_000
    return world, rng, world.now + int(end_ms * MS)


def unheard_as_they_listen(seed: int) -> list[str]:
    """n0 hears them start, is stunned, renews its lease without them while it may, which they do
    not hear, and is stunned again."""
    world, rng, woken_us = _about_to_listen(seed, (101, 140))
    met_us = woken_us + rng.randrange(400, 1_500)
    renews_us = woken_us + rng.randrange(97_000, 99_500)
    _stun(world, met_us, renews_us)
    _lose(world, renews_us - 50, 1 * MS, ((0, 1), (0, 2)))
    again_us = renews_us + rng.randrange(40, 300)
    _stun(world, again_us, again_us + rng.randrange(80_000, 98_000))
    world.play_until(woken_us + 1_500 * MS)
    return list(world.checkers.violations)


def _stun(world: World, from_us: int, until_us: int, n: int = 0) -> None:
    def freeze(t: int, host: Host) -> None:
        host.freeze(t, until_us - t)

    world.at(from_us, freeze, world.hosts[n])


def never_met_in_stuns(seed: int) -> list[str]:
    """n0 is in a row of stuns, each below its lease, and runs for less than a round trip between
    them: nobody meets anybody, and n0 is heard all the while."""
    world, rng, woken_us = _about_to_listen(seed, (101, 149))
    world.checkers.muted = MUTED | {"S5"}
    at_us = woken_us - rng.randrange(1_000, 12_000)
    while at_us < woken_us + 300 * MS:
        until_us = at_us + rng.randrange(90_000, 99_500)
        _stun(world, at_us, until_us)
        at_us = until_us + rng.choice((40, 100, 150))
    world.play_until(woken_us + 1_500 * MS)
    return list(world.checkers.violations)


def _one_vote(seed: int) -> tuple[World, random.Random, int]:
    """Three nodes at rest, where one vote is enough; who owns s0."""
    rng = random.Random(seed)
    plain = calm(3, 1, 1)
    world = World(seed, dataclasses.replace(plain, delay_mean_us=100, quorum=Quorum.AVAILABILITY))
    stage.append(world)
    world.checkers.muted = MUTED | {"S5", "S10"}
    for host in world.hosts:
        world.at(rng.randrange(40_000), world.boot, host)
    world.play_until(2_500 * MS + rng.randrange(50_000))
    (owner,) = owners_of(world)
    return world, rng, owner


def stunned_beside_one_vote(seed: int) -> list[str]:
    """One vote is enough. The owner stands still once, and its next in line again and again, so
    that it never meets the owner's new incarnation."""
    world, rng, owner = _one_vote(seed)
    running = world.hosts[owner].node
    slave = next(n for n in (running.successors[0] if running else ()) if n != owner)
    from_ms = rng.uniform(30, 60)
    stand_still(world, from_ms, rng.randrange(101, 140), owner)
    from_ms -= rng.uniform(1, 70)
    for _ in range(5):
        for_ms = rng.randrange(77, 98)
        stand_still(world, from_ms, for_ms, slave)
        from_ms += for_ms + rng.choice((0.04, 0.1, 0.15))
    world.play_until(world.now + 2_000 * MS)
    return list(world.checkers.violations)


def marked_by_an_old_word(seed: int) -> list[str]:
    """Three of five are marked, come back, are cleared and serve. While they stand still, n0's
    agent hears of the marks, which were ordered when they were dead."""
    rng = random.Random(seed)
    world, _ = begin(seed, 5)
    world.checkers.muted = MUTED | {"V5"}
    if owners_of(world) != [2]:
        world.hosts[owners_of(world)[0]].give(world.now, SwitchoverRequested(1, 0, 2))
        world.play_until(world.now + 1_000 * MS)
    world.operators.apart = True
    burn(world, 2, 3, 4)
    world.play_until(world.now + 600 * MS)
    for n in (2, 3, 4):
        world.operators.mark(world.hosts[1], world.now, f"n{n}")
    word = world.operators.agreed[1].word(world.hosts[1].local(world.now))
    world.play_until(world.now + 1_500 * MS)
    world.operators.burnt.clear()
    for n in (2, 3, 4):
        world.at(world.now + 1 + rng.randrange(5_000), world.boot, world.hosts[n])
    world.play_until(world.now + 2_000 * MS)
    (owner,) = owners_of(world)
    if owner < 2:
        world.hosts[owner].give(world.now, SwitchoverRequested(2, 0, 2))
        world.play_until(world.now + 1_000 * MS)
    began, for_ms = world.now, rng.randrange(600, 1_500)
    for n in (2, 3, 4):
        stand_still(world, rng.uniform(0, 0.4), for_ms, n)
    world.play_until(began + rng.randrange(2, 150) * MS)
    n0 = world.hosts[0]
    world.operators.agreed[0].merge(word, n0.local(world.now))
    world.operators.tell(n0, world.now)
    thaw_ms = for_ms - (world.now - began) / MS
    for n in (0, 1):
        stand_still(world, thaw_ms - rng.uniform(0, 12), rng.randrange(75, 98), n)
    world.play_until(began + (for_ms + 1_000) * MS)
    return list(world.checkers.violations)


def stunned_as_the_former_owner_returns(seed: int) -> list[str]:
    """One vote is enough. The owner of before starts again, and the present one is stunned as its
    hold-down ends."""
    world, rng, former = _one_vote(seed)
    world.hosts[former].kill(world.now, power=False)
    world.play_until(world.now + 1_500 * MS)
    start_again(world.now, world.hosts[former])
    (owner,) = owners_of(world)
    stand_still(world, 250 - rng.randrange(76, 90), rng.randrange(85, 98), owner)
    world.play_until(world.now + 2_000 * MS)
    return list(world.checkers.violations)


def starts_in_pieces(seed: int) -> list[str]:
    """n1 and n2 run for some us now and then in their hold-down, so that whatever n0 answers is
    too old to be two-way; n0 is stunned as they wake."""
    world, rng = alone(seed)
    world.checkers.muted = MUTED | {"S5"}
    world.operators.apart = True
    world.play_until(world.now + 6 * MS)
    for n in (1, 2):
        world.hosts[n].kill(world.now, power=False)
    world.play_until(world.now + 300 * MS)
    for n in (1, 2):
        world.at(world.now + 1, world.boot, world.hosts[n])
    awake_us = rng.choice((30, 60, 100))
    pieces_ms = [rng.randrange(70, 99) for _ in range(rng.choice((3, 4)))]
    end_ms = _in_pieces(world, awake_us / 1_000, pieces_ms, awake_us)
    stand_still(world, end_ms - rng.uniform(0, 1.5), rng.randrange(64, 80))
    world.play_until(world.now + int(end_ms * MS) + 1_500 * MS)
    return list(world.checkers.violations)


def _marked_by_n0(seed: int) -> tuple[World, random.Random]:
    """n1 and n2 are down, and n0, which has s0, has marked them just now."""
    rng = random.Random(seed)
    world, _ = begin(seed, 3)
    world.checkers.muted = MUTED
    if owners_of(world) != [0]:
        world.hosts[owners_of(world)[0]].give(world.now, SwitchoverRequested(1, 0, 0))
        world.play_until(world.now + 1_000 * MS)
    burn(world, 1, 2)
    world.play_until(world.now + 600 * MS)
    for n in (1, 2):
        world.operators.mark(world.hosts[0], world.now, f"n{n}")
    return world, rng


def _asleep_by_turns(
    world: World, rng: random.Random, asleep_ms: float, start_ms: int, thawed_ms: int
) -> list[str]:
    """n1 and n2 start. n0 stands still until they have taken s0 over, then they do; n0 serves by
    marks, and is stunned as they thaw."""
    world.operators.burnt.clear()
    for n in (1, 2):
        world.at(world.now + start_ms * MS + rng.randrange(1, 5_000), world.boot, world.hosts[n])
    stand_still(world, asleep_ms, int(thawed_ms - asleep_ms))
    they_ms, thaw_ms = thawed_ms - rng.randrange(1, 100), thawed_ms + rng.randrange(300, 1_500)
    for n in (1, 2):
        stand_still(world, they_ms, thaw_ms - they_ms, n)
    stand_still(world, thaw_ms - rng.randrange(15), rng.randrange(75, 99))
    world.play_until(world.now + (thaw_ms + 1_500) * MS)
    return list(world.checkers.violations)


def asleep_before_it_counts(seed: int) -> list[str]:
    """n1 and n2 start at once, and n0 stands still before their marks are in force: all that they
    have heard of it is that it has marked them."""
    world, rng = _marked_by_n0(seed)
    world.operators.apart = bool(seed % 2)
    return _asleep_by_turns(world, rng, rng.randrange(10, 200), 0, rng.randrange(2_900, 3_300))


def asleep_before_they_start(seed: int) -> list[str]:
    """n0 stands still from before n1 and n2 start: they have never heard it."""
    world, rng = _marked_by_n0(seed)
    world.operators.apart = True
    world.play_until(world.now + 1_000 * MS)
    return _asleep_by_turns(world, rng, 0.01, 20, rng.randrange(3_300, 3_600))


DRAMAS: dict[str, Callable[[int], list[str]]] = {
    f.__name__: f
    for f in (
        asleep_in_pieces,
        unmet_while_it_is_stunned,
        unheard_between_pieces,
        stopped_before_their_beats,
        unheard_as_they_listen,
        unheard_as_they_hold_down,
        never_met_in_stuns,
        stunned_beside_one_vote,
        marked_by_an_old_word,
        stunned_as_the_former_owner_returns,
        starts_in_pieces,
        asleep_before_it_counts,
        asleep_before_they_start,
    )
}
