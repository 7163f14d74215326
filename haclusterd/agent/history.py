"""What was decided, newest last: a bounded ring. `events` has it for those who follow."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator

from haclusterd.agent.clock import now_us, wall_text
from haclusterd.agent.encoding import encodable
from haclusterd.agent.schema import Decision

log = logging.getLogger(__name__)

OWN_ROWS = "A"
KEPT = 1000


class History:
    """The ring. `watchers` hear of each sentence once it is kept."""

    def __init__(self, kept: int = KEPT) -> None:
        self._ring: deque[Decision] = deque(maxlen=kept)
        self.watchers: list[Callable[[Decision], None]] = []
        self.total = 0

    def add(
        self,
        row: str,
        text: str,
        at_us: int | None = None,
        service: str | None = None,
        epoch: int | None = None,
    ) -> Decision:
        """Keep one sentence; `at_us` None means now."""
        at_us, text = now_us() if at_us is None else at_us, encodable(text)
        if row.startswith(OWN_ROWS):
            log.info("%s %s", row, text)  # heart's sentences are in its own log already
        decision = Decision(wall_text(at_us), at_us, row, text, service, epoch or None)
        self._ring.append(decision)
        self.total += 1
        for watcher in self.watchers:
            watcher(decision)
        return decision

    def last(self, count: int = KEPT) -> list[Decision]:
        """The newest `count`, oldest of them first."""
        return list(self._ring)[-count:] if count > 0 else []

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._ring)
