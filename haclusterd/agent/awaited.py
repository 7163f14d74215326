"""The end of the maintenance of a node that is away: kept for it until it comes back.

Maintenance is a node's own: on its disk, and in its heart's beats. Of one that is away the others
keep the order and tell it with every word about themselves. A node tells its own orders, too: each
has a version, unique and above all that its giver knew of, so that of two the later one stands.
Whether a node is a candidate has no part in who may own a service, so nothing
here can make two owners.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from haclusterd.agent.history import History
from haclusterd.agent.operators import OperatorError, Operators
from haclusterd.agent.schema import PARTLY, USAGE
from haclusterd.core.agreed import NAME_MAX, NODES_MAX, VERSION_MAX
from haclusterd.core.model import FOR_GOOD_US, ClusterSpec
from haclusterd.core.view import View
from haclusterd.files import write_atomically
from haclusterd.lasting import lasting
from haclusterd.sync.rpc import RequestFailed

log = logging.getLogger(__name__)

METHOD = "awaited"
FILE_NAME = "awaited.json"
FILE_BYTES_MAX = 1 << 20
FORMAT = 1
PEER_MS = 3000
WALL_MS_MAX = 2**44
_AWAY = ("dead", "left")

Keep = Callable[[bool, int], Awaitable[None]]


class AwaitedWord(msgspec.Struct, frozen=True):
    """The newest order of maintenance of `node`: its own, which others need not carry out, or, with
    `by`, the end of it, given elsewhere while it was away."""

    node: str
    version: int
    by: str = ""


class Kept(msgspec.Struct, frozen=True):
    """The file. `mine`: the version of this node's own newest order of maintenance."""

    format: int
    cluster: str
    mine: int = 0
    words: tuple[AwaitedWord, ...] = ()


class Mesh(Protocol):
    """What is needed of the replicator here."""

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes: ...
    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None: ...


class Awaited:
    """One word per node, the newest. `keep` writes this node's own maintenance."""

    def __init__(
        self, spec: ClusterSpec, state_dir: Path, operators: Operators, history: History,
        view: Callable[[], View], keep: Keep,
    ) -> None:  # fmt: skip
        self._spec, self._operators, self._history = spec, operators, history
        self._view, self._keep = view, keep
        self._path = state_dir / FILE_NAME
        self._me = spec.nodes[spec.me].id
        self._nodes = {node.id for node in spec.nodes}
        self._mesh: Mesh | None = None
        self._lock, self._obeying = asyncio.Lock(), asyncio.Lock()
        self._hearing: set[asyncio.Task[None]] = set()
        kept = self._read()
        self._mine = kept.mine
        self._words = {word.node: word for word in kept.words if self._is_sane(word)}

    def join(self, mesh: Mesh) -> None:
        self._mesh = mesh
        mesh.register(METHOD, self._asked)

    # -- orders --

    async def keep_maintenance(self, on: bool, left_us: int) -> None:
        """An order that this node carries out itself: the newest there is, as all shall know."""
        if not on:  # first: an end that is cut short here has not been obeyed
            await self._keep(on, left_us)
        await self._store([AwaitedWord(self._me, self._next_version())], own=True)
        if on:
            await self._keep(on, left_us)

    def is_away(self, node: str) -> bool:
        """Heart sees it dead or left: nobody can ask it now."""
        return any(n.id == node and n.role in _AWAY for n in self._view().nodes)

    async def end(self, node: str, by: str) -> str:
        """Out of maintenance when it is back. Raises OperatorError."""
        word = AwaitedWord(node, self._next_version(), f"{by} on {self._me}"[:NAME_MAX])
        if not word.by.isprintable():
            raise OperatorError("who orders this must be named, in printable characters", USAGE)
        await self._store([word])
        self._history.add("A49", f"{word.by} has ended the maintenance of {node}, which is away")
        untold = await self._pass_on(node)
        text = f"{node} is away: it is out of maintenance as soon as it is back"
        if untold:
            raise OperatorError(
                f"{text}, but {', '.join(untold)} could not be told and will hear of it from the "
                "others",
                PARTLY,
            )
        return text

    async def heard(self, words: Sequence[AwaitedWord]) -> None:
        """What another agent keeps: what is newer is kept, and obeyed if it is for this node."""
        newer = [word for word in words[:NODES_MAX] if self._is_newer(word)]
        try:
            if newer:
                await self._store(newer)
            await self._obey()
        except OperatorError as error:
            log.error("an order of maintenance is not carried out: %s", error)

    async def _obey(self) -> None:
        """Unless it was put into maintenance, or out of it, here since then."""
        async with self._obeying:
            word = self._words.get(self._me)
            if word is None or word.version <= self._mine or not word.by:
                return
            text = await self._operators.maintenance(False, None, FOR_GOOD_US)
            self._history.add("A50", f"{text}: {word.by} ended it while this node was away")

    # -- with the others --

    def words(self) -> list[AwaitedWord]:
        """For the others, with the word about this node."""
        return [self._words[node] for node in sorted(self._words)]

    async def _pass_on(self, but: str) -> list[str]:
        """Living nodes that were not told."""
        living = [n.id for n in self._view().nodes
                  if n.id not in (self._me, but) and n.role not in _AWAY]  # fmt: skip
        told = await asyncio.gather(*(self._tell(node) for node in living))
        return [node for node, done in zip(living, told, strict=True) if not done]

    async def _tell(self, node: str) -> bool:
        if self._mesh is None:
            return False
        try:
            payload = msgspec.json.encode(self.words())
            await self._mesh.request(node, METHOD, payload, PEER_MS)
        except RequestFailed as error:
            log.info("%s was not told of an order: %s", node, error)
            return False
        return True

    async def _asked(self, peer: str, payload: bytes) -> bytes:
        words = msgspec.json.decode(payload, type=list[AwaitedWord])
        # To its end, also where the connection is lost, or moves to another link.
        hearing = lasting(self.heard(words), f"orders from {peer}")
        self._hearing.add(hearing)
        hearing.add_done_callback(self._hearing.discard)
        await asyncio.shield(hearing)
        return b"kept"

    # -- parts --

    def _next_version(self) -> int:
        newest = max([self._mine, *(word.version for word in self._words.values())])
        number = max(newest // NODES_MAX + 1, _wall_ms())
        return number * NODES_MAX + self._spec.me % NODES_MAX

    def _is_newer(self, word: AwaitedWord) -> bool:
        known = self._words.get(word.node)
        return self._is_sane(word) and (known is None or word.version > known.version)

    def _is_sane(self, word: AwaitedWord) -> bool:
        return (
            word.node in self._nodes
            and 0 < word.version <= VERSION_MAX
            and len(word.by) <= NAME_MAX
            and word.by.isprintable()
        )

    def _read(self) -> Kept:
        """What was kept. Where it cannot be read only orders count that come from now on."""
        empty = Kept(FORMAT, self._spec.name, _wall_ms() * NODES_MAX)
        try:
            with self._path.open("rb") as file:
                found = msgspec.json.decode(file.read(FILE_BYTES_MAX + 1), type=Kept)
        except FileNotFoundError:
            return Kept(FORMAT, self._spec.name)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.error("%s: %s: left aside, orders of maintenance are heard anew", self._path, error)
            return empty
        if found.format != FORMAT or found.cluster != self._spec.name:
            log.error("%s: is not of this cluster and version: left aside", self._path)
            return empty
        return found

    async def _store(self, newer: Iterable[AwaitedWord], own: bool = False) -> None:
        """On disk, then in force; `own`: after an order to this node itself. Raises
        OperatorError."""
        async with self._lock:
            words = {**self._words, **{w.node: w for w in newer if self._is_newer(w)}}
            mine = words[self._me].version if own else self._mine
            kept = Kept(FORMAT, self._spec.name, mine, tuple(words.values()))
            try:
                await asyncio.to_thread(_replace, self._path, kept)
            except OSError as error:
                raise OperatorError(
                    f"not done: {self._path}: {error.strerror}; make its folder writable and its "
                    "disk not full"
                ) from None
            self._mine, self._words = mine, words


def _wall_ms() -> int:
    """A wall clock gone mad leaves room for later versions."""
    return min(time.time_ns() // 1_000_000, WALL_MS_MAX)


def _replace(path: Path, kept: Kept) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.json.encode(kept) + b"\n")
