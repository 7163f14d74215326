"""What `haclusterctl sync` shows: per peer and stream, have, want, lag and state. Values only."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from haclusterd.core.standby import Freshness, StreamCopy
from haclusterd.sync.store import StoreCounts


class OutgoingStatus(msgspec.Struct, frozen=True):
    """One of this node's streams towards one peer.

    `data` in calls, registrations. `state` in-sync, syncing (snapshot or catching up), suspended
    (too far behind), none (the peer has not answered the offer). `acked` and `head` are sequence
    numbers, acked -1: nothing whole. The peer has `have` of `want` items; `eta_ms` until it has
    all, at the pace of the snapshot under way, null without one. `overflow`: it missed more
    changes than are kept, and gets a snapshot.
    """

    service: str
    epoch: int
    state: str
    acked: int
    head: int
    lag_ms: int
    snapshots: int
    data: str = "calls"
    have: int = 0
    want: int = 0
    percent: int = 100
    eta_ms: int | None = None
    overflow: bool = False
    digest: int = 0  # of what is live, as in the standby's store once it has all


class IncomingStatus(msgspec.Struct, frozen=True):
    """One service of another owner as this node holds it; `have` of `want` items of `data`."""

    service: str
    origin: str
    epoch: int
    settled: bool
    state: str
    have: int
    want: int
    position: int
    lag_ms: int
    data: str = "calls"
    percent: int = 100
    eta_ms: int | None = None


_WORST_LAST = ("in-sync", "syncing", "suspended", "none")


def worst(states: Iterable[str]) -> str:
    """Of none: in-sync."""
    return max(states, key=_WORST_LAST.index, default="in-sync")


def percent(have: int, want: int) -> int:
    """Rounded down, so that 100 is all."""
    return 100 if have >= want else have * 100 // want


def data_of(prefix: str) -> str:
    """What a lane's streams are made of."""
    return prefix.rstrip(":") or "calls"


def incoming(
    service: str, prefix: str, newest: StreamCopy | None, fresh: Freshness, now_ms: int
) -> IncomingStatus:
    """The row of one service in the standby store."""
    data = data_of(prefix)
    if newest is None:
        have, want = fresh.have, fresh.want
        return IncomingStatus(service, "", 0, False, fresh.state, have, want, 0, 0, data)
    return IncomingStatus(
        service,
        newest.stream.origin,
        newest.epoch,
        newest.settled,
        fresh.state,
        fresh.have,
        fresh.want,
        newest.position,
        fresh.lag_ms,
        data,
        percent(fresh.have, fresh.want),
        newest.left_ms(now_ms),
    )


class PeerStatus(msgspec.Struct, frozen=True):
    """One other node. `rtt_ms` -1 while unknown; `state` is the worst of the outgoing streams, of
    calls and of registrations, `lag_ms` the longest."""

    node: str
    connected: bool
    address: str
    rtt_ms: float
    state: str
    lag_ms: int
    outgoing: list[OutgoingStatus]


class SyncStatus(msgspec.Struct, frozen=True):
    """Everything. `waiting`: changes not sequenced yet; `ack_ms`: from logged to acknowledged;
    `protected_ms`: from the answer of a call to the acknowledgement of all that it takes."""

    node: str
    peers: list[PeerStatus]
    incoming: list[IncomingStatus]
    store: list[StoreCounts]
    waiting: int
    at_risk: int
    ack_ms_p50: int
    ack_ms_p99: int
    counters: dict[str, int]
    protected_ms_p50: int = 0
    protected_ms_p99: int = 0
    protected: int = 0  # calls that this is of
