"""Makes a failure small: leaves out faults, then stops, then features of the network.

What is left still breaks the same invariant. The result is one seed, one swarm and one plan, which
`World(seed, swarm, plan)` plays again exactly.
"""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tests.sim.nemesis import Plan
from tests.sim.swarm import Swarm
from tests.sim.world import World

RUNS_MAX = 300
# Each makes a world plainer; kept where the failure survives it.
SIMPLER: tuple[dict[str, Any], ...] = (
    {"through_wire": False, "damage": 0.0},
    {"duplicate": 0.0},
    {"replay": 0.0},
    {"loss": 0.0},
    {"delay_mean_us": 0},
    {"freeswitch": False},
    {"links": 1},
    {"ending": "whole"},
)

Part = TypeVar("Part")


def kind_of(violations: Sequence[str]) -> str:
    """The invariant that broke first: `S1`, `V3`..."""
    if not violations:
        return ""
    first = violations[0].split(" ms: ")[-1]
    return first.split(":")[0]


@dataclasses.dataclass
class Failure:
    """A world that breaks an invariant."""

    seed: int
    swarm: Swarm
    plan: Plan
    minutes: float
    kind: str
    muted: frozenset[str] = frozenset()
    runs: int = 0

    def world(self, swarm: Swarm, plan: Plan) -> World:
        world = World(self.seed, swarm, plan)
        world.checkers.muted = self.muted
        return world

    def play(self, swarm: Swarm, plan: Plan) -> World | None:
        """The world as it breaks the same invariant, or None if it does not."""
        self.runs += 1
        world = self.world(swarm, plan)
        return world if kind_of(world.run(self.minutes)) == self.kind else None

    def fails_with(self, plan: Plan) -> bool:
        return self.runs < RUNS_MAX and self.play(self.swarm, plan) is not None


def shrink(world: World, minutes: float) -> Failure:
    """`world` was played for `minutes` and broke something: the least of it that still does."""
    violations = world.checkers.violations
    plan, kind = world.nemesis.plan(), kind_of(violations)
    failure = Failure(world.seed, world.swarm, plan, minutes, kind, world.checkers.muted)
    until = world.now
    faults = tuple(f for f in failure.plan.faults if f.at_us <= until)
    stops = failure.plan.stops
    if stops and failure.fails_with(Plan(faults, ())):
        stops = ()
    faults = fewest(faults, lambda some: failure.fails_with(Plan(some, stops)))
    stops = fewest(stops, lambda some: failure.fails_with(Plan(faults, some)))
    failure.plan = Plan(faults, stops)
    for change in SIMPLER:
        swarm = dataclasses.replace(failure.swarm, **change)
        if failure.runs < RUNS_MAX and failure.play(swarm, failure.plan) is not None:
            failure.swarm = swarm
    faults = fewest(failure.plan.faults, lambda some: failure.fails_with(Plan(some, stops)))
    failure.plan = Plan(faults, stops)
    return failure


def fewest(parts: tuple[Part, ...], fails: Callable[[tuple[Part, ...]], bool]) -> tuple[Part, ...]:
    """Delta debugging (Zeller): leave out ever smaller runs of `parts` while it `fails`."""
    size = len(parts)
    while size >= 1 and parts:
        at, shrunk = 0, False
        while at < len(parts):
            rest = parts[:at] + parts[at + size :]
            if fails(rest):
                parts, shrunk = rest, True
            else:
                at += size
        if not shrunk or size > len(parts):
            size //= 2
    return parts


def story(failure: Failure, commit: str) -> str:
    """Seed, commit, world, faults, one line per event, and what broke."""
    world = failure.world(failure.swarm, failure.plan)
    violations = world.run(failure.minutes)
    plan = [*failure.plan.faults, *failure.plan.stops]
    return "\n".join(
        [
            f"seed {failure.seed} at commit {commit} (trace {world.trace:08x}): {failure.swarm}",
            f"{len(plan)} faults are enough ({failure.runs} runs to find them):",
            *(f"  {fault}" for fault in plan),
            *world.history[-80:],
            *(f"VIOLATION {v}" for v in violations),
        ]
    )


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
