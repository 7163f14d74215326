"""Subscriptions survive a takeover: the owner's rows are kept by the others, and handed over.

The owner of a service tells the others its subscriptions whole, on change and now and then. They
are in memory only: who restarts is told again within TELL_S. At a takeover what the lost owner had
is put into mod_sofia's table; a phone that has subscribed here since goes first.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import zlib
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from haclusterd.agent.presence import Mesh
from haclusterd.core.model import ClusterSpec
from haclusterd.core.view import View
from haclusterd.freeswitch import subscription_db
from haclusterd.freeswitch.esl import Esl, EslFactory
from haclusterd.freeswitch.esl_errors import EslError
from haclusterd.freeswitch.registration_db import database_of
from haclusterd.freeswitch.registrations import Refused
from haclusterd.freeswitch.subscription_db import ROWS_MAX, Subscription
from haclusterd.lasting import lasting, unending
from haclusterd.sync.codec import PAYLOAD_BYTES_MAX
from haclusterd.sync.rpc import RequestFailed

log = logging.getLogger(__name__)

METHOD = "subscriptions"
LOOK_S = 1.0
TELL_S = 10.0
ANSWER_MS = 1000
UNPACKED_BYTES_MAX = 2 * 1024 * 1024
HAND_OVER_S = 60.0  # for FreeSWITCH and its table to be there; then the rows are lost
TRY_AGAIN_S = 0.25
TRY_AGAIN_MAX_S = 4.0
_SWITCHNAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


class Said(msgspec.Struct, frozen=True, array_like=True):
    """All subscriptions of one profile, from the owner of its service at this epoch."""

    profile: str
    epoch: int
    rows: list[tuple[str | int, ...]]


_decoder = msgspec.msgpack.Decoder(Said)


class Subscriptions:
    """See the module."""

    def __init__(self, spec: ClusterSpec, mesh: Mesh) -> None:
        nodes = [node.id for node in spec.nodes]
        self._others = [node for node in nodes if node != nodes[spec.me]]
        self._services = {s.name: s.profiles for s in spec.services}
        self._profiles = {p for s in spec.services for p in s.profiles}
        self._mesh = mesh
        self._core_db = Path()
        self._esl: Esl | None = None
        self._owned: dict[str, int] = {}  # epoch by service
        self._foreign: set[str] = set()  # profiles whose rows here are cleared
        self._held: dict[str, tuple[int, list[Subscription]]] = {}  # by profile: of others
        self._last: dict[str, tuple[int, bytes, float]] = {}  # by profile: what was told, when
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changing: set[str] = set()  # profiles whose rows are not yet as they have to be
        self._counters = dict.fromkeys(("handed_over", "refused", "lost"), 0)

    async def start(self, core_db: Path, esl_factory: EslFactory) -> None:
        """Begin to follow the local FreeSWITCH, and to hear the others."""
        self._core_db = core_db
        self._esl = esl_factory(name="subscriptions")
        self._mesh.register(METHOD, self._hear)
        await self._esl.start()
        self._tasks[""] = unending(self._look_for_ever, "subscriptions")

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._esl is not None:
            await self._esl.stop()

    def counters(self) -> dict[str, int]:
        """What only counts up since the agent started."""
        return {f"subscriptions_{name}": count for name, count in self._counters.items()}

    # -- what heart says --

    def observe(self, view: View) -> None:
        """Heart's view: which services are owned here, and which by others."""
        for service in view.services:
            mine = service.local_state == "owned" and service.owner == view.node
            if mine:
                self._owned[service.name] = service.epoch
                self._foreign.difference_update(self._services[service.name])
            elif service.owner not in ("", view.node):
                self._owned.pop(service.name, None)
                self._clear(service.name)

    def recover(self, service: str, epoch: int) -> None:
        """This node took the service over: what the lost owner's phones subscribed is here."""
        self._owned[service] = epoch
        self._changing.update(self._services[service])
        self._start(service, self._hand_over(service))

    def _clear(self, service: str) -> None:
        new = set(self._services[service]) - self._foreign
        if new and self._esl is not None:
            self._foreign |= new
            self._changing |= new
            self._start(service, self._clear_rows(sorted(new)))

    def _start(self, service: str, work: Coroutine[Any, Any, None]) -> None:
        old = self._tasks.pop(service, None)
        if old is not None:
            old.cancel()
        self._tasks[service] = lasting(work, f"subscriptions of {service}")

    async def _clear_rows(self, profiles: Sequence[str]) -> None:
        for profile in profiles:
            try:
                await asyncio.to_thread(subscription_db.clear, self._path(profile), profile)
            except sqlite3.Error as error:
                log.debug("subscriptions of %s: %s", profile, error)
            self._changing.discard(profile)

    async def _hand_over(self, service: str) -> None:
        await asyncio.gather(*(self._hand_one(service, p) for p in self._services[service]))

    async def _hand_one(self, service: str, profile: str) -> None:
        """What is held of it stays until it is in, or another node has the service."""
        _, rows = self._held.get(profile, (0, []))
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + HAND_OVER_S, TRY_AGAIN_S
        while service in self._owned:
            try:
                added = await self._insert(profile, rows) if rows else 0
            except (EslError, sqlite3.Error, ValueError) as error:
                if loop.time() < until:
                    log.info("subscriptions of %s are not handed over yet: %s", profile, error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, TRY_AGAIN_MAX_S)
                    continue
                self._counters["lost"] += len(rows)
                log.warning("%d subscriptions of %s are lost: %s", len(rows), profile, error)
            else:
                self._counters["handed_over"] += added
                log.info("%d subscriptions of %s handed over", added, profile)
            self._held.pop(profile, None)
            self._changing.discard(profile)
            return

    async def _insert(self, profile: str, rows: list[Subscription]) -> int:
        if self._esl is None:
            return 0
        switchname = (await self._esl.api("switchname")).strip()
        if not _SWITCHNAME.match(switchname):
            raise ValueError(f"FreeSWITCH's switchname {switchname[:40]!a} is no name")
        path = self._path(profile)
        return await asyncio.to_thread(subscription_db.hand_over, path, rows, switchname)

    def _path(self, profile: str) -> Path:
        return database_of(self._core_db, profile)

    # -- what the nodes tell each other --

    async def _look_for_ever(self) -> None:
        while True:
            for service, epoch in list(self._owned.items()):
                for profile in self._services.get(service, ()):
                    if profile not in self._changing:
                        await self._look(profile, epoch)
            await asyncio.sleep(LOOK_S)

    async def _look(self, profile: str, epoch: int) -> None:
        try:
            rows, refused = await asyncio.to_thread(
                subscription_db.read, self._path(profile), profile
            )
        except sqlite3.Error as error:
            log.debug("subscriptions of %s: %s", profile, error)
            return
        told: list[tuple[str | int, ...]] = [tuple(row) for row in rows]
        while not (payload := packed(Said(profile, epoch, told))) and told:
            told = told[: len(told) * 3 // 4]  # as many as fit: none at all would help nobody
        refused += len(rows) - len(told)
        now = asyncio.get_running_loop().time()
        known_epoch, known, told_at = self._last.get(profile, (0, b"", 0.0))
        if (known_epoch, known) == (epoch, payload) and now - told_at < TELL_S:
            return
        if known != payload:
            self._counters["refused"] += refused
        self._last[profile] = (epoch, payload, now)
        await asyncio.gather(*(self._tell(node, payload) for node in self._others))

    async def _tell(self, node: str, payload: bytes) -> None:
        try:
            await self._mesh.request(node, METHOD, payload, ANSWER_MS)
        except RequestFailed as error:
            log.debug("subscriptions: %s was not told: %s", node, error)

    async def _hear(self, peer: str, payload: bytes) -> bytes:
        said = unpacked(payload)
        held_epoch, _ = self._held.get(said.profile, (0, []))
        mine = [p for service in self._owned for p in self._services.get(service, ())]
        if said.profile not in self._profiles or said.profile in mine or said.epoch < held_epoch:
            return b""
        rows: list[Subscription] = []
        for values in said.rows:
            try:
                row = subscription_db.check(Subscription(*values))  # type: ignore[arg-type]
                if row.profile_name != said.profile:
                    raise Refused("it is of another profile")
                rows.append(row)
            except (Refused, TypeError) as error:
                self._counters["refused"] += 1
                log.debug("a subscription of %s is refused: %s", peer, error)
        self._held[said.profile] = (said.epoch, rows)
        return b""


def packed(said: Said) -> bytes:
    """As it travels; empty if it is too much even so."""
    payload = zlib.compress(msgspec.msgpack.encode(said), 1)
    return payload if len(payload) <= PAYLOAD_BYTES_MAX else b""


def unpacked(payload: bytes) -> Said:
    """What a peer said. Raises ValueError."""
    try:
        inflate = zlib.decompressobj()
        plain = inflate.decompress(payload, UNPACKED_BYTES_MAX)
        if inflate.unconsumed_tail or not inflate.eof:
            raise ValueError("too many subscriptions")
        said = _decoder.decode(plain)
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError("no subscriptions") from None
    if len(said.rows) > ROWS_MAX:
        raise ValueError(f"{len(said.rows)} subscriptions, {ROWS_MAX} allowed")
    return said
