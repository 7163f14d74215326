"""What of a simulated host belongs to the set of voters: its numbers, its disk, its reloads.

The disk keeps what `haclusterd.config.revisions` keeps, and in the same order of events.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core import reconfigure
from haclusterd.core.model import NOBODY, ClusterSpec, Identity
from haclusterd.core.state import FAR, Node, start
from tests.sim.clock import Clock

if TYPE_CHECKING:
    from tests.sim.telephony import Telephony
    from tests.sim.world import World

PERSIST_US_MAX = 50_000
Asked = tuple[int, tuple[Identity, ...], tuple[int, ...]]  # life, promises, epochs owned


class Disk(msgspec.Struct):
    """What a node keeps of configurations (haclusterd.config.revisions)."""

    active: ClusterSpec
    proven: bool = True
    staged: ClusterSpec | None = None
    previous: ClusterSpec | None = None


class Member(Clock):
    """Base of `Host`. Times are true microseconds."""

    world: World
    me: int  # among the hosts of the world
    rng: random.Random
    node: Node | None
    telephony: Telephony
    alive: bool
    stopping: bool
    life: int
    thaw_at: int

    def _belong(self, spec: ClusterSpec) -> None:
        self.persisted: tuple[Identity, ...] = (NOBODY,) * len(spec.services)
        self.owned: tuple[int, ...] = ()
        self.unwritten: Asked | None = None  # the newest promises that no agent was there to write
        self.written_at = 0  # when all that was asked for is on the disk: in the order asked
        self.disk = Disk(spec)
        self.held_down_us = 0  # by the file of the last run
        self.file = spec  # the configuration file that lies on this host
        self.old = False  # knows version 1 of the wire only
        self.reloading = False
        self.swift = False  # an upgrade of its heart takes no time
        self.stubborn = False  # no upgrade of its heart comes about
        self.kin: dict[int, ClusterSpec] = {}  # other configurations that are read here, by hash
        self._count_by(spec)

    def give(self, t: int, event: inp.Input) -> None:
        raise NotImplementedError

    def kill(self, t: int, power: bool) -> None:
        raise NotImplementedError

    def upgrade(self, t: int, pause_us: int, spec: ClusterSpec | None = None) -> bool:
        raise NotImplementedError

    def _begin(self, now: int, remember: bool) -> None:
        """The state of a process that starts, by what the disk and the file say."""
        if not remember:
            self.disk = Disk(self.file, self.file.revision == 1)
        disk = self.disk
        self._count_by(disk.active)
        self.node = start(self.spec, now, self.rng.getrandbits(64) | 1)
        kin = (disk.previous.config_hash,) if disk.previous else ()
        held_down_us = self.held_down_us if remember else 0
        reconfigure.begin(self.node, proven=disk.proven, kin=kin, hold_down_us=held_down_us)
        self.world.at(self.world.now + 2 * held_down_us, self._held_down, self.life)
        self.held_down_us = max(held_down_us, self.spec.timing.hold_down_us)
        if self.old:
            self.node.plain_us = FAR  # software that never seals another version
        self.reloading = False
        self.kin = {
            s.config_hash: s for s in (disk.previous, disk.staged, self.file) if s is not None
        }

    def _held_down(self, t: int, life: int) -> None:
        """What a former run held down for is forgotten only by one that has lasted longer."""
        if life == self.life:
            self.held_down_us = self.spec.timing.hold_down_us

    def _staged_before(self) -> Iterator[inp.Input]:
        """What a start finds staged, or newer, before its first step."""
        newest = self.disk.active.revision
        if self.disk.staged is not None:
            newest = self.disk.staged.revision
            yield inp.StageRequested(-1, self.disk.staged, kept=True)
        if self.file.revision > newest:
            yield inp.StageRequested(-1, self.file, voted=False)

    def configure(self, spec: ClusterSpec) -> None:
        """Another file, before the first start."""
        self.disk, self.file = Disk(spec), spec
        self._count_by(spec)

    def _count_by(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.numbers = [int(node.id[1:]) for node in spec.nodes]
        # Each service's address, by which the world knows who serves, whatever a file calls it.
        self.places = [int(s.addresses[0].ip.rpartition(".")[2]) - 1 for s in spec.services]

    def globally(self, identity: Identity) -> Identity:
        """An identity in this node's numbers, in those of the world's hosts."""
        node = self.numbers[identity.node] if identity.node >= 0 else identity.node
        return Identity(identity.epoch, node, identity.nonce)

    def locally(self, identity: Identity) -> Identity:
        """What was kept, as a restarted process reads it by name."""
        return Identity(identity.epoch, self.number_of(identity.node), identity.nonce)

    def number_of(self, host: int) -> int:
        """A host of the world in this node's numbers; -1 where it is no voter."""
        return self.numbers.index(host) if host in self.numbers else -1

    # the set of voters ----------------------------------------------------------------------

    def reload(self, t: int, spec: ClusterSpec) -> None:
        """An operator's `haclusterctl reload`: checked, written, and only then said aloud."""
        self.file = spec
        if not self.alive or self.node is None or self.reloading or self.thaw_at > t:
            return
        event = inp.StageRequested(-1, spec)
        if reconfigure.refusals(self.node, event):
            return
        self.reloading = True
        delay_us = self.rng.randrange(PERSIST_US_MAX)
        self.world.at(t + delay_us, self._written, (self.life, event))

    def _written(self, t: int, what: tuple[int, inp.StageRequested]) -> None:
        life, event = what
        if life != self.life or not self.alive:
            return
        self.reloading = False
        if self.disk.active.revision < self.spec.revision:
            # What this process counts by is written before anything that is to follow it.
            self.disk = Disk(self.spec, True, None, self.disk.active)
        if self.disk.active.revision < event.spec.revision:
            self.disk.staged = event.spec
        self.kin[event.spec.config_hash] = event.spec
        self.world.network.know(self, event.spec)
        self.give(t, event)

    def _flip(self, action: act.Flip) -> None:
        delay_us = 1 if self.swift else self.rng.choice((1, 1_000, 100_000, 1_000_000))
        self.world.at(self.world.now + delay_us, self._flipped, (self.life, action))

    def _flipped(self, t: int, what: tuple[int, act.Flip]) -> None:
        life, action = what
        if life != self.life or not self.alive or self.spec.revision >= action.revision:
            return
        if not action.stays and not self.stubborn:
            if not self.stopping:
                self.stopping = True
                self.world.retired.add(self.me)
                self.world.note(f"n{self.me} LEAVES at revision {action.revision}")
                self.give(t, inp.StopRequested())
                self.world.at(t + 5_000_000, self._gone, self.life)
            return
        if self.stubborn:
            return
        spec, before = self.kin.get(action.config_hash), self.spec
        pause_us = 500 if self.swift else self.rng.randrange(500, 40_000)
        if spec is not None and self.upgrade(t, pause_us, spec):
            self.world.note(f"n{self.me} TAKES UP revision {spec.revision}: {self.numbers}")
            delay_us = self.rng.randrange(800_000)
            self.world.at(t + delay_us, self._kept, (self.life, spec, before))

    def _kept(self, t: int, what: tuple[int, ClusterSpec, ClusterSpec]) -> None:
        """The new agent has written down what its heart counts by."""
        life, spec, before = what
        if life == self.life and self.alive and self.disk.active.revision < spec.revision:
            staged = self.disk.staged
            later = staged if staged and staged.revision > spec.revision else None
            self.disk = Disk(spec, True, later, before)

    def _gone(self, t: int, life: int) -> None:
        if life == self.life and self.alive:
            self.kill(t, power=False)

    def _in_force(self, action: act.InForce) -> None:
        self.world.at(self.world.now + self.rng.randrange(50_000), self._proven, self.life)

    def _proven(self, t: int, life: int) -> None:
        if life == self.life and self.alive:
            self.disk.proven = True

    def _speak(self, action: act.Speak) -> None:
        self.world.network.speak(self.me, action.version)

    # promises on disk ----------------------------------------------------------------------

    def _remembered(self, remember: bool) -> Iterator[inp.Input]:
        """What a start finds of its promises, in the numbers it counts by now."""
        if remember:
            known = tuple(self.locally(p) for p in self.persisted)
            yield inp.Restored(known, self.owned)
        elif any(p != NOBODY for p in self.persisted):
            self.persisted, self.owned = (NOBODY,) * len(self.spec.services), ()
            self.world.checkers.forget(self.me)

    def _persist(self, action: act.Persist) -> None:
        for k, identity in enumerate(action.promises):
            if identity != NOBODY and identity.node >= 0:
                where = self.globally(identity)
                self.world.checkers.promise(self.world.now, self.me, k, where)
        self.written_at = max(self.written_at, self.world.now + self.rng.randrange(PERSIST_US_MAX))
        kept = tuple(map(self.globally, action.promises))
        self.world.at(self.written_at, self._persisted, (self.life, kept, action.owned))

    def _persisted(self, t: int, what: Asked) -> None:
        if what[0] != self.life or not self.alive:
            return
        if self.telephony.agent_up:
            self.persisted, self.owned = what[1], what[2]
            self.unwritten = None
        else:
            self.unwritten = what

    def write_rest(self, t: int) -> None:
        """An agent is back: what heart asked for meanwhile is written."""
        if self.unwritten is not None:
            self._persisted(t, self.unwritten)
