"""Bugs that the simulator found, each as its shortest trace (docs/track-record.md)."""

from __future__ import annotations

import pytest

from haclusterd import wire
from tests.scenarios.player import Player
from tests.sim.drills import act_out, aimed_swarm
from tests.sim.swarm import swarm_of_marks
from tests.sim.world import World

BEGIN = ["boot all", "run 2000ms"]


def test_f1_a_restarted_voter_still_tells_a_former_owner_of_its_successor() -> None:
    player = Player()
    player.play(["cluster masters=1 slaves=2", *BEGIN])
    player.play(["cut n0 all 900ms", "run 600ms", "kill n1 n2", "boot n2", "run 2000ms"])


def test_f2_a_slave_whose_freeswitch_died_is_no_candidate_in_its_own_eyes() -> None:
    player = Player()
    player.play(["cluster masters=2 slaves=1", *BEGIN, "freeswitch-dies n2", "run 1ms"])
    node = player.host("n2").node
    assert node is not None
    assert all(2 not in line for line in node.successors)


def test_f5_who_released_a_service_recovers_its_calls_when_it_has_it_again() -> None:
    world = World(11, aimed_swarm("release of the present promise only", 11))
    assert world.run(0.5) == []


def test_f15_calls_that_came_back_in_place_are_not_taken_up_beside_themselves() -> None:
    assert World(212).run(1) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [10300, 6727])
def test_f14_f18_an_epoch_that_was_won_twice(seed: int) -> None:
    assert World(seed).run(10) == []


def test_f20_marked_nodes_come_back_beside_a_change_of_the_voters() -> None:
    assert World(770, swarm_of_marks(770)).run(1) == []


@pytest.mark.parametrize(
    ("drama", "told"),
    [
        ("services_change_places", "SHAPE_MASK"),
        ("addresses_change_places", "SHAPE_MASK"),
        ("times_become_shorter", "TIMES_MASK"),
        ("times_become_shorter_at_once", "TIMES_MASK"),
    ],
)
def test_f35_f38_another_file_that_is_rolled_out_makes_no_second_owner(
    drama: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        assert act_out(drama, seed)[0] == []
    monkeypatch.setattr(wire, told, 0)
    found, _ = act_out(drama, 0)
    assert any("S1: " in violation for violation in found), "it was read before"
