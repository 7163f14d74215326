"""The replicator with what the agent adds: own records, and a view of heart in its terms."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from heapq import nsmallest
from typing import Protocol

import msgspec

from haclusterd.agent.protection import Protection
from haclusterd.config import Config
from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.core.replication import Ack, Item, Limits
from haclusterd.core.view import View
from haclusterd.keys import paths
from haclusterd.sync.codec import Message
from haclusterd.sync.replicator import UNPACK_SLICE, Replicator
from haclusterd.sync.session import Session
from haclusterd.sync.status import SyncStatus
from haclusterd.sync.transport import Identity, MeshConfig


class Replication(Protocol):
    """What `services` needs of it; tests put a stand-in behind it."""

    def own(self, service: str, epoch: int, settled: bool = False) -> None: ...
    def advance(self, service: str, epoch: int) -> None: ...
    def settle(self, service: str) -> None: ...
    def disown(self, service: str) -> None: ...
    def append(self, records: Sequence[CallRecord | Tombstone]) -> None: ...
    async def fetch(self, service: str, timeout_ms: int, without: Collection[str] = ()) -> None: ...
    def quietest(self, service: str, count: int) -> list[CallRecord]: ...
    def current(self, service: str, records: Sequence[CallRecord]) -> list[CallRecord]:
        """Those of which nobody has told anything newer since; bridged ones in pairs."""
        ...

    def ended(self, service: str, uuids: Collection[str]) -> set[str]:
        """Inherited calls of which another node has told that they had ended before."""
        ...

    async def unrecovered(self, service: str) -> list[CallRecord]: ...
    async def ask(self, service: str, timeout_ms: int, without: Collection[str] = ()) -> None: ...
    def unasked(self, service: str, without: Collection[str] = ()) -> list[str]: ...
    async def inherited(self, service: str, but: Collection[str] = ()) -> list[CallRecord]: ...
    def own_records(self, service: str, but: Collection[str] = ()) -> list[CallRecord]: ...
    def own_versions(self, service: str, uuids: Collection[str]) -> dict[str, int]:
        """By call: the version that is logged here as live."""
        ...

    def owned(self) -> dict[str, int]: ...
    def known_legs(self, service: str) -> int:
        """Live call legs of a service, as this node's copies and log have them."""
        ...

    def copy_state(self, service: str) -> str:
        """How good this node's copy of another's service is, as in `sync`."""
        ...


class AgentReplicator(Replicator):
    """Replicator of this node."""

    def __init__(self, config: MeshConfig, incarnation: int, limits: Limits | None = None) -> None:
        super().__init__(config, incarnation, limits)
        self._protection = Protection(self.replicated)

    def append(self, records: Iterable[CallRecord | Tombstone]) -> None:
        records = list(records)
        self._protection.logged(records)
        super().append(records)

    def session_message(self, session: Session, message: Message) -> None:
        super().session_message(session, message)
        if isinstance(message, Ack):
            self._protection.acknowledged()

    def status(self) -> SyncStatus:
        p50, p99 = self._protection.quantiles_ms()
        return msgspec.structs.replace(
            super().status(), protected_ms_p50=p50, protected_ms_p99=p99,
            protected=self._protection.total,
        )  # fmt: skip

    def own_records(self, service: str, but: Collection[str] = ()) -> list[CallRecord]:
        """Live calls of an owned service, as they were last logged; without those in `but`."""
        items = self.change_log.items(service)
        if items is None:
            return []
        return self.store.unpack(i for u, i in items.items.items() if u not in but)

    def own_versions(self, service: str, uuids: Collection[str]) -> dict[str, int]:
        items = self.change_log.items(service)
        known = {} if items is None else items.items
        return {u: known[u].version for u in uuids if u in known and not known[u].dead}

    def owned(self) -> dict[str, int]:
        """Epoch by owned service."""
        return {name: log.epoch for name, log in self.change_log.logs.items()}

    def unasked(self, service: str, without: Collection[str] = ()) -> list[str]:
        """Living nodes but `without` that have not told all they know since `own`.

        Before heart's first view every node counts as living.
        """
        skip = {self.config.node, *without, *self._collector.told(service)}
        alive = self._alive
        return sorted(n for n in self.config.links if n not in skip and (not alive or n in alive))

    async def ask(self, service: str, timeout_ms: int, without: Collection[str] = ()) -> None:
        """Ask those of `unasked` that are connected and were not asked yet, and wait for them.

        Also for calls that are logged here: another run of this agent may have recovered them.
        """
        wanted = set(self.unasked(service, without)) - self._collector.asked(service)
        sessions = [s for node, s in self.mesh.sessions.items() if node in wanted]
        if not sessions:
            return  # asked ten times a second for hours: a digest of all that is known costs more
        copies = self.store.services.get(service)
        await self._collector.ask(service, copies, sessions, timeout_ms)

    async def inherited(self, service: str, but: Collection[str] = ()) -> list[CallRecord]:
        """`unrecovered`, and inherited calls logged here as live since; without those in `but`."""
        own = self.change_log.items(service)
        skip = {u for u, item in own.items.items() if item.dead} if own is not None else set()
        skip.update(but)
        wanted = [i for u, i in self.store.items(service).items() if not i.dead and u not in skip]
        records: list[CallRecord] = []
        for at in range(0, len(wanted), UNPACK_SLICE):
            records += self.store.unpack(wanted[at : at + UNPACK_SLICE])
            await asyncio.sleep(0)
        return records

    def own_calls(self, service: str) -> int:
        """Live call legs of an owned service."""
        items = self.change_log.items(service)
        return 0 if items is None else items.live

    def quietest(self, service: str, count: int) -> list[CallRecord]:
        """About `count` inherited legs that have not changed for longest, bridged ones in pairs.

        They can be on their way while the others are still unpacked. None where this copy is not
        up to date, or the service was owned here before.
        """
        copies, own = self.store.services.get(service), self.change_log.items(service)
        newest = None if copies is None else copies.newest()
        if newest is None or newest.staging is not None or not newest.complete:
            return []
        if newest.lag_ms > self.config.timing.lag_ms_max or (own is not None and own.items):
            return []
        items, found = self.store.items(service), dict[str, CallRecord]()
        live = (item for item in items.values() if not item.dead and item.epoch == newest.epoch)
        for item in nsmallest(2 * count, live, key=lambda item: item.version):
            if len(found) >= count:
                break
            for record in self.store.unpack([] if item.uuid in found else [item]):
                partner = items.get(record.partner) if record.partner else None
                group = [record, *self.store.unpack([partner] if partner is not None else [])]
                if not record.partner or (len(group) == 2 and group[1].partner == record.uuid):
                    found.update((leg.uuid, leg) for leg in group)
        return list(found.values())

    def current(self, service: str, records: Sequence[CallRecord]) -> list[CallRecord]:
        items = self.store.items(service)
        known = {r.uuid: items.get(r.uuid) for r in records}
        same = {
            r.uuid for r in records
            if (item := known[r.uuid]) and not item.dead and item.version == r.version
        }  # fmt: skip
        return [r for r in records if r.uuid in same and (not r.partner or r.partner in same)]

    def ended(self, service: str, uuids: Collection[str]) -> set[str]:
        """Not what this node buried itself: others have that of it, too, and may tell it."""
        copies, own = self.store.services.get(service), self.change_log.logs.get(service)
        if copies is None or own is None:
            return set()
        found = ((u, copies.fetched.items.get(u)) for u in uuids)
        return {u for u, item in found if item and item.dead and item.epoch < own.epoch}

    def copy_state(self, service: str) -> str:
        return self.freshness(service).state

    def known_legs(self, service: str) -> int:
        return len(self.items_of(service)[1])

    def items_of(self, service: str) -> tuple[str, list[Item]]:
        """("own" or "copy", packed calls): what this node knows of a service."""
        own = self.change_log.items(service)
        items = own.items if own is not None else self.store.items(service)
        return "copy" if own is None else "own", [i for i in items.values() if not i.dead]

    def take_view(self, view: View) -> None:
        """What heart sees, as `observe` and the mesh want it."""
        for node in view.nodes:
            self.mesh.hear(node.id, [link.up for link in node.links])
        self.observe(
            {s.name: (s.owner, s.epoch) for s in view.services if s.owner},
            [n.id for n in view.nodes if n.role not in ("dead", "left")],
            [n.id for n in view.nodes if n.role not in ("dead", "left", "failed", "maintenance")],
        )


def mesh_config(config: Config) -> MeshConfig:
    """Who is who in the mesh, from the configuration. Witnesses take part: they carry requests."""
    files = paths(config, config.node.id)
    return MeshConfig(
        cluster=config.name,
        node=config.node.id,
        links={node.id: node.links for node in config.nodes},
        port=config.sync_port,
        identity=Identity(files.ca_certificate, files.certificate, files.private_key),
    )
