"""This node's health: its sensors, what they take from it, and the hand-over that may follow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from haclusterd.agent.hand_over import Move, Step, Watch
from haclusterd.agent.history import History
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.peers import Word
from haclusterd.agent.schema import Alarm
from haclusterd.agent.sensors import Sensors, explain
from haclusterd.config import Config
from haclusterd.core.view import View
from haclusterd.lasting import unending

log = logging.getLogger(__name__)

LOOK_S = 1.0
TRY_AGAIN_S = 60.0  # after a hand-over that was refused

Order = Callable[[str, str | None], Awaitable[str]]


class NodeHealth:
    """`words()` are the other agents'; `order(service, to)` is a switchover by an operator."""

    def __init__(
        self,
        config: Config,
        view: Callable[[], View | None],
        history: History,
        changed: Callable[[], None],
        words: Callable[[], Mapping[str, Word]],
        order: Order,
    ) -> None:
        self.sensors = Sensors(config, view, history, changed)
        self.moves = {"done": 0, "refused": 0}
        self._policy = config.health
        self._me = config.node.id
        self._view, self._words, self._order = view, words, order
        self._history = history
        self._watch = Watch(config.health)
        self._steps: list[Step] = []
        self._not_before = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.sensors.start()
        if self._policy.hand_over:
            self._task = unending(self._look_for_ever, "health")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.sensors.stop()

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look(asyncio.get_running_loop().time())
            except Exception:
                log.exception("a look at this node's health")  # the next one sees again

    async def look(self, now: float) -> None:
        """One round: hand over at most one service."""
        view = self._view()
        if view is None:
            return
        for word in self._words().values():
            self._watch.heard(word.moves, now)
        ill = [w.name for w in self.sensors.words() if w.takes]
        self._steps = self._watch.look(view, ill, now)
        step = next((step for step in self._steps if step.to), None)
        if step is None or now < self._not_before:
            return
        text = f"{self._me} hands {step.service} over to {step.to}: {step.why}"
        self._history.add("A32", text, None, step.service)
        try:
            await self._order(step.service, step.to)
        except OperatorError as error:
            self.moves["refused"] += 1
            self._not_before = now + TRY_AGAIN_S
            text = f"{self._me} could not hand {step.service} over to {step.to}: {error}"
            self._history.add("A33", text, None, step.service)
        else:
            self.moves["done"] += 1
            self._watch.moved(step.service, self._me, ill, asyncio.get_running_loop().time())

    # -- what others see --

    def known_moves(self) -> list[Move]:
        if self._task is None:
            return []  # who never hands over needs no memory of it
        return self._watch.known(asyncio.get_running_loop().time())

    @property
    def alarms(self) -> list[Alarm]:
        return self.sensors.alarms

    def why(self, view: View, words: Mapping[str, Word]) -> list[str]:
        """Lines for `rank --why`: what takes from whose health, and what comes of it."""
        lines = []
        for node in view.nodes:
            found = self.sensors.words() if node.id == self._me else []
            if node.id in words:
                found = words[node.id].sensors
            if text := explain(node.health, found):
                lines.append(f"{node.id}: {text}")
        for step in self._steps:
            what = f"is handed over to {step.to}" if step.to else "stays"
            lines.append(f"{step.service} {what}: {step.why}")
        return lines
