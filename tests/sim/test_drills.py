"""The simulator is not blind: without a guard, a world aimed at it breaks an invariant."""

from __future__ import annotations

import multiprocessing

import pytest

from tests.sim.drills import DRILLS, NETS, hunt, play

SEEDS_MAX = 60
REFUSED = "lease relation"  # its worlds have the timing that config.py refuses


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DRILLS if name not in NETS])
def test_drill_is_caught(name: str) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        _, seeds, violation, _ = pool.apply(hunt, ((name, SEEDS_MAX, 1.0, True),))
    assert seeds > 0, f"{name}: not caught in {SEEDS_MAX} aimed seeds"
    assert violation


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DRILLS if name != REFUSED])
def test_aimed_world_is_clean_with_every_guard(name: str) -> None:
    """The same worlds, nothing taken away: or a drill would prove nothing."""
    for seed in range(2):
        assert play(name, seed, 0.5) == []


def test_every_net_says_what_it_stands_behind() -> None:
    assert set(NETS) <= set(DRILLS)
    assert all(NETS.values())
    assert all(drill.rule for drill in DRILLS.values())
