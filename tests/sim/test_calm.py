"""The count of takeovers without a cause: small, and not blind."""

from __future__ import annotations

from tests.sim.calm import Tally, Weather, play
from tests.sim.swarm import WAN


def test_s5_wan_bears_a_fifth_lost_and_50_ms_of_jitter_on_three_links() -> None:
    """19, an excerpt; `make node-hours` plays more of it."""
    tally = play((Weather("wan", 0.2, 50.0), 3, 3.0))
    assert (tally.moved, tally.fenced, tally.violations) == (0, 0, 0)
    assert 200 < tally.silent_ms < WAN.dead_us // 2000
    assert 0 < tally.lease_left_ms < WAN.lease_us // 1000
    assert tally.node_hours == 0.15


def test_the_count_is_not_blind() -> None:
    tally = play((Weather("lan", 0.3, 60.0, through_wire=False), 3, 0.5))
    assert tally.fenced > 0
    assert tally.moved > 0
    assert tally.violations == 0
    assert tally.seeds == (3,)


def test_tallies_add_up() -> None:
    total = Tally()
    for tally in (Tally(1.5, 1, 2, 0, 300, 80, 6.0, (4,)), Tally(1.0, 0, 1, 0, 400, 90, 3.0)):
        total.add(tally)
    assert total == Tally(2.5, 1, 3, 0, 400, 80, 9.0, (4,))
