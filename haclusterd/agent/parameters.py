"""What each method of the API takes, in one table: anything else is refused before it is run.

A parameter that is not known here, or not of its kind, would otherwise be an order that means more
than its giver wanted: a pause without an end, because the key of its length was misspelt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from haclusterd.agent.events import CURSOR_CHARS_MAX
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.schema import USAGE

TEXT_MAX = 256
SPAN_S_MAX = 30 * 86_400
HISTORY_MAX = 10_000
CALLS_SHOWN = 1000
CALLS_SHOWN_MAX = 20_000
REGISTRATIONS_SHOWN_MAX = 50_000
FAIL_MAX = 3

REQUIRED = object()


class Parameter(NamedTuple):
    """One parameter. `fits(value)`; `kind` is what it must be, in words; REQUIRED: no default."""

    kind: str
    fits: Callable[[Any], bool]
    default: Any = REQUIRED


def _text(default: Any = REQUIRED, most: int = TEXT_MAX) -> Parameter:
    """A text; where it must be there, it must not be empty either."""
    least = 1 if default is REQUIRED else 0
    return Parameter(
        f"a text of {least} to {most} characters",
        lambda value: isinstance(value, str) and least <= len(value) <= most,
        default,
    )


def _whole(least: int, most: int, default: Any) -> Parameter:
    return Parameter(
        f"a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
        default,
    )


def _flag(default: Any = REQUIRED) -> Parameter:
    return Parameter("true or false", lambda value: isinstance(value, bool), default)


_SPAN = _whole(1, SPAN_S_MAX, None)  # seconds; left out: without an end
_TO = _text("")  # a node; left out: the first in line

PARAMETERS: dict[str, dict[str, Parameter]] = {
    "status": {},
    "about": {},
    "rank": {},
    "history": {"count": _whole(0, HISTORY_MAX, 100)},
    "report": {"which": _text("last")},
    "reports": {},
    "calls": {"limit": _whole(0, CALLS_SHOWN_MAX, CALLS_SHOWN), "at_risk": _flag(False)},
    "registrations": {"limit": _whole(0, REGISTRATIONS_SHOWN_MAX, CALLS_SHOWN)},
    "sync": {},
    "capacity": {"fail": _whole(1, FAIL_MAX, 1)},
    "best_node": {},
    "switchover": {"service": _text(), "to": _TO},
    "failover_check": {"service": _text(), "to": _TO},
    "failover": {"service": _text(), "to": _TO, "by": _text()},
    "maintenance": {
        "on": _flag(), "node": _text(""), "for_s": _SPAN, "drain_s": _SPAN, "by": _text(""),
    },
    "drain": {"target": _text(), "for_s": _SPAN, "by": _text()},
    "undrain": {"target": _text(), "by": _text()},
    "pause": {"for_s": _SPAN, "by": _text()},
    "resume": {"by": _text()},
    "mark_dead": {"node": _text(), "verified_by": _text()},
    "unmark": {"node": _text(), "by": _text()},
    "keys_rotate": {"by": _text()},
    "keys_abort": {"by": _text()},
    "keys_status": {},
    "upgrade": {},
    "reload": {"without_majority": _flag(False)},
    "trace": {"whole": _flag(True)},
    "trace_save": {},
    "trace_list": {},
    "trace_read": {"name": _text()},
    "events": {"after": _text("", CURSOR_CHARS_MAX), "own": _flag(False)},
}  # fmt: skip


def checked(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """All parameters of a method, with defaults. Raises OperatorError with all that is wrong."""
    wanted = PARAMETERS[method]
    problems = []
    for name in given:
        if name not in wanted:
            known = ", ".join(wanted) or "it has none"
            problems.append(f"{method} has no parameter {name[:64]!r}; known: {known}")
    values = {}
    for name, parameter in wanted.items():
        value = given.get(name, parameter.default)
        if value is REQUIRED:
            problems.append(f"{method} needs parameter {name!r}, {parameter.kind}")
        elif name in given and not parameter.fits(value):
            problems.append(f"parameter {name!r} must be {parameter.kind}")
        values[name] = value
    if problems:
        raise OperatorError("\n".join(problems), USAGE)
    return values
