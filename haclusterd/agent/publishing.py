"""What of this node becomes an event, and when: after it can be seen by whoever asks."""

from __future__ import annotations

import time
from collections.abc import Sequence

from haclusterd.agent.events import Book
from haclusterd.agent.forwarding import Forwarding
from haclusterd.agent.history import History
from haclusterd.agent.replication import AgentReplicator
from haclusterd.agent.verdicts import Crier
from haclusterd.core.replication import Item, SequencedLog


class Publishing:
    """Joins the book with those who have something to tell."""

    def __init__(
        self, me: str, history: History, replicator: AgentReplicator | None, crier: Crier
    ) -> None:
        self.book = Book(me, time.time_ns() // 1_000_000)
        self._replicator = replicator
        self._forwarding: Forwarding | None = None
        history.watchers.append(self.book.decided)
        crier.watchers.append(self.book.judged)
        if replicator is not None:
            replicator.change_log.on_item = self._logged

    async def start(self, others: Sequence[str], replicator: AgentReplicator) -> None:
        """Bring the others' events here, and tell them ours."""
        sessions = replicator.mesh.sessions
        self._forwarding = Forwarding(self.book, others, replicator, lambda: sessions.keys())
        await self._forwarding.start()

    async def stop(self) -> None:
        if self._forwarding is not None:
            await self._forwarding.stop()

    def _logged(self, log: SequencedLog, item: Item, was_live: bool) -> None:
        """A call came or went. One that was inherited, or known before a restart, is not new."""
        service = log.stream.service
        if item.dead:
            if was_live:
                self.book.call(service, log.epoch, item.uuid, live=False)
        elif not was_live and not self._is_inherited(service, item.uuid):
            self.book.call(service, log.epoch, item.uuid, live=True)

    def _is_inherited(self, service: str, uuid: str) -> bool:
        copies = None if self._replicator is None else self._replicator.store.services.get(service)
        if copies is None:
            return False
        sets = [*(copy.items for copy in copies.copies.values()), copies.fetched]
        return any((known := s.items.get(uuid)) is not None and not known.dead for s in sets)
