"""The nemesis: which faults befall a world and when, written down so that some can be left out.

A plan is drawn before the world starts. Each fault has a seed of its own for its details, so that
leaving one out (`shrink`) changes nothing about how the others are meant. What happens between two
actions of a process is written down as it happens, and can be played again in the same way.
"""

from __future__ import annotations

import dataclasses
import random
from functools import partial
from typing import TYPE_CHECKING

from haclusterd.core.state import owns
from tests.sim import changes, faults

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.swarm import Swarm
    from tests.sim.world import World

STOPS_MS = (4, 12, 50, 90, 130, 400)
CRASH = -1  # instead of the length of a freeze
CRASH_CHANCE = 0.15
STOPS_KEPT = 5000


@dataclasses.dataclass(frozen=True, order=True)
class Fault:
    """At `at_us` something of `kind` happens; `seed` settles to whom and for how long."""

    at_us: int
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.at_us / 1000:.3f} ms {self.kind} (seed {self.seed})"


@dataclasses.dataclass(frozen=True, order=True)
class Stop:
    """Host `host` stops before its action number `action_no`, for so long, or for good (CRASH)."""

    host: int
    action_no: int
    stop_us: int

    def __str__(self) -> str:
        what = "crashes" if self.stop_us == CRASH else f"stops for {self.stop_us / 1000:.0f} ms"
        return f"n{self.host} {what} before its action {self.action_no}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a nemesis does to one world."""

    faults: tuple[Fault, ...] = ()
    stops: tuple[Stop, ...] = ()

    def __len__(self) -> int:
        return len(self.faults) + len(self.stops)


class Nemesis:
    """Carries a plan out, or draws one from the swarm's kinds; `heal` ends all faults."""

    def __init__(self, world: World, swarm: Swarm, rng: random.Random, plan: Plan | None) -> None:
        self.world = world
        self.swarm = swarm
        self.over = False
        self.scale = max(1, swarm.timing.heartbeat_us // 25_000)
        self.until = 0
        self.given = plan
        self.planned: tuple[Fault, ...] = plan.faults if plan else ()
        self.stops: list[Stop] = []
        self.replayed = {(s.host, s.action_no): s.stop_us for s in plan.stops} if plan else {}
        self.draws = random.Random(rng.random())
        self.chance = random.Random(rng.random())
        self.ambushes: list[tuple[str, random.Random]] = []
        world.has_boundaries = bool(self.replayed) if plan else swarm.boundary > 0

    def start(self, until: int) -> None:
        self.until = until
        if self.given is None:
            self.planned = tuple(self._draw(until))
        for fault in self.planned:
            self.world.at(fault.at_us, self._strike, fault)

    def _draw(self, until: int) -> list[Fault]:
        found, t, rng = [], 0, self.draws
        while self.swarm.kinds:
            t += int(rng.expovariate(1 / (self.swarm.fault_mean_us * self.scale)))
            if t >= until:
                break
            found.append(Fault(t, rng.choice(self.swarm.kinds), rng.getrandbits(32)))
        return found

    def plan(self) -> Plan:
        """What was done, so that it can be done again."""
        return Plan(self.planned, tuple(self.stops) if self.given is None else self.given.stops)

    def heal(self) -> None:
        """No fault begins any more; those under way are ended by `liveness`."""
        self.over = True
        self.world.has_boundaries = False
        self.ambushes.clear()

    def _strike(self, t: int, fault: Fault) -> None:
        if not self.over:
            self.strike(t, fault.kind, random.Random(fault.seed))

    def strike(self, t: int, kind: str, rng: random.Random) -> None:
        host = self._victim(rng)
        self.world.note(f"n{host.me} FAULT {kind}")
        changes.ALL[kind](faults.Blow(self, rng, t), host)
        self.world.hot_until = t + 4 * self.swarm.timing.dead_us

    def _victim(self, rng: random.Random) -> Host:
        """Rather a node that owns something."""
        hosts = self.world.hosts
        host = rng.choice(hosts)
        if rng.random() < 0.6:
            holders = [h for h in hosts if h.node and any(map(owns, h.node.services))]
            host = rng.choice(holders) if holders else host
        return host

    def decided(self, t: int) -> None:
        """A service moved: what lies in ambush strikes now, or within the next exchange."""
        waiting, self.ambushes = self.ambushes, []
        for kind, rng in waiting:
            delay_us = rng.choice((0, 60, 150, 400, 2_000)) * self.scale
            self.world.at(t + 1 + delay_us, partial(self._spring, kind), rng)

    def _spring(self, kind: str, t: int, rng: random.Random) -> None:
        if not self.over:
            self.strike(t, kind, rng)

    def boundary(self, host: Host) -> int:
        """Between two actions: a freeze (us), 0 for none, CRASH; likelier while something moves."""
        if self.given is not None:
            stop_us = self.replayed.get((host.me, host.action_no), 0)
        else:
            stop_us = self._chance_of_a_stop()
        if stop_us:
            if len(self.stops) < STOPS_KEPT:
                self.stops.append(Stop(host.me, host.action_no, stop_us))
            what = "CRASH" if stop_us < 0 else f"STOP {stop_us / 1000:.0f} ms"
            self.world.note(f"n{host.me} {what} between two actions")
        if stop_us < 0:
            back_us = random.Random(host.action_no).randrange(10_000, 2_000_000) * self.scale
            self.world.at(self.world.now + back_us, self.up, (host, True))
        return stop_us

    def _chance_of_a_stop(self) -> int:
        chance = self.swarm.boundary
        if self.world.now >= self.world.hot_until:
            chance /= 500
        if self.chance.random() >= chance:
            return 0
        if self.chance.random() < CRASH_CHANCE:
            return CRASH
        return self.chance.choice(STOPS_MS) * 1000 * self.scale

    def up(self, t: int, what: tuple[Host, bool]) -> None:
        host, remember = what
        if self.world.operators.are_about() and len(self.world.sets) > 1:
            remember = True  # else perhaps nobody is left who knows which set is in force
        if not host.alive and not self.world.is_outside(host):
            if not remember:
                changes.reinstall(host)
            host.boot(t, remember)
            host.run(t, host.life)
