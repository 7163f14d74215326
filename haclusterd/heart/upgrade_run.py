"""The old heart's part of an upgrade, from the request to the hand-over or the going on.

The messages and the safety argument are in `upgrade`.
"""

from __future__ import annotations

from collections.abc import Sequence

from haclusterd.core.actions import Answered, Flip
from haclusterd.heart.clock import now_us
from haclusterd.heart.errors import HeartError
from haclusterd.heart.journal import ERROR
from haclusterd.heart.loop import Loop
from haclusterd.heart.parts import Parts
from haclusterd.heart.upgrade import HandOver, Successor, pack_wire

READY_WITHIN_US = 30_000_000  # a Python that starts on a busy host; it hangs after that


class Upgrade:
    """At most one at a time. `handed_over` is True once this process is finished for good.

    `advance` raises HeartError where this process cannot go on.
    """

    def __init__(self, loop: Loop, parts: Parts, command: Sequence[str], lock: int) -> None:
        self._loop, self._parts = loop, parts
        self._command, self._lock = list(command), lock
        self._successor: Successor | None = None
        self._request = -1
        self._config_hash = 0  # that the new heart has to have
        self._ready = False
        self._begun_us = 0
        self.handed_over = False

    @property
    def successor_pid(self) -> int:
        """The new heart's process, 0 while there is none."""
        return self._successor.pid if self._successor else 0

    def begin(self, request: int, flip: Flip | None = None) -> None:
        """Start a new heart; `request` is the operator's, -1 for a signal or for `flip`, with
        which the new heart counts by the next set of voters."""
        if self._successor is not None:
            self._answer(request, False, "an upgrade is under way already")
            return
        self._request = request
        spec = self._loop.node.spec
        self._config_hash = flip.config_hash if flip else spec.config_hash
        revision = flip.revision if flip else spec.revision
        # A version of before the word is asked without it, so that one can go back to it.
        which = ["--revision", str(revision)] if revision > 1 else []
        try:
            self._successor = Successor([*self._command, *which])
        except HeartError as error:
            self._failed(str(error))
            return
        self._begun_us = self._loop.last_us
        self._parts.journal.say(f"upgrade: started a new heart (pid {self._successor.pid})")
        self._loop.watch(self._successor.fileno(), self._spoke)

    def _spoke(self) -> None:
        successor = self._successor
        if successor is None:
            return
        self._loop.unwatch(successor.fileno())
        refusal = successor.await_ready(self._config_hash)
        if refusal:
            successor.drop()
            self._failed(refusal)
            return
        self._ready = True
        self._answer(self._request, True, "the new heart takes over now")

    def advance(self) -> None:
        """Hand over when the new heart is ready and a beat has just gone out.

        Then fence and lease are as fresh as they get, and the next beat is the new heart's.
        """
        if self._successor is None:
            return
        node = self._loop.node
        left_us = node.next_beat_us - self._loop.last_us
        if not self._ready and self._loop.last_us - self._begun_us > READY_WITHIN_US:
            self.give_up(f"the new heart is not ready after {READY_WITHIN_US // 10**6} s")
        elif self._ready and left_us > node.spec.timing.heartbeat_us * 4 // 5:
            self._ready = False
            self._hand_over(self._successor)

    def give_up(self, reason: str) -> None:
        """End the new heart that is under way, if there is one."""
        successor = self._successor
        if successor is not None and not self.handed_over:
            self._loop.unwatch(successor.fileno())
            successor.drop()
            self._failed(reason)

    def _hand_over(self, successor: Successor) -> None:
        parts, loop = self._parts, self._loop
        opened = [(n, s) for n in range(len(parts.links)) if (s := parts.links.opened(n))]
        state = HandOver(
            node=loop.node,
            wire=pack_wire(parts.wire.export_state()),
            held=tuple(sorted(parts.addresses.held)),
            links=tuple(n for n, _socket in opened),
            last_us=loop.last_us,
            freeswitch=parts.freeswitch.identity,
            agent_pid=parts.agent.pid,
            recovering=parts.agent.recovering(),
        )
        descriptors = [s.fileno() for _n, s in opened] + [self._lock]
        if successor.hand_over(state, descriptors):
            self.handed_over = True
            pause_us = now_us() - loop.last_us
            parts.journal.say(f"upgrade: handed over within {pause_us} us")
            return
        successor.abandon()
        if successor.may_have_spoken():
            # What it granted or won since, nobody here knows: as after a crash (S1, S3).
            raise HeartError("upgrade: the new heart took over too late: this one starts anew")
        self._failed("the new heart did not take over in time")

    def _failed(self, reason: str) -> None:
        self._successor = None
        self._ready = False
        self._parts.journal.say(f"upgrade failed, this heart goes on: {reason}", ERROR)
        self._answer(self._request, False, reason)
        self._request = -1

    def _answer(self, request: int, done: bool, text: str) -> None:
        if request >= 0:
            self._parts.agent.send(Answered(request, done, text))
