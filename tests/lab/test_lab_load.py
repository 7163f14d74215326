"""The bench of many calls in small: both sources of call state protect what comes and goes."""

from __future__ import annotations

import pytest

from bench import load
from haclusterd.lab import netns

REASON = netns.why_not()
pytestmark = [pytest.mark.skipif(bool(REASON), reason=REASON or "ready"), pytest.mark.timeout(120)]


@pytest.mark.long
@pytest.mark.parametrize("source", load.SOURCES)
def test_s6_calls_that_come_and_go_are_protected_and_copies_end_the_same(source: str) -> None:
    found = load.measure(source, calls=30, phones=20, per_s=20, seconds=3, say=print)
    assert found["failed"] == 0
    assert found["calls"] >= 30
    assert found["protected"] > 30
    assert 0 < found["protected_ms"]["p50"] <= found["protected_ms"]["p99"]
    assert found["rows_ms"]["max"] > 50, "the emulator writes as late as FreeSWITCH"
    assert found["same_after_s"] < 30


def test_the_goals_are_judged() -> None:
    found = {
        "protected_ms": {"p99": load.GOAL_P99_MS}, "agent_cpu": {"master": load.GOAL_CPU},
        "failed": 0, "protected": 1,
    }  # fmt: skip
    assert load.good(found)
    for worse in ({"failed": 1}, {"protected": 0}, {"agent_cpu": {"master": 0.26}},
                  {"protected_ms": {"p99": 251}}):  # fmt: skip
        assert not load.good(found | worse)
