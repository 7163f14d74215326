"""Lamps and message lights go on at every node: presence and MWI events travel between agents.

What the local FreeSWITCH fires is told to the other agents, in order, and a node that serves tells
its FreeSWITCH what others said. Nothing is kept: a lamp that missed its event is right again with
the next one. What may travel is `freeswitch.presence`'s knowledge.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import msgspec

from haclusterd.core.view import View
from haclusterd.freeswitch import presence
from haclusterd.freeswitch.esl import Esl, EslFactory, EventItem, EventsLost
from haclusterd.freeswitch.esl_errors import EslError
from haclusterd.freeswitch.presence import Word
from haclusterd.lasting import unending
from haclusterd.sync.rpc import Answer, RequestFailed

log = logging.getLogger(__name__)

METHOD = "presence"
WAITING_MAX = 2000  # words, in each direction
AT_ONCE = 100  # words in one message
COALESCE_S = 0.02
ANSWER_MS = 500


class Mesh(Protocol):
    """What is needed of the replicator."""

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes: ...
    def register(self, method: str, answer: Answer) -> None: ...


_decoder = msgspec.msgpack.Decoder(list[Word])


class Presence:
    """See the module."""

    def __init__(self, me: str, nodes: Sequence[str], mesh: Mesh) -> None:
        self._others = [node for node in nodes if node != me]
        self._mesh = mesh
        self._esl: Esl | None = None
        self._serves = False
        self._out: deque[Word] = deque(maxlen=WAITING_MAX)
        self._in: deque[Word] = deque(maxlen=WAITING_MAX)
        self._told, self._heard = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._counters = dict.fromkeys(("told", "passed_on", "refused", "dropped"), 0)

    async def start(self, esl_factory: EslFactory) -> None:
        """Begin to follow the local FreeSWITCH, and to hear the others."""
        self._esl = esl_factory(name="presence", events=presence.EVENTS, on_event=self._on_event)
        self._mesh.register(METHOD, self._hear)
        await self._esl.start()
        self._tasks = [
            unending(self._tell, "presence to others"),
            unending(self._pass_on, "presence from others"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._esl is not None:
            await self._esl.stop()

    def observe(self, view: View) -> None:
        """Heart's view: only who serves has phones that subscribed."""
        self._serves = any(s.local_state == "owned" for s in view.services)

    def counters(self) -> dict[str, int]:
        """What only counts up since the agent started."""
        return {f"presence_{name}": count for name, count in self._counters.items()}

    async def _on_event(self, item: EventItem) -> None:
        if isinstance(item, EventsLost):
            return
        try:
            word = presence.word_of(item)
        except presence.Refused as error:
            self._refuse("the local FreeSWITCH", error)
            return
        if word is not None:
            self._keep(self._out, word)
            self._told.set()

    def _keep(self, queue: deque[Word], word: Word) -> None:
        self._counters["dropped"] += len(queue) == queue.maxlen
        queue.append(word)

    def _refuse(self, who: str, error: presence.Refused) -> None:
        self._counters["refused"] += 1
        if self._counters["refused"] == 1:  # others are counted: whoever calls may make them
            log.warning("presence of %s is not passed on: %s", who, error)

    async def _tell(self) -> None:
        while True:
            await self._told.wait()
            await asyncio.sleep(COALESCE_S)
            self._told.clear()
            while self._out:
                part = [self._out.popleft() for _ in range(min(AT_ONCE, len(self._out)))]
                payload = msgspec.msgpack.encode(part)
                await asyncio.gather(*(self._tell_one(node, payload) for node in self._others))
                self._counters["told"] += len(part)

    async def _tell_one(self, node: str, payload: bytes) -> None:
        try:
            await self._mesh.request(node, METHOD, payload, ANSWER_MS)
        except RequestFailed as error:
            log.debug("presence: %s was not told: %s", node, error)

    async def _hear(self, peer: str, payload: bytes) -> bytes:
        try:
            words = _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ValueError("no presence") from None
        if len(words) > AT_ONCE:
            raise ValueError(f"{len(words)} events at once, {AT_ONCE} allowed")
        for word in words if self._serves else ():
            try:
                self._keep(self._in, presence.checked(word))
            except presence.Refused as error:
                self._refuse(peer, error)
        self._heard.set()
        return b""

    async def _pass_on(self) -> None:
        while True:
            await self._heard.wait()
            self._heard.clear()
            while self._in and self._esl is not None:
                word = self._in.popleft()
                try:
                    await self._esl.sendevent("CUSTOM", presence.multicast(word))
                except EslError as error:
                    log.debug("presence: FreeSWITCH was not told: %s", error)
                    self._counters["dropped"] += 1
                else:
                    self._counters["passed_on"] += 1
