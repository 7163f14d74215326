"""One seed's world: hosts, network, nemesis and checkers on one queue of events."""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from haclusterd.core.actions import Decided, KillFreeswitch, Recover
from haclusterd.core.model import Quorum
from tests.sim import liveness
from tests.sim.checkers import NOT_WITHOUT_A_MAJORITY, Checkers
from tests.sim.host import Host
from tests.sim.nemesis import Nemesis, Plan
from tests.sim.network import Network
from tests.sim.orders import Operators
from tests.sim.swarm import Swarm, draw_swarm, spec_for

if TYPE_CHECKING:
    from haclusterd.core.state import Service
    from tests.sim.failpoints import Strikes

HISTORY_MAX = 4000  # lines kept for the report of a failure
LATE_US = 1_000
_WON = ("T201", "T601", "T411")
_CLAIMS = ("T101", "T501", "T409")


def _nothing(host: int, what: Decided | KillFreeswitch) -> None:
    """Nobody listens."""


class World:
    """`run` plays a seed; `checkers.violations` holds what went wrong.

    The same seed, swarm and plan give the same run (S14). `plan` None lets the nemesis draw one.
    """

    def __init__(self, seed: int, swarm: Swarm | None = None, plan: Plan | None = None) -> None:
        rng = random.Random(seed)
        self.seed = seed
        drawn = draw_swarm(rng)  # in any case: what is drawn after it must not depend on it
        self.swarm = swarm or drawn
        self.rng = rng
        self.now = 0
        self.queue: list[tuple[int, int, Callable[[int, Any], None], Any]] = []
        self.count = 0
        self.history: list[str] = []
        self.trace = 0
        self.hot_until = 0
        self.has_boundaries = False
        self.failpoint: Strikes | None = None
        self.healed_us = 0  # when the safety phase ended
        self.outside: set[int] = set()  # nodes that failed for good
        self.retired: set[int] = set()  # nodes that were removed, or not added yet
        self.sets: list[tuple[int, ...]] = []  # the sets of voters that operators wrote down
        self.tell: Callable[[int, Decided | KillFreeswitch], None] = _nothing
        self.recoveries: list[tuple[int, int, Recover]] = []
        swarm = self.swarm
        self.checkers = Checkers(swarm.nodes, swarm.services, swarm.timing.dead_us)
        if swarm.quorum is Quorum.AVAILABILITY:
            self.checkers.muted = NOT_WITHOUT_A_MAJORITY
        self.network = Network(self, swarm, random.Random(rng.random()))
        self.hosts = [
            Host(self, i, spec_for(swarm, i), random.Random(rng.random()), ppm)
            for i, ppm in enumerate(swarm.rates_ppm)
        ]
        self.network.attach(self.hosts)
        self.operators = Operators(self)
        self.operators.attach(self.hosts)
        self.checkers.gone = self.operators.burnt
        members = tuple(range(swarm.members or swarm.nodes))
        self.sets.append(members)
        self.retired.update(set(range(swarm.nodes)) - set(members))
        self.nemesis = Nemesis(self, swarm, random.Random(rng.random()), plan)

    def at(self, t: int, what: Callable[[int, Any], None], arg: Any) -> None:
        self.count += 1
        heapq.heappush(self.queue, (t, self.count, what, arg))

    def run(self, minutes: float) -> list[str]:
        """Play the safety phase, then see that what is left of the world comes together again."""
        timing = self.swarm.timing
        unit = timing.heartbeat_us
        end = int(minutes * 60_000_000)
        quiet = max(end // 2, end - 600 * unit)
        for host in self.hosts:
            self.at(self.rng.randrange(0, 40 * unit), self.boot, host)
        self.nemesis.start(quiet)
        self.play_until(quiet)
        if not self.checkers.violations:
            liveness.prepare(self, self.rng)
            in_flight = timing.two_way_us + 2 * unit
            self.play_until(quiet + timing.dead_us + timing.stop_us + in_flight)
        if not self.checkers.violations:
            self.checkers.violations += liveness.silent_are_dead(self)
        if not self.checkers.violations:
            self.play_until(end)
        late = end + liveness.converged_within_us(self)
        wrong = liveness.what_is_not_whole(self)
        while not self.checkers.violations and wrong and self.now < late:
            self.play_until(self.now + liveness.LOOK_EVERY_US)
            wrong = liveness.what_is_not_whole(self)
        if not self.checkers.violations:
            self.checkers.violations += wrong
        self._sign()
        return self.checkers.violations

    def boot(self, t: int, host: Host) -> None:
        if not host.alive and not self.is_outside(host):
            host.boot(t, remember=True)
            host.run(t, host.life)

    def is_outside(self, host: Host) -> bool:
        """It is not to be started (again)."""
        gone = self.outside | self.operators.burnt | self.retired
        return host.me in gone

    def play_until(self, end: int) -> None:
        """Let the world go on up to true time `end` (us), or to the first violation."""
        queue, pop = self.queue, heapq.heappop
        violations = self.checkers.violations
        while queue and queue[0][0] <= end:
            t, _, what, arg = pop(queue)
            self.now = t
            what(t, arg)
            if violations:
                return
        self.now = end

    def _sign(self) -> None:
        """The trace also covers what every node knows in the end (S14)."""
        for host in self.hosts:
            self.trace = zlib.crc32(msgspec.msgpack.encode(host.node), self.trace)

    # what hosts tell ------------------------------------------------------------------------

    def boundary(self, host: Host) -> int:
        """How long (us) the process stops between two actions; 0 not at all, -1 it crashes."""
        return self.nemesis.boundary(host)

    def note(self, text: str) -> None:
        """One line per event."""
        line = f"{self.now / 1000:12.3f} {text}"
        self.trace = zlib.crc32(line.encode(), self.trace)
        self.history.append(line)
        if len(self.history) > HISTORY_MAX:
            del self.history[: HISTORY_MAX // 2]

    def decided(self, host: Host, what: Decided) -> None:
        self.tell(host.me, what)
        row, k = what.row, what.service
        self.note(f"n{host.me} {row:5} {what.text}")
        if row[0] == "T" and host.node is not None:
            self.hot_until = self.now + 4 * self.swarm.timing.dead_us
            self._moved(host, what, host.node.services[k])
            self.nemesis.decided(self.now)
        elif row[0] == "V":
            self.hot_until = self.now + 4 * self.swarm.timing.dead_us

    def _moved(self, host: Host, what: Decided, service: Service) -> None:
        """A process that stopped in the middle of a turn carries out what is long past: that may
        not let a packet out (S1), and is no decision of now."""
        late_us = host.local(self.now) - what.at_us
        if what.row in _WON:
            hosts = [] if late_us > LATE_US else self.hosts
            self.checkers.won(self.now, what.service, host.globally(service.identity), hosts)
        elif what.row in _CLAIMS:
            renews = what.row == "T409"
            self.checkers.claim(host.true(what.at_us), host.me, host.life, what.service, renews)
            if what.row == "T101" and late_us <= LATE_US:
                self.operators.check_claim(host, what.service, self.now)
        elif what.row == "T301" and late_us <= LATE_US:
            here = host.telephony.has(what.service)
            whose = host.globally(service.identity)
            self.checkers.serves(self.now, host.me, what.service, whose, here)

    def recovered(self, host: int, what: Recover, again: bool) -> None:
        self.recoveries.append((self.now, host, what))
        whose = self.hosts[host].globally(what.identity)
        self.checkers.recovered(self.now, host, what.service, whose, again)
