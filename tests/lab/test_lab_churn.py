"""A few rounds of `tests.lab.churn`; `make churn ROUNDS=200` plays more."""

from __future__ import annotations

import shutil

import pytest

from haclusterd.lab import netns
from tests.lab import churn

REASON = netns.why_not() or ("" if shutil.which("sipp") else "sipp is missing: sip-tester")
pytestmark = [pytest.mark.skipif(bool(REASON), reason=REASON or "ready"), pytest.mark.timeout(180)]
ROUNDS = 2


def test_e1_s8_kills_at_random_moments_lose_no_acknowledged_call() -> None:
    """Recovered once, none that had ended, no row of another master."""
    count = churn.run(ROUNDS, None, seed=5)
    assert count.complaints == []
    assert count.rounds == ROUNDS
    assert count.recovered == count.acknowledged > ROUNDS
