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


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path, request: pytest.FixtureRequest) -> None:
    said, _ = replay(path)
    if request.config.getoption("--rewrite"):
        path.write_text(said)
    assert said == path.read_text()


def test_every_row_is_in_a_transcript() -> None:
    rows = set().union(*(replay(path)[1].rows for path in TRANSCRIPTS))
    assert {row.number for row in ROWS} - rows == set()


def test_expectations_can_fail() -> None:
    """A transcript that expects the wrong outcome fails, rewritten or not."""
    with pytest.raises(TranscriptError, match="expected owner s0 n1"):
        Player().play(["cluster masters=1 slaves=2", "boot all", "run 500ms", "expect owner s0 n1"])
    with pytest.raises(TranscriptError, match="no command 'fly'"):
        Player().play(["fly n0"])
