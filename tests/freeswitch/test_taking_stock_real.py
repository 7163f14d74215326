"""The agent of a master dies and its FreeSWITCH with it, with a real one: see the lab's test."""

from __future__ import annotations

import pytest

from haclusterd.lab.plan import LabPlan
from tests.freeswitch.obstacle import obstacle
from tests.lab.test_lab_taking_stock import both_die

_REASON = obstacle()
pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]


def test_s9_e2_calls_whose_agent_and_freeswitch_died_together_come_back_in_place() -> None:
    both_die(LabPlan(masters=1, slaves=2, freeswitch="real"))
