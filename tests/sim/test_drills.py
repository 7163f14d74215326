"""The simulator is not blind: without a guard, a world aimed at it breaks an invariant."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from haclusterd.core.model import Quorum
from tests.sim import drills
from tests.sim.checkers import NOT_WITHOUT_A_MAJORITY
from tests.sim.drills import (
    ALL_DRAMAS,
    DRILLS,
    Job,
    act_out,
    aimed_swarm,
    forks,
    hunt,
    hunt_net,
    play,
    tell,
)
from tests.sim.nets import NETS
from tests.sim.swarm import Swarm
from tests.sim.world import World

SEEDS_MAX = 60
NAMES = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen")
NUMBERS = dict(enumerate(NAMES, 10))
LEFT_SEEDS = 10  # `make mutation-drills` plays more


@pytest.mark.slow
@pytest.mark.parametrize("name", DRILLS)
def test_drill_is_caught(name: str) -> None:
    with forks() as pool:
        found = hunt(pool, Job(name, SEEDS_MAX))
    assert found.seed >= 0, f"{name}: not caught in {SEEDS_MAX} aimed seeds"
    assert not found.anyway, f"{name}: seed {found.seed} breaks with every guard, too"


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_a_net_holds_by_each_of_its_guards_and_by_nothing_else(name: str) -> None:
    with forks() as pool:
        gone = hunt_net(pool, name, -1, SEEDS_MAX)
        assert gone.is_caught, gone
        for spared in range(len(NETS[name].guards)):
            left = hunt_net(pool, name, spared, LEFT_SEEDS)
            assert not left.violation, f"{left.name}: {left.violation}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, drill in DRILLS.items() if not drill.drama])
def test_aimed_world_is_clean_with_every_guard(name: str) -> None:
    """The same worlds, nothing taken away; `hunt` does so with the seed that it caught with."""
    for seed in range(2):
        violations, world = play(name, seed, 0.5)
        assert not violations, tell(violations, world, 0.5)


@pytest.mark.parametrize("name", DRILLS)
def test_an_aimed_world_needs_a_majority(name: str) -> None:
    """Without one S1, S2, S4, S5 and S10 do not hold, whatever is taken away."""
    assert aimed_swarm(name, broken=True).quorum is Quorum.MAJORITY


def test_what_breaks_with_every_guard_is_no_catch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drill whose worlds break anyway is a failure of the drill, and so is a wrong invariant."""
    name, true = "silence before grant", drills.aimed_swarm
    with forks() as pool:
        assert hunt(pool, Job(name, 5)).is_caught

    def unsound(which: str, broken: bool = False) -> Swarm:
        return dataclasses.replace(true(which, broken), quorum=Quorum.AVAILABILITY)

    monkeypatch.setattr(drills, "aimed_swarm", unsound)
    monkeypatch.setattr(drills, "World", _unmuted)
    with forks() as pool:
        found = hunt(pool, Job(name, 5))
    assert found.seed >= 0
    assert re.search(r"S[15]: ", found.anyway)
    assert not found.is_caught
    monkeypatch.undo()
    monkeypatch.setitem(DRILLS, name, dataclasses.replace(DRILLS[name], by="V6"))
    with forks() as pool:
        assert hunt(pool, Job(name, 2)).seed < 0


def _unmuted(seed: int, swarm: Swarm | None) -> World:
    world = World(seed, swarm)
    world.checkers.muted = frozenset()
    return world


def test_what_a_policy_mutes_stays_muted(monkeypatch: pytest.MonkeyPatch) -> None:
    true = drills.aimed_swarm
    monkeypatch.setattr(
        drills,
        "aimed_swarm",
        lambda *a: dataclasses.replace(true(*a), quorum=Quorum.AVAILABILITY),
    )
    _, world = play("silence before grant", 0, 0.01)
    assert world.checkers.muted == NOT_WITHOUT_A_MAJORITY | {"S4"}


@pytest.mark.slow
@pytest.mark.parametrize("drama", ALL_DRAMAS)
def test_drama_ends_well_with_every_guard(drama: str) -> None:
    for seed in range(4):
        violations, world = act_out(drama, seed)
        assert not violations, tell(violations, world, 0, drama)


@pytest.mark.slow
def test_a_caught_drill_tells_seed_commit_and_the_shortest_trace() -> None:
    with forks() as pool:
        found = hunt(pool, Job("the lease is watched", SEEDS_MAX, 0.3, loud=True))
    told = found.told
    assert told.startswith(f"seed {found.seed} at commit ")
    assert " faults are enough (" in told
    assert 1 <= told.count(" cut_node (seed ") <= 3
    assert "FAULT cut_node" in told
    kind = found.violation.split(" ms: ")[-1].split(":")[0]
    assert f" ms: {kind}: " in told.split("VIOLATION")[-1]


def test_every_drill_and_net_says_what_it_is_about() -> None:
    assert all(drill.rule and drill.by for drill in DRILLS.values())
    assert all(net.why and len(net.guards) > 1 for net in NETS.values())


def test_the_docs_tell_how_many_there_are() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    count, nets = len(DRILLS), NUMBERS[len(NETS)]
    figures, page = (docs / "figures.md").read_text(), (docs / "reliability.md").read_text()
    assert f"{count} of {count} caught" in figures
    assert f"{nets} nets hold" in figures
    assert f"but for {nets} nets," in page
    told = {"V2", "V4", "V5", "P1"}
    others = [drill for drill in DRILLS.values() if set(drill.by.split()) <= told]
    assert f"{NUMBERS[len(others)]} drills are caught by V2, V4, V5 or P1" in page
