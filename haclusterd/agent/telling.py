"""Which node tells what the whole cluster has seen: the first living one, unless it does not. Pure.

All see the same news. The first in the order of the configuration tells at once and says so to the
others, who drop theirs; the next one waits STEP_S and tells only if nobody said so, and so on. A
receiver may get one twice when nodes cannot hear each other, and gets none only if all are gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from haclusterd.agent.news import CLUSTER, News
from haclusterd.agent.schema import Status

STEP_S = 3.0
RECENT_S = 5.0  # others may have told before this node saw it
PENDING_MAX = 256
RECENT_MAX = 512


class Telling:
    """One node's part in it."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[float, News]] = {}
        self._recent: deque[tuple[float, str]] = deque(maxlen=RECENT_MAX)

    def saw(self, news: News, place: int | None, now: float) -> bool:
        """Note one. `place` among those who could tell, None for none. Is it to be told now?"""
        if news.scope != CLUSTER or place == 0:
            return True
        if place is None or any(k == news.key for at, k in self._recent if now - at < RECENT_S):
            return False
        while len(self._pending) >= PENDING_MAX:
            del self._pending[next(iter(self._pending))]
        self._pending[news.key] = (now + STEP_S * place, news)
        return False

    def told(self, keys: Iterable[str], now: float) -> None:
        """Another node told these."""
        for key in keys:
            self._pending.pop(key, None)
            self._recent.append((now, key))

    def due(self, now: float) -> list[News]:
        """Those that nobody else told in time."""
        late = [news for at, news in self._pending.values() if at <= now]
        for news in late:
            del self._pending[news.key]
        return late


def place_of(status: Status) -> int | None:
    """This node's place among those who could tell: None without a majority."""
    if not status.quorum.ok:
        return None
    living = [n.id for n in status.nodes if n.role not in ("dead", "left")]
    return living.index(status.node) if status.node in living else None
