"""How often to speak of others that answer for our addresses, and how often to speak up against it.

Anybody on the wire can send such frames at any rate and with any MAC; what comes out of here is
bounded whatever comes in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TELL_EVERY_US = 1_000_000  # per address, while it goes on
ANNOUNCE_EVERY_US = 10_000_000  # per address: an alarm and a reminder, not a war
FORGET_US = 10_000_000  # a MAC that was silent for so long is new again
MACS_MAX = 4  # per address; each new one is told at once
TOLD_MAX = 20  # per second, over all addresses


@dataclass
class _Contest:
    """`heard_us` by MAC; `told` is the MAC that was told last."""

    heard_us: dict[str, int] = field(default_factory=dict)
    told: str = ""
    told_us: int = -TELL_EVERY_US
    announced_us: int = -ANNOUNCE_EVERY_US


class Aliens:
    """One per heart; `addresses` are the only ones it keeps a record of."""

    def __init__(self) -> None:
        self._contests: dict[str, _Contest] = {}
        self._second_us = 0
        self._told = 0

    def worth_telling(self, address: str, mac: str, now_us: int) -> str:
        """The MAC to tell of now, "" for none. Two that take turns are told of once each."""
        contest = self._contests.setdefault(address, _Contest())
        heard = contest.heard_us
        if mac not in heard:
            for old in [m for m, at_us in heard.items() if now_us - at_us > FORGET_US]:
                del heard[old]
            if len(heard) >= MACS_MAX:
                return ""
            contest.told = mac
        elif now_us - contest.told_us < TELL_EVERY_US:
            heard[mac] = now_us
            return ""
        elif now_us - heard.get(contest.told, 0) > FORGET_US:
            contest.told = mac
        heard[mac] = now_us
        if now_us - self._second_us >= 1_000_000:
            self._second_us, self._told = now_us, 0
        if self._told >= TOLD_MAX:
            return ""
        self._told += 1
        contest.told_us = now_us
        return contest.told

    def may_announce(self, address: str, now_us: int) -> bool:
        """Whether it is time to announce a contested address again."""
        contest = self._contests.setdefault(address, _Contest())
        if now_us - contest.announced_us < ANNOUNCE_EVERY_US:
            return False
        contest.announced_us = now_us
        return True
