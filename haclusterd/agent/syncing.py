"""What replication's state means to those who ask: alarms, and whether answers may be old."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from haclusterd.agent.history import History
from haclusterd.agent.schema import Alarm, Sync
from haclusterd.sync.audit import Repair
from haclusterd.sync.lane import REGISTRATIONS
from haclusterd.sync.replicator import Replicator


def alarms(overflowed: Iterable[tuple[str, str]]) -> list[Alarm]:
    """One alarm per peer and stream whose copy can no longer be brought up by changes (MS19)."""
    found = []
    for peer, stream in overflowed:
        what, service = _data(stream)
        text = (
            f"{peer} has missed more changes to the {what} of {service} than are kept for it: "
            "when it is back it gets all of them anew, and until then its copy is old; see "
            f"`haclusterctl sync`, and why {peer} is away or slow"
        )
        found.append(Alarm("sync_suspended", text))
    return found


def distrust(distrusted: Mapping[str, str]) -> list[Alarm]:
    """Peers with which no connection comes about, because their certificates are not accepted."""
    return [
        Alarm("certificate", f"no copies are exchanged with {peer}: {why}")
        for peer, why in sorted(distrusted.items())
    ]


def is_stale(sync: Sync, replicates: bool) -> bool:
    """Whether this node's answers may be older than the cluster: it is being filled (MS20).

    `replicates`: it should hold copies of what others own.
    """
    return replicates and sync.state != "in-sync"


def tell_repairs(replicator: Replicator, history: History, me: str) -> None:
    """Whatever the comparison of copies with their origins mends is a sentence of history."""

    def told(repair: Repair) -> None:
        what, service = _data(repair.service)
        text = f"{me} mended {len(repair.uuids)} silent differences in its copy of the {what} of"
        if repair.whole:
            text = (
                f"{me} asks anew for all of its copy, which differed in too much, of the {what} of"
            )
        history.add("A17", f"{text} {service} from {repair.origin}", None, service)

    replicator.auditor.told.append(told)


def _data(stream: str) -> tuple[str, str]:
    """What a stream is made of, and whose service it is."""
    service = stream.removeprefix(REGISTRATIONS)
    return ("calls" if service == stream else "registrations"), service
