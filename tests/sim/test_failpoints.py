"""A process fails at every action boundary of the takeover table, in every way."""

from __future__ import annotations

import pytest

from haclusterd.core.moves import _EFFECTS
from haclusterd.core.takeover import ROWS
from tests.sim.failpoints import ACTION_OF, play, points, transcripts_by_row


@pytest.mark.slow
@pytest.mark.parametrize("row", [row.number for row in ROWS])
def test_the_cluster_outlives_every_failpoint_of_a_row(row: str) -> None:
    path = transcripts_by_row()[row]
    wrong = {str(p): play(p, path) for p in points() if p.row == row}
    assert {point: found for point, found in wrong.items() if found} == {}


def test_points_come_from_the_table() -> None:
    assert {(p.row, p.effect) for p in points()} == {
        (row.number, effect) for row in ROWS for effect in (row.effects or ("",))
    }
    assert set(ACTION_OF) <= set(_EFFECTS)
