"""Who was a node until the last change of the voters, and whether to answer it now.

A node that was down while the others removed it comes back with its old file. Its beats are no
peer's and are not looked at; but unanswered it would only believe itself alone. So it is sent a
beat that was sent anyway: it cannot count it, but reads the revision in it, holds its claims and
says what to do (alarm `revision`). That a revision is in force is for good, so an old beat will do.
Anybody can send from such an address: what comes out of it is one beat a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from haclusterd.heart.clock import now_us

ANSWER_EVERY_US = 1_000_000  # per address


class Former:
    """One per link."""

    def __init__(self, addresses: Iterable[str], clock: Callable[[], int] = now_us) -> None:
        self._clock = clock
        self._answered_us = dict.fromkeys(addresses, -ANSWER_EVERY_US)

    def is_due(self, source: str) -> bool:
        """Whether to answer `source`; if so, not again for a second."""
        answered_us = self._answered_us.get(source)
        if answered_us is None:
            return False
        now = self._clock()
        if now - answered_us < ANSWER_EVERY_US:
            return False
        self._answered_us[source] = now
        return True
