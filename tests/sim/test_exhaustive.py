"""A part of the tree of small worlds, in seconds; `python -m tests.sim.exhaustive` walks it all."""

from __future__ import annotations

import pickle

import pytest

from haclusterd.core import voter
from tests.sim.exhaustive import ALPHABET, SMALL, branch, first_world


@pytest.mark.slow
@pytest.mark.parametrize("first", SMALL)
def test_all_orders_of_three_events(first: str) -> None:
    walked = branch((first, SMALL, 159_900, 3))
    assert walked.violations == []
    if first not in ("restart_all", "heal"):  # nothing is down and nothing is cut at the start
        assert walked.worlds > 15


@pytest.mark.slow
@pytest.mark.parametrize("first", ALPHABET)
def test_all_pairs_of_events(first: str) -> None:
    for gap_us in (100, 60_000):
        assert branch((first, tuple(ALPHABET), gap_us, 2)).violations == []


def test_a_copied_world_goes_on_as_the_first() -> None:
    world = first_world()
    copy = pickle.loads(pickle.dumps(world, 5))
    for one in (world, copy):
        ALPHABET["kill_owner"](one)
        one.play_until(one.now + 500_000)
    assert copy.history == world.history
    assert any("T301" in line for line in world.history[-5:])


def test_the_walk_is_not_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voter, "hear_claim", lambda *args: None)
    assert any("V3" in v for v in branch(("kill_owner", ("heal",), 100, 1)).violations)
