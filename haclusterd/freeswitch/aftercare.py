"""Calls that are neither back nor gone when the verdicts are given: watched, then ended.

An orphan is a leg whose re-INVITE nobody has answered: FreeSWITCH would keep it for 32 s
(FREESWITCH.md 1.4). While its phone still sends RTP it is left alone; without any sign it is ended
after `orphan_timeout_ms`. A half call is a leg that is up while its other leg is not: whole once
that has answered late, ended once it is gone for good, for it would talk to nobody for ever.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from haclusterd.core.records import CallRecord, CallVerdict
from haclusterd.lasting import lasting

from . import metadata
from .esl import Esl
from .esl_errors import EslDown, EslError
from .mends import FLOW, UNANSWERED, Limit
from .verify import Sign

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
    sign: Sign | None  # what an answer changes; None: it has answered
    since: float
    outage_began: float | None
    packets: int = 0
    heard_at: float = 0.0
    answered_at: float = 0.0  # after the verdict
    row_cseq: str = ""  # as FreeSWITCH has written it since
    limits: list[Limit] = field(default_factory=list)  # to be counted once it answers

    def became(self, verdict: str, reason: str, at: float = 0.0) -> CallVerdict:
        """Its new verdict; `at` is when the call was back."""
        gap = at - self.outage_began if at and self.outage_began is not None else -0.001
        return CallVerdict(self.record.uuid, verdict, reason, round(gap * 1000))

    def late(self, at: float) -> str:
        return f"{round((at - self.since) * 1000)} ms after the verdict"


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
        return sum(one.sign is not None for one in self._watched.values())

    def watch(
        self,
        service: str,
        unanswered: Sequence[tuple[CallRecord, Sign]],
        halves: Sequence[CallRecord],
        outage_began: float | None,
        limits: Mapping[str, list[Limit]] | None = None,
    ) -> None:
        """Begin with these; `unanswered` come with what an answer changes. `limits`: by call, what
        is to be counted then."""
        now = asyncio.get_running_loop().time()
        entries: list[tuple[CallRecord, Sign | None]] = list(unanswered)
        entries += [(record, None) for record in halves if can_be_asked(record.partner)]
        for record, sign in entries[: max(0, WATCHED_MAX - len(self._watched))]:
            self._watched[record.uuid] = _Watched(
                service, record, sign, now, outage_began, heard_at=now,
                limits=list((limits or {}).get(record.uuid, ())),
            )  # fmt: skip
        if self._watched and (self._task is None or self._task.done()):
            self._task = lasting(self._run(), "aftercare")

    def forget(self, service: str) -> None:
        """The service has another owner: its calls are ended elsewhere, or by others."""
        for uuid in [u for u, one in self._watched.items() if one.service == service]:
            del self._watched[uuid]

    def tracked(self, uuid: str, sip_cseq: str) -> None:
        """What FreeSWITCH's row of a call says."""
        one = self._watched.get(uuid)
        if one is not None:
            one.row_cseq = sip_cseq

    def drop(self, uuids: Sequence[str]) -> None:
        """Others end these."""
        for uuid in uuids:
            self._watched.pop(uuid, None)

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
                    over = await (self._look_at_half(one) if one.sign is None else
                                  self._look_at(one, one.sign))  # fmt: skip
                except EslDown:
                    break  # reconnecting, or another FreeSWITCH: the channels tell
                except EslError as error:
                    log.info("call %s is looked at later: %s", uuid, error)
                    if self._watched.pop(uuid, None) is one:
                        self._watched[uuid] = one  # last, so that those behind it do not wait
                    break
                if over:
                    self._watched.pop(uuid, None)

    async def _look_at(self, one: _Watched, sign: Sign) -> bool:
        now = asyncio.get_running_loop().time()
        uuid = one.record.uuid
        value = one.row_cseq if sign.variable == "sip_cseq" else ""
        if value in ("", sign.before):
            value = (await self._esl.api(f"uuid_getvar {uuid} {sign.variable}")).strip()
        if value.startswith("-"):
            return True  # FreeSWITCH ended it: the verdict stands
        if value not in ("", "_undef_", sign.before):
            flow = value
            if sign.variable != FLOW:
                flow = (await self._esl.api(f"uuid_getvar {uuid} {FLOW}")).strip()
            if flow.startswith("-"):
                return True  # gone, and its row may have told of ringing only
            if flow != UNANSWERED:
                return await self._answered(one, now)
            one.sign = Sign(FLOW, UNANSWERED)
        packets = await packets_from_phone(self._esl, uuid)
        if packets > one.packets:
            one.packets, one.heard_at = packets, now
        blind = packets < 0 and one.sign == Sign(FLOW, UNANSWERED)  # others may have its media
        if now - one.heard_at < self._timeout_s or blind:
            return False
        await self._esl.api(f"uuid_kill {uuid} {CAUSE}")
        self.cleared += 1
        silent_ms = round((now - one.heard_at) * 1000)
        reason = f"no signalling and no RTP for {silent_ms} ms: ended here"
        self._settled(one.service, one.became("lost", reason))
        return True

    async def _answered(self, one: _Watched, now: float) -> bool:
        """After the verdict, and its other leg may have been called half a call."""
        await self._count(one)
        one.sign, one.answered_at = None, now
        partner = one.record.partner
        reason = f"re-INVITE answered {one.late(now)}"
        if not partner:
            self._settled(one.service, one.became("recovered", reason, now))
            return True
        if can_be_asked(partner) and await self._is_whole(one):
            return True
        self._settled(one.service, one.became("partial", f"{reason}, not its other leg", now))
        return not can_be_asked(partner)

    async def _count(self, one: _Watched) -> None:
        """Each until FreeSWITCH has answered; `apply_limits` may be repeated."""
        while one.limits:
            for refused in await apply_limits(self._esl, [(one.record.uuid, one.limits[0])]):
                log.warning("a limit is not counted: %s", refused)
            del one.limits[0]

    async def _look_at_half(self, one: _Watched) -> bool:
        uuid, partner = one.record.uuid, one.record.partner
        other = self._watched.get(partner)
        if other is not None and other.sign is not None:
            return False
        if (await self._esl.api(f"uuid_exists {uuid}")).strip() != "true":
            return True
        if await self._is_whole(one):
            return True
        if await self._exists(partner):
            return False
        if self._end_halves and await self._bridged_to(uuid) in ("", partner):
            await self._esl.api(f"uuid_kill {uuid} {HALF_CAUSE}")
            self.cleared += 1
            reason = "its other leg did not come back: ended here"
            self._settled(one.service, one.became("partial", reason, one.answered_at))
        return True

    async def _is_whole(self, one: _Watched) -> bool:
        """This leg is up; if the other one has answered and they are bridged, both are back."""
        other = self._watched.get(one.record.partner)
        if other is not None and other.sign is not None:
            return False
        if not (await self._bridged_to(one.record.uuid) and await self._exists(one.record.partner)):
            return False
        legs = [one] if other is None else [one, other]
        at = max(leg.answered_at for leg in legs)
        if other is None and not at:
            return True  # its other leg is not ours, and was never judged here
        for leg in legs:
            reason = f"re-INVITE answered {leg.late(leg.answered_at)}"
            if not leg.answered_at:
                reason = f"re-INVITE answered, its other leg's {leg.late(at)}"
            if not at:
                at = asyncio.get_running_loop().time()
                reason = f"re-INVITE answered, bridged {leg.late(at)}"
            self._settled(leg.service, leg.became("recovered", reason, at))
            self._watched.pop(leg.record.uuid, None)
        return True

    async def _exists(self, uuid: str) -> bool:
        return (await self._esl.api(f"uuid_exists {uuid}")).strip() != "false"

    async def _bridged_to(self, uuid: str) -> str:
        """Recovered rows say nothing of a bridge, so that it is a new one."""
        found = await self._getvar(uuid, "bridge_uuid")
        return "" if found == "_undef_" else found

    async def _getvar(self, uuid: str, name: str) -> str:
        """Empty where there is no such channel."""
        reply = (await self._esl.api(f"uuid_getvar {uuid} {name}")).strip()
        return "" if reply.startswith("-") else reply


def can_be_asked(uuid: str) -> bool:
    """Nobody has checked the name of another leg: it stood in a variable."""
    try:
        metadata.check_uuid(uuid)
    except metadata.MetadataError:
        return False
    return True


async def packets_from_phone(esl: Esl, uuid: str, timeout_ms: int = 5000) -> int:
    """RTP packets that FreeSWITCH got for this leg; -1 where it cannot tell. Raises EslError."""
    asked = json.dumps({"command": "mediaStats", "data": {"uuid": uuid}}, separators=(",", ":"))
    found = _IN_PACKETS.search(await esl.api(f"json {asked}", timeout_ms, drop_on_timeout=False))
    return int(found[1]) if found else -1


_BACKENDS = {"hash": "mod_hash", "db": "mod_db"}


async def apply_limits(esl: Esl, wanted: Sequence[tuple[str, Limit]]) -> list[str]:
    """Count calls against their limits again; what could not be counted. Raises EslError.

    Done twice it counts them once.
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
            if undoing := limit.undoing(uuid):
                await esl.api(undoing)
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
    verdicts = [one for one in verdicts if can_be_asked(one.uuid)]
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
