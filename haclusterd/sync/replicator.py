"""Replication as the agent uses it: own services' changes out, others' calls in, questions between.

Every node is origin for the services it owns and standby for all others. Life of a service here:
`own` (unsettled after a takeover), `append` changes, `settle` once every inherited call has its
verdict, `advance` at a reclaim, `disown` when another has it. Nothing here decides ownership.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping

from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.core.replication import (
    Ack,
    Chunk,
    Delta,
    Item,
    Limits,
    Offer,
    OriginMessage,
    Outdated,
    Resume,
    SnapshotBegin,
    SnapshotEnd,
    StreamId,
)
from haclusterd.core.standby import Freshness, LimitExceeded, StreamGap
from haclusterd.sync.codec import Beat, Found, Head, Malformed, Message, Request, Response, Want
from haclusterd.sync.collect import Collector, answer, known
from haclusterd.sync.log import ChangeLog
from haclusterd.sync.outgoing import Outgoing, now_ms
from haclusterd.sync.rpc import Answer, Requests
from haclusterd.sync.session import Session
from haclusterd.sync.status import SyncStatus, incoming
from haclusterd.sync.store import StandbyStore
from haclusterd.sync.transport import Mesh, MeshConfig

log = logging.getLogger(__name__)

JUDGE_MS = 250  # between two judgements of who is in sync
UNPACK_SLICE = 16  # records (0.4 ms) between two turns of the event loop

Changed = Callable[[dict[str, Freshness]], None]


class Replicator:
    """See the module.

    `incarnation` names this run of the agent and should grow from run to run; where it does not,
    the standbys say so and the streams are renewed above what they remember.
    """

    def __init__(self, config: MeshConfig, incarnation: int, limits: Limits | None = None) -> None:
        self.config, limits = config, limits or Limits()
        self.mesh = Mesh(config, self)
        self.store = StandbyStore(limits, now_ms)
        self.change_log = ChangeLog(
            config.node, incarnation, limits, now_ms, self._logged, self._replaced
        )
        self._outgoing = Outgoing(self.change_log.logs, config.timing.lag_ms_max)
        self._collector = Collector(self.store.fetched)
        self._requests = Requests()
        self._unacked: dict[Session, dict[StreamId, int]] = {}
        self._owners: dict[str, tuple[str, int]] = {}
        self._alive: frozenset[str] | None = None
        self._states: dict[str, str] = {}
        self._watchers: list[Changed] = []
        self._progress = asyncio.Event()
        self._judge: asyncio.Task[None] | None = None

    # -- life --

    async def start(self) -> None:
        """Listen and connect. Raises SyncError with the fix in its message."""
        await self.mesh.start()
        self._judge = asyncio.get_running_loop().create_task(self._judge_for_ever())

    async def stop(self) -> None:
        """Close all connections; what is stored stays readable."""
        if self._judge is not None:
            self._judge.cancel()
        await self.mesh.stop()

    def observe(
        self,
        owners: Mapping[str, tuple[str, int]],
        alive: Collection[str],
        eligible: Collection[str] | None = None,
    ) -> None:
        """Heart's view: (owner, epoch) per service, nodes heard, nodes that could take over.

        A service that another node owns at a higher epoch is disowned. Copies of a dead owner's
        services are judged as they were when it fell silent. `eligible` None: every peer.
        """
        self._owners = dict(owners)
        self._alive = frozenset(alive)
        self._outgoing.eligible = None if eligible is None else frozenset(eligible)
        self._progress.set()
        self._collector.observe(self._alive)
        for service, (owner, epoch) in owners.items():
            own = self.change_log.logs.get(service)
            if own is not None and owner != self.config.node and epoch > own.epoch:
                self.disown(service)
        self._notify()

    # -- origin --

    def own(self, service: str, epoch: int, settled: bool = False) -> None:
        """This node owns the service from `epoch` on; see ChangeLog.own for `settled`."""
        old = self.change_log.own(service, epoch, settled)
        if old is not None:
            self.store.adopt(old)
        self.store.succeed(service, epoch)
        self._collector.begin(service)
        if settled:
            self.store.settled(self.change_log.logs[service])

    def advance(self, service: str, epoch: int) -> None:
        """This node reclaimed its service at a higher epoch; calls and log are the same."""
        self.change_log.advance(service, epoch)

    def settle(self, service: str) -> None:
        """Every inherited call has its verdict (logged before: a record or a tombstone)."""
        self.change_log.settle(service)

    def disown(self, service: str) -> None:
        """Another node owns the service; what was known is kept until that node settles."""
        old = self.change_log.disown(service)
        if old is not None:
            self.store.adopt(old)

    def append(self, records: Iterable[CallRecord | Tombstone]) -> None:
        """Changes of owned services, in order; see ChangeLog.append."""
        self.change_log.append(records)

    def replicated(self, uuid: str, version: int) -> bool:
        """An eligible standby has acknowledged this version of an own call, or a newer one."""
        return any(
            own.holds(uuid, version, self._outgoing.safe(own))
            for own in self.change_log.logs.values()
        )

    def at_risk(self) -> list[str]:
        """Own live calls whose newest state no eligible standby has acknowledged."""
        uuids = dict.fromkeys(self.change_log.waiting_uuids())
        for own in self.change_log.logs.values():
            uuids.update(dict.fromkeys(own.at_risk(self._outgoing.safe(own))))
        return list(uuids)

    async def wait_acked(self, service: str, timeout_ms: int) -> bool:
        """Wait until an eligible standby has acknowledged the last change; False at the timeout."""
        deadline_ms = now_ms() + timeout_ms
        target: int | None = None
        while (own := self.change_log.logs.get(service)) is not None:
            if target is None and not self.change_log.waiting(service):
                target = own.head
            if target is not None and self._outgoing.safe(own) >= target:
                return True
            left_ms = deadline_ms - now_ms()
            if left_ms <= 0:
                return False
            self._progress.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_ms / 1000):
                    await self._progress.wait()
        return False

    # -- standby --

    async def collect(
        self, service: str, timeout_ms: int = 20, without: Collection[str] = ()
    ) -> list[CallRecord]:
        """What to inject: `unrecovered`, after asking the living nodes but those `without`.

        They have at most `timeout_ms`; the unpacking (25 us per call) comes on top.
        """
        marks, _ = known(None, self.store.services.get(service))
        sessions = [s for node, s in self.mesh.sessions.items() if node not in without]
        if not await self._collector.ask(service, marks, sessions, timeout_ms):
            log.info("collect %s: not every peer answered in %d ms", service, timeout_ms)
        return await self.unrecovered(service)

    async def unrecovered(self, service: str) -> list[CallRecord]:
        """Inherited live calls of which this node, as owner, has logged nothing yet.

        On a standby: all live calls of the service. What a retry of a recovery has to inject.
        """
        known = own.items if (own := self.change_log.items(service)) is not None else {}
        wanted = [i for u, i in self.store.items(service).items() if not i.dead and u not in known]
        records: list[CallRecord] = []
        for at in range(0, len(wanted), UNPACK_SLICE):
            records += self.store.unpack(wanted[at : at + UNPACK_SLICE])
            await asyncio.sleep(0)
        return records

    def freshness(self, service: str) -> Freshness:
        """How good this node's copy of a service is; see core.standby."""
        copies = self.store.services.get(service)
        newest = None if copies is None else copies.newest()
        if copies is None or newest is None:
            return Freshness("none", 0, 0, 0)
        owner, epoch = self._owners.get(service, (newest.stream.origin, newest.epoch))
        return copies.freshness(owner, epoch, self.config.timing.lag_ms_max)

    def in_sync_services(self) -> list[str]:
        """Services of other owners that this node could take over with all their calls."""
        return [
            s
            for s in sorted(self.store.services)
            if s not in self.change_log.logs and self.freshness(s).state == "in-sync"
        ]

    def on_change(self, watcher: Changed) -> None:
        """`watcher({service: freshness})` is called when the state of copies changes."""
        self._watchers.append(watcher)

    # -- questions --

    def register(self, method: str, answer: Answer) -> None:
        """Serve requests of other agents; see rpc.Requests.register."""
        self._requests.register(method, answer)

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        """Ask another agent. Raises RequestFailed."""
        session = self.mesh.sessions.get(node)
        return await self._requests.ask(session, method, payload, timeout_ms)

    # -- SessionOwner --

    def session_ready(self, session: Session) -> None:
        """Offer all own streams."""
        self.store.disconnected(session.peer)
        self._unacked[session] = {}
        self.mesh.adopt(session)
        self._outgoing.ready(session)

    def session_lost(self, session: Session, reason: str) -> None:
        """Forget the peer's progress; its copies here stay."""
        log.info("replication with %s ended: %s", session.peer, reason)
        self._outgoing.lost(session)
        self._unacked.pop(session, None)
        self._requests.lost(session)
        self._collector.lost(session)
        if self.mesh.lost(session):
            self.store.disconnected(session.peer)
        self._progress.set()

    def session_heads(self) -> list[Head]:
        """Where the own streams are."""
        return [
            Head(own.stream, own.head, own.items.digest()) for own in self.change_log.logs.values()
        ]

    def session_message(self, session: Session, message: Message) -> None:
        """One message of an authenticated peer."""
        if self.mesh.sessions.get(session.peer) is not session:
            return  # replaced: what it still carries comes again over the new one
        match message:
            case Delta() | SnapshotBegin() | Chunk() | SnapshotEnd():
                self._apply(session, message)
            case Offer():
                self._offered(session, message)
            case Resume() | Ack():
                self._outgoing.answered(session, message, now_ms())
                self._progress.set()
            case Outdated():
                self._outdated(message)
            case Beat():
                self._compare(session, message.heads)
            case Request():
                self._requests.asked(session, message)
            case Response():
                self._requests.responded(session, message)
            case Want():
                marks, items = self._view(message.service)
                answer(session, message, marks, items.values())
            case Found():
                self._collector.found(session, message)
            case _:
                raise Malformed(f"unexpected {type(message).__name__}")

    def session_batch(self, session: Session) -> None:
        """Acknowledge once for all that came together."""
        unacked = self._unacked.get(session)
        if unacked:
            for stream, position in unacked.items():
                session.send(Ack(stream, position))
            unacked.clear()

    # -- parts of it --

    def _apply(self, session: Session, message: OriginMessage) -> None:
        self._check_origin(session, message.stream)
        try:
            copy = self.store.apply(message)
        except StreamGap as error:
            self.mesh.counters["gap"] += 1
            raise Malformed(str(error)) from None
        except LimitExceeded as error:
            self.mesh.counters["limit"] += 1
            raise Malformed(str(error)) from None
        if copy is not None and session in self._unacked:
            self._unacked[session][message.stream] = copy.position
        if isinstance(message, SnapshotBegin | SnapshotEnd):
            self._notify()

    def _offered(self, session: Session, message: Offer) -> None:
        self._check_origin(session, message.stream)
        service = message.stream.service
        own = self.change_log.logs.get(service)
        copy = None
        if own is None or message.epoch > own.epoch:
            copy = self.store.offer(message)
        if copy is not None:
            session.send(Resume(message.stream, copy.position))
            self._notify()
            return
        self.store.counters["outdated"] += 1
        copies = self.store.services.get(service)
        newest = None if copies is None else copies.newest()
        newer = own or newest
        if newer is not None:
            by = newer.stream
            session.send(Outdated(message.stream, newer.epoch, by.incarnation, by.origin))

    def _outdated(self, message: Outdated) -> None:
        own = self.change_log.logs.get(message.stream.service)
        if own is None or own.stream != message.stream or message.origin != self.config.node:
            return
        if message.epoch == own.epoch and message.incarnation > own.stream.incarnation:
            self.change_log.renew(message.stream.service, message.incarnation)

    def _compare(self, session: Session, heads: list[Head]) -> None:
        for head in heads:
            self._check_origin(session, head.stream)
            if not self.store.compare(head):
                session.send(Resume(head.stream, -1))

    def _check_origin(self, session: Session, stream: StreamId) -> None:
        if stream.origin != session.peer:
            raise Malformed(f"{session.peer} speaks for {stream.origin}")

    def _logged(self, service: str) -> None:
        own = self.change_log.logs[service]
        if own.settled:
            self.store.settled(own)
        self._outgoing.wake()
        self._progress.set()

    def _replaced(self, service: str) -> None:
        self._outgoing.replaced(service)
        self._progress.set()

    def _view(self, service: str) -> tuple[list[int], Mapping[str, Item]]:
        return known(self.change_log.items(service), self.store.services.get(service))

    # -- judging --

    async def _judge_for_ever(self) -> None:
        while True:
            await asyncio.sleep(JUDGE_MS / 1000)
            at_ms = now_ms()
            for service, copies in self.store.services.items():
                newest = copies.newest()
                if newest is None:
                    continue
                owner = self._owners.get(service, (newest.stream.origin, 0))[0]
                if self._alive is None or owner in self._alive:
                    newest.age(at_ms)
            self._notify()

    def _notify(self) -> None:
        fresh = {s: self.freshness(s) for s in self.store.services}
        changed = {s: f for s, f in fresh.items() if self._states.get(s) != f.state}
        self._states = {s: f.state for s, f in fresh.items()}
        for watcher in self._watchers if changed else ():
            asyncio.get_running_loop().call_soon(watcher, changed)

    # -- status --

    def status(self) -> SyncStatus:
        """For `haclusterctl sync`, status and metrics."""
        peers = [n for n in self.config.links if n != self.config.node]
        counters = self.mesh.counters + self.store.counters + self.change_log.counters
        return SyncStatus(
            self.config.node,
            [self._outgoing.peer_status(n, self.mesh.sessions.get(n)) for n in peers],
            [
                incoming(s, c.newest(), self.freshness(s))
                for s, c in sorted(self.store.services.items())
            ],
            self.store.counts(),
            sum(self.change_log.waiting(s) for s in self.change_log.logs),
            len(self.at_risk()),
            *self._outgoing.ack_ms(),
            dict(sorted(counters.items())),
        )
