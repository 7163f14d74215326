"""Corrections made on a copy of a call record just before injection, one function per mend.

Each mend is pure, has a switch in `Mends`, and leaves a record alone that does not need it. A mend
belongs here when a measured fact (FREESWITCH.md) shows that the row as FreeSWITCH wrote it would
not recover as well as the mended one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from haclusterd.core.records import CallRecord

from . import limits, metadata

CSEQ_RAISE = 100
CSEQ_MAX = 2**31 - 1


@dataclass(frozen=True)
class Mends:
    """Which mends are on; the default is all."""

    cseq: bool = True
    profile: bool = True
    limits: bool = True


def raise_cseq(record: CallRecord) -> CallRecord:
    """Start the re-INVITE's CSeq above every one the other side has seen from us.

    sofia-sip derives it from the wall clock, so a node whose clock is behind would be refused
    (FREESWITCH.md 1.4). Needed where the CSeq in the row is our own count: outbound legs, and
    inbound legs that were recovered once already.
    """
    cseq = record.sip_cseq
    if not (cseq.isascii() and cseq.isdigit()) or len(cseq) > 10:
        return record
    if record.direction != "outbound" and not metadata.variable(
        record.metadata, "dlg_req_swap_direction"
    ):
        return record
    raised = int(cseq) + CSEQ_RAISE
    if raised > CSEQ_MAX:
        return record
    mended = metadata.set_variable(record.metadata, "sip_invite_cseq", str(raised))
    return msgspec.structs.replace(record, metadata=mended)


def name_profile(record: CallRecord) -> CallRecord:
    """Let the metadata name the profile of the record, where FreeSWITCH looks it up.

    A row whose `recovery_profile_name` is no running profile is dropped with only a log line
    (FREESWITCH.md 3.4).
    """
    if metadata.variable(record.metadata, "recovery_profile_name") == record.profile:
        return record
    mended = metadata.set_variable(record.metadata, "recovery_profile_name", record.profile)
    return msgspec.structs.replace(record, metadata=mended)


def mend(record: CallRecord, switches: Mends) -> CallRecord:
    """All mends that are switched on. Raises metadata.MetadataError for a broken document."""
    metadata.check_uuid(record.uuid)
    metadata.check(record.metadata)
    if switches.profile:
        record = name_profile(record)
    if switches.cseq:
        record = raise_cseq(record)
    if switches.limits:
        record = limits.mend(record)
    return record


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
    return mended, refused
