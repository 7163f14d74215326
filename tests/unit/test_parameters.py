"""Parameters of the API: one table for all methods, and nothing else is let through."""

from __future__ import annotations

from typing import Any

import pytest

from haclusterd.agent.commands import Commands, span_us
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.parameters import PARAMETERS, REQUIRED, checked
from haclusterd.agent.schema import USAGE
from haclusterd.core.model import FOR_GOOD_US
from tests.fixtures.agent_source import FakeSource

GOOD: dict[str, Any] = {
    "count": 5, "which": "last", "limit": 5, "at_risk": True, "fail": 2, "service": "east",
    "to": "fs-b", "by": "anna", "on": True, "node": "fs-a", "for_s": 60, "drain_s": 30,
    "target": "east", "verified_by": "ben", "whole": False, "name": "x.trace", "after": "",
    "own": True, "without_majority": True,
}  # fmt: skip
NONSENSE: list[Any] = [-1, 10**9, 1.5, [], {}, "x" * 5000, None]


def wrong(method: str, **given: Any) -> str:
    with pytest.raises(OperatorError) as caught:
        checked(method, given)
    assert caught.value.code == USAGE
    return str(caught.value)


def test_every_method_has_its_parameters_and_every_row_a_method() -> None:
    assert set(PARAMETERS) == {*Commands(FakeSource()).table, "events"}


@pytest.mark.parametrize("method", sorted(PARAMETERS))
def test_every_parameter_is_taken_and_nonsense_is_not(method: str) -> None:
    wanted = PARAMETERS[method]
    full = {name: GOOD[name] for name in wanted}
    assert checked(method, full) == full
    least = {name: GOOD[name] for name, p in wanted.items() if p.default is REQUIRED}
    found = checked(method, least)
    assert set(found) == set(wanted)
    for name in wanted:
        for value in NONSENSE:
            assert f"parameter {name!r} must be" in wrong(method, **{**full, name: value})
    assert f"{method} has no parameter 'nonsense'" in wrong(method, **full, nonsense=1)
    for name in least:
        less = {key: value for key, value in least.items() if key != name}
        assert f"{method} needs parameter {name!r}" in wrong(method, **less)


@pytest.mark.parametrize(
    ("method", "given", "text"),
    [
        ("pause", {"by": "anna", "for": 60}, "pause has no parameter 'for'; known: for_s, by"),
        ("pause", {"by": "anna", "for_s": 0}, "must be a whole number from 1 to 2592000"),
        ("maintenance", {"on": True, "for": -1}, "no parameter 'for'"),
        ("maintenance", {"on": True, "for_s": -1}, "'for_s' must be a whole number"),
        ("maintenance", {"on": 1}, "'on' must be true or false"),
        ("history", {"count": True}, "must be a whole number"),
        ("switchover", {"service": ""}, "a text of 1 to 256 characters"),
        ("status", {"verbose": 1}, "known: it has none"),
    ],
)
def test_an_order_never_means_more_than_was_wanted(
    method: str, given: dict[str, Any], text: str
) -> None:
    assert text in wrong(method, **given)


def test_all_that_is_wrong_is_said_at_once() -> None:
    assert len(wrong("pause", for_s="x", by=3, fro=1).split("\n")) == 3


def test_a_time_that_is_left_out_has_no_end() -> None:
    assert span_us(None) == FOR_GOOD_US
    assert span_us(60) == 60_000_000


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"on": False, "for_s": 5}, "belong to 'on': true"),
        ({"on": False, "drain_s": 5}, "belong to 'on': true"),
        ({"on": True, "drain_s": 5}, "needs parameter 'by'"),
    ],
)
async def test_maintenance_parameters_fit_together(given: dict[str, Any], text: str) -> None:
    with pytest.raises(OperatorError, match=text):
        await Commands(FakeSource()).run("maintenance", given)
