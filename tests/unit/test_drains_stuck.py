"""A drained node of which not everything can move."""

from __future__ import annotations

import pytest

from haclusterd.agent import drains
from tests.fixtures.agent_parts import view
from tests.unit.test_drains import Bench, bench, drain

__all__ = ["bench"]


async def test_b7_what_cannot_move_does_not_hold_up_what_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drains, "AGAIN_S", 60.0)
    bench.view = view({"east": ("fs-a", 7), "west": ("fs-a", 2)})
    bench.orders.words = [drain("node:fs-a", move_us=0)]
    bench.refusal = "no node is ready to take east"
    await bench.look(3)
    assert bench.moved == [("east", None), ("west", None)]
