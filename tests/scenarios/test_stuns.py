"""A stun of 120 ms leaves the service where it is, whichever phase of the beats it falls on."""

from __future__ import annotations

import pytest

from tests.scenarios.player import Player

STUNS = {
    "process": "freeze n0 120ms",
    "switch": "cut n0 all 121ms",  # what a lab's switch makes of 120 ms
}


@pytest.mark.parametrize("stun", STUNS)
@pytest.mark.parametrize("phase_ms", range(0, 28, 3))
def test_stun_of_120_ms_at_any_phase_keeps_the_owner(stun: str, phase_ms: int) -> None:
    """DESIGN 2.4: it fences, and has its service back before any slave may claim."""
    player = Player()
    player.play(["cluster masters=2 slaves=2", "boot all", f"run {2000 + phase_ms}ms"])
    player.play([STUNS[stun], "run 600ms", "expect kept s0 n0", "expect recovered nothing"])
