"""The loop: wait, drain the sockets, read the clock, step the core, carry its actions out.

Rules kept here (DESIGN 3, 6; RELIABILITY 3.3):
the clock is read after each receive; `Tick`, which may conclude silence, comes only when the
heartbeat sockets are empty; work per turn is bounded; and every reading of the clock is compared
with the one before, so that a stop of this process is noticed wherever it happened: then fence
first, flush, and only then listen again.
"""

from __future__ import annotations

import gc
import os
import select
from collections import deque
from collections.abc import Callable
from typing import Protocol

from haclusterd.core.actions import Decided
from haclusterd.core.inputs import Froze, Input, Received, Tick
from haclusterd.core.model import Beat
from haclusterd.core.node import next_deadline_us, step
from haclusterd.core.state import Node
from haclusterd.heart.clock import now_us
from haclusterd.heart.executor import Executor

DATAGRAMS_PER_TURN = 128  # per link
_INPUTS_PER_TURN_MAX = 1000
_COLLECT_EVERY_US = 10_000_000


def new_incarnation() -> int:
    """64 random bits, never 0 (0 stands for none)."""
    return int.from_bytes(os.urandom(8), "big") or 1


class Chores(Protocol):
    """Things to do at set times beside the protocol. `process.Heart` has them."""

    def due_us(self) -> int:
        """When `run_due` is wanted next."""
        ...

    def run_due(self, now_us: int) -> None:
        """Do what is due; must not wait."""
        ...


class Loop:
    """Drives one `Node`. Sources other than heartbeats register with `watch`."""

    def __init__(
        self,
        node: Node,
        executor: Executor,
        chores: Chores,
        *,
        clock: Callable[[], int] = now_us,
        last_us: int = 0,
    ) -> None:
        """`last_us`: when a predecessor last ran (an upgrade); a gap since then is a freeze."""
        self.node = node
        self.executor = executor
        self.decided = True  # something happened that people want to see
        self.freezes = 0
        self._chores = chores
        self._clock = clock
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._link_of: dict[int, int] = {}
        self._last_us = last_us or clock()
        self._ticked_us = self._last_us
        self._collected_us = self._last_us
        self._lease_us = node.spec.timing.lease_us
        self._inputs: deque[Input] = deque()
        self._busy = False

    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        """Call `handler` in each turn in which `descriptor` is readable."""
        self._register(descriptor)
        self._handlers[descriptor] = handler

    def watch_link(self, link: int) -> None:
        """Receive beats from a heartbeat link that was (re)opened."""
        opened = self.executor.links.opened(link)
        if opened is not None:
            self._register(opened.fileno())
            self._link_of[opened.fileno()] = link

    def _register(self, descriptor: int) -> None:
        # A descriptor that was closed left epoll by itself, and its number may be in use again.
        self._handlers.pop(descriptor, None)
        self._link_of.pop(descriptor, None)
        try:
            self._epoll.register(descriptor, select.EPOLLIN)
        except FileExistsError:
            self._epoll.modify(descriptor, select.EPOLLIN)

    def unwatch(self, descriptor: int) -> None:
        """Forget a descriptor, open or closed; -1 is none."""
        if descriptor < 0:
            return
        self._handlers.pop(descriptor, None)
        self._link_of.pop(descriptor, None)
        try:
            self._epoll.unregister(descriptor)
        except OSError:
            return  # closed already: the kernel has forgotten it, too

    def turn(self) -> None:
        """One turn: at most until the next deadline."""
        chores_us = self._chores.due_us()
        wait_us = min(next_deadline_us(self.node), chores_us) - self._clock()
        ready = self._epoll.poll(max(0.0, wait_us / 1_000_000), 64)
        self.now()
        drained, other = True, False
        for descriptor, _mask in ready:
            link = self._link_of.get(descriptor)
            if link is not None:
                drained = self._receive(link) and drained
                continue
            handler = self._handlers.get(descriptor)
            if handler is not None:
                other = True
                handler()
        now = self.now()
        # A flood that never lets the sockets run empty must not stop time for good.
        may_tick = drained or now - self._ticked_us > 2 * self.node.spec.timing.heartbeat_us
        if may_tick and (other or self.node.rank_dirty or now >= next_deadline_us(self.node)):
            self._ticked_us = now
            self.feed(Tick(), now)
        # Only what else happened in this turn can have brought a chore forward.
        if now >= chores_us or ((other or self.decided) and now >= self._chores.due_us()):
            self._chores.run_due(now)
        if now - self._collected_us > _COLLECT_EVERY_US:
            self._collected_us = now
            gc.collect(1)  # what is young only: the rest was frozen at the start

    def _receive(self, link: int) -> bool:
        """Take in what one link holds, up to the limit; True if it is empty now."""
        executor, freezes = self.executor, self.freezes
        datagrams = executor.links.receive_on(link, DATAGRAMS_PER_TURN)
        now = self.now()
        for position, data, source in datagrams:
            if self.freezes != freezes:
                break  # read before a stop that was noticed since: the past
            beat = executor.wire.open(data, position, source)
            if isinstance(beat, Beat):
                self.feed(Received(position, beat), now)
        return len(datagrams) < DATAGRAMS_PER_TURN

    def now(self) -> int:
        """The time; first of all, if this process stood still, the fence."""
        now = self._clock()
        gap_us = now - self._last_us
        self._last_us = now
        if gap_us > self._lease_us:
            self._thaw(gap_us, now)
        return now

    def _thaw(self, gap_us: int, now: int) -> None:
        self.freezes += 1
        incarnation = new_incarnation()
        self.executor.wire.set_incarnation(incarnation)
        self.feed(Froze(gap_us, incarnation), now)

    def restart_incarnation(self) -> None:
        """As after a freeze: another process may have spoken for this incarnation (upgrade)."""
        self._thaw(self._lease_us + 1, self.now())

    @property
    def last_us(self) -> int:
        """When this loop last read the clock."""
        return self._last_us

    def feed(self, event: Input, at_us: int) -> None:
        """Step the core with an input, carry its actions out, and feed their results."""
        self._inputs.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            for _count in range(_INPUTS_PER_TURN_MAX):
                if not self._inputs:
                    break
                _node, actions = step(self.node, self._inputs.popleft(), at_us)
                if actions:
                    self.decided = self.decided or any(type(a) is Decided for a in actions)
                    self._inputs.extend(self.executor.execute(actions))
        finally:
            self._busy = False

    def close(self) -> None:
        self._epoll.close()
