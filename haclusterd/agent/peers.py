"""What the agents tell each other: version, copies, what moved, what their FreeSWITCH has.

Asked over the replication mesh every few seconds; never decides anything. Orders for the whole
cluster come along, so that whoever was away when one was given hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from haclusterd.agent.awaited import AwaitedWord
from haclusterd.agent.comparison import Comparison, Differences
from haclusterd.agent.encoding import encoded
from haclusterd.agent.hand_over import Move
from haclusterd.agent.schema import Report, SensorState, Sync
from haclusterd.core.agreed import AgreedWord
from haclusterd.freeswitch import capabilities
from haclusterd.lasting import unending
from haclusterd.sync.rpc import RequestFailed

log = logging.getLogger(__name__)

METHOD = "about"
CAPABILITIES = "capabilities"
EVERY_S = 2.0
ANSWER_MS = 1000
REPORTS_TOLD = 4  # a takeover is one node's to report, but everybody's to see


class Word(msgspec.Struct, frozen=True):
    """One agent about itself, and what it knows of orders for the whole cluster."""

    version: str
    sync: Sync
    reports: list[Report] = []
    agreed: AgreedWord = AgreedWord()
    capabilities: str = ""  # digest; who knows another one asks for the whole
    differences: Differences = Differences()
    unready: dict[str, str] = {}  # service -> why it could not take it over now
    sensors: list[SensorState] = []
    moves: list[Move] = []  # by health, of any node, as far as it knows
    stuck: dict[str, str] = {}  # service -> why its drain does not go on
    awaited: list[AwaitedWord] = []  # orders for nodes that were away


async def _left_aside(_words: Sequence[AwaitedWord]) -> None:
    """Until the daemon says who keeps them."""


class Asking(Protocol):
    """What is needed of the replicator here."""

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes: ...
    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None: ...


class Peers:
    """The newest word of each peer; a peer that does not answer has none."""

    def __init__(
        self,
        nodes: Sequence[str],
        mesh: Asking,
        own: Callable[[], Word],
        heard: Callable[[AgreedWord], Awaitable[None]],
        comparison: Comparison,
    ) -> None:
        self._comparison = comparison
        self._nodes = list(nodes)
        self._mesh = mesh
        self._own = own
        self._heard = heard
        self.awaited: Callable[[Sequence[AwaitedWord]], Awaitable[None]] = _left_aside
        self.words: dict[str, Word] = {}
        self.reports: dict[str, list[Report]] = {}  # those of the lost stay
        self._task: asyncio.Task[None] | None = None
        mesh.register(METHOD, self._asked)
        mesh.register(CAPABILITIES, self._asked_capabilities)

    async def start(self) -> None:
        self._task = unending(self._ask_for_ever, "peers")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _asked(self, peer: str, payload: bytes) -> bytes:
        return encoded(self._own())

    async def _asked_capabilities(self, peer: str, payload: bytes) -> bytes:
        if self._comparison.mine is None:
            raise ValueError("FreeSWITCH has not told yet what it has")
        return capabilities.encode(self._comparison.mine)

    async def _ask_for_ever(self) -> None:
        pause_s = 0.3  # the first time soon: connections are just coming up
        while True:
            await asyncio.sleep(pause_s)
            await asyncio.gather(*(self._ask(node) for node in self._nodes))
            pause_s = min(pause_s * 2, EVERY_S)

    async def _ask(self, node: str) -> None:
        try:
            answer = await self._mesh.request(node, METHOD, b"", ANSWER_MS)
            word = self.words[node] = msgspec.json.decode(answer, type=Word)
            self.reports[node] = word.reports[-REPORTS_TOLD:]
            await self._heard(word.agreed)
            await self.awaited(word.awaited)
        except (RequestFailed, msgspec.DecodeError, UnicodeDecodeError):
            self.words.pop(node, None)
            return
        if word.capabilities and word.capabilities != self._comparison.known(node):
            await self._fetch_capabilities(node)

    async def _fetch_capabilities(self, node: str) -> None:
        try:
            answer = await self._mesh.request(node, CAPABILITIES, b"", ANSWER_MS)
            self._comparison.heard(node, capabilities.decode(answer))
        except (RequestFailed, ValueError) as error:
            log.info("what FreeSWITCH of %s has was not heard: %s", node, error)
