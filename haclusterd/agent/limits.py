"""Limits count in the whole cluster: every node tells the others what its FreeSWITCH counts.

A node's counts are told whole, on change and every second, and named by the FreeSWITCH process
they are of. What a lost one had counts on until the new owners of its services have counted its
calls again, so that a takeover neither frees places that are taken nor takes them twice for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from haclusterd.core.records import CallRecord
from haclusterd.core.view import View
from haclusterd.freeswitch.esl import Esl, EslFactory, EventItem
from haclusterd.freeswitch.esl_errors import EslError
from haclusterd.freeswitch.limit_proof import LimitProof
from haclusterd.freeswitch.limit_server import LimitServer
from haclusterd.freeswitch.limits import Usage, added, answer, checked, count_again, keys_of
from haclusterd.freeswitch.limits import parse_dump as parse
from haclusterd.lasting import lasting, unending
from haclusterd.sync.codec import PAYLOAD_BYTES_MAX
from haclusterd.sync.rpc import Answer, RequestFailed

log = logging.getLogger(__name__)

METHOD = "limits"
ORDER_S = 0.3
PAUSE_S = 0.02  # between two questions, however many calls come
POLL_S = 0.1  # while something is counted here
IDLE_S = 1.0
TELL_S = 1.0
ANSWER_MS = 500
HOLD_S = 10.0  # how long a lost FreeSWITCH's counts stay if nobody says that they are counted
RECOVERED_S = 10.0
SILENT_S = 5.0  # after which the counts of a node that lives go where they are counted elsewhere
TRY_AGAIN_S = 5.0
ENTRIES_MAX = 64
SERVICES_MAX = 256
UNPACKED_BYTES_MAX = 1024 * 1024
_PACKED = b"x"  # first byte of zlib, and of no msgpack of a Word


class Word(msgspec.Struct, frozen=True, array_like=True):
    """One FreeSWITCH's counts. `services`: whose calls are in them."""

    core_uuid: str
    counts: dict[str, int]
    services: list[str]


class Entry(msgspec.Struct):
    """The newest word of a FreeSWITCH. `lost_at`: loop time since when it is gone, 0 if not.

    `services`: all whose calls may be in its counts, also those it lost or has not counted yet.
    """

    node: str
    word: Word
    heard_at: float
    services: set[str]
    lost_at: float = 0.0


class Mesh(Protocol):
    """What is needed of the replicator."""

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes: ...
    def register(self, method: str, answer: Answer) -> None: ...
    def own_records(self, service: str) -> list[CallRecord]: ...


_decoder = msgspec.msgpack.Decoder(Word)


class Limits:
    """See the module. `busy(service)` names what keeps a service's calls busy, empty if nothing."""

    def __init__(self, me: str, nodes: Sequence[str], mesh: Mesh, busy: Callable[[str], str]):
        self._me = me
        self._others = [node for node in nodes if node != me]
        self._mesh = mesh
        self._busy = busy
        self.server: LimitServer | None = None
        self.esl: Esl | None = None
        self.left_out = 0
        self.refused = 0
        self._entries: dict[tuple[str, str], Entry] = {}
        self._others_sum: dict[str, int] = {}
        self._answer: bytes | None = None  # until some entry changes
        self._own = Usage({}, 0)
        self._proof = LimitProof()
        self._core_uuid = ""
        self._counted: set[str] = set()  # own services whose calls are in the own counts
        self._owned: set[str] = set()
        self._owners: dict[str, str] = {}  # the last known one of each service
        self._cut = 0
        self._told = asyncio.Event()
        self._news = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        mesh.register(METHOD, self._heard)

    # -- life --

    async def start(self, esl_factory: EslFactory, port: int, password: str) -> None:
        """Serve the local FreeSWITCH and tell the others of it."""
        self.esl = esl_factory(name="limits", events=("limit::usage",), on_event=self._changed)
        self.server = LimitServer(port, password, self.dump, lambda: self._proof.told({}))
        await self.esl.start()
        for name, work in (("listen", self._listen), ("poll", self._poll), ("tell", self._tell)):
            self._tasks[f"/{name}"] = unending(work, f"limits {name}")

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self.server is not None:
            await self.server.stop()
        if self.esl is not None:
            await self.esl.stop()

    async def _listen(self) -> None:
        server = self.server
        while server is not None and not await server.start():
            log.warning("%s", server.problem)
            await asyncio.sleep(TRY_AGAIN_S)

    # -- what heart says --

    def observe(self, view: View) -> None:
        """Heart's view: who lives, and which services are owned here."""
        owned = {s.name for s in view.services if s.local_state == "owned" and s.owner == view.node}
        for name in owned - self._owned - self._tasks.keys():
            self._begin(name, again=False)  # no order to recover came before
        alive = {n.id for n in view.nodes if n.role not in ("dead", "left")}
        self._owners |= {s.name: s.owner for s in view.services if s.owner}
        for entry in self._entries.values():
            if entry.node not in alive:
                self._lose(entry)
            elif not entry.lost_at:
                entry.services |= self._services_of(entry.node)
        for name in self._owned - owned:
            self._counted.discard(name)
            task = self._tasks.pop(name, None)
            if task is not None:
                task.cancel()
        if owned != self._owned:
            self._owned = owned
            self._told.set()

    def recover(self, service: str) -> None:
        """The calls of a service are recovered here: count them again when they are up."""
        self._begin(service, again=True)

    def _begin(self, service: str, again: bool) -> None:
        self._counted.discard(service)
        old = self._tasks.pop(service, None)
        if old is not None:
            old.cancel()
        work = self._count(service, again)
        self._tasks[service] = lasting(work, f"limits of {service}")

    async def _count(self, service: str, again: bool) -> None:
        """Without an order to recover, which comes soon if it comes, its calls are counted here."""
        await asyncio.sleep(ORDER_S)
        loop = asyncio.get_running_loop()
        until = loop.time() + RECOVERED_S
        while self._busy(service) and loop.time() < until:
            await asyncio.sleep(POLL_S / 2)
        for record in self._mesh.own_records(service) if again else ():
            for key in keys_of(record):
                await self._command(count_again(record.uuid, key))
        await self._look()
        self._counted.add(service)
        self._told.set()

    # -- what FreeSWITCH counts --

    async def _command(self, line: str) -> str:
        if self.esl is None:
            return ""
        try:
            return await self.esl.api(line)
        except (EslError, ValueError) as error:
            log.info("limits: %s", error)
            return ""

    async def _changed(self, item: EventItem) -> None:
        """FreeSWITCH counted a call, or is there again. It does not say when one ended."""
        self._news.set()

    async def _poll(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S if self._own.counts else IDLE_S):
                    await self._news.wait()
            self._news.clear()

    async def _look(self) -> None:
        if self.esl is None or not self.esl.up:
            return
        try:
            core_uuid = (await self.esl.api("global_getvar core_uuid")).strip()
            dump = await self.esl.api("hash_dump limit")
            needed = added((self._others_sum, self._proof.granted))
            usage = Usage({}, 0) if dump.startswith("-ERR") else parse(dump, needed)
            usage = await self._proof.proven(self.esl, usage)
        except EslError as error:
            log.debug("limits: %s", error)
            return
        self.left_out += max(0, usage.left_out - self._own.left_out)
        if (usage, core_uuid) != (self._own, self._core_uuid):
            if self._core_uuid not in ("", core_uuid):
                self._keep_own()
            self._own, self._core_uuid = usage, core_uuid
            self._told.set()

    def _keep_own(self) -> None:
        """The local FreeSWITCH is another one: what the old one counted may go on elsewhere."""
        self._lose(self._enter(self._me, self._word()))
        self._counted.clear()
        for service in self._owned:
            self.recover(service)

    def _word(self) -> Word:
        if not self._owned and (self.esl is None or not self.esl.up):
            # Whatever was counted here, its calls are over, or counted by those who have them now.
            return Word("", {}, [])
        counted = sorted(self._counted & self._owned)
        return Word(self._core_uuid, self._own.counts, counted)

    # -- what the nodes tell each other --

    async def _tell(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TELL_S):
                    await self._told.wait()
            self._told.clear()
            self._forget_counted()
            if self._can_tell():
                payload, cut = packed(self._word())
                self.left_out += max(0, cut - self._cut)
                self._cut = cut
                await asyncio.gather(*(self._tell_one(node, payload) for node in self._others))

    def _can_tell(self) -> bool:
        """A new agent takes back what the one before it said of a FreeSWITCH that is gone, too, but
        not before heart has told it whose the services are."""
        if self._core_uuid:
            return True
        up = self.esl is not None and self.esl.up
        return bool(self._owners) and not self._owned and not up

    async def _tell_one(self, node: str, payload: bytes) -> None:
        try:
            await self._mesh.request(node, METHOD, payload, ANSWER_MS)
        except RequestFailed as error:
            log.debug("limits: %s was not told: %s", node, error)

    async def _heard(self, peer: str, payload: bytes) -> bytes:
        word = unpacked(payload)
        if len(word.core_uuid) > 64 or len(word.services) > SERVICES_MAX:
            raise ValueError("counts of an unlikely size")
        counts = checked(word.counts)
        self.refused += len(word.counts) - len(counts)
        for entry in self._entries.values():
            if entry.node == peer and entry.word.core_uuid != word.core_uuid:
                self._lose(entry)
        self._enter(peer, msgspec.structs.replace(word, counts=counts))
        self._forget_counted()
        return b""

    def _enter(self, node: str, word: Word) -> Entry:
        services = self._services_of(node)
        if (old := self._entries.get((node, word.core_uuid))) is not None:
            services |= old.services
        now = asyncio.get_running_loop().time()
        entry = self._entries[node, word.core_uuid] = Entry(node, word, now, services)
        self._answer = None
        return entry

    def _services_of(self, node: str) -> set[str]:
        return {name for name, owner in self._owners.items() if owner == node}

    def _lose(self, entry: Entry) -> None:
        if not entry.lost_at:
            entry.lost_at = asyncio.get_running_loop().time()

    def _forget_counted(self) -> None:
        """A lost FreeSWITCH's counts go when all its services are counted elsewhere, or in time.

        Those of one that only says nothing any more go when they are counted elsewhere.
        """
        now = asyncio.get_running_loop().time()
        telling = [
            entry.word.services
            for entry in self._entries.values()
            if not entry.lost_at and now - entry.heard_at <= SILENT_S
        ]
        counted = (self._counted & self._owned).union(*telling)
        for key, entry in list(self._entries.items()):
            services = entry.services.union(entry.word.services)
            gone = counted.issuperset(services)
            if entry.lost_at:
                gone = gone or now - entry.lost_at > HOLD_S
            else:
                gone = gone and bool(services) and now - entry.heard_at > SILENT_S
            if gone:
                del self._entries[key]
                self._answer = None
        while len(self._entries) > ENTRIES_MAX:
            del self._entries[next(iter(self._entries))]

    def dump(self) -> bytes:
        """What the local FreeSWITCH is told: the sum of all others."""
        if any(entry.lost_at for entry in self._entries.values()):
            self._forget_counted()
        if self._answer is None:
            self._others_sum = added(entry.word.counts for entry in self._entries.values())
            self._answer = answer(self._others_sum).encode()
        self._proof.told(self._others_sum)
        return self._answer

    @property
    def problem(self) -> str:
        """Why limits are not counted cluster-wide; empty while they are, or nobody asked for it."""
        return "" if self.server is None else self.server.problem

    def counters(self) -> dict[str, int]:
        """What only counts up since the agent started."""
        return {"limits_left_out": self.left_out, "limits_refused": self.refused}


def packed(word: Word) -> tuple[bytes, int]:
    """As it travels, and how many counts were too many for it; those of the most calls go first.

    Packed only if it has to be: former versions do not unpack it.
    """
    most = sorted(word.counts, key=lambda key: word.counts[key], reverse=True)
    payload, kept = msgspec.msgpack.encode(word), len(most)
    while len(payload) > PAYLOAD_BYTES_MAX and kept:
        payload = zlib.compress(payload, 1)
        if len(payload) > PAYLOAD_BYTES_MAX:
            kept = kept * 3 // 4
            counts = {key: word.counts[key] for key in most[:kept]}
            payload = msgspec.msgpack.encode(msgspec.structs.replace(word, counts=counts))
    return payload, len(most) - kept


def unpacked(payload: bytes) -> Word:
    """What a peer said. Raises ValueError."""
    try:
        if payload[:1] == _PACKED:
            inflate = zlib.decompressobj()
            payload = inflate.decompress(payload, UNPACKED_BYTES_MAX)
            if not inflate.eof:
                raise ValueError("too many counts")
        return _decoder.decode(payload)
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError("no counts") from None
