"""Corrections made on a copy of a call record just before injection, one function per mend.

Each mend is pure, has a switch in `Mends`, and leaves a record alone that does not need it. A mend
belongs here when a measured fact (FREESWITCH.md) shows that the row as FreeSWITCH wrote it would
not recover as well as the mended one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from haclusterd.core.records import CallRecord

from . import fatal, limits, metadata, risks
from .refused import fault

log = logging.getLogger(__name__)

ATTEMPT_BITS = 12  # what names an attempt: the epoch, and in these bits FreeSWITCH's generation
CSEQ_RAISE, EPOCHS_APART = 100, 1 << 16
CSEQ_AGAIN, GENERATIONS_APART = 10, 10
CSEQ_MAX = 2**31 - 1
_NTP_OFFSET_S, _SOFIA_MAX = 2_208_988_800, 0x7FFFFFF  # of the clock that sofia-sip counts by
ANNOUNCEMENTS = ("speak", "playback", "gentones", "say")
FLOW, UNANSWERED = "remote_audio_media_flow", "unanswered"
LIMITS_MAX = 16  # of one call
_WORD_MAX = 256


class MediaAddress(NamedTuple):
    """Where a profile of this FreeSWITCH has its RTP: the own address, and what phones are told."""

    ip: str
    advertised: str


@dataclass(frozen=True)
class Mends:
    """Which mends are on. `media` holds the addresses of this node's profiles, as far as known;
    `attempt` and `now_s` (wall clock, 0: unknown) are of the recovery."""

    cseq: bool = True
    profile: bool = True
    position: bool = True
    limits: bool = True
    announcements: bool = False
    addresses: bool = True
    transport: bool = True
    session_timeout_s: int = 0
    media: Mapping[str, MediaAddress] = field(default_factory=dict)
    attempt: int = 0
    now_s: float = 0.0


def raise_cseq(record: CallRecord, attempt: int, now_s: float) -> CallRecord:
    """Start the re-INVITE's CSeq above every one the other side may have seen from us.

    sofia-sip derives it from the wall clock, +1 every 2 s (FREESWITCH.md 1.4): a node whose clock
    is behind would be refused, and so would the next owner if the last one died within that time
    of its own re-INVITE (a phone answers 500 to a number it has seen). The last one's may not be
    in any row, so each attempt has a step of its own. The CSeq in the row is our own count in
    outbound legs, and in inbound legs that were recovered once already.
    """
    cseq = record.sip_cseq
    if record.direction != "outbound" and not metadata.variable(
        record.metadata, "dlg_req_swap_direction"
    ):
        if not now_s:
            return record
        cseq = str((int(now_s) + _NTP_OFFSET_S) >> 1 & _SOFIA_MAX)
    if not (cseq.isascii() and cseq.isdigit()) or len(cseq) > 10:
        return record
    epoch, generation = divmod(attempt, 1 << ATTEMPT_BITS)
    step = CSEQ_RAISE * (1 + epoch % EPOCHS_APART) + CSEQ_AGAIN * (generation % GENERATIONS_APART)
    raised = int(cseq) + step
    if raised > CSEQ_MAX:
        return record
    return _set(record, "sip_invite_cseq", str(raised))


def name_profile(record: CallRecord) -> CallRecord:
    """Let the metadata name the profile of the record, where FreeSWITCH looks it up.

    A row whose `recovery_profile_name` is no running profile is dropped with only a log line
    (FREESWITCH.md 3.4).
    """
    if metadata.variable(record.metadata, "recovery_profile_name") == record.profile:
        return record
    return _set(record, "recovery_profile_name", record.profile)


def name_transport(record: CallRecord) -> CallRecord:
    """Let the Contact of the re-INVITE say TCP or TLS where the call runs over it.

    FreeSWITCH writes one for UDP otherwise, so what the phone asks from then on, its BYE first of
    all, goes to another port (measured on 1.11.1). Its own calls to a phone come out right.
    """
    via = metadata.variable(record.metadata, "sip_via_protocol").lower()
    if record.direction == "outbound" or via not in ("tcp", "tls"):
        return record
    if metadata.variable(record.metadata, "sip_transport"):
        return record
    return _set(record, "sip_transport", via)


def keep_uuid(record: CallRecord) -> CallRecord:
    """Let the channel have the name that the call had.

    FreeSWITCH reads it from the variables without decoding them: a call that is named by its
    Call-ID came up as `1%40host` (measured on 1.11.1), where nobody looked for it.
    """
    text = metadata.name_channel(record.metadata, record.uuid)
    return record if text == record.metadata else msgspec.structs.replace(record, metadata=text)


def keep_readable(record: CallRecord) -> CallRecord:
    """Drop variables that would keep FreeSWITCH from reading the others."""
    text = metadata.readable(record.metadata)
    return record if text == record.metadata else msgspec.structs.replace(record, metadata=text)


def forget_bridge(record: CallRecord) -> CallRecord:
    """Drop what says that the leg is bridged: it is not yet, and it has to prove it anew."""
    if not metadata.variable(record.metadata, "bridge_uuid"):
        return record
    mended = metadata.without_variable(record.metadata, "bridge_uuid")
    return msgspec.structs.replace(record, metadata=mended)


def mark_unanswered(record: CallRecord) -> CallRecord:
    """Mark a variable that FreeSWITCH sets at every SDP of the phone, and itself never reads.

    `sip_cseq` changes with a provisional answer, too (measured on 1.11.1). Not where FreeSWITCH
    does not look into the SDP.
    """
    xml = record.metadata
    opening, closing = f"<{FLOW}>", f"</{FLOW}>"
    start = xml.find(opening) + len(opening)
    end = xml.find(closing, start)
    proxied = ("proxy_media" in xml or "bypass_media" in xml) and risks.proxied(xml)
    if start < len(opening) or end < 0 or "<" in xml[start:end] or proxied:
        return record
    text = f"{xml[:start]}{UNANSWERED}{xml[end:]}"
    return msgspec.structs.replace(record, metadata=text)


def resume_at(record: CallRecord) -> CallRecord:
    """Drop the applications that are over, so that an IVR goes on where the caller was.

    FreeSWITCH runs the extension of an unbridged call from its first application
    (FREESWITCH.md 2.2); bridged calls run none.
    """
    if record.partner or record.position <= 0:
        return record
    applications = metadata.extension(record.metadata)
    if record.position >= len(applications):
        return record
    over = applications[: record.position]
    return msgspec.structs.replace(record, metadata=metadata.without(record.metadata, over))


def skip_announcements(record: CallRecord) -> CallRecord:
    """Have FreeSWITCH leave out announcements when it runs the extension again.

    Only where something else is left to run: a call of nothing but a playback would end.
    """
    left = [a for a in metadata.extension(record.metadata) if a.name not in ANNOUNCEMENTS]
    if record.partner or not any(a.name not in ("answer", "set", "export") for a in left):
        return record
    return _set(record, "recovery_skip_announcement_type_applications", "true")


def start_session_timer(record: CallRecord, timeout_s: int) -> CallRecord:
    """Let the re-INVITE agree on a session timer anew: the old one died with its FreeSWITCH."""
    value = str(timeout_s)
    if not timeout_s or metadata.variable(record.metadata, "sofia_session_timeout") == value:
        return record
    return _set(record, "sofia_session_timeout", value)


def move_media(record: CallRecord, here: MediaAddress | None) -> CallRecord:
    """Where this node has its RTP on another address, the call's moves there, and its SDP says so.

    The port stays: FreeSWITCH takes it from the row.
    """
    was = metadata.variable(record.metadata, "local_media_ip")
    if here is None or not was or was == here.ip:
        return record
    told = metadata.variable(record.metadata, "advertised_media_ip") or was
    sdp = metadata.variable(record.metadata, "rtp_local_sdp_str")
    record = _set(record, "local_media_ip", here.ip)
    record = _set(record, "advertised_media_ip", here.advertised)
    if sdp:
        lines = [
            _readdress(line, (was, told), here.advertised) if line[:2] in ("o=", "c=") else line
            for line in sdp.split("\r\n")
        ]
        record = _set(record, "rtp_local_sdp_str", "\r\n".join(lines))
    return record


def _readdress(line: str, old: tuple[str, str], new: str) -> str:
    words = line.split(" ")
    if words[-1] in old:
        words[-2:] = ["IP6" if ":" in new else "IP4", new]
    return " ".join(words)


def _set(record: CallRecord, name: str, value: str) -> CallRecord:
    mended = metadata.set_variable(record.metadata, name, value)
    return msgspec.structs.replace(record, metadata=mended)


class Limit(NamedTuple):
    """One resource that a call counts against."""

    backend: str
    realm: str
    resource: str

    def command(self, uuid: str) -> str:
        """Counts the call again. Without a maximum: a call that is up must not be refused."""
        return f"uuid_limit {uuid} {self.backend} {self.realm} {self.resource}"

    def undoing(self, uuid: str) -> str:
        """Takes back whatever this call was counted for; empty where a call is counted once only.

        mod_db counts a call as often as it is told to, and what has no answer is told again.
        """
        words = f"{uuid} {self.backend} {self.realm} {self.resource}"
        return f"uuid_limit_release {words}" if self.backend == "db" else ""


def limits_to_apply(record: CallRecord, switches: Mends) -> list[Limit]:
    """Limits that FreeSWITCH will not count by itself, of the record as it was before `mend`.

    A bridged call runs no application again, and a resumed one not those that are over
    (FREESWITCH.md 5); every other call counts itself when it runs its `limit` again.
    """
    if not switches.limits:
        return []
    over = metadata.executed(record.metadata)
    if not record.partner:
        resumed = switches.position and record.position > 0
        over = metadata.extension(record.metadata)[: record.position] if resumed else []
    found = []
    for one in over:
        words = one.data.split()
        if one.name in ("limit", "limit_execute") and len(words) >= 3 and _plain(one.data):
            found.append(Limit(*words[:3]))
    return list(dict.fromkeys(found))[:LIMITS_MAX]


def limits_of_all(records: Iterable[CallRecord], switches: Mends) -> dict[str, list[Limit]]:
    """By call, of those that have any."""
    found: dict[str, list[Limit]] = {}
    for record in records:
        try:
            if wanted := limits_to_apply(record, switches):
                found[record.uuid] = wanted
        except Exception:  # the call is up: no verdict may be lost for its limits
            log.exception("limits of call %.60r", record.uuid)
    return found


def _plain(data: str) -> bool:
    """Values that stood in a dialplan, expanded: what could be a second command is refused."""
    return data.isprintable() and len(data) <= _WORD_MAX and "${" not in data


def mend(record: CallRecord, switches: Mends) -> CallRecord:
    """All mends that are switched on. Raises metadata.MetadataError for a broken document."""
    metadata.check_uuid(record.uuid)
    metadata.check(record.metadata)
    record = keep_readable(record)
    metadata.learn(record.metadata)
    if metadata.untagged(record.metadata):
        raise metadata.MetadataError(risks.UNTAGGED)
    record = fatal.mend(record)
    if switches.profile:
        record = name_profile(record)
    if switches.cseq:
        record = raise_cseq(record, switches.attempt, switches.now_s)
    record = forget_bridge(keep_uuid(record))
    if switches.transport:
        record = name_transport(record)
    if switches.limits:
        record = limits.mend(record)
    if switches.addresses:
        record = move_media(record, switches.media.get(record.profile))
    if switches.position:
        record = resume_at(record)
    if switches.announcements:
        record = skip_announcements(record)
    record = start_session_timer(record, switches.session_timeout_s)
    return mark_unanswered(record)  # last: what is learnt of the document ends with it


def mend_all(
    records: Iterable[CallRecord], switches: Mends
) -> tuple[list[CallRecord], dict[str, str]]:
    """The mended records, and per uuid why a record can not be used at all."""
    mended: list[CallRecord] = []
    refused: dict[str, str] = {}
    for record in records:
        try:
            mended.append(mend(record, switches))
        except metadata.MetadataError as error:
            refused[record.uuid] = str(error)
        except Exception as error:  # a takeover must not lose all calls for one
            log.exception("call %.60r is not mended", record.uuid)
            refused[record.uuid] = fault(error)
    return mended, refused
