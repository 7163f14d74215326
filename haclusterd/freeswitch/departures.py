"""Phones that unregister while their service is being taken over: the last word counts. Pure.

The new owner answers them as soon as standby is lifted, and only then its table gets what is known
of the former owner's phones: a registration that was withdrawn in between would come back. Events
say who left, up to 0.2 s late, so what was put in is remembered for a while, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from .esl_protocol import Event
from .registrations import Row

KEEP_S = 10.0
LEFT_MAX = 20_000  # departures; the oldest are forgotten first
OF_USER_MAX = 16


class _Left(NamedTuple):
    at: float
    contact: str
    call_id: str

    def withdraws(self, row: Row) -> bool:
        """mod_sofia's own rule where a user has several phones; `*` is all of them."""
        if self.contact.strip('"<> ') == "*" or self.contact == row.contact:
            return True
        return bool(self.call_id) and self.call_id == row.call_id


_User = tuple[str, str, str]


class Departures:
    """Who left, and which rows came from a former owner; `now` is any clock that only goes on."""

    def __init__(self) -> None:
        self._left: dict[_User, deque[_Left]] = {}
        self._order: deque[tuple[float, _User]] = deque()
        self._handed: dict[str, tuple[float, dict[_User, list[Row]]]] = {}

    def note(self, profile: str, event: Event, now: float) -> list[Row]:
        """A phone unregistered; the rows that were put in for it, which have to go."""
        user = profile, event.get("from-user"), event.get("from-host")
        left = _Left(now, event.get("contact"), event.get("call-id"))
        if max(map(len, (*user, left.contact, left.call_id))) > 1024:
            return []  # none of ours is as long
        self._forget_old(now)
        self._left.setdefault(user, deque(maxlen=OF_USER_MAX)).append(left)
        self._order.append((now, user))
        at, rows = self._handed.get(profile, (0.0, {}))
        if now - at > KEEP_S:
            self._handed.pop(profile, None)
            return []
        return [row for row in rows.get(user, ()) if left.withdraws(row)]

    def still_here(self, rows: Iterable[Row], now: float) -> list[Row]:
        """The rows without those of phones that have left by now."""
        self._forget_old(now)
        return [row for row in rows if not any(one.withdraws(row) for one in self._of(row))]

    def handed_over(self, profile: str, rows: Iterable[Row], now: float) -> None:
        """These rows were put in: whoever turns out to have left before takes them along."""
        by_user: dict[_User, list[Row]] = {}
        for row in rows:
            by_user.setdefault((profile, row.sip_user, row.sip_host), []).append(row)
        self._handed[profile] = now, by_user

    def forget(self, profile: str) -> None:
        """Another node owns the service: its phones may have come back there."""
        self._handed.pop(profile, None)
        for user in [u for u in self._left if u[0] == profile]:
            del self._left[user]

    def _of(self, row: Row) -> Iterable[_Left]:
        return self._left.get((row.profile_name, row.sip_user, row.sip_host), ())

    def _forget_old(self, now: float) -> None:
        while self._order and (self._order[0][0] < now - KEEP_S or len(self._order) > LEFT_MAX):
            at, user = self._order.popleft()
            left = self._left.get(user)
            while left and left[0].at <= at:
                left.popleft()
            if left is not None and not left:
                del self._left[user]
