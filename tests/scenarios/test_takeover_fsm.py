"""docs/takeover-fsm.md is what the table says; `pytest tests/scenarios --rewrite` writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from haclusterd.core.model import State
from haclusterd.core.takeover import IGNORED, ROWS, Event

DOCUMENT = Path(__file__).parents[2] / "docs" / "takeover-fsm.md"

HEAD = """# The takeover table

Generated from `haclusterd/core/takeover.py` (`pytest tests/scenarios --rewrite`); do not edit.

One service as one node stands to it. The numbers are permanent: log, history and status name
them. An event that has no row in a state is ignored by name, see the last table. What the rows
look like in a cluster: the transcripts in `tests/scenarios/`.

```mermaid
stateDiagram-v2
    [*] --> STANDBY
"""


def document() -> str:
    """The whole text, from the table alone."""
    lines = [
        f"    {row.state.name} --> {row.next.name}: {row.number} {row.event.name.lower()}"
        for row in ROWS
    ]
    parts = [HEAD + "\n".join(lines) + "\n```\n"]
    parts.append("## Events\n\n| event | means |\n|---|---|\n")
    parts.append("".join(f"| {event.name} | {event.value} |\n" for event in Event))
    parts.append("\n## Rows\n\n| row | in state | on | next | effects, in order | it says |\n")
    parts.append("|---|---|---|---|---|---|\n")
    for row in ROWS:
        effects = ", ".join(effect.replace("_", " ") for effect in row.effects) or "none"
        text = row.text.replace("{", "*").replace("}", "*")
        parts.append(
            f"| {row.number} | {row.state.name} | {row.event.name} | {row.next.name} "
            f"| {effects} | {text} |\n"
        )
    parts.append("\n## Ignored\n\n| in state | events without effect |\n|---|---|\n")
    for state in State:
        names = ", ".join(event.name for event in Event if event in IGNORED[state])
        parts.append(f"| {state.name} | {names} |\n")
    return "".join(parts)


def test_document_is_current(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--rewrite"):
        DOCUMENT.write_text(document())
    assert DOCUMENT.read_text() == document()


def test_document_names_every_row_and_state() -> None:
    numbers = set(re.findall(r"^\| (T\d+) ", document(), re.MULTILINE))
    assert numbers == {row.number for row in ROWS}
    assert all(state.name in document() for state in State)
