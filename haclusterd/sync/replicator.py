"""Replication as the agent uses it: own services' changes out, others' calls in, questions between.

Every node is origin for the services it owns and standby for all others. Life of a service here:
`own` (unsettled after a takeover), `append` changes, `settle` once every inherited call has its
verdict, `advance` at a reclaim, `disown` when another has it. Nothing here decides ownership.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping

import msgspec

from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.core.replication import (
    Ack,
    Chunk,
    Delta,
    Limits,
    Offer,
    Outdated,
    Resume,
    SnapshotBegin,
    SnapshotEnd,
)
from haclusterd.core.standby import Freshness
from haclusterd.lasting import unending
from haclusterd.sync.audit import Auditor
from haclusterd.sync.codec import Beat, Found, Head, Malformed, Message, Request, Response, Want
from haclusterd.sync.collect import METHOD as COLLECT
from haclusterd.sync.collect import Collector, answer, asked, outlived
from haclusterd.sync.lane import REGISTRATIONS, Changed, Lane
from haclusterd.sync.outgoing import now_ms
from haclusterd.sync.rpc import Answer, Requests
from haclusterd.sync.session import Session
from haclusterd.sync.status import PeerStatus, SyncStatus, worst
from haclusterd.sync.transport import Mesh, MeshConfig

log = logging.getLogger(__name__)

JUDGE_MS = 250  # between two judgements of who is in sync
UNPACK_SLICE = 16  # records (0.4 ms) between two turns of the event loop


class Replicator:
    """See the module.

    `incarnation` names this run of the agent and should grow from run to run; where it does not,
    the standbys say so and the streams are renewed above what they remember. What is said here of
    services and calls is the lane of calls; `registrations` is the other one.
    """

    def __init__(self, config: MeshConfig, incarnation: int, limits: Limits | None = None) -> None:
        self.config, limits = config, limits or Limits()
        self.mesh = Mesh(config, self)
        self._progress = asyncio.Event()
        self.calls, self.registrations = (
            Lane(config.node, incarnation, limits, config.timing, self.mesh.counters,
                 self._progress.set, prefix)
            for prefix in ("", REGISTRATIONS)
        )  # fmt: skip
        self.store = self.calls.store
        self.change_log = self.calls.change_log
        self._outgoing = self.calls.outgoing
        self._requests = Requests()
        self._requests.register(COLLECT, self._asked, brief=True)
        self._collector = Collector(
            lambda name, items: self.lane(name).fetched(name, items), self._requests
        )
        self._alive: frozenset[str] | None = None
        self.auditor = Auditor(self, self._lanes, self.mesh.sessions)
        self._tasks: list[asyncio.Task[None]] = []

    def lane(self, service: str) -> Lane:
        """The lane that a stream of this (prefixed) service belongs to."""
        return self.registrations if service.startswith(REGISTRATIONS) else self.calls

    @property
    def _lanes(self) -> tuple[Lane, Lane]:
        return self.calls, self.registrations

    # -- life --

    async def start(self) -> None:
        """Listen and connect. Raises SyncError with the fix in its message."""
        await self.mesh.start()
        self._tasks = [
            unending(self._judge_for_ever, "judging copies"),
            unending(self.auditor.run, "auditing copies"),
        ]

    def reload_certificates(self) -> None:
        """Read the key material again; connections that are up stay. Raises SyncError."""
        self.mesh.reload_certificates()

    async def stop(self) -> None:
        """Close all connections; what is stored stays readable."""
        for task in self._tasks:
            task.cancel()
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
        self._alive = frozenset(alive)
        self._progress.set()
        self._collector.observe(self._alive)
        for lane in self._lanes:
            lane.outgoing.eligible = None if eligible is None else frozenset(eligible)
            lane.observe(owners)
        self.calls.notify()

    # -- origin --

    def own(self, service: str, epoch: int, settled: bool = False) -> None:
        """This node owns the service from `epoch` on; see ChangeLog.own for `settled`."""
        self.calls.own(service, epoch, settled)
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
        self.calls.disown(service)

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

    async def fetch(self, service: str, timeout_ms: int, without: Collection[str] = ()) -> None:
        """Ask the living nodes but those `without` what they know better, in either lane.

        Before an injection: `unrecovered` gives what is known then.
        """
        copies = self.lane(service).store.services.get(service)
        sessions = [s for node, s in self.mesh.sessions.items() if node not in without]
        if not await self._collector.ask(service, copies, sessions, timeout_ms):
            log.info("collect %s: not every peer answered in %d ms", service, timeout_ms)

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
        return self.calls.freshness(service)

    def in_sync_services(self) -> list[str]:
        """Services of other owners that this node could take over with all their calls."""
        return [
            s
            for s in sorted(self.store.services)
            if s not in self.change_log.logs and self.freshness(s).state == "in-sync"
        ]

    def on_change(self, watcher: Changed) -> None:
        """`watcher({service: freshness})` is called when the state of copies changes."""
        self.calls.watchers.append(watcher)

    # -- questions --

    def register(self, method: str, answer: Answer) -> None:
        """Serve requests of other agents; see rpc.Requests.register."""
        self._requests.register(method, answer)

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        """Ask another agent. Raises RequestFailed."""
        session = self.mesh.sessions.get(node)
        return await self._requests.ask(session, method, payload, timeout_ms)

    async def _asked(self, peer: str, payload: bytes) -> bytes:
        """What is known here better goes out by itself, as Found; see collect."""
        question = asked(payload)
        lane, session = self.lane(question.service), self.mesh.sessions.get(peer)
        if session is not None:
            copies = lane.store.services.get(question.service)
            marks, items = lane.view(question.service)
            old = outlived(copies, question.holds, now_ms())
            answer(session, question, marks, items.values(), old)
        return b""

    # -- SessionOwner --

    def session_ready(self, session: Session) -> None:
        """Offer all own streams."""
        for lane in self._lanes:
            lane.ready(session)
        self.mesh.adopt(session)
        for lane in self._lanes:
            lane.outgoing.ready(session)

    def session_lost(self, session: Session, reason: str) -> None:
        """Forget the peer's progress; its copies here stay."""
        log.info("replication with %s ended: %s", session.peer, reason)
        self._requests.lost(session)
        self._collector.lost(session)
        current = self.mesh.lost(session)
        for lane in self._lanes:
            lane.lost(session, current)
        self._progress.set()

    def session_heads(self) -> list[Head]:
        """Where the own streams are."""
        return [head for lane in self._lanes for head in lane.heads()]

    def session_message(self, session: Session, message: Message) -> None:
        """One message of an authenticated peer."""
        if self.mesh.sessions.get(session.peer) is not session:
            return  # replaced: what it still carries comes again over the new one
        match message:
            case (
                Delta() | SnapshotBegin() | Chunk() | SnapshotEnd()
                | Offer() | Resume() | Ack() | Outdated()
            ):  # fmt: skip
                self.lane(message.stream.service).message(session, message)
            case Beat():
                for head in message.heads:
                    self.lane(head.stream.service).compare(session, head)
            case Request():
                self._requests.asked(session, message)
            case Response():
                self._requests.responded(session, message)
            case Want():
                marks, items = self.lane(message.service).view(message.service)
                answer(session, message, marks, items.values())
            case Found():
                self._collector.found(session, message)
            case _:
                raise Malformed(f"unexpected {type(message).__name__}")

    def session_batch(self, session: Session) -> None:
        """Acknowledge once for all that came together."""
        for lane in self._lanes:
            lane.batch(session)

    # -- judging --

    async def _judge_for_ever(self) -> None:
        while True:
            await asyncio.sleep(JUDGE_MS / 1000)
            for lane in self._lanes:
                lane.judge(self._alive)

    # -- status --

    def overflowed(self) -> list[tuple[str, str]]:
        """(peer, stream's service) of peers that missed more changes than are kept."""
        return [pair for lane in self._lanes for pair in lane.outgoing.overflowed]

    def _peer_status(self, node: str) -> PeerStatus:
        session = self.mesh.sessions.get(node)
        calls, more = (lane.outgoing.peer_status(node, session) for lane in self._lanes)
        return msgspec.structs.replace(
            calls,
            state=worst((calls.state, more.state)),
            lag_ms=max(calls.lag_ms, more.lag_ms),
            outgoing=calls.outgoing + more.outgoing,
        )

    def status(self) -> SyncStatus:
        """For `haclusterctl sync`, status and metrics."""
        peers = [n for n in self.config.links if n != self.config.node]
        lanes = self._lanes
        counters = self.mesh.counters + self.store.counters + self.change_log.counters
        other = self.registrations.store.counters + self.registrations.change_log.counters
        counters.update({f"registrations_{name}": count for name, count in other.items()})
        return SyncStatus(
            self.config.node,
            [self._peer_status(node) for node in peers],
            [row for lane in lanes for row in lane.incoming()],
            [row for lane in lanes for row in lane.store.counts()],
            sum(log.waiting(s) for log in (lane.change_log for lane in lanes) for s in log.logs),
            len(self.at_risk()),
            *self._outgoing.ack_ms(),
            dict(sorted(counters.items())),
        )
