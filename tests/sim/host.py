"""One simulated host: heart's loop around the production core, and the kernel beneath it.

The loop follows `haclusterd.heart.loop`: detect a freeze, drain the sockets, read the clock after
the receive, step, carry the actions out in order, Tick when due. It is a generator that yields
whenever the nemesis freezes it between two actions. The kernel goes on meanwhile: fence sets and
address lifetimes run out by themselves, the receive queue keeps the oldest.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core.model import NOBODY, Beat, ClusterSpec, Identity
from haclusterd.core.node import next_deadline_us, step, stopped
from haclusterd.core.state import Node, holding_down, start

if TYPE_CHECKING:
    from tests.sim.world import World

QUEUE_MAX = 200
_SWIFT = (act.SendBeat, act.Decided)  # no freeze just before these: it would tell nothing new
LIFETIME_US = 2_000_000
TURN_INPUTS_MAX = 64


class Kernel:
    """What survives a process: when each service's fence and addresses run out (true time)."""

    def __init__(self, services: int) -> None:
        self.fence_until = [0] * services
        self.address_until = [0] * services
        self.keep = [False] * services
        self.armed_until = 0


class Host:
    """A node's process and kernel; `world` gives time, network, faults and checks."""

    def __init__(self, world: World, spec: ClusterSpec, rng: random.Random, ppm: int) -> None:
        self.world = world
        self.spec = spec
        self.me = spec.me
        self.rng = rng
        self.ppm = ppm
        self.offset = rng.randrange(10**9, 10**12)
        self.kernel = Kernel(len(spec.services))
        self.alive = False
        self.node: Node | None = None
        self.queue: deque[tuple[int, Beat]] = deque()
        self.todo: deque[inp.Input] = deque()
        self.turn: Iterator[int] | None = None
        self.thaw_at = 0
        self.last_turn = 0
        self.wake_at = -1
        self.persisted: tuple[Identity, ...] = (NOBODY,) * len(spec.services)
        self.life = 0
        self.refused: set[int] = set()  # services whose addresses do not come up here

    # time -----------------------------------------------------------------------------------

    def local(self, t: int) -> int:
        return self.offset + t + t * self.ppm // 1_000_000

    def true(self, local: int) -> int:
        """The first true time at which this clock shows `local`."""
        return -((self.offset - local) * 1_000_000 // (1_000_000 + self.ppm)) + 1

    # life -----------------------------------------------------------------------------------

    def boot(self, t: int, remember: bool) -> None:
        """Start the process: left-over addresses and fence go first, as heart does."""
        self.life += 1
        self.alive = True
        for k in range(len(self.spec.services)):
            self._set_kernel(t, k, fence=0, address=0)
        now = self.local(t)
        self.node = start(self.spec, now, self.rng.getrandbits(64))
        self.queue.clear()
        self.todo.clear()
        self.turn = None
        self.thaw_at = 0
        self.last_turn = now
        self.world.checkers.restart(self.me, self.persisted)
        if remember:
            self.todo.append(inp.Restored(self.persisted))
        elif any(p != NOBODY for p in self.persisted):
            self.persisted = (NOBODY,) * len(self.spec.services)
            self.world.checkers.forget(self.me)
        self.todo.append(inp.AgentChanged(True))
        self.report_ready(True)
        self.schedule(t)

    def kill(self, t: int, power: bool) -> None:
        """The process is gone; its kernel goes on unless the power went too."""
        self.alive = False
        self.turn = None
        self.wake_at = -1
        for k in range(len(self.spec.services)):
            self.kernel.keep[k] = False
            if power:
                self._set_kernel(t, k, fence=0, address=0)

    def report_ready(self, up: bool) -> None:
        services = tuple(inp.ServiceReport(up, "", 0) for _ in self.spec.services)
        self.todo.append(inp.LocalReport(up, 1, 100 if up else 0, 0, 0, False, services))

    def freeze(self, t: int, for_us: int) -> None:
        if self.alive and self.thaw_at <= t:
            self.thaw_at = t + for_us
            self.wake_at = -1
            self.world.at(self.thaw_at, self.run, self.life)

    # the loop -------------------------------------------------------------------------------

    def deliver(self, t: int, link: int, beat: Beat) -> None:
        if not self.alive:
            return
        if len(self.queue) < QUEUE_MAX:
            self.queue.append((link, beat))
        if self.thaw_at <= t and self.turn is None:
            self.run(t, self.life)

    def give(self, t: int, event: inp.Input) -> None:
        if self.alive:
            self.todo.append(event)
            self.run(t, self.life)

    def run(self, t: int, life: int) -> None:
        """Run turns until the process waits or is frozen between two actions."""
        if not self.alive or life != self.life or self.thaw_at > t:
            return
        self.thaw_at = 0
        if self.turn is None:
            self.turn = self._turn()
        while self.turn is not None:
            frozen_us = next(self.turn, None)
            if frozen_us is not None:
                self.thaw_at = t + frozen_us
                self.wake_at = -1
                self.world.at(self.thaw_at, self.run, life)
                return
            self.turn = self._turn() if self.queue or self.todo else None
        self.schedule(t)

    def wake(self, t: int, life: int) -> None:
        if life == self.life and self.wake_at == t and self.alive and self.thaw_at <= t:
            self.run(t, life)

    def schedule(self, t: int) -> None:
        """Ask to be woken at the core's next deadline."""
        if self.node is None or not self.alive:
            return
        deadline = next_deadline_us(self.node)
        at = max(self.true(deadline), t + 1)
        if at != self.wake_at:
            self.wake_at = at
            self.world.at(at, self.wake, self.life)

    def _turn(self) -> Iterator[int]:
        node = self.node
        if node is None:
            return
        now = self.local(self.world.now)
        gap = now - self.last_turn
        self.last_turn = now
        if gap > self.spec.timing.lease_us:
            yield from self._step(inp.Froze(gap, self.rng.getrandbits(64)), now)
        batch: list[inp.Input] = []
        while self.todo:
            batch.append(self.todo.popleft())
        for _ in range(TURN_INPUTS_MAX):
            if not self.queue:
                break
            link, beat = self.queue.popleft()
            batch.append(inp.Received(link, beat))
        for event in batch:
            yield from self._step(event, now)
        if not self.queue and now >= next_deadline_us(node):
            yield from self._step(inp.Tick(), now)

    def _step(self, event: inp.Input, now: int) -> Iterator[int]:
        node = self.node
        if node is None:
            return
        events = deque((event,))
        while events:
            _, actions = step(node, events.popleft(), now)
            for action in actions:
                if not isinstance(action, _SWIFT):
                    frozen_us = self.world.boundary()
                    if frozen_us:
                        yield frozen_us
                if isinstance(action, act.RenewFence):
                    yield from self._renew(action)
                else:
                    _DO[type(action)](self, action, events)

    # actions --------------------------------------------------------------------------------

    def _renew(self, action: act.RenewFence) -> Iterator[int]:
        """Arm, read the clock, decide, renew (DESIGN 3); the nemesis loves the gaps."""
        timing, kernel = self.spec.timing, self.kernel
        kernel.armed_until = self.world.now + timing.arm_us
        now = self.local(self.world.now)
        if now + timing.fence_us > action.lease_until_us:
            return
        frozen_us = self.world.boundary()
        if frozen_us:
            yield frozen_us
        if self.world.now < kernel.armed_until or self.world.arm_ignored:
            until = self.world.now + timing.fence_us
            self._set_kernel(self.world.now, action.service, fence=until)

    def _set_kernel(
        self, t: int, k: int, fence: int | None = None, address: int | None = None
    ) -> None:
        kernel = self.kernel
        if fence is not None:
            kernel.fence_until[k] = fence
        if address is not None:
            kernel.address_until[k] = address
        until = min(kernel.fence_until[k], kernel.address_until[k])
        self.world.checkers.may_emit(t, k, self.me, until)

    def _send(self, action: act.SendBeat, events: deque[inp.Input]) -> None:
        for beat in action.beats:
            self.world.network.send(self.me, action.to, beat)
        for k, keep in enumerate(self.kernel.keep):
            # Lifetimes are renewed twice a second in the product; with every beat is the same.
            if keep:
                self.kernel.address_until[k] = self.world.now + LIFETIME_US

    def _close(self, action: act.CloseFence, events: deque[inp.Input]) -> None:
        self._set_kernel(self.world.now, action.service, fence=0)
        events.append(inp.FenceClosed(action.service, True))

    def _add(self, action: act.AddAddresses, events: deque[inp.Input]) -> None:
        k = action.service
        if k in self.refused:
            events.append(inp.AddressesAdded(k, False, "its addresses are refused"))
            return
        self.kernel.keep[k] = True
        self._set_kernel(self.world.now, k, address=self.world.now + LIFETIME_US)
        events.append(inp.AddressesAdded(k, True))

    def _remove(self, action: act.RemoveAddresses, events: deque[inp.Input]) -> None:
        self.kernel.keep[action.service] = False
        self._set_kernel(self.world.now, action.service, address=0)
        events.append(inp.AddressesRemoved(action.service, True))

    def _keep(self, action: act.KeepAddresses, events: deque[inp.Input]) -> None:
        self.kernel.keep[action.service] = action.on

    def _flush(self, action: act.FlushSockets, events: deque[inp.Input]) -> None:
        self.queue.clear()

    def _current(self, action: act.PeerCurrent, events: deque[inp.Input]) -> None:
        self.world.network.current(self.me, action.node, action.incarnation)

    def _persist(self, action: act.Persist, events: deque[inp.Input]) -> None:
        for k, identity in enumerate(action.promises):
            if identity != NOBODY:
                self.world.checkers.promise(self.world.now, self.me, k, identity)
        delay = self.rng.randrange(0, 50_000)
        self.world.at(self.world.now + delay, self._persisted, (self.life, action.promises))

    def _persisted(self, t: int, what: tuple[int, tuple[Identity, ...]]) -> None:
        if what[0] == self.life and self.alive:
            self.persisted = what[1]

    def _decided(self, action: act.Decided, events: deque[inp.Input]) -> None:
        self.world.decided(self.me, action)
        if action.row in ("T201", "T601", "T411") and self.node is not None:
            identity = self.node.services[action.service].identity
            self.world.checkers.won(self.world.now, action.service, identity)

    def _kill_freeswitch(self, action: act.KillFreeswitch, events: deque[inp.Input]) -> None:
        self.world.tell(self.me, action)
        self.lose_freeswitch(events)

    def lose_freeswitch(self, events: deque[inp.Input] | None = None) -> None:
        """Its FreeSWITCH exits; it is back as a standby one to three seconds later."""
        target = self.todo if events is None else events
        target.append(inp.FreeswitchExited("was killed"))
        delay = self.rng.randrange(1_000_000, 3_000_000)
        self.world.at(self.world.now + delay, self._freeswitch_back, self.life)

    def _freeswitch_back(self, t: int, life: int) -> None:
        if life == self.life and self.alive:
            self.report_ready(True)
            self.run(t, life)

    def _recover(self, action: act.Recover, events: deque[inp.Input]) -> None:
        self.world.recovered(self.me, action)

    def _nothing(self, action: act.Action, events: deque[inp.Input]) -> None:
        """Of no consequence in this world."""

    @property
    def settled(self) -> bool:
        """Out of hold-down and not stopping: may be counted on."""
        node = self.node
        if node is None or not self.alive:
            return False
        return not holding_down(node, self.local(self.world.now)) and not stopped(node)


_DO: dict[type, Callable[[Host, Any, deque[inp.Input]], None]] = {
    act.SendBeat: Host._send,
    act.CloseFence: Host._close,
    act.AddAddresses: Host._add,
    act.RemoveAddresses: Host._remove,
    act.KeepAddresses: Host._keep,
    act.FlushSockets: Host._flush,
    act.PeerCurrent: Host._current,
    act.Persist: Host._persist,
    act.Decided: Host._decided,
    act.KillFreeswitch: Host._kill_freeswitch,
    act.Recover: Host._recover,
    act.Announce: Host._nothing,
    act.EndCalls: Host._nothing,
    act.Answered: Host._nothing,
}
