"""Calls that are neither back nor gone when the verdicts are given: watched, then ended.

An orphan is a leg whose re-INVITE nobody has answered: FreeSWITCH would keep it for 32 s
(FREESWITCH.md 1.4). While its phone still sends RTP it is left alone; without any sign it is ended
after `orphan_timeout_ms`. A half call is a leg whose other leg is gone for good: it would talk to
nobody for ever.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from haclusterd.core.records import CallRecord, CallVerdict

from . import metadata
from .esl import Esl
from .esl_errors import EslDown, EslError
from .mends import Limit

log = logging.getLogger(__name__)

LOOK_S = 0.5
WATCHED_MAX = 20_000
CAUSE = "RECOVERY_ON_TIMER_EXPIRE"
HALF_CAUSE = "DESTINATION_OUT_OF_ORDER"
_IN_PACKETS = re.compile(r'"in_packet_count":\s*(\d{1,15})')

Settled = Callable[[str, CallVerdict], None]
"""`settled(service, verdict)`: a call has another verdict than it was given at first."""


@dataclass(slots=True)
class _Watched:
    service: str
    record: CallRecord
    injected_cseq: str
    half: bool
    since: float
    outage_began: float | None
    packets: int = 0
    heard_at: float = 0.0


class Aftercare:
    """Watches over `esl` until every call is settled; `orphans` counts those that are not."""

    def __init__(
        self, esl: Esl, orphan_timeout_ms: int, settled: Settled, *, end_halves: bool = True
    ) -> None:
        self._esl = esl
        self._timeout_s = orphan_timeout_ms / 1000
        self._settled = settled
        self._end_halves = end_halves
        self._watched: dict[str, _Watched] = {}
        self._task: asyncio.Task[None] | None = None
        self.cleared = 0

    @property
    def orphans(self) -> int:
        """Legs that are there, but of which nobody knows whether a phone still wants them."""
        return sum(not one.half for one in self._watched.values())

    def watch(
        self,
        service: str,
        unanswered: Sequence[tuple[CallRecord, str]],
        halves: Sequence[CallRecord],
        outage_began: float | None,
    ) -> None:
        """Begin with these; `unanswered` come with the `sip_cseq` that an answer changes."""
        now = asyncio.get_running_loop().time()
        entries = [(record, cseq, False) for record, cseq in unanswered]
        if self._end_halves:
            entries += [(record, "", True) for record in halves if _can_be_asked(record.partner)]
        for record, cseq, half in entries[: max(0, WATCHED_MAX - len(self._watched))]:
            self._watched[record.uuid] = _Watched(
                service, record, cseq, half, now, outage_began, heard_at=now
            )
        if self._watched and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(), name="aftercare")

    def forget(self, service: str) -> None:
        """The service has another owner: its calls are ended elsewhere, or by others."""
        for uuid in [u for u, one in self._watched.items() if one.service == service]:
            del self._watched[uuid]

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._watched:
            await asyncio.sleep(LOOK_S)
            for uuid, one in list(self._watched.items()):
                if uuid not in self._watched:
                    continue
                try:
                    over = await (self._look_at_half(one) if one.half else self._look_at(one))
                except EslDown:
                    break  # reconnecting, or another FreeSWITCH: the channels tell
                except EslError as error:
                    log.info("call %s is looked at later: %s", uuid, error)
                    break
                if over:
                    self._watched.pop(uuid, None)

    async def _look_at(self, one: _Watched) -> bool:
        now = asyncio.get_running_loop().time()
        uuid = one.record.uuid
        cseq = (await self._esl.api(f"uuid_getvar {uuid} sip_cseq")).strip()
        if cseq.startswith("-"):
            return True  # FreeSWITCH ended it: the verdict stands
        if cseq not in ("", "_undef_", one.injected_cseq):
            late_ms = round((now - one.since) * 1000)
            gap_ms = -1 if one.outage_began is None else round((now - one.outage_began) * 1000)
            reason = f"re-INVITE answered {late_ms} ms after the verdict"
            self._settled(one.service, CallVerdict(uuid, "recovered", reason, gap_ms))
            return True
        packets = await packets_from_phone(self._esl, uuid)
        if packets > one.packets:
            one.packets, one.heard_at = packets, now
        if now - one.heard_at < self._timeout_s:
            return False
        await self._esl.api(f"uuid_kill {uuid} {CAUSE}")
        self.cleared += 1
        silent_ms = round((now - one.heard_at) * 1000)
        reason = f"no signalling and no RTP for {silent_ms} ms: ended here"
        self._settled(one.service, CallVerdict(uuid, "lost", reason))
        return True

    async def _look_at_half(self, one: _Watched) -> bool:
        uuid, partner = one.record.uuid, one.record.partner
        if (await self._esl.api(f"uuid_exists {uuid}")).strip() != "true":
            return True
        if (await self._esl.api(f"uuid_exists {partner}")).strip() != "false":
            return await self._bridged(uuid)
        await self._esl.api(f"uuid_kill {uuid} {HALF_CAUSE}")
        self.cleared += 1
        reason = "its other leg did not come back: ended here"
        self._settled(one.service, CallVerdict(uuid, "partial", reason))
        return True

    async def _bridged(self, uuid: str) -> bool:
        reply = (await self._esl.api(f"uuid_getvar {uuid} bridge_uuid")).strip()
        return reply not in ("", "_undef_") and not reply.startswith("-")


def _can_be_asked(uuid: str) -> bool:
    """Nobody has checked the name of another leg: it stood in a variable."""
    try:
        metadata.check_uuid(uuid)
    except metadata.MetadataError:
        return False
    return True


async def packets_from_phone(esl: Esl, uuid: str) -> int:
    """RTP packets that FreeSWITCH got for this leg; -1 where it cannot tell. Raises EslError."""
    asked = json.dumps({"command": "mediaStats", "data": {"uuid": uuid}}, separators=(",", ":"))
    found = _IN_PACKETS.search(await esl.api(f"json {asked}", 5000))
    return int(found[1]) if found else -1


_BACKENDS = {"hash": "mod_hash", "db": "mod_db"}


async def apply_limits(esl: Esl, wanted: Sequence[tuple[str, Limit]]) -> list[str]:
    """Count calls against their limits again; what could not be counted. Raises EslError.

    Only for backends that are there: FreeSWITCH transfers the call away when one is not.
    """
    there = set()
    for backend in {limit.backend for _, limit in wanted} & _BACKENDS.keys():
        if (await esl.api(f"module_exists {_BACKENDS[backend]}")).strip() == "true":
            there.add(backend)
    refused = []
    for uuid, limit in wanted:
        reply = f"backend {limit.backend} is not loaded here"
        if limit.backend in there:
            reply = (await esl.api(limit.command(uuid))).strip()
        if not reply.startswith("+OK"):
            refused.append(f"{limit.realm}_{limit.resource} of {uuid}: {reply[:80]}")
    return refused


VERDICT_EVENT = "haclusterd::verdict"
_TOLD_AT_ONCE = 20


async def tell_verdicts(
    esl: Esl, service: str, epoch: int, verdicts: Sequence[CallVerdict]
) -> None:
    """One CUSTOM event per call, for programs on FreeSWITCH's event socket. Raises EslError."""
    verdicts = [one for one in verdicts if _can_be_asked(one.uuid)]
    for start in range(0, len(verdicts), _TOLD_AT_ONCE):
        await asyncio.gather(
            *(
                esl.sendevent(
                    "CUSTOM",
                    {
                        "Event-Subclass": VERDICT_EVENT,
                        "Unique-ID": one.uuid,
                        "HA-Service": service,
                        "HA-Epoch": str(epoch),
                        "HA-Verdict": one.verdict,
                        "HA-Gap-ms": str(one.gap_ms),
                        "HA-Reason": " ".join(one.reason.split())[:200],
                    },
                )
                for one in verdicts[start : start + _TOLD_AT_ONCE]
            )
        )
