"""Bugs that the simulator found, each as its shortest trace (docs/track-record.md)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from haclusterd import wire
from haclusterd.core import claimant, speech
from haclusterd.core.model import NOBODY, Identity
from haclusterd.core.state import Node, Service
from tests.scenarios.player import Player
from tests.sim.drills import act_out, aimed_swarm, forks
from tests.sim.mutations import always_newest, forgetting_unseen, freeswitch_back_unseen, patch
from tests.sim.nets import NETS
from tests.sim.swarm import Swarm
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


RELEASES = aimed_swarm("release of the present promise only")


def nobody_is_asked() -> None:
    patch(claimant, "_may_have_been_owned_since", lambda *args: NOBODY)


def newest_grant_is_asked_after() -> None:
    true = claimant._may_have_been_owned_since

    def since(node: Node, k: int, service: Service, now_us: int) -> Identity:
        passed_on, service.passed_on = service.passed_on, ()
        found = true(node, k, service, now_us)
        service.passed_on = passed_on
        return found

    patch(claimant, "_may_have_been_owned_since", since)


def steps_without_a_tick() -> None:
    true = speech.keep_step

    def keep_step(node: Node, sender: int, now_us: int) -> None:
        wake_us = node.wake_us
        true(node, sender, now_us)
        node.wake_us = wake_us

    patch(speech, "keep_step", keep_step)


def _without(mend: Callable[[], None], seed: int, minutes: float, swarm: Swarm | None) -> list[str]:
    mend()
    return World(seed, swarm).run(minutes)


@pytest.mark.parametrize(
    ("seed", "minutes", "swarm", "mend", "broke"),
    [
        pytest.param(16, 0.5, RELEASES, nobody_is_asked, "S4: ", id="f5"),
        pytest.param(5, 1, None, steps_without_a_tick, "V1: ", id="f6"),
        pytest.param(
            1766, 10, None, newest_grant_is_asked_after, "S4: ", id="f11", marks=pytest.mark.slow
        ),
        pytest.param(212, 1, None, freeswitch_back_unseen, "S10: ", id="f15"),
    ],
)
def test_a_seed_that_found_a_bug(
    seed: int, minutes: float, swarm: Swarm | None, mend: Callable[[], None], broke: str
) -> None:
    """The world is clean, and without the mend it breaks: it still means what it meant."""
    with forks() as pool:
        assert any(broke in v for v in pool.apply(_without, (mend, seed, minutes, swarm)))
    assert World(seed, swarm).run(minutes) == []


def _all_without(mends: tuple[Callable[[], None], ...], drama: str, seed: int) -> list[str]:
    for mend in mends:
        mend()
    return act_out(drama, seed)[0]


@pytest.mark.parametrize(
    ("drama", "mends", "broke"),
    [
        pytest.param("epoch_won_twice", (forgetting_unseen,), "S4: ", id="f14"),
        pytest.param("winners_meet", (always_newest,), "S4: ", id="f18"),
        pytest.param(
            "back_with_a_staged_set",
            NETS["no set is taken up beside an owner by marks"].guards,
            "S5: ",
            id="f20",
        ),
    ],
)
def test_what_a_seed_found_as_a_drama(
    drama: str, mends: tuple[Callable[[], None], ...], broke: str
) -> None:
    """Their seeds (10300, 6727, 770) lead elsewhere since the swarm has other faults."""
    with forks() as pool:
        found = [v for seed in range(5) for v in pool.apply(_all_without, (mends, drama, seed))]
    assert any(broke in violation for violation in found)
    assert act_out(drama, 0)[0] == []


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
