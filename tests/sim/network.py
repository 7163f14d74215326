"""The simulated links: delay, loss, duplication, replay, damage, cuts and clogs of single beats."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from haclusterd.core.model import Beat
from haclusterd.wire import ClusterKey, KeyRing, Outcome, Wire
from tests.sim.swarm import Swarm

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.world import World

DAMAGE = 0.002  # chance of a damaged datagram where beats go through wire
RING = KeyRing((ClusterKey(1, b"k" * 32),))


class Network:
    """Carries beats between hosts; one way of one link is (source, destination, link)."""

    def __init__(self, world: World, swarm: Swarm, rng: random.Random) -> None:
        self.world = world
        self.swarm = swarm
        self.rng = rng
        self.cut: dict[tuple[int, int, int], int] = {}  # how many cuts lie on this way
        self.clogged: dict[tuple[int, int], int] = {}  # until when everything waits
        self.wires: list[Wire] = []
        self.opened: dict[Outcome, int] = {}

    def attach(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        if self.swarm.through_wire:
            self.wires = [Wire(h.spec, RING, 0) for h in hosts]

    def current(self, host: int, node: int, incarnation: int) -> None:
        if self.wires:
            self.wires[host].peer_current(node, incarnation)

    def reset_wire(self, host: int) -> None:
        """A restarted process remembers no window."""
        if self.wires:
            self.wires[host] = Wire(self.hosts[host].spec, RING, 0)

    def send(self, source: int, to: tuple[int, ...], beat: Beat) -> None:
        data: Beat | bytes = beat
        if self.wires:
            wire = self.wires[source]
            if wire._incarnation != beat.incarnation:
                wire.set_incarnation(beat.incarnation)
            data = wire.seal(beat)
        link = beat.link
        for destination in to or range(self.swarm.nodes):
            if destination != source:
                self._one(source, destination, link, data)

    def _one(self, source: int, to: int, link: int, data: Beat | bytes) -> None:
        swarm, rng = self.swarm, self.rng
        if self.cut and (source, to, link) in self.cut:
            return
        if swarm.loss and rng.random() < swarm.loss:
            return
        self._deliver_at(source, to, link, data, self._delay())
        if swarm.duplicate and rng.random() < swarm.duplicate:
            self._deliver_at(source, to, link, data, self._delay())
        if swarm.replay and rng.random() < swarm.replay:
            self._deliver_at(source, to, link, data, rng.randrange(10_000, 5_000_000))

    def _delay(self) -> int:
        swarm = self.swarm
        return swarm.delay_min_us + int(-swarm.delay_mean_us * math.log(1.0 - self.rng.random()))

    def _deliver_at(
        self, source: int, to: int, link: int, data: Beat | bytes, delay_us: int
    ) -> None:
        t = self.world.now + delay_us
        if self.clogged:
            t = max(t, self.clogged.get((source, to), 0))
        self.world.at(t, self._arrive, (source, to, link, data))

    def _arrive(self, t: int, what: tuple[int, int, int, Beat | bytes]) -> None:
        source, to, link, data = what
        host = self.hosts[to]
        if not host.alive:
            return
        if isinstance(data, bytes):
            if self.rng.random() < DAMAGE:
                at = self.rng.randrange(len(data))
                data = data[:at] + bytes([data[at] ^ 1 << self.rng.randrange(8)]) + data[at + 1 :]
            opened = self.wires[to].open(
                data, link, self.hosts[source].spec.nodes[source].links[link]
            )
            if isinstance(opened, Outcome):
                self.opened[opened] = self.opened.get(opened, 0) + 1
                return
            data = opened
        host.deliver(t, link, data)

    # faults ---------------------------------------------------------------------------------

    def add_cut(self, ways: list[tuple[int, int, int]], t: int, for_us: int) -> None:
        for way in ways:
            self.cut[way] = self.cut.get(way, 0) + 1
        self.world.at(t + for_us, self._heal, ways)

    def _heal(self, t: int, ways: list[tuple[int, int, int]]) -> None:
        for way in ways:
            left = self.cut.get(way, 0) - 1
            if left > 0:
                self.cut[way] = left
            else:
                self.cut.pop(way, None)
