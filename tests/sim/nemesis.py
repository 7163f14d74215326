"""Faults: what befalls the hosts and links of a world, and when it stops."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from haclusterd.core.inputs import SwitchoverRequested
from haclusterd.core.state import owns
from tests.sim.swarm import Swarm

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.world import World


class Nemesis:
    """Injects the swarm's kinds of faults at random times; `heal` ends them all."""

    def __init__(self, world: World, swarm: Swarm, rng: random.Random) -> None:
        self.world = world
        self.swarm = swarm
        self.rng = rng
        self.over = False
        self.scale = max(1, swarm.timing.heartbeat_us // 25_000)

    def start(self, until: int) -> None:
        self.until = until
        self._next(0)

    def _next(self, t: int) -> None:
        wait = int(self.rng.expovariate(1 / (self.swarm.fault_mean_us * self.scale)))
        if t + wait < self.until:
            self.world.at(t + wait, self._strike, None)

    def heal(self) -> None:
        """All cuts and clogs end, everybody runs."""
        self.over = True
        self.world.network.cut.clear()
        self.world.network.clogged.clear()
        t = self.world.now
        for host in self.world.hosts:
            if not host.alive:
                self.world.at(t + 1, self.world._boot, host)
            elif host.thaw_at > t + 1_000_000:
                host.thaw_at = 0
                host.run(t, host.life)

    def _strike(self, t: int, _: object) -> None:
        kind = self.rng.choice(self.swarm.kinds)
        host = self.rng.choice(self.world.hosts)
        if self.rng.random() < 0.6:
            holders = [h for h in self.world.hosts if h.node and any(map(owns, h.node.services))]
            host = self.rng.choice(holders) if holders else host
        getattr(self, f"_{kind}")(t, host)
        self.world.hot_until = t + 4 * self.swarm.timing.dead_us
        self._next(t)

    def _spell(self, low_ms: int, high_ms: int) -> int:
        return self.rng.randrange(low_ms, high_ms) * 1000 * self.scale

    def _down(self, t: int, host: Host, power: bool, remember: bool) -> None:
        if not host.alive:
            return
        host.kill(t, power)
        self.world.at(t + self._spell(10, 4000), self._up, (host, remember))

    def _up(self, t: int, what: tuple[Host, bool]) -> None:
        host, remember = what
        if not host.alive:
            self.world.network.reset_wire(host.me)
            host.boot(t, remember)
            host.run(t, host.life)

    def _crash(self, t: int, host: Host) -> None:
        self._down(t, host, power=False, remember=True)

    def _restart_forget(self, t: int, host: Host) -> None:
        self._down(t, host, power=False, remember=False)

    def _power_off(self, t: int, host: Host) -> None:
        self._down(t, host, power=True, remember=self.rng.random() < 0.8)

    def _freeze(self, t: int, host: Host) -> None:
        host.freeze(t, self._spell(20, 400))

    def _freeze_long(self, t: int, host: Host) -> None:
        host.freeze(t, self._spell(400, 8000))

    def _stun(self, t: int, host: Host) -> None:
        host.freeze(t, self._spell(90, 160))

    def _ways(self, sources: list[int], targets: list[int]) -> list[tuple[int, int, int]]:
        links = range(self.swarm.links)
        return [(a, b, x) for a in sources for b in targets if a != b for x in links]

    def _cut_node(self, t: int, host: Host) -> None:
        others = [h.me for h in self.world.hosts if h is not host]
        ways = self._ways([host.me], others) + self._ways(others, [host.me])
        self.world.network.add_cut(ways, t, self._spell(50, 5000))

    def _cut_one_way(self, t: int, host: Host) -> None:
        others = [h.me for h in self.world.hosts if h is not host]
        if self.rng.random() < 0.5:
            others = [self.rng.choice(others)]
        ways = self._ways([host.me], others)
        if self.rng.random() < 0.5:
            ways = self._ways(others, [host.me])
        self.world.network.add_cut(ways, t, self._spell(50, 5000))

    def _cut_half(self, t: int, host: Host) -> None:
        all_nodes = list(range(self.swarm.nodes))
        self.rng.shuffle(all_nodes)
        at = self.rng.randrange(1, self.swarm.nodes)
        left, right = all_nodes[:at], all_nodes[at:]
        if self.rng.random() < 0.3:
            right = [*right, left[0]]  # a bridge: two halves that share one node
        ways = self._ways(left, right) + self._ways(right, left)
        shared = left[0] if left[0] in right else -1
        ways = [w for w in ways if shared not in w[:2]]
        self.world.network.add_cut(ways, t, self._spell(50, 5000))

    def _cut_link(self, t: int, host: Host) -> None:
        nodes = range(self.swarm.nodes)
        link = self.rng.randrange(self.swarm.links)
        ways = [(a, b, link) for a in nodes for b in nodes if a != b]
        if self.rng.random() < 0.5:
            ways = [w for w in ways if host.me in w[:2]]
        self.world.network.add_cut(ways, t, self._spell(50, 5000))

    def _freeswitch(self, t: int, host: Host) -> None:
        if host.alive and self.swarm.freeswitch and host.node and host.node.freeswitch_up:
            host.lose_freeswitch()
            host.run(t, host.life)

    def _switchover(self, t: int, host: Host) -> None:
        node = host.node
        if node is None or not host.alive:
            return
        for k, service in enumerate(node.services):
            if owns(service):
                host.give(t, SwitchoverRequested(1, k, -1))
                return

    def _triangle(self, t: int, host: Host) -> None:
        """Owner and one slave never hear each other; what lies between blinks or forgets.

        The slave claims again and again, refused by voters that hear the owner: aimed at the
        deferral and at the hold-down.
        """
        others = [h for h in self.world.hosts if h is not host]
        slave = self.rng.choice(others)
        between = [h for h in others if h is not slave]
        apart = self._ways([host.me], [slave.me]) + self._ways([slave.me], [host.me])
        self.world.network.add_cut(apart, t, self._spell(3000, 6000))
        blinks = self.rng.random() < 0.7
        at = t + self._spell(200, 400)
        for _ in range(8):
            self.world.at(at, self._blink if blinks else self._lapse_of_memory, (host, between))
            at += self._spell(250, 600)

    def _torn_release(self, t: int, host: Host) -> None:
        """The target of a switchover hears the RELEASE and is cut off while it claims.

        The owner takes its service back; the target returns and still speaks of the old RELEASE,
        to voters only: owner and target do not hear each other for seconds.
        """
        others = [h for h in self.world.hosts if h is not host]
        target = self.rng.choice(others)
        held = [k for k, s in enumerate(host.node.services) if owns(s)] if host.node else []
        if not host.alive or not held:
            return
        host.give(t, SwitchoverRequested(1, self.rng.choice(held), target.me))
        apart = self._ways([host.me], [target.me]) + self._ways([target.me], [host.me])
        rest = [h.me for h in others if h is not target]
        off = self._ways([target.me], rest) + self._ways(rest, [target.me])
        soon = t + self.rng.randrange(2_000) * self.scale
        self.world.at(soon, self._tear, (apart, self._spell(2000, 4000)))
        self.world.at(soon, self._tear, (off, self._spell(50, 300)))

    def _tear(self, t: int, what: tuple[list[tuple[int, int, int]], int]) -> None:
        if not self.over:
            self.world.network.add_cut(what[0], t, what[1])

    def _blink(self, t: int, who: tuple[Host, list[Host]]) -> None:
        """Just shorter than `dead_us`: the silence a voter defers a claim for."""
        host, between = who
        rest = [h.me for h in between]
        ways = self._ways([host.me], rest) + self._ways(rest, [host.me])
        dead_us = self.swarm.timing.dead_us
        if not self.over:
            self.world.network.add_cut(ways, t, self.rng.randrange(dead_us * 7 // 10, dead_us))

    def _lapse_of_memory(self, t: int, who: tuple[Host, list[Host]]) -> None:
        """A voter restarts at once and remembers nothing."""
        voter = self.rng.choice(who[1])
        if voter.alive and not self.over:
            voter.kill(t, power=False)
            self.world.at(t + self._spell(1, 20), self._up, (voter, False))

    def _clog(self, t: int, host: Host) -> None:
        until = t + self._spell(20, 2000)
        for other in self.world.hosts:
            if self.rng.random() < 0.7:
                self.world.network.clogged[host.me, other.me] = until
