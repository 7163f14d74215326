"""One simulated host: heart's loop around the production core, above a kernel and a FreeSWITCH.

The loop follows `haclusterd.heart.loop`: detect a freeze, drain the sockets, read the clock after
the receive, step, carry the actions out in order, feed their results, Tick when due. Whatever it
is about to do waits in plain queues, so that the nemesis can stop or kill it between any two
actions, and a whole world can be copied. The receive queue keeps the oldest.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core.adoption import adopt
from haclusterd.core.model import Beat, ClusterSpec
from haclusterd.core.node import next_deadline_us, step, stopped
from haclusterd.core.state import Node
from tests.sim.kernel import Kernel
from tests.sim.member import Member
from tests.sim.telephony import Telephony

if TYPE_CHECKING:
    from tests.sim.world import World

QUEUE_MAX = 200
TURN_INPUTS_MAX = 64
PERSIST_US_MAX = 50_000
BOUNDS_EVERY = 64  # turns between two looks at the size of the core's memory


class Open(msgspec.Struct, frozen=True):
    """The last step of a renewal, after the clock was read: of this simulation alone."""

    service: int


_Received, _TICK = inp.Received, inp.Tick()  # looked up and made once: most of all turns
_SWIFT = (act.SendBeat, act.Decided)  # no stop just before these: it would tell nothing new


class Host(Member):
    """A node's process and kernel; `world` gives time, network, faults and checks."""

    def __init__(
        self, world: World, me: int, spec: ClusterSpec, rng: random.Random, ppm: int
    ) -> None:
        super().__init__(rng.randrange(10**9, 10**12), ppm)
        self.world = world
        self.spec = spec
        self.me = me
        self._belong(spec)
        self.rng = rng
        self.kernel = Kernel(len(spec.services), ppm)
        self.telephony = Telephony(self)
        self.alive = False
        self.node: Node | None = None
        self.queue: deque[tuple[int, Beat]] = deque()
        self.todo: deque[inp.Input] = deque()
        self.life = 0
        self.turns = 0
        self.asked: set[int] = set()  # operator requests without an answer yet
        self.stopping = False
        self.action_no = 0  # actions that a stop may come before, over all lives
        self.wake_at = -1
        self.thaw_at = 0
        self.last_turn = 0
        self._leave_turn()

    def _leave_turn(self) -> None:
        """Nothing is under way in this process."""
        self.busy = False
        self.now_us = 0
        self.ticked = self.unread = False
        self.batch: deque[inp.Input] = deque()
        self.results: deque[inp.Input] = deque()
        self.actions: deque[Any] = deque()
        self.passed = False  # the stop before the next action has been
        self.deadline_us = 0  # the core's next deadline, if this turn has asked for it already

    # life -----------------------------------------------------------------------------------

    def boot(self, t: int, remember: bool) -> None:
        """Start the process: left-over addresses and fence go first, as heart does."""
        if not remember and self.file.me < 0:
            self.world.retired.add(self.me)  # refused: its file does not name it
            return
        self.life += 1
        self.alive = True
        self.stopping = False
        for k in range(len(self.spec.services)):
            self.kernel.close(t, k)
            self.kernel.remove(t, k)
            self.tell_emission(t, k)
        now = self.local(t)
        self._begin(now, remember)
        self.queue.clear()
        self.todo.clear()
        self._leave_turn()
        self.thaw_at = 0
        self.last_turn = now
        self.asked.clear()
        self.world.network.start_wire(self)
        self.world.checkers.restart(self.me, self.persisted)
        self.todo.extend(self._staged_before())
        self.todo.extend(self._remembered(remember))
        self.telephony.boot()
        self.world.operators.boot(self, t, remember)
        self.schedule(t)

    def kill(self, t: int, power: bool) -> None:
        """The process is gone; its kernel and FreeSWITCH go on unless the power went too."""
        self.alive = False
        self._leave_turn()
        self.wake_at = -1
        self.asked.clear()
        for k in range(len(self.spec.services)):
            self.kernel.keep[k] = False
        if power:
            self.kernel.power_off()
            self.world.operators.unpowered.add(self.me)
            self.telephony.up = True
            self.telephony.calls.clear()
            for k in range(len(self.spec.services)):
                self.tell_emission(t, k)

    def freeze(self, t: int, for_us: int) -> None:
        if self.alive and self.thaw_at <= t:
            self.thaw_at = t + for_us
            self.wake_at = -1
            self.world.at(self.thaw_at, self.run, self.life)

    def upgrade(self, t: int, pause_us: int, spec: ClusterSpec | None = None) -> bool:
        """Another process goes on with this one's state, as `haclusterd.heart.upgrade` passes it.

        The sockets, and what waits in them, stay; the agent is restarted. With `spec` it goes on
        under the next set of voters.
        """
        node = self.node
        if node is None or not self.alive or self.busy or self.thaw_at > t or self.stopping:
            return False
        packed = msgspec.msgpack.encode(node)
        self.node = msgspec.msgpack.decode(packed, type=Node)
        if msgspec.msgpack.encode(self.node) != packed:
            self.world.checkers.report(t, f"upgrade: n{self.me} is not what it was")
        before = self.spec
        if spec is not None:
            adopt(self.node, spec, self.local(t))
            self._count_by(spec)
            self.queue.clear()  # it is in the former numbers; in a socket it would be as sealed
            self.kin = {before.config_hash: before}
            self.world.operators.renew(self, t)
        self.world.network.upgrade_wire(self.me, before)
        self.telephony.stall(self.rng.randrange(200_000, 800_000))
        self.freeze(t, pause_us)
        return True

    # the loop -------------------------------------------------------------------------------

    def deliver(self, t: int, link: int, beat: Beat) -> None:
        if not self.alive:
            return
        if len(self.queue) < QUEUE_MAX:
            self.queue.append((link, beat))
        if self.thaw_at <= t and not self.busy:
            self.run(t, self.life)

    def give(self, t: int, event: inp.Input) -> None:
        if self.alive:
            request = getattr(event, "request", -1)
            if request >= 0:
                self.asked.add(request)
            self.todo.append(event)
            self.run(t, self.life)

    def run(self, t: int, life: int) -> None:
        """Run turns until the process waits, or is stopped between two actions."""
        if not self.alive or life != self.life or self.thaw_at > t:
            return
        self.thaw_at = 0
        while True:
            if not self.busy:
                self._begin_turn(t)
            if not self._advance(t):
                return
            self.busy = False
            if not (self.queue or self.todo):
                break
        self.turns += 1
        if self.node is not None and self.turns % BOUNDS_EVERY == 0:
            self.world.checkers.bounds(t, self.me, self.node)
        if self.stopping and self.node is not None and stopped(self.node):
            self.kill(t, power=False)
            return
        self.schedule(t)

    def wake(self, t: int, life: int) -> None:
        if life == self.life and self.wake_at == t and self.alive and self.thaw_at <= t:
            self.run(t, life)

    def schedule(self, t: int) -> None:
        """Ask to be woken at the core's next deadline."""
        if self.node is None or not self.alive:
            return
        at = max(self.true(self.deadline_us or next_deadline_us(self.node)), t + 1)
        self.deadline_us = 0
        if at != self.wake_at:
            self.wake_at = at
            self.world.at(at, self.wake, self.life)

    def _begin_turn(self, t: int) -> None:
        self.busy, self.ticked, self.unread = True, False, True
        self.now_us = now = self.local(t)
        gap = now - self.last_turn
        self.last_turn = now
        if gap > self.spec.timing.lease_us:
            self.batch.append(inp.Froze(gap, self.rng.getrandbits(64) | 1))

    def _read(self) -> None:
        """What waits now: only after a freeze was dealt with, which throws the past away."""
        self.unread = False
        batch, queue = self.batch, self.queue
        if self.todo:
            batch.extend(self.todo)
            self.todo.clear()
        for _ in range(min(TURN_INPUTS_MAX, len(queue))):
            link, beat = queue.popleft()
            batch.append(_Received(link, beat))

    def _advance(self, t: int) -> bool:
        """Go on with the turn; False where the nemesis stopped or killed the process."""
        node, actions, results, batch = self.node, self.actions, self.results, self.batch
        if node is None:
            return True
        world, now_us = self.world, self.now_us
        while True:
            while actions:
                action = actions.popleft()
                if world.failpoint is not None:
                    outcome = world.failpoint.strikes(self, t, action)
                    if outcome == "stop":
                        return False
                    if outcome == "next":
                        continue
                if world.has_boundaries and not isinstance(action, _SWIFT):
                    if not self.passed and self._is_stopped(t, action):
                        return False
                    self.passed = False
                _DO[type(action)](self, action)
            if results or batch:
                event = (results or batch).popleft()
            elif self.unread:
                self._read()
                continue
            elif self.ticked or self.queue:
                return True
            else:
                deadline_us = next_deadline_us(node)
                if now_us < deadline_us:
                    self.deadline_us = deadline_us
                    return True
                self.ticked = True
                event = _TICK
            actions.extend(step(node, event, now_us)[1])

    def _is_stopped(self, t: int, action: act.Action) -> bool:
        """The nemesis may freeze or kill the process just before `action`."""
        self.action_no += 1
        stop_us = self.world.boundary(self)
        if not stop_us:
            return False
        if stop_us < 0:
            self.kill(t, power=False)
            return True
        self.actions.appendleft(action)
        self.passed = True
        self.stop_here(t, stop_us)
        return True

    def stop_here(self, t: int, for_us: int) -> None:
        """Stand still in the middle of a turn; what was about to be done is done afterwards."""
        self.thaw_at = t + for_us
        self.wake_at = -1
        self.world.at(self.thaw_at, self.run, self.life)

    def carry_out(self, action: act.Action) -> None:
        _DO[type(action)](self, action)

    # actions --------------------------------------------------------------------------------

    def _renew(self, action: act.RenewFence) -> None:
        """Arm, read the clock, decide, renew (DESIGN 3); the nemesis loves the gaps."""
        t, timing = self.world.now, self.spec.timing
        if not self.kernel.arm(t, timing.arm_us):
            reason = "the fence is not in force: the table is gone"
            self.results.append(inp.AddressesAdded(action.service, False, reason))
        elif self.local(t) + timing.fence_us <= action.lease_until_us:
            self.actions.appendleft(Open(action.service))

    def _open(self, action: Open) -> None:
        if self.kernel.renew(self.world.now, action.service, self.spec.timing.fence_us):
            self.tell_emission(self.world.now, action.service)

    def tell_emission(self, t: int, k: int) -> None:
        until_us = self.kernel.emits_until(k)
        self.world.checkers.may_emit(t, self.places[k], self.me, until_us)

    def _send(self, action: act.SendBeat) -> None:
        to = tuple(self.numbers[n] for n in action.to or range(len(self.numbers)))
        for beat in action.beats:
            self.world.network.send(self.me, to, beat)
        self.kernel.keep_alive(self.world.now)

    def _close(self, action: act.CloseFence) -> None:
        k = action.service
        closed = self.kernel.close(self.world.now, k)
        self.tell_emission(self.world.now, k)
        self.results.append(inp.FenceClosed(k, closed))

    def _add(self, action: act.AddAddresses) -> None:
        k, t = action.service, self.world.now
        failure = self.kernel.add(t, k)
        self.tell_emission(t, k)
        result = inp.AddressesAdded(k, not failure, failure)
        if self.kernel.adding_takes_us and not failure:
            self.world.at(t + self.kernel.adding_takes_us, partial(self._later, result), self.life)
        else:
            self.results.append(result)

    def _later(self, result: inp.Input, t: int, life: int) -> None:
        if life == self.life:
            self.give(t, result)

    def _remove(self, action: act.RemoveAddresses) -> None:
        k = action.service
        removed = self.kernel.remove(self.world.now, k)
        self.tell_emission(self.world.now, k)
        self.results.append(inp.AddressesRemoved(k, removed, "" if removed else "netlink is busy"))

    def _keep(self, action: act.KeepAddresses) -> None:
        self.kernel.keep[action.service] = action.on

    def _flush(self, action: act.FlushSockets) -> None:
        self.queue.clear()

    def _current(self, action: act.PeerCurrent) -> None:
        self.world.network.current(self.me, action.node, action.incarnation)

    def _decided(self, action: act.Decided) -> None:
        self.world.decided(self, action)

    def _kill_freeswitch(self, action: act.KillFreeswitch) -> None:
        self.world.tell(self.me, action)
        self.telephony.killed(action)

    def _recover(self, action: act.Recover) -> None:
        self.telephony.recover(action)

    def _end_calls(self, action: act.EndCalls) -> None:
        self.telephony.end_calls(action)

    def _relinquish(self, action: act.Relinquish) -> None:
        self.world.operators.relinquish(self, action)

    def _answered(self, action: act.Answered) -> None:
        self.asked.discard(action.request)
        self.world.operators.answered(self, action)

    def _nothing(self, action: act.Action) -> None:
        """Of no consequence in this world."""


_DO: dict[type, Callable[[Host, Any], None]] = {
    act.SendBeat: Host._send,
    act.RenewFence: Host._renew,
    Open: Host._open,
    act.CloseFence: Host._close,
    act.AddAddresses: Host._add,
    act.RemoveAddresses: Host._remove,
    act.KeepAddresses: Host._keep,
    act.FlushSockets: Host._flush,
    act.PeerCurrent: Host._current,
    act.Persist: Host._persist,
    act.Relinquish: Host._relinquish,
    act.Decided: Host._decided,
    act.KillFreeswitch: Host._kill_freeswitch,
    act.Recover: Host._recover,
    act.Announce: Host._nothing,
    act.Speak: Host._speak,
    act.Flip: Host._flip,
    act.InForce: Host._in_force,
    act.EndCalls: Host._end_calls,
    act.Answered: Host._answered,
}
