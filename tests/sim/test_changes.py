"""Voters and versions change while faults go on, and no invariant breaks."""

from __future__ import annotations

import pytest

from tests.sim import changes
from tests.sim.dramas import begin, owners_of
from tests.sim.swarm import spec_of, swarm_of_changes, swarm_of_marks, swarm_of_versions
from tests.sim.world import World

MEETING = (3, 9, 26)  # a set is taken up, marks come and go; a mark is refused in the last


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_voters_change_and_no_invariant_breaks(seed: int) -> None:
    """One node at a time is added or removed, nodes crash on the way, forget, and stay away."""
    world = World(seed, swarm_of_changes(seed))
    assert world.run(1.0) == [], "\n".join([str(world.swarm), *world.history[-40:]])


def test_sets_are_taken_up_in_these_worlds() -> None:
    worlds = [World(seed, swarm_of_changes(seed)) for seed in (0, 4, 8, 12, 14, 26)]
    for world in worlds:
        assert world.run(0.4) == []
    assert max(len(world.sets) for world in worlds) >= 3
    lines = [line for world in worlds for line in world.history]
    for word in ("TAKES UP", "LEAVES", "JOINS", "has staged", "joins: revision"):
        assert any(word in line for line in lines), word


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_ml18_nodes_are_marked_dead_while_voters_change(seed: int) -> None:
    """Nodes burn in the middle of a change; who says so has compared the revisions."""
    world = World(seed, swarm_of_marks(seed))
    assert world.run(1.0) == [], "\n".join([str(world.swarm), *world.history[-40:]])


def test_marks_and_changes_meet_in_these_worlds() -> None:
    worlds = [World(seed, swarm_of_marks(seed)) for seed in MEETING]
    for world in worlds:
        assert world.run(0.5) == []
    lines = [line for world in worlds for line in world.history]
    for word in ("TAKES UP", "has verified that", "its mark is cleared"):
        assert any(word in line for line in lines), word
    assert sum(world.operators.refused for world in worlds) > 0


def test_s10_a_recovery_that_failed_is_known_by_whichever_numbers_its_node_counts() -> None:
    """The order was given in set 5, failed, and was given again in set 6."""
    world = World(880005, swarm_of_changes(880005))
    assert world.run(1.0) == []
    assert any(host.me != host.number_of(host.me) >= 0 for host in world.hosts)


def test_v8_a_dead_node_is_removed_without_a_mark() -> None:
    """Those that stay have it marked, and a mark keeps them from their vote: `node unmark`."""
    world = World(880010, swarm_of_marks(880010))
    assert world.run(1.0) == []
    assert any("is not marked dead any more" in line for line in world.history)


def test_v8_where_all_have_lost_their_state_the_cluster_begins_anew() -> None:
    """docs/adr/0009: nobody can tell that the set in their files is in force."""
    world, _ = begin(1, 3)
    world.sets.append((0, 1))
    for host in world.hosts:
        host.kill(world.now, power=True)
        host.file = spec_of(world.swarm, (0, 1), 2, host.me)
    world.play_until(world.now + 500_000)
    for host in world.hosts[:2]:
        host.boot(world.now, remember=False)
        host.run(world.now, host.life)
    world.retired.add(2)
    world.play_until(world.now + 3_000_000)
    assert owners_of(world) == []
    changes.see_through(world)
    world.play_until(world.now + 3_000_000)
    assert owners_of(world) != []
    assert {h.spec.revision for h in world.hosts if h.alive} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_two_versions_of_the_wire_live_beside_each_other(seed: int) -> None:
    """ML: half of the nodes open version 1 only and are upgraded one by one, faults going on."""
    world = World(seed, swarm_of_versions(seed))
    assert world.run(1.0) == [], "\n".join([str(world.swarm), *world.history[-40:]])


def test_version_2_is_spoken_once_all_read_it_and_version_1_before() -> None:
    swapped = 0
    for seed in range(18):
        world = World(seed, swarm_of_versions(seed))
        assert world.run(0.4) == []
        lines = [line for line in world.history if "KNOWS V" in line or "seals version 2" in line]
        if not lines or "KNOWS" not in lines[0]:
            continue  # all were silent long enough, or nobody was upgraded before the end
        swapped += 1
        left = [h for h in world.hosts if h.me not in world.outside]
        assert len({world.network.version[h.me] for h in left}) == 1
    assert swapped > 2
