"""agent.majorities: orders that leave a service without one say so."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from haclusterd.agent.majorities import lost_by_unmarking
from haclusterd.core.view import MarkView, View
from tests.fixtures.agent_parts import view


def lone(**changes: Any) -> View:
    """fs-a serves alone: the two others are marked dead, and silent."""
    seen = view({"east": ("fs-a", 7)})
    marks = (MarkView("fs-b", 1, "jo", False), MarkView("fs-c", 2, "jo", False))
    values: dict[str, Any] = {"voters": 1, "reachable": 1, "marks": marks, **changes}
    return msgspec.structs.replace(seen, **values)


def test_a_mark_that_carries_the_majority_is_not_taken_back_in_silence() -> None:
    text = lost_by_unmarking(lone(), "fs-c")
    assert text == (
        "; with it fs-a hears 1 of 2 voters, which is no majority: east ends here until 2 are heard"
    )
    idle = msgspec.structs.replace(lone(), services=())
    assert "nothing can be served here until 2" in lost_by_unmarking(idle, "fs-c")


@pytest.mark.parametrize(
    "seen",
    [
        None,  # before heart's first word
        lone(policy="availability"),
        lone(quorate=False),
        lone(voters=2, reachable=2),  # two others of three are heard
        lone(marks=(MarkView("fs-b", 1, "jo", False),)),
        lone(marks=(MarkView("fs-c", 1, "jo", True),)),  # it counts already
    ],
)
def test_nothing_is_said_of_a_mark_that_carries_nothing(seen: View | None) -> None:
    assert lost_by_unmarking(seen, "fs-c") == ""
