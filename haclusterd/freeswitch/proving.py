"""Asks FreeSWITCH until every leg of a recovery under way is decided, and dates what it did.

The questions and their pace belong here; what an answer proves is `verify`'s knowledge.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from haclusterd.core.records import CallRecord

from .aftercare import packets_from_phone
from .esl import Esl
from .esl_errors import EslDown, EslTimeout
from .esl_protocol import Event
from .mends import FLOW, UNANSWERED
from .verify import Verification

CONNECT_MS = 3000
REJOIN_ATTEMPTS = 5
POLL_FIRST_S = 0.002
POLL_ALL_S = 0.01  # shorter pauses only date the first answer: they ask one leg of each stream
POLL_MAX_S = 0.1
HEAR_S = 1.5  # for RTP after the last answer; a bridge takes up to 0.2 s
HEAR_PAUSE_S = 0.1
BRIDGES_S = CONFIRM_S = 2.0
ANSWER_MS = 5000
TOLD_S = 1.0  # so long before its deadline a leg has to be told of, or nobody knows
ASK_AT_ONCE = 25  # FreeSWITCH needs 0.25 ms for each; events get their turn in between

Progress = Callable[[str, int, float], None]
"""`progress(stage, legs, at)`, `at` as loop time; stages: injected, first_reinvite (FreeSWITCH
made the first channel and sends), first_answer (the first proof), verified, recovered (the end)."""


@dataclass(eq=False)
class Run:
    """One `recover` under way. `streams` are the lists that are recovered side by side."""

    service: str
    epoch: int
    profiles: Sequence[str]
    core_uuid: str
    progress: Progress
    check: Verification = field(default_factory=Verification)
    streams: list[list[CallRecord]] = field(default_factory=list)
    head: list[CallRecord] = field(default_factory=list)  # under way before the streams
    begun: bool = False  # standby is being lifted, and the head recovered
    commanded_at: float = 0.0  # loop time of the first command that may recover a call
    sent_first: bool = False
    answered_first: bool = False
    deadline: float = 0.0  # loop time, once all is launched
    said: int = 0  # how many have answered
    refused: set[str] = field(default_factory=set)  # profiles that do not run
    ended_before: set[str] = field(default_factory=set)  # nobody knew it when they were injected

    @property
    def streamed(self) -> bool:
        """Rows wait under names of their own: the profile's belongs to the head once it has begun,
        and all rows under it go away when that is done."""
        return len(self.streams) > 1 or self.begun

    def stream_name(self, index: int, record: CallRecord) -> str:
        """The profile name under which a row waits for its stream."""
        return f"{self.profiles[0]}#{index}" if self.streamed else record.profile

    def command(self) -> None:
        """A command that may recover a call goes out now."""
        self.commanded_at = self.commanded_at or asyncio.get_running_loop().time()

    def tell(self, stage: str, legs: int) -> None:
        """Something happened just now."""
        self.progress(stage, legs, asyncio.get_running_loop().time())

    def take_event(self, event: Event, now: float) -> None:
        """An event of a recovered channel; its creation is the moment of its re-INVITE."""
        uuid = event.get("Unique-ID")
        if event.name != "CHANNEL_CREATE":
            self.check.take_event(event, now)
        elif uuid in self.check and self.commanded_at and not self.sent_first:
            self.sent_first = True
            self.progress("first_reinvite", 1, max(self.commanded_at, _made_at(event, now)))


def _made_at(event: Event, now: float) -> float:
    """Loop time of an event: it waits up to 20 ms in FreeSWITCH, which stamps it by wall clock."""
    stamp = event.get("Event-Date-Timestamp", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 20):
        return now
    return min(now, now - (time.time() - int(stamp) / 1e6))


class Prover:
    """Verifies runs over `watch`, a connection that no long command blocks."""

    def __init__(self, watch: Esl, deadline_ms: int) -> None:
        self._watch = watch
        self._deadline_ms = deadline_ms

    async def core_uuid(self) -> str:
        """Core-UUID of the running FreeSWITCH. Raises EslError."""
        reply = (await self._watch.api("global_getvar core_uuid")).strip()
        if not reply or reply.startswith("-") or " " in reply:
            raise EslDown(f"FreeSWITCH does not tell its core_uuid: {reply[:80]!r}")
        return reply

    async def verify(self, run: Run, launches: Sequence[asyncio.Task[None]]) -> None:
        """Ask until every leg is decided or the deadline, counted from the end of the launch."""
        loop = asyncio.get_running_loop()
        pause_s = POLL_FIRST_S
        while run.check.open:
            await asyncio.sleep(pause_s)
            if self._is_over(run, launches):
                break
            began = loop.time()
            try:
                await self._ask(run, launches, first_only=pause_s < POLL_ALL_S)
            except EslDown:
                await self.rejoin(run)
            # at most a third of FreeSWITCH's time for questions while it is busy recovering
            pause_s = min(max(pause_s * 1.5, 2 * (loop.time() - began)), POLL_MAX_S)
        self._say_how_far(run)
        await self._look_for_bridges(run)

    def _is_over(self, run: Run, launches: Sequence[asyncio.Task[None]]) -> bool:
        now = asyncio.get_running_loop().time()
        if not run.deadline and all(task.done() for task in launches):
            for task in launches:
                task.result()  # FreeSWITCH was restarted or hangs: an EslError ends the run
            run.deadline = now + self._deadline_ms / 1000
            run.check.silence_from = run.deadline - TOLD_S
        return bool(run.deadline) and now >= run.deadline

    async def rejoin(self, run: Run) -> None:
        """A lost connection is not a dead FreeSWITCH: go on if it is still the same process."""
        for _ in range(REJOIN_ATTEMPTS):
            await self._watch.wait_up(CONNECT_MS)
            try:
                core_uuid = await self.core_uuid()
            except EslDown:
                continue
            if core_uuid == run.core_uuid:
                return
            raise EslTimeout("FreeSWITCH was restarted during the recovery")
        raise EslTimeout("the ESL connection breaks again and again during the recovery")

    async def _ask(
        self, run: Run, launches: Sequence[asyncio.Task[None]], *, first_only: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        uuids = run.check.to_ask()
        if first_only and not run.answered_first:
            heads = {part[0].uuid for part in (run.head, *run.streams) if part}
            uuids = [uuid for uuid in uuids if uuid in heads]
        for start in range(0, len(uuids), ASK_AT_ONCE):
            # FreeSWITCH's rows tell, too, while it has no time to reply
            part = run.check.to_ask(uuids[start : start + ASK_AT_ONCE])
            replies = await asyncio.gather(*(self._cseq(uuid) for uuid in part))
            for uuid, reply in zip(part, replies, strict=True):
                run.check.take_cseq(uuid, reply, loop.time())
            if not run.answered_first:
                self._say_how_far(run)
            if self._is_over(run, launches):
                break
        self._say_how_far(run)

    def _say_how_far(self, run: Run) -> None:
        answered = run.check.answered
        if answered and not run.answered_first:
            run.answered_first = True
            run.tell("first_answer", answered)
        if answered != run.said:
            run.said = answered
            run.tell("verified", answered)

    async def _cseq(self, uuid: str) -> str:
        return await self._getvar(uuid, "sip_cseq")

    async def _getvar(self, uuid: str, name: str) -> str:
        """Empty where FreeSWITCH is too busy to say: its commands under way have their own time,
        and end the run if it hangs."""
        try:
            return await self._watch.api(
                f"uuid_getvar {uuid} {name}", ANSWER_MS, drop_on_timeout=False
            )
        except EslTimeout:
            return ""

    async def hear(self, run: Run) -> None:
        """Ask for RTP from the phones that answered, until all were heard or for `HEAR_S`.

        It only adds to a verdict: a FreeSWITCH that is too busy to say takes nothing from one.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + HEAR_S
        while wanted := run.check.to_hear():
            for start in range(0, len(wanted), ASK_AT_ONCE):
                part = wanted[start : start + ASK_AT_ONCE]
                counts = await asyncio.gather(*(self._packets(uuid) for uuid in part))
                if max(counts) < 0:
                    return  # this FreeSWITCH does not tell
                for uuid, count in zip(part, counts, strict=True):
                    run.check.heard(uuid, count)
                if loop.time() >= until:
                    return
            await asyncio.sleep(HEAR_PAUSE_S)

    async def _packets(self, uuid: str) -> int:
        try:
            return await packets_from_phone(self._watch, uuid, round(HEAR_S * 1000))
        except EslTimeout:
            return -1

    async def confirm(self, run: Run) -> None:
        """Where no RTP came: was what came a final answer?"""
        uuids = run.check.mute()
        until = asyncio.get_running_loop().time() + CONFIRM_S
        for start in range(0, len(uuids), ASK_AT_ONCE):
            if asyncio.get_running_loop().time() >= until:
                return  # the rows have to do
            part = uuids[start : start + ASK_AT_ONCE]
            replies = await asyncio.gather(*(self._getvar(uuid, FLOW) for uuid in part))
            for uuid, reply in zip(part, replies, strict=True):
                if reply.strip() == UNANSWERED:
                    run.check.only_rang(uuid)
                elif reply.strip() and not reply.startswith("-"):
                    run.check.answered_finally(uuid)

    async def _look_for_bridges(self, run: Run) -> None:
        """The event may have been lost: a bridged leg also has `bridge_uuid` set anew."""
        uuids = run.check.unbridged()
        until = asyncio.get_running_loop().time() + BRIDGES_S
        for start in range(0, len(uuids), ASK_AT_ONCE):
            if asyncio.get_running_loop().time() >= until:
                return  # aftercare looks again
            part = uuids[start : start + ASK_AT_ONCE]
            replies = await asyncio.gather(*(self._getvar(uuid, "bridge_uuid") for uuid in part))
            for uuid, reply in zip(part, replies, strict=True):
                if reply.strip() not in ("", "_undef_") and not reply.startswith("-"):
                    run.check.bridged_after_all(uuid)
