"""Directed worlds about what operators order: a pause of which not everybody has heard."""

from __future__ import annotations

from collections.abc import Callable

from haclusterd.core import orders, voter
from haclusterd.core.inputs import MaintenanceRequested
from haclusterd.core.model import FOR_GOOD_US, NOBODY_NODE
from haclusterd.core.state import Node, Service, is_paused
from tests.sim.dramas import begin, owners_of
from tests.sim.host import Host
from tests.sim.mutations import patch
from tests.sim.windows import start_again

MS = 1000


def owner_restarts_in_a_pause(seed: int) -> list[str]:
    """Only the owner knows of a pause, and its vote is needed. It restarts and cannot serve for a
    while: nobody else gets its service, and then it has it again (ML10)."""
    world, rng = begin(seed, 3)
    before = owners_of(world)
    host = world.hosts[before[0]]
    gone, _ = rng.sample([h for h in world.hosts if h is not host], 2)
    gone.kill(world.now, power=True)
    world.operators.apart = True
    world.operators.pause(host, world.now, FOR_GOOD_US)
    world.play_until(world.now + 200 * MS)
    host.kill(world.now, power=False)
    back_us = world.now + rng.randrange(5, 600) * MS
    world.at(back_us, start_again, host)
    world.at(back_us + 1, _maintenance, (host, True))
    world.at(back_us + 2_000 * MS, _maintenance, (host, False))
    world.play_until(back_us + 5_000 * MS)
    found = list(world.checkers.violations)
    served = {n for _, n, _ in world.recoveries}
    if owners_of(world) != before or served != set(before):
        found.append(f"S5: the owner restarted in a pause, and s0 was served by {served}")
    return found


def _maintenance(t: int, what: tuple[Host, bool]) -> None:
    host, on = what
    host.give(t, MaintenanceRequested(1, on))


def former_owner_votes() -> None:
    """In a pause a former owner keeps its vote for itself: here it has forgotten its term."""

    def withholds(node: Node, service: Service, claimant: int, now_us: int) -> bool:
        held = service.promise
        kept = is_paused(node, now_us) and not orders._is_free(node, service)
        return kept and held.node not in (NOBODY_NODE, node.spec.me, claimant)

    patch(voter, "withholds", withholds)


DRAMAS: dict[str, Callable[[int], list[str]]] = {
    f.__name__: f for f in (owner_restarts_in_a_pause,)
}
