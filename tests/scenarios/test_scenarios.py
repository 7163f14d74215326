"""Every transcript still says what it says; `pytest tests/scenarios --rewrite` writes them anew.

Look at the difference before you commit a rewritten transcript: it is the behaviour of the cluster.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from haclusterd.core.takeover import ROWS
from tests.scenarios.player import Player, TranscriptError, replay

FOLDER = Path(__file__).parent
TRANSCRIPTS = sorted(FOLDER.glob("*.txt"))

# T413: an owner's own new claim finds no majority in time. The lease rests on a beat sent before
# that claim, so it ends first (T401); in `availability`, without a lease, one vote is enough.
# tests/unit/test_core_table.py takes every row.
OUT_OF_REACH = {"T413"}


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path, request: pytest.FixtureRequest) -> None:
    said, _ = replay(path)
    if request.config.getoption("--rewrite"):
        path.write_text(said)
    assert said == path.read_text()


def test_every_row_is_in_a_transcript_or_out_of_reach() -> None:
    rows = set().union(*(replay(path)[1].rows for path in TRANSCRIPTS))
    missing = {row.number for row in ROWS} - rows
    assert missing == OUT_OF_REACH


def test_expectations_can_fail() -> None:
    """A transcript that expects the wrong outcome fails, rewritten or not."""
    with pytest.raises(TranscriptError, match="expected owner s0 n1"):
        Player().play(["cluster masters=1 slaves=2", "boot all", "run 500ms", "expect owner s0 n1"])
    with pytest.raises(TranscriptError, match="no command 'fly'"):
        Player().play(["fly n0"])
