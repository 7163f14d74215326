"""The simulated links: delay, loss, duplication, replay, damage, cuts and clogs of single beats."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from haclusterd.core.inputs import Overheard
from haclusterd.core.model import Beat, ClusterSpec, Flag
from haclusterd.core.numbering import numbering, reading, renumbered
from haclusterd.datagram import BEAT_BYTES_MAX
from haclusterd.heart.former import ANSWER_EVERY_US
from haclusterd.heart.upgrade import pack_wire, unpack_wire
from haclusterd.wire import ClusterKey, KeyRing, Outcome, Wire, wire_state_in

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.member import Member
    from tests.sim.swarm import Swarm
    from tests.sim.world import World

RING = KeyRing((ClusterKey(1, b"k" * 32),))
RECORDED_MAX = 400

Way = tuple[int, int, int]  # source, destination, link
Sent = tuple[int, int, int, Beat | bytes]  # a way, and what travels on it


class Network:
    """Carries beats between hosts; one way of one link is (source, destination, link)."""

    def __init__(self, world: World, swarm: Swarm, rng: random.Random) -> None:
        self.world = world
        self.swarm = swarm
        self.rng = rng
        self.cut: dict[Way, int] = {}  # how many cuts lie on this way
        self.clogged: dict[Way, int] = {}  # until when everything waits
        self.slow: dict[Way, int] = {}  # how much longer everything takes
        self.whole = False  # no cut and no clog counts at present
        self.wires: list[Wire] = []
        self.opened: dict[Outcome, int] = {}
        self.recorded: deque[Sent] = deque(maxlen=RECORDED_MAX)
        self.records = "replay_recorded" in swarm.kinds
        self.newest: dict[tuple[int, int], Beat | bytes] = {}  # by host and link
        self.answered: dict[Way, int] = {}  # when a former node was

    def attach(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        self.version = [1] * len(hosts)  # of the wire that is sealed
        for host in hosts:
            host.old = host.me in self.swarm.old
        if self.swarm.through_wire:
            self.wires = [self._new_wire(h, 0) for h in hosts]

    # the wire's memory ----------------------------------------------------------------------

    def current(self, host: int, node: int, incarnation: int) -> None:
        if self.wires:
            self.wires[host].peer_current(node, incarnation)

    def _new_wire(self, host: Host, incarnation: int) -> Wire:
        wire = Wire(host.spec, RING, incarnation)
        wire.version = self.version[host.me]
        for kin in host.kin.values():
            wire.know(kin)
        return wire

    def start_wire(self, host: Host) -> None:
        """A restarted process remembers no window; it speaks as the core begins."""
        self.version[host.me] = host.node.dialect if host.node else 1
        self.newest = {way: data for way, data in self.newest.items() if way[0] != host.me}
        if self.wires:
            self.wires[host.me] = self._new_wire(host, 0)

    def know(self, host: Member, spec: ClusterSpec) -> None:
        if self.wires:
            self.wires[host.me].know(spec)

    def speak(self, host: int, version: int) -> None:
        self.version[host] = version
        if self.wires:
            self.wires[host].version = version

    def upgrade_wire(self, host: int, before: ClusterSpec) -> None:
        """What the old process knew of incarnations and windows, as it is handed over."""
        here = self.hosts[host]
        self.newest = {way: data for way, data in self.newest.items() if way[0] != host}
        if here.node is not None:
            self.version[host] = here.node.dialect
        if self.wires and here.node is not None:
            packed = pack_wire(self.wires[host].export_state())
            state = wire_state_in(
                unpack_wire(packed), numbering(before, here.spec), here.spec.links
            )
            self.wires[host] = self._new_wire(here, here.node.incarnation)
            self.wires[host].know(before)
            self.wires[host].import_state(state)

    # beats ----------------------------------------------------------------------------------

    def send(self, source: int, to: tuple[int, ...], beat: Beat) -> None:
        if self.hosts[source].old:
            beat = msgspec.structs.replace(beat, flags=beat.flags & ~Flag.READS_2)
        if self.version[source] == 1 and beat.staged:
            beat = msgspec.structs.replace(beat, staged=0, staged_hash=0)
        data: Beat | bytes = beat
        if self.wires:
            wire = self.wires[source]
            if wire._incarnation != beat.incarnation:
                wire.set_incarnation(beat.incarnation)
            data = wire.seal(beat)
        link = beat.link
        if self.hosts[source].kin:
            self.newest[source, link] = data
        for destination in to:
            if destination != source:
                self._one(source, destination, link, data)

    def _one(self, source: int, to: int, link: int, data: Beat | bytes) -> None:
        swarm, rng = self.swarm, self.rng
        if self.records:
            self.recorded.append((source, to, link, data))
        if self.hosts[to].old and self.version[source] > 1:
            return  # it cannot open that
        if self.cut and (source, to, link) in self.cut and not self.whole:
            return
        if swarm.loss and rng.random() < swarm.loss:
            return
        t = self.world.now + self._delay()
        if self.clogged and not self.whole:
            t = max(t, self.clogged.get((source, to, link), 0))
        if self.slow:
            t += self.slow.get((source, to, link), 0)
        self.world.at(t, self.arrive, (source, to, link, data))
        if swarm.duplicate and rng.random() < swarm.duplicate:
            for _ in range(swarm.copies):
                again = self.world.now + self._delay()
                self.world.at(again, self.arrive, (source, to, link, data))
        if swarm.replay and rng.random() < swarm.replay:
            again = self.world.now + rng.randrange(10_000, 5_000_000)
            self.world.at(again, self.arrive, (source, to, link, data))

    def _delay(self) -> int:
        swarm = self.swarm
        mean_us = swarm.delay_mean_us
        if not mean_us:
            return swarm.delay_min_us
        return swarm.delay_min_us + int(-mean_us * math.log(1.0 - self.rng.random()))

    def arrive(self, t: int, what: Sent) -> None:
        source, to, link, data = what
        host = self.hosts[to]
        if not host.alive:
            return
        if host.kin and host.number_of(source) < 0 and host.thaw_at <= t:
            self._answer_former(t, host, source, link)
        if isinstance(data, bytes):
            if self.swarm.damage and self.rng.random() < self.swarm.damage:
                data = self._damaged(data)
            wire = self.wires[to]
            opened = wire.open(data, link, f"10.{link}.0.{source + 1}")
            if host.node is not None and wire.overheard[0] > host.node.roll.known:
                host.give(t, Overheard(*wire.overheard))
            if isinstance(opened, Outcome):
                self.opened[opened] = self.opened.get(opened, 0) + 1
                return
            host.deliver(t, link, opened)
        elif (read := self._read(host, source, data)) is not None:
            host.deliver(t, link, read)

    def _answer_former(self, t: int, host: Host, source: int, link: int) -> None:
        """As `heart.former`: who was a node until the last change gets the newest beat now and
        then, whose revision it can read."""
        before = [s for s in host.kin.values() if s.revision < host.spec.revision]
        data = self.newest.get((host.me, link))
        if data is None or all(n.id != f"n{source}" for s in before for n in s.nodes):
            return
        if t - self.answered.get((host.me, source, link), -ANSWER_EVERY_US) >= ANSWER_EVERY_US:
            self.answered[host.me, source, link] = t
            self._one(host.me, source, link, data)

    def _read(self, host: Host, source: int, beat: Beat) -> Beat | None:
        """What the wire makes of a beat of another set of voters, or of another version."""
        if beat.config_hash == host.spec.config_hash:
            return beat
        kin = host.kin.get(beat.config_hash)
        read = renumbered(beat, reading(kin, host.spec)) if kin is not None else None
        if read is not None:
            return read
        if host.node is not None and beat.revision > host.node.roll.known:
            host.give(self.world.now, Overheard(beat.revision, beat.config_hash))
        return None

    def _damaged(self, data: bytes) -> bytes:
        """A bit flipped, cut short, drawn out, or nothing but noise."""
        rng, size = self.rng, len(data)
        how = rng.randrange(4)
        if how == 0:
            at = rng.randrange(size)
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        if how == 1:
            return data[: rng.randrange(size)]
        if how == 2:
            return data + rng.randbytes(rng.randrange(1, BEAT_BYTES_MAX))
        return rng.randbytes(rng.randrange(1, BEAT_BYTES_MAX))

    # faults ---------------------------------------------------------------------------------

    def add_cut(self, ways: list[Way], t: int, for_us: int) -> None:
        for way in ways:
            self.cut[way] = self.cut.get(way, 0) + 1
        self.world.at(t + for_us, self._mend, ways)

    def _mend(self, t: int, ways: list[Way]) -> None:
        for way in ways:
            left = self.cut.get(way, 0) - 1
            if left > 0:
                self.cut[way] = left
            else:
                self.cut.pop(way, None)

    def cut_off(self, outside: set[int]) -> None:
        """For good: nothing to or from these nodes."""
        nodes, links = range(self.swarm.nodes), range(self.swarm.links)
        for a in nodes:
            for b in nodes:
                if a != b and (a in outside or b in outside):
                    self.cut.update(dict.fromkeys([(a, b, x) for x in links], 1_000_000))

    def heal(self) -> None:
        self.cut.clear()
        self.clogged.clear()
        self.slow.clear()
        self.records = False
