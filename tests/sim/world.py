"""One seed's world: hosts, network, nemesis and checkers on one queue of events."""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable
from typing import Any

from haclusterd.core.actions import Decided, KillFreeswitch, Recover
from haclusterd.core.model import State
from haclusterd.core.state import owns
from tests.sim.checkers import Checkers
from tests.sim.host import Host
from tests.sim.nemesis import Nemesis
from tests.sim.network import Network
from tests.sim.swarm import Swarm, draw_swarm, spec_for

HISTORY_MAX = 4000  # sentences kept for the report of a failure
# A network that loses every third beat ends a lease now and then: whole within C of some moment.
CONVERGED_WITHIN_US = 3_000_000


class World:
    """`run` plays a seed; `checkers.violations` holds what went wrong."""

    def __init__(self, seed: int, swarm: Swarm | None = None) -> None:
        rng = random.Random(seed)
        self.seed = seed
        self.swarm = swarm or draw_swarm(rng)
        self.rng = rng
        self.now = 0
        self.queue: list[tuple[int, int, Callable[[int, Any], None], Any]] = []
        self.count = 0
        self.history: list[str] = []
        self.trace = 0
        self.hot_until = 0
        self.arm_ignored = False  # a mutation drill of the kernel model
        self.tell: Callable[[int, Decided | KillFreeswitch], None] = lambda host, what: None
        self.recoveries: list[tuple[int, int, Recover]] = []
        self.checkers = Checkers(self.swarm.nodes, self.swarm.services)
        self.network = Network(self, self.swarm, rng)
        self.hosts = [
            Host(self, spec_for(self.swarm, i), random.Random(rng.random()), ppm)
            for i, ppm in enumerate(self.swarm.rates_ppm)
        ]
        self.network.attach(self.hosts)
        self.nemesis = Nemesis(self, self.swarm, rng)

    def at(self, t: int, what: Callable[[int, Any], None], arg: Any) -> None:
        self.count += 1
        heapq.heappush(self.queue, (t, self.count, what, arg))

    def run(self, minutes: float) -> list[str]:
        """Play the safety phase, then heal and see that the world comes together again."""
        unit = self.swarm.timing.heartbeat_us
        end = int(minutes * 60_000_000)
        quiet = max(end // 2, end - 600 * unit)
        for host in self.hosts:
            self.at(self.rng.randrange(0, 40 * unit), self._boot, host)
        self.nemesis.start(quiet)
        self._play(quiet)
        self.nemesis.heal()
        self._play(end)
        late = end + CONVERGED_WITHIN_US
        while not self.checkers.violations and self._what_is_not_whole() and self.now < late:
            self._play(self.now + 50_000)
        if not self.checkers.violations:
            self.checkers.violations += self._what_is_not_whole()
        return self.checkers.violations

    def _boot(self, t: int, host: Host) -> None:
        if not host.alive:
            host.boot(t, remember=True)
            host.run(t, host.life)

    def play_until(self, end: int) -> None:
        """Let the world go on, without nemesis, up to true time `end` (us)."""
        self._play(end)

    def _play(self, end: int) -> None:
        queue, pop = self.queue, heapq.heappop
        violations = self.checkers.violations
        while queue and queue[0][0] <= end:
            t, _, what, arg = pop(queue)
            self.now = t
            what(t, arg)
            if violations:
                return
        self.now = end

    def _what_is_not_whole(self) -> list[str]:
        """V3: after the last fault, every service has one owner and everybody stands by it."""
        found = []
        for k in range(self.swarm.services):
            owners = [h.me for h in self.hosts if h.node and owns(h.node.services[k])]
            if len(owners) != 1:
                states = [State(h.node.services[k].state).name for h in self.hosts if h.node]
                found.append(f"V3: s{k} is owned by {owners}: {states}")
                continue
            identity = self.hosts[owners[0]].node.services[k].identity  # type: ignore[union-attr]
            for host in self.hosts:
                if host.node and host.node.services[k].promise != identity:
                    stands = host.node.services[k].promise
                    found.append(f"V3: n{host.me} stands by {stands}, s{k} is {identity}")
        return found

    # what hosts tell ------------------------------------------------------------------------

    def boundary(self) -> int:
        """A freeze (us) between two actions, 0 for none; likelier while a service moves."""
        chance = self.swarm.boundary if self.now < self.hot_until else self.swarm.boundary / 500
        if not chance or self.rng.random() >= chance or self.nemesis.over:
            return 0
        scale = self.swarm.timing.heartbeat_us // 25_000
        return self.rng.choice((4_000, 12_000, 50_000, 90_000, 130_000, 400_000)) * scale

    def decided(self, host: int, what: Decided) -> None:
        self.tell(host, what)
        line = f"{self.now / 1000:12.3f} n{host} {what.row:5} {what.text}"
        self.trace = zlib.crc32(line.encode(), self.trace)
        if what.row[0] in "TV":
            self.hot_until = self.now + 4 * self.swarm.timing.dead_us
        self.history.append(line)
        if len(self.history) > HISTORY_MAX:
            del self.history[: HISTORY_MAX // 2]

    def recovered(self, host: int, what: Recover) -> None:
        self.recoveries.append((self.now, host, what))
