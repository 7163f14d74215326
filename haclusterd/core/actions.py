"""Everything a node can do, as values: what `core.node.step` asks its executor for.

Actions are carried out in the order given. Those with a result say which input brings it back.
The types in `ToAgent` also cross the socketpair from heart to agent.
"""

from __future__ import annotations

import msgspec

from haclusterd.core.model import Beat, Identity, NodeIndex, ServiceIndex


class SendBeat(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Send `beats` (one per link: the copy with that `link`) to these nodes, or to all (none)."""

    beats: tuple[Beat, ...]
    to: tuple[NodeIndex, ...] = ()


class RenewFence(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Keep the fence of `service` open: arm, read the clock, and renew only while
    `now + fence_us <= lease_until_us` (DESIGN 3, the three steps). Opens a closed fence alike."""

    service: ServiceIndex
    lease_until_us: int


class CloseFence(msgspec.Struct, frozen=True, tag=True):
    """Let nothing out from the service's addresses. Result: FenceClosed."""

    service: ServiceIndex


class AddAddresses(msgspec.Struct, frozen=True, tag=True):
    """Add (or refresh) the service's addresses and keep renewing their lifetimes.
    Result: AddressesAdded."""

    service: ServiceIndex


class RemoveAddresses(msgspec.Struct, frozen=True, tag=True):
    """Take the service's addresses off this node. Result: AddressesRemoved."""

    service: ServiceIndex


class Announce(msgspec.Struct, frozen=True, tag=True):
    """Gratuitous ARP / unsolicited NA now, after 1 s and after 5 s while still owner; and one
    conflict probe beside it (result: AlienAnswered, if any)."""

    service: ServiceIndex


class KeepAddresses(msgspec.Struct, frozen=True, tag=True):
    """Stop (`on` False) or go on renewing the lifetimes of the addresses (`valid_lft`)."""

    service: ServiceIndex
    on: bool


class FlushSockets(msgspec.Struct, frozen=True, tag=True):
    """Throw away what the heartbeat sockets hold: it is the past (RELIABILITY 3.3.2)."""


class PeerCurrent(msgspec.Struct, frozen=True, tag=True):
    """This incarnation of `node` is proved fresh: wire keeps its replay windows for good."""

    node: NodeIndex
    incarnation: int


class Speak(msgspec.Struct, frozen=True, tag=True):
    """Seal this version of the wire from now on (core.dialect)."""

    version: int


class Flip(msgspec.Struct, frozen=True, tag=True):
    """Go on under the staged configuration, by an upgrade of heart (core.reconfigure); or leave,
    where this node is not in it. Asked again while nothing comes of it."""

    revision: int
    config_hash: int
    stays: bool


class KillFreeswitch(msgspec.Struct, frozen=True, tag=True):
    """SIGKILL through the pidfd: never a graceful stop, which would say BYE (DESIGN 2.4)."""

    reason: str


class EndCalls(msgspec.Struct, frozen=True, tag=True):
    """The service lives elsewhere: end its calls here behind the fence, back to standby.
    Comes with KillFreeswitch when this node owns nothing else."""

    service: ServiceIndex
    identity: Identity  # the new owner


class Recover(msgspec.Struct, frozen=True, tag=True):
    """This node owns the service now: inject and recover its calls. Result: RecoveryEnded.

    `from_node` is the lost owner. `times` are this node's BOOTTIME in us by event name, for the
    report: last_heartbeat, dead, claimed, granted, address_up (they were on the NIC).
    """

    service: ServiceIndex
    identity: Identity
    from_node: NodeIndex
    cause: str
    times: dict[str, int]


class Relinquish(msgspec.Struct, frozen=True, tag=True):
    """Hand `service` over to `to` as in a switchover that an operator orders, calls and all.
    Result: SwitchoverRequested, if the agent finds that nothing stands in the way."""

    service: ServiceIndex
    to: NodeIndex


class Persist(msgspec.Struct, frozen=True, tag=True):
    """Write the promises to disk, in your own time; result: none."""

    promises: tuple[Identity, ...]
    owned: tuple[int, ...] = ()  # by service: the highest epoch known to have been owned


class Decided(msgspec.Struct, frozen=True, tag=True):
    """One sentence for history, log and API. `row` is the permanent number in the takeover
    table (T..), a voter's rule (V..) or a membership change (M..)."""

    at_us: int
    row: str
    text: str
    service: ServiceIndex = -1
    epoch: int = 0


class Answered(msgspec.Struct, frozen=True, tag=True):
    """The word on an operator's request: accepted, or refused and why."""

    request: int
    ok: bool
    text: str


class Published(msgspec.Struct, frozen=True, tag=True):
    """`core.view.View` as msgpack, sent by heart's executor when it changed and each second."""

    view: bytes


class InForce(msgspec.Struct, frozen=True, tag=True):
    """This revision is known to be in force: to be kept on disk. It is the one that this node
    counts by, or a staged one without this node in it."""

    revision: int


class TracePart(msgspec.Struct, frozen=True, tag=True):
    """The next piece of what `TraceRequested` asked for; `refusal` says why there is none."""

    request: int
    data: bytes
    last: bool
    refusal: str = ""


ToAgent = (
    EndCalls | Recover | Relinquish | Persist | Decided | Answered | Published | InForce | TracePart
)

Action = (
    SendBeat
    | RenewFence
    | CloseFence
    | AddAddresses
    | RemoveAddresses
    | Announce
    | KeepAddresses
    | FlushSockets
    | PeerCurrent
    | Speak
    | Flip
    | InForce
    | KillFreeswitch
    | EndCalls
    | Recover
    | Relinquish
    | Persist
    | Decided
    | Answered
)
