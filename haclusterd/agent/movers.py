"""`mover = "exec"`: a command makes the network send a service's packets to its new owner.

It runs here and not in heart, which must never wait, and only ever after heart won the service:
the former owner is fenced by its own kernel before anybody can win, so a slow or failing command
costs time but never makes two owners. Its result goes to heart as the end of the recovery: a
service that cannot be moved here goes to the next in line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from haclusterd.agent.history import History
from haclusterd.agent.schema import Alarm
from haclusterd.config import Config
from haclusterd.config.watching import Mover
from haclusterd.core.actions import Recover
from haclusterd.core.inputs import FromAgent, RecoveryEnded
from haclusterd.core.model import Identity
from haclusterd.core.view import View
from haclusterd.lasting import lasting, unending
from haclusterd.sensors.movers import environment_of
from haclusterd.sensors.program import Program, Ran

log = logging.getLogger(__name__)

PAUSE_S = 0.5  # between attempts, doubled up to:
PAUSE_MAX_S = 10.0
HERE, ELSEWHERE = 0, 1  # exit status of `mover_check`


@dataclass
class _Line:
    """One service with its commands, and what is under way for it."""

    mover: Mover
    index: int
    environment: Mapping[str, str]
    epoch: int = 0  # that it is owned at here; 0: it is not
    placed: bool = False
    problem: str = ""
    task: asyncio.Task[None] | None = None
    ended: RecoveryEnded | None = None  # that the calls are back: told when the packets are, too
    recovering: Identity | None = None
    given_up: bool = False  # heart knows that the addresses do not come here
    programs: dict[str, Program] = field(default_factory=dict)

    async def run(self, verb: str, timeout_s: float) -> Ran:
        mover = self.mover
        words = {"add": mover.mover_add, "check": mover.mover_check, "remove": mover.mover_remove}
        program = self.programs.setdefault(verb, Program(words[verb], self.environment))
        more = {"HACLUSTERD_VERB": verb, "HACLUSTERD_EPOCH": str(self.epoch)}
        return await program.run(timeout_s, more)


class Movers:
    """`send` goes to heart; recoveries send through `ended` instead."""

    def __init__(
        self,
        config: Config,
        send: Callable[[FromAgent], None],
        history: History,
        changed: Callable[[], None],
    ) -> None:
        self._me = config.node.id
        self._send = send
        self._history = history
        self._changed = changed
        self.counts = {"added": 0, "failed": 0, "moved_back": 0}
        names = [service.name for service in config.services]
        self._lines = {
            m.service: _Line(m, names.index(m.service), environment_of(config, m))
            for m in config.movers
            if not config.node.witness
        }

    # -- what heart and recoveries say --

    def recover(self, action: Recover) -> None:
        """Heart won a service: its packets are fetched now, beside the recovery of its calls."""
        for line in self._lines.values():
            if line.index == action.service:
                line.recovering, line.ended, line.given_up = action.identity, None, False
                self._begin(line, action.identity.epoch, known=False)

    def ended(self, message: FromAgent) -> None:
        """On its way to heart: calls are not back while nothing can reach them."""
        if isinstance(message, RecoveryEnded):
            line = next((x for x in self._lines.values() if x.index == message.service), None)
            ours = line is not None and line.recovering == message.identity
            if line is not None and ours and message.ok and not line.placed:
                line.ended = message
                return
        self._send(message)

    def observe(self, view: View) -> None:
        """Heart's word: what is owned by a reclaim, since before this agent, or no more."""
        for service in view.services:
            line = self._lines.get(service.name)
            if line is None:
                continue
            if service.local_state == "owned" and service.owner == self._me:
                if line.epoch != service.epoch:
                    self._begin(line, service.epoch, known=bool(line.mover.mover_check))
            elif line.epoch and service.local_state in ("standby", "releasing"):
                self._leave(line)  # not while lapsed: the packets may stay if it is reclaimed

    # -- work --

    def _begin(self, line: _Line, epoch: int, known: bool) -> None:
        """Fetch the packets; `known`: they may come here already, so ask first."""
        self._stop(line)
        line.epoch, line.placed, line.problem = epoch, False, ""
        line.task = unending(partial(self._hold, line, known), f"mover {line.mover.service}")

    def _leave(self, line: _Line) -> None:
        """Another node's by now, or nobody's. What was under way is killed first."""
        self._stop(line)
        line.epoch, line.placed, line.problem, line.ended = 0, False, "", None
        if line.mover.mover_remove:
            line.task = lasting(self._remove(line), f"leave {line.mover.service}")
        self._changed()

    def _stop(self, line: _Line) -> None:
        if line.task is not None:
            line.task.cancel()
            line.task = None

    async def stop(self) -> None:
        tasks = [line.task for line in self._lines.values() if line.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _hold(self, line: _Line, known: bool) -> None:
        """As long as the service is owned: fetch, look now and then, fetch again."""
        if known:
            ran = await line.run("check", self._patience_s(line))
            line.placed = ran.status == HERE
        while True:
            if not line.placed:
                await self._add(line)
            await asyncio.sleep(line.mover.mover_check_ms / 1000)
            if line.mover.mover_check:
                await self._check(line)

    async def _add(self, line: _Line) -> None:
        """Until it works. Past the deadline heart hears of it, and may hand the service on."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + line.mover.mover_deadline_ms / 1000
        pause_s, began = PAUSE_S, loop.time()
        while True:
            left_s = deadline - loop.time()
            ran = await line.run("add", left_s if left_s > 0 else self._patience_s(line))
            if ran.status == 0:
                self._added(line, round(1000 * (loop.time() - began)))
                return
            self.counts["failed"] += 1
            self._failed(line, f"mover_add: {_said(ran)}")
            if loop.time() + pause_s >= deadline:
                self._give_up(line)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def _added(self, line: _Line, took_ms: int) -> None:
        line.placed, line.problem = True, ""
        self.counts["added"] += 1
        self._say("A35", line, f"its packets come here: mover_add took {took_ms} ms")
        if line.ended is None and line.given_up and line.recovering is not None:
            line.ended = RecoveryEnded(line.index, line.recovering, True)
        if line.ended is not None:
            self._send(line.ended)
        line.ended, line.given_up = None, False
        self._changed()

    def _failed(self, line: _Line, reason: str) -> None:
        if line.problem != reason:
            line.problem = reason
            self._say("A36", line, reason)
            self._changed()

    def _give_up(self, line: _Line) -> None:
        """Once: whoever is next in line may do better. Here it is tried on while nobody is."""
        if not line.given_up and line.recovering is not None:
            line.given_up = True
            self._send(RecoveryEnded(line.index, line.recovering, False, line.problem))

    async def _check(self, line: _Line) -> None:
        ran = await line.run("check", self._patience_s(line))
        if ran.status == HERE:
            line.placed, line.problem = True, ""
        elif ran.status == ELSEWHERE:
            if line.placed:
                self.counts["moved_back"] += 1
                self._say("A37", line, "its packets went elsewhere: they are fetched again")
            line.placed = False
        else:
            self._failed(line, f"mover_check: {_said(ran)}")

    async def _remove(self, line: _Line) -> None:
        ran = await line.run("remove", self._patience_s(line))
        if ran.status != 0:
            self._say("A38", line, f"mover_remove: {_said(ran)}")

    def _patience_s(self, line: _Line) -> float:
        return line.mover.mover_deadline_ms / 1000

    def _say(self, row: str, line: _Line, text: str) -> None:
        name = line.mover.service
        self._history.add(row, f"{name} on {self._me}: {text}", None, name, line.epoch or None)

    def counters(self) -> dict[str, int]:
        """What only counts up."""
        return {f"mover_{k}": n for k, n in self.counts.items()} if self._lines else {}

    @property
    def alarms(self) -> list[Alarm]:
        return [
            Alarm("mover", f"{name}: {line.problem}")
            for name, line in self._lines.items()
            if line.problem
        ]


def _said(ran: Ran) -> str:
    if ran.status is None:
        return ran.said
    return f"exit status {ran.status}: {ran.said or 'it said nothing'}"
