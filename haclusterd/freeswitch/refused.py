"""Calls of the local FreeSWITCH that no other node could recover, and why: counted, each said once.

A row or dump is partly what a stranger sent. One that cannot be used, or that our own code fails
on, costs only its call: without a word of it here every call behind it would have no copy.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

log = logging.getLogger(__name__)

REFUSED_MAX = 10_000


class Refused:
    """By call, why it cannot be told. `total`: how many there have been."""

    def __init__(self) -> None:
        self._why: dict[str, str] = {}
        self.total = 0

    def __contains__(self, uuid: object) -> bool:
        return uuid in self._why

    def __iter__(self) -> Iterator[str]:
        return iter(self._why)

    @property
    def sentence(self) -> str:
        """For the alarm; empty while all calls are protected."""
        why = next(iter(self._why.values()), "")
        return f"{len(self._why)} calls cannot be recovered elsewhere: {why}" if why else ""

    def note(self, uuid: str, why: str) -> bool:
        """True if this is news: what is changed often need not be said often."""
        if uuid in self._why or len(self._why) >= REFUSED_MAX:
            return False
        self._why[uuid] = why
        self.total += 1
        log.warning("call %.60r can not be protected: %s", uuid, why)
        return True

    def failed(self, uuid: str, error: Exception) -> None:
        """Our own code raised on it."""
        if self.note(uuid, fault(error)):
            log.error("call %.60r", uuid, exc_info=error)

    def drop(self, uuid: str) -> None:
        """It is told, or has ended."""
        self._why.pop(uuid, None)

    def keep(self, present: Collection[str]) -> None:
        """No others are up."""
        self._why = {uuid: why for uuid, why in self._why.items() if uuid in present}

    def clear(self) -> None:
        self._why.clear()


def fault(error: Exception) -> str:
    """What is said of a call on which our own code failed."""
    return f"haclusterd failed on it ({type(error).__name__}: {str(error)[:120]}); see its log"
