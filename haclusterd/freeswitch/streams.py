"""How the calls of one service are spread over parallel recovery streams. Pure.

FreeSWITCH recovers the rows of one `recover` call serially, in insertion order; rows under pseudo
profile names can be recovered by several calls at once (FREESWITCH.md 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

from haclusterd.core.records import CallRecord

from . import classes

STREAMED_FROM_CALLS = 6  # below this one `sofia profile P recover` is as fast and simpler


def bridged_groups(records: Sequence[CallRecord]) -> list[list[CallRecord]]:
    """Legs that FreeSWITCH will bridge to each other, kept together; order of first appearance."""
    by_uuid = {record.uuid: record for record in records}
    neighbours: dict[str, list[str]] = {uuid: [] for uuid in by_uuid}
    for record in by_uuid.values():
        if record.partner in by_uuid and record.partner != record.uuid:
            neighbours[record.uuid].append(record.partner)
            neighbours[record.partner].append(record.uuid)
    groups: list[list[CallRecord]] = []
    seen: set[str] = set()
    for uuid in by_uuid:
        if uuid in seen:
            continue
        seen.add(uuid)
        reached = [uuid]
        for at in reached:  # grows while it is walked
            fresh = [other for other in dict.fromkeys(neighbours[at]) if other not in seen]
            seen.update(fresh)
            reached += fresh
        groups.append([by_uuid[one] for one in reached])
    return groups


def spread(
    records: Sequence[CallRecord], streams: int, urgent_variable: str = ""
) -> list[list[CallRecord]]:
    """At most `streams` lists of about equal length; bridged legs stay in one list.

    Each list is in the order of `classes`: FreeSWITCH takes rows as they were inserted.
    """
    groups = bridged_groups(records)
    if streams <= 1 or len(groups) < STREAMED_FROM_CALLS:
        streams = 1
    ranked = sorted(
        ((min(classes.order(record, urgent_variable) for record in group), group)
         for group in groups),
        key=lambda entry: entry[0],
    )  # fmt: skip
    lists: list[list[CallRecord]] = [[] for _ in range(streams)]
    for _, group in ranked:
        min(lists, key=len).extend(group)
    return [part for part in lists if part]


def merge(head: Sequence[CallRecord], rest: Sequence[CallRecord]) -> list[CallRecord]:
    """Both; of a call in both that in `head`."""
    known = {record.uuid for record in head}
    return [*head, *(record for record in rest if record.uuid not in known)]
