"""Nodes that were marked dead come back while other faults go on (`--worlds returns`).

What the operator owes is kept (docs/design.md, Marked dead): the network is whole from the
first start until no node that lives is marked anywhere, and nobody loses its memory meanwhile.
Everything else happens as it may: who counts by marks, who comes back and who looks on stand still,
alone and together, in one piece and in several; they crash, are stopped, and moved.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.sim.faults import Blow
from tests.sim.orders import tell_of_the_dead
from tests.sim.swarm import Swarm, swarm_of_changes

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.world import World

LOOK_EVERY_US = 50_000
APART_US = (0, 1_000, 5_000, 20_000, 400_000)  # between the first start and the last
AWAKE_MS = (0.04, 0.2, 2, 10, 26)  # between two pieces
BELOW_LEASE_MS, BELOW_DEAD_MS, LONG_MS = (70, 99), (130, 149), (300, 1_500)
PIECES_MS = ((20, 99), BELOW_LEASE_MS, (90, 160), BELOW_DEAD_MS, (150, 300), LONG_MS)
# Of what nobody in reach has heard, nothing can be remembered (docs/reliability.md).
MUTED = frozenset({"S2", "S4"})


def swarm_of_returns(seed: int) -> Swarm:
    """An ordinary seed's world with few other faults; in some of them the voters change, too."""
    rng = random.Random(seed)
    plain = swarm_of_changes(seed)
    few = [k for k in plain.kinds if k not in ("reconfigure", "mark_dead")]
    rng.shuffle(few)
    changing = rng.random() < 0.4
    nodes = plain.nodes if changing else rng.choice((3, 3, 4, 5))
    return dataclasses.replace(
        plain,
        nodes=nodes,
        members=plain.members if changing else 0,
        rates_ppm=plain.rates_ppm[:nodes],
        kinds=(
            *few[: rng.choice((0, 1, 3))],
            *("reconfigure",) * changing,
            *("burn_and_return",) * 3,
        ),
        fault_mean_us=rng.choice((1_000_000, 2_000_000)),
        loss=rng.choice((0.0, 0.0, 0.01)),
        links=rng.choice((1, 1, 2)),
        services=rng.choice((1, 1, 2)),
    )


def burn_and_return(blow: Blow, host: Host) -> None:
    """Nodes burn, mostly a majority; an operator says so, and seconds later they are back."""
    world, rng = blow.world, blow.rng
    world.checkers.muted |= MUTED
    world.operators.clocks_step = True
    burnt = world.operators.burnt
    voters = [h for h in world.hosts if h.me not in world.retired | burnt]
    most = max(0, len(voters) - 1)
    count = rng.choice((1, len(voters) // 2 + 1, most))
    for victim in rng.sample(voters, min(most, count)):
        burnt.add(victim.me)
        if victim.alive:
            victim.kill(blow.t, power=True)
    for after_ms in (200, 600, 1_200):
        blow.later(blow.spell(after_ms, after_ms + 300), tell_of_the_dead, host)
    blow.later(blow.spell(900, 4_000), _come_back, host)


def _come_back(blow: Blow, host: Host) -> None:
    world, rng = blow.world, blow.rng
    back = [world.hosts[n] for n in sorted(world.operators.burnt)]
    if not back:
        return
    world.note(f"OPERATOR starts {', '.join(f'n{h.me}' for h in back)}")
    world.operators.burnt.clear()
    if not world.network.whole:
        world.network.whole = True
        world.at(blow.t + LOOK_EVERY_US, _look, world)
    world.operators.apart = rng.random() < 0.5
    apart_us = rng.choice(APART_US) * blow.nemesis.scale
    for each in back:
        world.at(blow.t + 1 + rng.randrange(apart_us + 1), blow.nemesis.up, (each, True))
    others = [h for h in world.hosts if h.me not in world.retired and h not in back]
    for what in rng.choice(
        ((), (_taken_over,), (_in_a_row,), (_by_chance,), (_in_a_row, _by_chance))
    ):
        what(blow, back, others)
    if rng.random() < 0.2:
        _die_again(blow, back)


def _taken_over(blow: Blow, back: list[Host], others: list[Host]) -> None:
    """Who counts by marks sleeps while they take over, they do as it thaws, and it as they wake."""
    rng = blow.rng
    at_ms = rng.uniform(10, 250)
    at_ms = _stand_still(blow, others, at_ms, LONG_MS, 1) - rng.uniform(0, 25)
    for_ms = rng.choice((BELOW_LEASE_MS, BELOW_DEAD_MS, BELOW_DEAD_MS, (300, 700)))
    at_ms = _stand_still(blow, back, at_ms, for_ms, rng.choice((1, 2, 3))) - rng.uniform(-26, 26)
    _stand_still(blow, others, at_ms, rng.choice((BELOW_LEASE_MS, LONG_MS)), rng.choice((1, 2)))


def _in_a_row(blow: Blow, back: list[Host], others: list[Host]) -> None:
    """Some run for moments only, from about the start to about the end of a hold-down."""
    rng = blow.rng
    group = rng.choice((back, others, others, [rng.choice(back)]))
    piece_ms = rng.choice((BELOW_LEASE_MS, (60, 99), (90, 149), BELOW_DEAD_MS))
    _stand_still(blow, group, rng.uniform(0, 200), piece_ms, rng.randrange(2, 10))


def _by_chance(blow: Blow, back: list[Host], others: list[Host]) -> None:
    """Some stand still, and as they thaw, others or the same do."""
    rng = blow.rng
    at_ms = rng.choice((rng.uniform(0, 30), rng.uniform(0, 400), rng.uniform(0, 2_000)))
    for _ in range(rng.choice((1, 2, 3, 4))):
        group = rng.choice((back, others, back + others, [rng.choice(back + others)]))
        at_ms = _stand_still(blow, group, at_ms, rng.choice(PIECES_MS), rng.choice((1, 1, 2, 3)))
        at_ms = max(0.0, at_ms + rng.uniform(-26, 26))


def _stand_still(
    blow: Blow, group: list[Host], at_ms: float, piece_ms: tuple[int, int], pieces: int
) -> float:
    """All of a group, so many times, from `at_ms` after the start on; when they wake for good."""
    scale_us = 1_000 * blow.nemesis.scale
    awake_ms = blow.rng.choice(AWAKE_MS)
    for piece in range(pieces):
        for_ms = blow.rng.uniform(*piece_ms)
        for host in group:
            still = _still(int(for_ms * scale_us))
            blow.world.at(blow.t + 1 + int(at_ms * scale_us), still, host)
        at_ms += for_ms + (awake_ms if piece < pieces - 1 else 0)
    return at_ms


def _die_again(blow: Blow, back: list[Host]) -> None:
    """They lose their power as soon as they run, and come back."""
    dead_us = 1 + blow.rng.randrange(300_000) * blow.nemesis.scale
    back_us = dead_us + blow.rng.randrange(1_000, 300_000) * blow.nemesis.scale
    for host in back:
        blow.later(dead_us, _die, host)
        blow.world.at(blow.t + back_us + blow.rng.randrange(15_000), blow.nemesis.up, (host, True))


def _die(blow: Blow, host: Host) -> None:
    if host.alive:
        host.kill(blow.t, power=True)


def _still(for_us: int) -> Callable[[int, Host], None]:
    def still(t: int, host: Host) -> None:
        if not host.world.nemesis.over:
            host.freeze(t, for_us)

    return still


def _look(t: int, world: World) -> None:
    """Whether links may fail again: nobody knows of a mark of a node that lives."""
    operators = world.operators
    living = {h.me for h in world.hosts if h.me not in operators.burnt | world.retired}
    if operators.marked() & living and not world.nemesis.over:
        world.at(t + LOOK_EVERY_US, _look, world)
        return
    world.network.whole = False
    operators.apart = False
