"""The loop: wait, drain the sockets, read the clock, step the core, carry its actions out.

Rules kept here (DESIGN 3, 6; RELIABILITY 3.3):
the clock is read after each receive; `Tick`, which may conclude silence, comes only when the
heartbeat sockets are empty; work per turn is bounded; while nothing is on the move, the beats of
one round are taken in together, because a wake costs more than a beat; and every reading of the
clock is compared with the one before, so that a stop of this process is noticed wherever it
happened: then fence first, flush, and only then listen again.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from haclusterd.core.actions import Action, Decided
from haclusterd.core.inputs import Froze, Input, Overheard, Received, Tick
from haclusterd.core.model import Beat, ServiceEntry
from haclusterd.core.node import is_calm, next_deadline_us, step
from haclusterd.core.state import Node
from haclusterd.heart.clock import now_us
from haclusterd.heart.executor import Executor
from haclusterd.trace.recorder import Recorder

DATAGRAMS_PER_TURN = 128  # per link
_INPUTS_PER_TURN_MAX = 1000
_COLLECT_EVERY_US = 10_000_000
_TIMEOUT_STEP_US = 1_000  # epoll's: what is shorter would be rounded up


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
        self.stood_us = 0  # for how long this process stood still, all freezes together
        self._chores = chores
        self._clock = clock
        self._epoll = select.epoll()
        self._others = select.epoll()  # all but the links
        gather_us = node.spec.timing.gather_us
        self._gather_us = gather_us if gather_us >= _TIMEOUT_STEP_US else 0
        self._gather_until_us = 0
        self._round = False  # a regular beat came in this turn: the others' are on their way
        self._chores_us = -1  # when the next chore is due; -1: not asked yet
        self._handlers: dict[int, Callable[[], None]] = {}
        self._link_of: dict[int, int] = {}
        self._last_us = last_us or clock()
        self._full, self._full_since_us = False, self._last_us  # more waited than a turn reads
        self._collected_us = self._last_us
        self._lease_us = node.spec.timing.lease_us
        self.recorder = Recorder(node, self._last_us)
        self._inputs: deque[Input] = deque()
        self._busy = False

    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        """Call `handler` in each turn in which `descriptor` is readable."""
        self._register(descriptor)
        self._handlers[descriptor] = handler
        _add(self._others, descriptor)

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
        _add(self._epoll, descriptor)

    def unwatch(self, descriptor: int) -> None:
        """Forget a descriptor, open or closed; -1 is none."""
        if descriptor < 0:
            return
        self._handlers.pop(descriptor, None)
        self._link_of.pop(descriptor, None)
        for polled in (self._epoll, self._others):
            with contextlib.suppress(OSError):  # closed already: the kernel has forgotten it, too
                polled.unregister(descriptor)

    def turn(self) -> None:
        """One turn: at most until the next deadline."""
        if self._chores_us < 0:
            self._chores_us = self._chores.due_us()
        ready = self._wait(min(next_deadline_us(self.node), self._chores_us))
        self.now()
        drained, other, self._round = True, False, False
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
        if drained or not self._full:
            self._full_since_us = now
        self._full = not drained
        # A flood that never lets the sockets run empty must not stop time for good. What waited
        # while this process stood still is no such flood: it is read before anybody is silent.
        may_tick = drained or now - self._full_since_us > 2 * self.node.spec.timing.heartbeat_us
        if may_tick and (other or self.node.rank_dirty or now >= next_deadline_us(self.node)):
            self._full_since_us = now
            self.feed(Tick(), now)
        # Only what else happened in this turn can have brought a chore forward.
        if other or self.decided:
            self._chores_us = self._chores.due_us()
        if now >= self._chores_us:
            self._chores.run_due(now)
            self._chores_us = self._chores.due_us()
        if self._round and is_calm(self.node):
            self._gather_until_us = now + self._gather_us
        if now - self._collected_us > _COLLECT_EVERY_US:
            self._collected_us = now
            gc.collect(1)  # what is young only: the rest was frozen at the start

    def _wait(self, deadline_us: int) -> list[tuple[int, int]]:
        """What is ready, at the deadline at the latest; beats only once they were gathered."""
        now = self._clock()
        gather_us = min(self._gather_until_us, deadline_us) - now
        if gather_us > 0:
            self._others.poll(gather_us / 1_000_000, 1)
            now = self._clock()
        return self._epoll.poll(max(0.0, (deadline_us - now) / 1_000_000), 64)

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
                self._round = self._round or not beat.reply
                peer = self.node.peers[beat.sender]
                before = peer.services
                self.feed(Received(position, beat), now)
                self.decided = self.decided or _differs(before, peer.services)
            elif executor.wire.overheard[0] > self.node.roll.known:
                self.feed(Overheard(*executor.wire.overheard), now)
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
        self.stood_us += gap_us
        incarnation = new_incarnation()
        self.executor.wire.set_incarnation(incarnation)
        self.feed(Froze(gap_us, incarnation), now)

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
                actions = self._step(self._inputs.popleft(), at_us)
                if actions:
                    self.decided = self.decided or any(type(a) is Decided for a in actions)
                    self._inputs.extend(self.executor.execute(actions))
        finally:
            self._busy = False

    def _step(self, event: Input, at_us: int) -> list[Action]:
        try:
            _node, actions = step(self.node, event, at_us)
        except BaseException:
            self.recorder.broke(event, at_us)
            raise
        self.recorder.note(event, at_us, actions)
        return actions

    def close(self) -> None:
        self._epoll.close()
        self._others.close()


def _differs(before: Sequence[ServiceEntry], after: Sequence[ServiceEntry]) -> bool:
    """Whether a peer serves now what it did not, or no longer: that is decided there, seen here."""
    if before is after or len(before) != len(after):
        return before is not after
    return any(old.state != new.state for old, new in zip(before, after, strict=True))


def _add(polled: select.epoll, descriptor: int) -> None:
    try:
        polled.register(descriptor, select.EPOLLIN)
    except FileExistsError:
        polled.modify(descriptor, select.EPOLLIN)
