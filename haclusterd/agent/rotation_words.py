"""What nodes say to each other in a rotation of keys, and what a conductor makes of it."""

from __future__ import annotations

import msgspec

from haclusterd.agent.operators import OperatorError
from haclusterd.rotation import NAMES, OLD, Generation


class Task(msgspec.Struct, frozen=True):
    """What a conductor asks of one node. `phase` -1: only to tell, -2: and that it is over."""

    conductor: str
    phase: int = -1
    id: str = ""
    by: str = ""
    origin: str = ""
    new: Generation = Generation()


class Told(msgspec.Struct, frozen=True):
    """Where a node stands. `deaf_to`: nodes whose beats it cannot open; `problem`: refused."""

    id: str = ""
    phase: int = OLD
    by: str = ""
    origin: str = ""
    ring: list[int] = []
    deaf_to: list[str] = []
    problem: str = ""


def phase_word(told: Told) -> str:
    """Of who did not tell nothing is known."""
    return NAMES[told.phase] if told.ring or told.id else "unknown"


TELL, OVER = -1, -2


def node_of(conductor: str) -> str:
    return conductor.partition("/")[0]


def phase_of(told: Told, number: str) -> int:
    return told.phase if told.id == number else OLD


def refuse_laggards(told: dict[str, Told], what: str) -> None:
    bad = [f"{node}: {t.problem}" for node, t in told.items() if t.problem]
    bad += [
        f"{node}: it cannot read the beats of {', '.join(t.deaf_to)}"
        for node, t in told.items()
        if t.deaf_to and not t.problem
    ]
    if bad:
        names = ", ".join(line.partition(":")[0] for line in bad)
        raise OperatorError(f"{what} {names} ({'; '.join(bad)})")


def where(told: dict[str, Told]) -> str:
    return ", ".join(f"{node} {NAMES[t.phase]!r} of {t.id}" for node, t in told.items())
