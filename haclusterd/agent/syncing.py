"""What replication's state means to those who ask: alarms, and whether answers may be old."""

from __future__ import annotations

from collections.abc import Iterable

from haclusterd.agent.schema import Alarm, Sync
from haclusterd.sync.lane import REGISTRATIONS


def alarms(overflowed: Iterable[tuple[str, str]]) -> list[Alarm]:
    """One alarm per peer and stream whose copy can no longer be brought up by changes (MS19)."""
    found = []
    for peer, stream in overflowed:
        service = stream.removeprefix(REGISTRATIONS)
        what = "registrations" if stream.startswith(REGISTRATIONS) else "calls"
        text = (
            f"{peer} has missed more changes to the {what} of {service} than are kept for it: "
            "when it is back it gets all of them anew, and until then its copy is old; see "
            f"`haclusterctl sync`, and why {peer} is away or slow"
        )
        found.append(Alarm("sync_suspended", text))
    return found


def is_stale(sync: Sync, replicates: bool) -> bool:
    """Whether this node's answers may be older than the cluster: it is being filled (MS20).

    `replicates`: it should hold copies of what others own.
    """
    return replicates and sync.state != "in-sync"
