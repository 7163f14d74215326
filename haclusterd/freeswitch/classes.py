"""Which calls a recovery takes first: by a channel variable, then by what they are. Pure.

FreeSWITCH takes 2 to 4 ms per leg, so the last of many calls hears nothing for a second or more:
who is last is a decision (FREESWITCH.md 3.3).
"""

from __future__ import annotations

from haclusterd.core.records import CallRecord

from . import metadata

VALUE_MAX = 9
_BRIDGED, _CONFERENCE, _REST = range(3)  # bridging takes FreeSWITCH another 100 ms


def urgency(record: CallRecord, variable: str) -> int:
    """0 to 9 from the channel variable that asks for it; anything else there counts as 0."""
    if not variable:
        return 0
    try:
        value = metadata.variable(record.metadata, variable)
    except metadata.MetadataError:
        return 0
    return int(value) if value.isascii() and value.isdigit() and len(value) == 1 else 0


def kind(record: CallRecord) -> int:
    """Bridged, in a conference, or anything else."""
    if record.partner:
        return _BRIDGED
    return _CONFERENCE if metadata.has_application(record.metadata, "conference") else _REST


def order(record: CallRecord, variable: str) -> tuple[int, int]:
    """Sorts calls: the most urgent first, then by kind."""
    return -urgency(record, variable), kind(record)
