"""Did each injected call really come back? Proof per leg, verdict per call.

Only the judgement belongs here, without I/O: `Verification` is fed with answers to `uuid_getvar`
and with events, and knows what is still open. FREESWITCH.md 1.5: the reply of `recover` counts
attempts, no event marks the answered re-INVITE; a changed `sip_cseq` proves it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from haclusterd.core.records import CallRecord, CallVerdict

from . import metadata
from .esl_protocol import Event
from .mends import FLOW, UNANSWERED

NO_CHANNEL_GRACE_S = 0.1
_REASONS = {
    "NORMAL_TEMPORARY_FAILURE": "the phone refused the re-INVITE or can not be reached",
    "RECOVERY_ON_TIMER_EXPIRE": "the phone did not answer the re-INVITE",
    "DESTINATION_OUT_OF_ORDER": "FreeSWITCH could not send the re-INVITE",
}
_UNUSABLE = ("INCOMPATIBLE_DESTINATION", "DESTINATION_OUT_OF_ORDER")  # its SDP, or no RTP socket
_NOBODY_THERE = "503"  # FreeSWITCH's own word for ICMP and refused connections, too


class Sign(NamedTuple):
    """The variable that an answer changes, and what it is until then."""

    variable: str
    before: str


@dataclass(slots=True)
class _Leg:
    record: CallRecord
    partner: str  # only if that leg is verified here too
    injected_cseq: str  # what `sip_cseq` was before the re-INVITE
    launched: bool = False
    missing_since: float | None = None
    told_at: float | None = None  # when FreeSWITCH last said how it is
    answered_at: float | None = None
    rang: bool = False  # a provisional answer changes `sip_cseq`, too
    suspect: bool = False  # of that
    bridged: bool = False
    ended: str = ""  # after it was answered: how
    lost: str = ""  # why
    packets: int = -1  # RTP from the phone since the recovery, -1 while nobody asked

    @property
    def decided(self) -> bool:
        whole = self.answered_at is not None and (self.bridged or not self.partner)
        return whole or bool(self.ended) or bool(self.lost)

    @property
    def up(self) -> bool:
        return self.answered_at is not None and not self.ended and not self.lost


class Verification:
    """The open question of one recovery; times are any monotonic seconds."""

    def __init__(self, records: Sequence[CallRecord] = ()) -> None:
        self._legs: dict[str, _Leg] = {}
        self.silence_from = 0.0  # who has not told since then does not know of the deadline
        self.add(records)

    def add(self, records: Sequence[CallRecord]) -> None:
        """These too; legs that are bridged to each other have to be added together."""
        present = {record.uuid for record in records}
        for record in records:
            partner = record.partner if record.partner in present else ""
            self._legs[record.uuid] = _Leg(record, partner, record.sip_cseq)

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._legs

    def __len__(self) -> int:
        return len(self._legs)

    @property
    def answered(self) -> int:
        """Legs whose re-INVITE was answered so far."""
        return sum(leg.answered_at is not None for leg in self._legs.values())

    @property
    def lost(self) -> int:
        """Legs that are known to be lost so far."""
        return sum(bool(leg.lost) for leg in self._legs.values())

    def launched(self, uuids: Sequence[str]) -> None:
        """FreeSWITCH has gone through these rows: from now on a missing channel is a lost call."""
        for uuid in uuids:
            self._legs[uuid].launched = True

    def injected(self, cseqs: Mapping[str, str]) -> None:
        """By call: the `sip_cseq` with which an earlier run injected it, empty if nobody knows.

        The record may hold a newer one by now, of the re-INVITE that was answered since: then the
        call only must live.
        """
        for uuid, cseq in cseqs.items():
            self._legs[uuid].injected_cseq = cseq

    def to_ask(self, among: Collection[str] | None = None) -> list[str]:
        """Legs, of all or of these, whose `sip_cseq` should be asked for now."""
        return [
            uuid
            for uuid in (self._legs if among is None else among)
            if not (leg := self._legs[uuid]).lost
            and not leg.ended
            and (leg.answered_at is None or not leg.decided)
        ]

    @property
    def open(self) -> bool:
        return any(not leg.decided for leg in self._legs.values())

    def decided_verdicts(self) -> list[CallVerdict]:
        """Verdicts of the legs that nothing can change any more."""
        return [self._verdict(leg, 0, None) for leg in self._legs.values() if leg.decided]

    def take_cseq(self, uuid: str, reply: str, now: float) -> None:
        """The answer to `uuid_getvar UUID sip_cseq`."""
        leg = self._legs.get(uuid)
        if leg is None or leg.lost or leg.ended:
            return
        value = reply.strip()
        if value.startswith("-"):
            self._missing(leg, now)
            return
        leg.missing_since = None
        if value:
            leg.told_at = now
        if value not in ("", "_undef_", leg.injected_cseq) and leg.answered_at is None:
            leg.answered_at = now

    def take_row(self, record: CallRecord, now: float) -> None:
        """A row that FreeSWITCH wrote of its own call: a reply, with the mark.

        At an answer it writes two, the first one still with the mark, so that nothing comes of
        that before the verdicts.
        """
        leg = self._legs.get(record.uuid)
        if leg is not None:
            leg.suspect = record.sip_cseq != leg.injected_cseq and _is_marked(record)
            self.take_cseq(record.uuid, record.sip_cseq, now)

    def drop_suspects(self) -> None:
        """Whose row has the mark to the end, and who sends no RTP, has only rung."""
        for uuid, leg in self._legs.items():
            if leg.suspect and leg.packets <= 0:
                self.only_rang(uuid)

    def over(self, uuid: str, why: str) -> None:
        """It is ended, whatever its phone said."""
        leg = self._legs.get(uuid)
        if leg is not None:
            leg.lost = why

    def answered_finally(self, uuid: str) -> None:
        """FreeSWITCH says that the mark is gone, whatever its newest row says."""
        leg = self._legs.get(uuid)
        if leg is not None:
            leg.suspect = False

    def only_rang(self, uuid: str) -> None:
        """What changed `sip_cseq` was no final answer."""
        leg = self._legs.get(uuid)
        if leg is not None and leg.up:
            leg.answered_at, leg.rang = None, True

    def _missing(self, leg: _Leg, now: float) -> None:
        """No such channel: not yet, or no longer. An event with the cause may be under way."""
        if not leg.launched and leg.answered_at is None:
            return
        if leg.missing_since is None:
            leg.missing_since = now
        elif now - leg.missing_since >= NO_CHANNEL_GRACE_S:
            if leg.answered_at is not None:
                leg.ended = "ended since"
            else:
                leg.lost = "FreeSWITCH did not take the call up"

    def take_event(self, event: Event, now: float) -> None:
        """CHANNEL_BRIDGE or CHANNEL_HANGUP of a recovered channel; others are ignored."""
        uuid = event.get("Unique-ID")
        if event.name == "CHANNEL_BRIDGE":  # FreeSWITCH bridges when one leg has answered
            for one in (uuid, event.get("Other-Leg-Unique-ID")):
                self.bridged_after_all(one)
        elif event.name == "CHANNEL_HANGUP" and uuid in self._legs:
            self._hung_up(self._legs[uuid], event, now)

    def _hung_up(self, leg: _Leg, event: Event, now: float) -> None:
        cause = event.get("Hangup-Cause", "UNKNOWN")
        cseq = event.get("variable_sip_cseq")
        refused = event.get("variable_sip_hangup_disposition") == "recv_refuse"
        if refused or event.get(f"variable_{FLOW}") == UNANSWERED:
            leg.answered_at = None  # no more than a provisional answer has come
        elif leg.answered_at is None and cseq and cseq != leg.injected_cseq:
            leg.answered_at = now
        bye = _said_bye(event)
        partner = self._legs.get(leg.partner)
        by_itself = not bye and (partner is None or partner.up)  # else it is the other's cause
        if leg.answered_at is not None and cause in _UNUSABLE and by_itself:
            leg.lost = f"answered, but FreeSWITCH could not go on with it ({cause})"
        elif leg.answered_at is not None:
            leg.ended = "the phone said BYE since" if bye else f"ended since ({cause})"
            if not bye and partner is not None and partner.ended:
                leg.ended = f"its other leg ended since ({cause})"
        elif leg.lost:
            return
        elif refused:
            leg.lost = f"{_refusal(event, cause)} ({cause})"
        elif bye:
            leg.lost = f"the phone hung up before it answered the re-INVITE ({cause})"
        elif partner is not None and (partner.lost or partner.ended):
            what = "was lost" if partner.lost else "ended before it had answered"
            leg.lost = f"its other leg {what} ({cause})"
        else:
            leg.lost = f"{_REASONS.get(cause, 'FreeSWITCH ended the call')} ({cause})"

    def bridged_after_all(self, uuid: str) -> None:
        """Another sign than the event says that the leg is bridged."""
        leg = self._legs.get(uuid)
        if leg is not None:
            leg.bridged = True

    def unbridged(self) -> list[str]:
        """Answered legs whose bridge nobody has seen."""
        return [
            uuid for uuid, leg in self._legs.items() if leg.up and leg.partner and not leg.bridged
        ]

    # after the deadline: what flows, and what is left over

    def up(self) -> list[str]:
        """Legs whose phone has answered and that have not ended since."""
        return [uuid for uuid, leg in self._legs.items() if leg.up]

    def to_hear(self) -> list[str]:
        """Legs that are up and of which no RTP was seen yet."""
        return [uuid for uuid, leg in self._legs.items() if leg.up and leg.packets <= 0]

    def mute(self) -> list[str]:
        """Legs that are up and whose phone has sent nothing, as FreeSWITCH says."""
        return [uuid for uuid, leg in self._legs.items() if leg.up and leg.packets == 0]

    def heard(self, uuid: str, packets: int) -> None:
        """RTP packets that came from the phone since the recovery; -1 if FreeSWITCH cannot tell."""
        leg = self._legs.get(uuid)
        if leg is not None and packets >= 0:
            leg.packets = packets

    def unanswered(self) -> list[tuple[CallRecord, Sign]]:
        """Calls that may still be there, unanswered, with what an answer changes."""
        return [
            (
                leg.record,
                Sign(FLOW, UNANSWERED) if leg.rang else Sign("sip_cseq", leg.injected_cseq),
            )
            for leg in self._legs.values()
            if not leg.decided and not leg.up
        ]

    def halves(self) -> list[CallRecord]:
        """Legs that are up while their other leg is not, or is not bridged to them."""
        return [
            leg.record
            for leg in self._legs.values()
            if leg.up and leg.record.partner and not (leg.bridged and self._came_back(leg.partner))
        ]

    def _came_back(self, uuid: str) -> bool:
        return not uuid or self._legs[uuid].answered_at is not None

    def verdicts(self, deadline_ms: int, outage_began: float | None) -> list[CallVerdict]:
        """One verdict per leg, as far as it is known now; open ones count as lost."""
        return [self._verdict(leg, deadline_ms, outage_began) for leg in self._legs.values()]

    def _verdict(self, leg: _Leg, deadline_ms: int, outage_began: float | None) -> CallVerdict:
        uuid = leg.record.uuid
        if leg.lost:
            return CallVerdict(uuid, "lost", leg.lost)
        if leg.answered_at is None:
            reason = f"no answer to the re-INVITE within {deadline_ms} ms"
            if leg.rang:
                reason = "no answer to the re-INVITE but a provisional one"
            elif deadline_ms and (leg.told_at is None or leg.told_at < self.silence_from):
                reason = f"FreeSWITCH did not tell of an answer within {deadline_ms} ms"
            return CallVerdict(uuid, "lost", reason)
        gap_ms = -1 if outage_began is None else round((leg.answered_at - outage_began) * 1000)
        missing = self._without(leg)
        if missing:
            return CallVerdict(uuid, "partial", missing, gap_ms, ended=bool(leg.ended))
        if leg.ended:
            return CallVerdict(uuid, "recovered", f"recovered, {leg.ended}", gap_ms, ended=True)
        heard = {-1: "", 0: ", no RTP from the phone yet"}.get(leg.packets, _flows(leg.record))
        return CallVerdict(uuid, "recovered", f"re-INVITE answered{heard}", gap_ms)

    def _without(self, leg: _Leg) -> str:
        """Why this leg, which has answered, is only half a call; empty where it is a whole one."""
        other = self._legs.get(leg.partner)
        if other is None:
            return "the other leg was not replicated" if leg.record.partner else ""
        if other.lost or other.answered_at is None:
            return f"the other leg: {other.lost or 'no answer from it'}"
        return "" if leg.bridged or leg.ended or other.ended else "the other leg: not bridged to it"


def _is_marked(record: CallRecord) -> bool:
    try:
        return metadata.variable(record.metadata, FLOW) == UNANSWERED
    except metadata.MetadataError:
        return False


def _said_bye(event: Event) -> bool:
    """FreeSWITCH sets the disposition only after this event (measured on 1.11.1)."""
    return (
        event.get("variable_sip_hangup_disposition") == "recv_bye"
        or event.get("variable_proto_specific_hangup_cause") == "sip:200"
    )


def _refusal(event: Event, cause: str) -> str:
    status = event.get("variable_sip_term_status")
    if cause == "RECOVERY_ON_TIMER_EXPIRE" or not (len(status) == 3 and status.isdecimal()):
        return _REASONS.get(cause, "the phone refused the re-INVITE")
    if status == _NOBODY_THERE:
        return f"the phone can not be reached, or refused the re-INVITE: {status}"
    return f"the phone refused the re-INVITE: {status}"


def _flows(record: CallRecord) -> str:
    """FreeSWITCH counts SRTP that it cannot read, too."""
    try:
        secure = metadata.variable(record.metadata, "rtp_has_crypto")
    except metadata.MetadataError:
        secure = ""
    return ", SRTP comes: whether it can be read, nobody tells" if secure else ", RTP flows"
