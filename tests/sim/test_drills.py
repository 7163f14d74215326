"""The simulator is not blind: without a guard, a world aimed at it breaks an invariant."""

from __future__ import annotations

import multiprocessing

import pytest

from tests.sim.drills import ALL_DRAMAS, DRILLS, act_out, hunt, hunt_net, play, tell
from tests.sim.nets import NETS

SEEDS_MAX = 60
LEFT_SEEDS = 10  # `make mutation-drills` plays more
REFUSED = "lease relation"  # its worlds have the timing that config.py refuses


@pytest.mark.slow
@pytest.mark.parametrize("name", DRILLS)
def test_drill_is_caught(name: str) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        _, seeds, violation, _, _ = pool.apply(hunt, ((name, SEEDS_MAX, 1.0, True, False),))
    assert seeds > 0, f"{name}: not caught in {SEEDS_MAX} aimed seeds"
    assert violation


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_a_net_holds_by_each_of_its_guards_and_by_nothing_else(name: str) -> None:
    guards = range(len(NETS[name].guards))
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        assert pool.apply(hunt_net, ((name, -1, SEEDS_MAX),))[1] > 0
        for spared in guards:
            left, _, violation, _, _ = pool.apply(hunt_net, ((name, spared, LEFT_SEEDS),))
            assert not violation, f"{left}: {violation}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, d in DRILLS.items() if n != REFUSED and not d.drama])
def test_aimed_world_is_clean_with_every_guard(name: str) -> None:
    """The same worlds, nothing taken away: or a drill would prove nothing."""
    for seed in range(2):
        violations, world = play(name, seed, 0.5)
        assert not violations, tell(violations, world, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("drama", ALL_DRAMAS)
def test_drama_ends_well_with_every_guard(drama: str) -> None:
    for seed in range(4):
        violations, world = act_out(drama, seed)
        assert not violations, tell(violations, world, 0, drama)


@pytest.mark.slow
def test_a_caught_drill_tells_seed_commit_and_the_shortest_trace() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        job = ("the lease is watched", SEEDS_MAX, 0.3, True, True)
        _, seeds, violation, told, _ = pool.apply(hunt, (job,))
    assert told.startswith(f"seed {seeds - 1} at commit ")
    assert " faults are enough (" in told
    assert 1 <= told.count(" cut_node (seed ") <= 3
    assert "FAULT cut_node" in told
    kind = violation.split(" ms: ")[-1].split(":")[0]
    assert f" ms: {kind}: " in told.split("VIOLATION")[-1]


def test_every_drill_and_net_says_what_it_is_about() -> None:
    assert all(drill.rule for drill in DRILLS.values())
    assert all(net.why and len(net.guards) > 1 for net in NETS.values())
