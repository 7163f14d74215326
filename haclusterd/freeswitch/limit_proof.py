"""Counts of limits that FreeSWITCH stands by: each is asked for by name before it is believed.

`hash_dump limit` writes keys as they are, and callers are in keys (`limit hash in
${caller_id_number} 3`). FreeSWITCH decodes %0A in a number, so a caller can write whole lines of
the dump, with any key and any count (measured on 1.11.1); no form of a line tells. `limit_usage`
cannot be talked into that: the key is in the question. But what the remotes count is in its answer
(mod_hash.c, `limit_usage_hash`), so what they were told is taken off again: a forged line would be
granted as soon as the other nodes really count as much.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from .esl import Esl
from .limit_server import SILENT_S
from .limits import USAGE_MAX, Usage, usage_question

AGAIN_S = 1.0  # what FreeSWITCH did not confirm is asked again: the call may have been late
AGAIN_MAX_S = 60.0  # later and later: a caller writes thousands of such lines with one call
CONFIRM_S = 30.0  # what was confirmed: a forged line would keep a count that is over
ASK_AT_ONCE = 25
TAKEN_IN_S = 0.03  # so soon mod_hash counts by the answer that it was sent
ANSWERS_MAX = 64


class _Told(NamedTuple):
    claimed: int  # in the dump
    granted: int
    again_at: float  # loop time from which on it is asked for again
    pause_s: float = AGAIN_S


class LimitProof:
    """Remembers what was confirmed: a count is asked for when it appears or grows."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}
        self._others: deque[tuple[float, Mapping[str, int]]] = deque(maxlen=ANSWERS_MAX)

    def told(self, others: Mapping[str, int]) -> None:
        """mod_hash is being told this of the other nodes, and adds it from now on."""
        self._others.append((asyncio.get_running_loop().time(), others))

    @property
    def granted(self) -> dict[str, int]:
        """What holds, as it was said last."""
        return {key: one.granted for key, one in self._told.items() if one.granted}

    async def proven(self, esl: Esl, usage: Usage) -> Usage:
        """The counts that hold; keys without any are left out. Raises EslError."""
        now = asyncio.get_running_loop().time()
        told: dict[str, _Told] = {}
        doubtful: list[str] = []
        for key, claimed in usage.counts.items():
            known = self._told.get(key, _Told(0, 0, 0.0))
            if claimed > known.claimed or now > known.again_at:
                doubtful.append(key)
            told[key] = _Told(claimed, min(claimed, known.granted), *known[2:])
        for start in range(0, len(doubtful), ASK_AT_ONCE):
            part = doubtful[start : start + ASK_AT_ONCE]
            asked_at = await self._settled()
            replies = await asyncio.gather(*(esl.api(usage_question(key)) for key in part))
            for key, reply in zip(part, replies, strict=True):
                told[key] = self._judged(told[key], _number(reply), key, asked_at)
        self._told = told
        counts = self.granted
        return Usage(counts, usage.left_out + len(told) - len(counts))

    async def _settled(self) -> float:
        """Once mod_hash has taken in what it was told last, nothing else is in its answers."""
        loop = asyncio.get_running_loop()
        if self._others:
            await asyncio.sleep(max(0.0, self._others[-1][0] + TAKEN_IN_S - loop.time()))
        return loop.time()

    def _judged(self, known: _Told, number: int, key: str, asked_at: float) -> _Told:
        """How much of a claim holds, FreeSWITCH having said this number."""
        least, most = self._of_others(key, asked_at)
        # While what the others count changes, what was confirmed before holds as far as it can.
        own = max(number - most, min(known.granted, number - least), 0)
        granted = min(known.claimed, own)
        pause_s = known.pause_s
        if granted == known.claimed:
            return _Told(known.claimed, granted, asked_at + CONFIRM_S)
        if least < most:
            return _Told(known.claimed, granted, asked_at + TAKEN_IN_S, pause_s)
        if granted:  # the forged line hides the true one, which may grow
            return _Told(known.claimed, granted, asked_at + AGAIN_S)
        return _Told(known.claimed, 0, asked_at + pause_s, min(2 * pause_s, AGAIN_MAX_S))

    def _of_others(self, key: str, asked_at: float) -> tuple[int, int]:
        """The least and the most that mod_hash may have added to its answer."""
        added = []
        for told_at, others in reversed(self._others):
            if told_at < asked_at - SILENT_S:
                break  # it does not ask any more, and adds nothing
            added.append(min(others.get(key, 0), USAGE_MAX))
            if told_at <= asked_at - TAKEN_IN_S:
                break  # what was told before is forgotten
        return min(added, default=0), max(added, default=0)


def _number(reply: str) -> int:
    """Of the node and its remotes together. 0 where it is none."""
    text = reply.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
