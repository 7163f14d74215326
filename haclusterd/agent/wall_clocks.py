"""How far the wall clocks of the nodes are apart, as the agents tell each other.

FreeSWITCH says by its own wall clock when a registration runs out, so another node's has to be
converted; nothing else may depend on it. What is known of a lost node stays: it is needed then.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from haclusterd.lasting import unending
from haclusterd.sync.rpc import Answer, RequestFailed

log = logging.getLogger(__name__)

METHOD = "wall-clock"
FIRST_S = 0.3
EVERY_S = 10.0
ANSWER_MS = 500
SURE_S = 0.2  # an answer that took longer says too little
NEWS_S = 1.0  # what registrations are counted in
ALARM_S = 2.0  # beyond, a phone may take a re-INVITE for an old one (docs/freeswitch-ha.md)


class Mesh(Protocol):
    """What is needed of the replicator."""

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes: ...
    def register(self, method: str, answer: Answer) -> None: ...


class WallClocks:
    """See the module. `changed(node)` is called when a clock is found elsewhere than before."""

    def __init__(
        self,
        me: str,
        nodes: Sequence[str],
        mesh: Mesh,
        changed: Callable[[str], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._others = [node for node in nodes if node != me]
        self._mesh = mesh
        self._changed = changed
        self._wall = wall
        self._ahead_s: dict[str, float] = {}  # as last measured
        self._used_s: dict[str, float] = {}  # what registrations are converted by
        self._task: asyncio.Task[None] | None = None
        mesh.register(METHOD, self._asked)

    async def start(self) -> None:
        self._task = unending(self._ask_for_ever, "clocks")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def ahead_s(self, node: str) -> int:
        """By how many seconds a node's clock is ahead of ours; 0 where it is not known."""
        return round(self._used_s.get(node, 0.0))

    @property
    def problem(self) -> str:
        """Whose clock is too far from ours; empty while none is."""
        apart = {node: s for node, s in self._ahead_s.items() if abs(s) > ALARM_S}
        if not apart:
            return ""
        told = ", ".join(
            f"{node}'s is {abs(s):.0f} s {'ahead' if s > 0 else 'behind'}"
            for node, s in sorted(apart.items())
        )
        return f"wall clocks differ: {told}: let all nodes follow the same NTP servers"

    async def _asked(self, peer: str, payload: bytes) -> bytes:
        return f"{self._wall():.6f}".encode()

    async def _ask_for_ever(self) -> None:
        pause_s = FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            await asyncio.gather(*(self._ask(node) for node in self._others))
            pause_s = min(pause_s * 2, EVERY_S)

    async def _ask(self, node: str) -> None:
        loop = asyncio.get_running_loop()
        sent_at, sent_wall = loop.time(), self._wall()
        try:
            said = float(await self._mesh.request(node, METHOD, b"", ANSWER_MS))
        except (RequestFailed, ValueError):
            return  # also of a version that does not tell
        took_s, now = loop.time() - sent_at, self._wall()
        stepped = abs(now - sent_wall - took_s) > SURE_S
        if took_s > SURE_S or stepped or not math.isfinite(said) or abs(said) > 1e11:
            return
        ahead_s = self._ahead_s[node] = said - (sent_wall + now) / 2
        if abs(ahead_s - self._used_s.get(node, 0.0)) >= NEWS_S:
            self._used_s[node] = ahead_s
            log.info("the wall clock of %s is %+.1f s from ours", node, ahead_s)
            self._changed(node)
