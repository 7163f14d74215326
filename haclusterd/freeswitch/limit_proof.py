"""Counts of limits that FreeSWITCH stands by: each is asked for by name before it is believed.

`hash_dump limit` writes keys as they are, and callers are in keys (`limit hash in
${caller_id_number} 3`). FreeSWITCH decodes %0A in a number, so a caller can write whole lines of
the dump, with any key and any count (measured on 1.11.1); no form of a line tells. `limit_usage`
cannot be talked into that: the key is in the question.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from .esl import Esl
from .limits import Usage, usage_question

AGAIN_S = 1.0  # what FreeSWITCH did not confirm is asked again: the call may have been late
AGAIN_MAX_S = 60.0  # later and later: a caller writes thousands of such lines with one call
ASK_AT_ONCE = 25


class _Told(NamedTuple):
    claimed: int  # in the dump
    granted: int
    again_at: float  # loop time from which on a count that was not granted is asked for again
    pause_s: float = AGAIN_S


class LimitProof:
    """Remembers what was confirmed: a count is asked for when it appears or grows."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}

    async def proven(self, esl: Esl, usage: Usage) -> Usage:
        """The counts that hold; keys without any are left out. Raises EslError."""
        now = asyncio.get_running_loop().time()
        told: dict[str, _Told] = {}
        doubtful: list[str] = []
        for key, claimed in usage.counts.items():
            known = self._told.get(key, _Told(0, 0, 0.0))
            if claimed > known.claimed or (claimed > known.granted and now > known.again_at):
                doubtful.append(key)
            told[key] = _Told(claimed, min(claimed, known.granted), *known[2:])
        for start in range(0, len(doubtful), ASK_AT_ONCE):
            part = doubtful[start : start + ASK_AT_ONCE]
            replies = await asyncio.gather(*(esl.api(usage_question(key)) for key in part))
            for key, reply in zip(part, replies, strict=True):
                claimed, pause_s = told[key].claimed, told[key].pause_s
                granted = min(claimed, _number(reply))
                longer_s = min(2 * pause_s, AGAIN_MAX_S) if granted < claimed else AGAIN_S
                told[key] = _Told(claimed, granted, now + pause_s, longer_s)
        self._told = told
        counts = {key: one.granted for key, one in told.items() if one.granted}
        return Usage(counts, usage.left_out + len(told) - len(counts))


def _number(reply: str) -> int:
    """Of the node and its remotes together. 0 where it is none."""
    text = reply.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
