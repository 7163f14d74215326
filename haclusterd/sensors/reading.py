"""What a sensor says, and the hysteresis between single readings and its state. Pure."""

from __future__ import annotations

from typing import NamedTuple

OK, WARN, CRITICAL = "ok", "warn", "critical"
UNKNOWN = "unknown"  # it cannot be told: nothing is taken from the health
IDLE = "idle"  # it does not concern this node now
_GRAVITY = {OK: 0, WARN: 1, CRITICAL: 2}
TEXT_CHARS_MAX = 200
WARN_SHARE = 4  # a warning takes this part of the weight


class Reading(NamedTuple):
    """`level` is one of the words above; `text` is one line for people."""

    level: str
    text: str


def plain(text: str) -> str:
    """The first line of what anybody said, safe to show."""
    line = next((part for part in text.splitlines() if part.strip()), "").strip()
    return "".join(char if char.isprintable() else "?" for char in line)[:TEXT_CHARS_MAX]


def by_thresholds(value: float, warn: int, critical: int, text: str) -> Reading:
    """The level of a value; a threshold of 0 is never reached."""
    if critical and value >= critical:
        return Reading(CRITICAL, f"{text}, critical from {critical}")
    if warn and value >= warn:
        return Reading(WARN, f"{text}, warn from {warn}")
    return Reading(OK, text)


class Gauge:
    """A state that changes only after several readings in a row say so.

    It goes to the mildest of the last `fails` readings that were all worse than it, or to the
    worst of the last `passes` that were all better. The first reading that is ok counts at once.
    """

    def __init__(self, fails: int, passes: int) -> None:
        self._fails, self._passes = fails, passes
        self._worse: list[str] = []
        self._better: list[str] = []
        self._unknown = 0
        self.state = UNKNOWN
        self.text = "not read yet"
        self.raised = ""  # the text with which it came into its state, for alarms
        self.since = 0.0

    def take(self, reading: Reading, now: float) -> bool:
        """One more reading; whether the state changed."""
        self.text = plain(reading.text)
        after = self._after(reading.level)
        if after == self.state:
            return False
        self.state, self.since, self.raised = after, now, self.text
        self._worse, self._better, self._unknown = [], [], 0
        return True

    def _after(self, level: str) -> str:
        if level == IDLE:
            return IDLE
        if level == UNKNOWN:
            self._worse, self._better = [], []
            self._unknown = min(self._unknown + 1, self._fails)
            return UNKNOWN if self._unknown >= self._fails else self.state
        self._unknown = 0
        if self.state not in _GRAVITY and level == OK:
            return OK
        here, there = _GRAVITY.get(self.state, 0), _GRAVITY[level]
        self._worse = [*self._worse, level][-self._fails :] if there > here else []
        self._better = [*self._better, level][-self._passes :] if there < here else []
        if len(self._worse) >= self._fails:
            return min(self._worse, key=_GRAVITY.__getitem__)
        if len(self._better) >= self._passes:
            return max(self._better, key=_GRAVITY.__getitem__)
        return self.state


def penalty(state: str, weight: int) -> int:
    """What a sensor in this state takes from the health of its node."""
    if state == CRITICAL:
        return weight
    return weight // WARN_SHARE if state == WARN else 0
