"""What follows the first calls of a recovery, which are on their way before it is known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from haclusterd.core.records import CallRecord


async def _as_they_are(records: Sequence[CallRecord]) -> Sequence[CallRecord]:
    return records


@dataclass(frozen=True)
class Rest:
    """`still_true` says of the first calls, once they are injected and before they are recovered,
    which are; then the `others` are awaited."""

    others: Callable[[], Awaitable[Sequence[CallRecord]]]
    still_true: Callable[[Sequence[CallRecord]], Awaitable[Sequence[CallRecord]]] = _as_they_are

    def __call__(self) -> Awaitable[Sequence[CallRecord]]:
        return self.others()
