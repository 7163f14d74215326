"""Nodes marked dead come back beside faults, in worlds that miss a rule which guards that."""

from __future__ import annotations

import multiprocessing

import pytest

from tests.sim import mutations_marks as m
from tests.sim.returns import swarm_of_returns
from tests.sim.world import World

ALL_GONE = (
    m.marks_unsaid, m.thawed_and_voting, m.alone_for_a_lease, m.strangers_unguarded,
    m.unmet_is_silent, m.listened_in_pieces, m.unmet_has_marked_nobody, m.marks_forgotten,
    m.heard_between_pieces, m.deaf_is_silent,
)  # fmt: skip


def _play(seeds: range, minutes: float) -> list[World]:
    worlds = [World(seed, swarm_of_returns(seed)) for seed in seeds]
    for world in worlds:
        world.run(minutes)
    return worlds


def _broken_without_guards(seeds: range) -> int:
    for take_away in ALL_GONE:
        take_away()
    return sum(bool(world.checkers.violations) for world in _play(seeds, 1.0))


@pytest.mark.slow
def test_who_was_marked_comes_back_beside_faults_and_is_asked_again() -> None:
    worlds = _play(range(6), 1.0)
    for world in worlds:
        assert not world.checkers.violations, world.checkers.violations
    lines = [line for world in worlds for line in world.history]
    assert sum("OPERATOR starts" in line for line in lines) > 12
    assert sum("is heard as a standby again: its mark is cleared" in line for line in lines) > 12
    healed_us = min(world.healed_us for world in worlds)
    early = [line for line in lines if "M23" in line and float(line.split()[0]) < healed_us / 1000]
    assert early, "no mark was cleared while faults went on"


@pytest.mark.slow
def test_without_the_guards_of_returns_these_worlds_break() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_broken_without_guards, (range(100, 120),)) > 0
