"""Quorum policies and operators' orders in the simulator: each alone, over some seeds.

`python -m tests.sim` draws them too; here nobody has to be lucky.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from haclusterd.core.model import LastResort, Quorum
from haclusterd.core.state import owns
from tests.scenarios.player import Player
from tests.sim.checkers import NOT_WITHOUT_A_MAJORITY
from tests.sim.swarm import LAN, Swarm, draw_swarm
from tests.sim.world import World


def swarm_of(seed: int, *kinds: str, **changes: Any) -> Swarm:
    swarm = draw_swarm(random.Random(seed))
    return dataclasses.replace(swarm, kinds=(*swarm.kinds, *kinds), **changes)


def play(seed: int, swarm: Swarm) -> World:
    world = World(seed, swarm)
    assert world.run(0.5) == [], "\n".join([str(swarm), *world.history[-40:]])
    return world


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_ml10_pause_in_the_middle_of_anything(seed: int) -> None:
    play(seed, swarm_of(seed, "pause", "power_off", "freeswitch"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_ml18_marked_dead_truthfully(seed: int) -> None:
    swarm = swarm_of(seed, quorum=Quorum.MAJORITY, ending="whole", loss=0.01)
    swarm = dataclasses.replace(
        swarm, kinds=("mark_dead", "cut_node", "freeze"), fault_mean_us=1_000_000, timing=LAN
    )
    world = play(seed, swarm)
    assert any("is dead: it has no vote" in line for line in world.history)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_ml15_availability_has_one_owner_again_when_whole(seed: int) -> None:
    changes: dict[str, Any] = {"quorum": Quorum.AVAILABILITY, "ending": "whole"}
    world = play(seed, swarm_of(seed, "cut_half", "cut_node", **changes))
    assert world.checkers.muted == NOT_WITHOUT_A_MAJORITY


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_ml16_a_witness_never_owns(seed: int) -> None:
    swarm = swarm_of(seed, "cut_node", "power_off", quorum=Quorum.WITNESS, services=1)
    world = play(seed, swarm)
    witness = f"n{swarm.nodes - 1}"
    assert world.hosts[-1].spec.nodes[-1].witness
    assert not any(f"{witness} claims" in line for line in world.history)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_last_resort_none_gives_no_master_a_second_service(seed: int) -> None:
    swarm = swarm_of(seed, "power_off", services=2, last_resort=LastResort.NONE)
    world = World(seed, dataclasses.replace(swarm, quorum=Quorum.MAJORITY))
    for second in range(1, 30):
        world.play_until(second * 1_000_000)
        for host in world.hosts:
            if host.alive and host.node is not None:
                assert sum(map(owns, host.node.services)) <= 1, world.history[-40:]
    assert world.checkers.violations == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_b19_relinquishing_in_the_middle_of_anything(seed: int) -> None:
    swarm = swarm_of(seed, "power_off", "crash", services=2, quorum=Quorum.MAJORITY,
                     last_resort=LastResort.MASTERS)  # fmt: skip
    play(seed, dataclasses.replace(swarm, relinquish_us=10 * swarm.timing.dead_us))


def test_ml18_a_lie_has_two_owners() -> None:
    """Why docs/design.md says that marking a living node dead is the operator's own doing."""
    player = Player()
    player.play(["cluster masters=1 slaves=2", "boot all", "run 2000ms"])
    player.play(["cut n0 all 60000ms", "run 1000ms", "expect owner s0 n1"])
    world = player.cluster_world
    world.checkers.muted = frozenset({"S1", "S2", "S4", "S5", "S10"})
    player.play(["mark-dead n1 n0", "mark-dead n2 n0", "run 1000ms"])
    assert player.owners(0) == [0, 1]
    player.play(["heal n0 all", "run 4000ms"])  # who was marked is told, and yields
    assert len(player.owners(0)) == 1
    assert sum(any(map(owns, h.node.services)) for h in world.hosts if h.node) == 1
