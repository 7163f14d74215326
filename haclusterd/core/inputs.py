"""Everything that can happen to a node, as values: the inputs of `core.node.step`.

The same types cross the socketpair from agent to heart (those in `FromAgent`).
"""

from __future__ import annotations

import msgspec

from haclusterd.core.model import (
    FOR_GOOD_US,
    Beat,
    ClusterSpec,
    Identity,
    LinkIndex,
    NodeIndex,
    ServiceIndex,
)


class Received(msgspec.Struct, frozen=True, tag=True, gc=False):
    """An authenticated, not replayed beat. The clock is read after the receive."""

    link: LinkIndex
    beat: Beat


class Tick(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The sockets were drained: time may now turn silence into decisions."""


class Froze(msgspec.Struct, frozen=True, tag=True):
    """This process did not run for `gap_us`. Given before any socket is read."""

    gap_us: int
    incarnation: int  # the new one, 64 random bits


class Restored(msgspec.Struct, frozen=True, tag=True):
    """What this node had promised before it restarted; by service, NOBODY where unknown."""

    promises: tuple[Identity, ...]
    owned: tuple[int, ...] = ()  # by service: the highest epoch known to have been owned


class FenceClosed(msgspec.Struct, frozen=True, tag=True):
    """Nothing leaves from this service's addresses any more (or, not ok: it may)."""

    service: ServiceIndex
    ok: bool


class AddressesAdded(msgspec.Struct, frozen=True, tag=True):
    """`at_us`: when it was done, for the report; 0 for when the core hears of it."""

    service: ServiceIndex
    ok: bool
    reason: str = ""
    at_us: int = 0


class AddressesRemoved(msgspec.Struct, frozen=True, tag=True):
    service: ServiceIndex
    ok: bool
    reason: str = ""


class FreeswitchExited(msgspec.Struct, frozen=True, tag=True):
    """The pidfd fired, or the agent found it hung and heart killed it."""

    cause: str = "exited"


class CarrierChanged(msgspec.Struct, frozen=True, tag=True):
    """Carrier or existence of the NIC of a service's addresses."""

    service: ServiceIndex
    up: bool


class AgentChanged(msgspec.Struct, frozen=True, tag=True):
    up: bool


class StopRequested(msgspec.Struct, frozen=True, tag=True):
    """A planned stop of this daemon: hand every service over first."""


class AlienAnswered(msgspec.Struct, frozen=True, tag=True):
    """The conflict probe or the wire shows another MAC using a service address."""

    service: ServiceIndex
    address: str
    mac: str


class ServiceReport(msgspec.Struct, frozen=True, array_like=True):
    """Could this node take the service over now, and if not why; and its calls here."""

    ready: bool
    reason: str
    calls: int


class LocalReport(msgspec.Struct, frozen=True, tag=True):
    """The agent's word on this node. `services` by service; `health` 0..100; `load` 0..10."""

    freeswitch_up: bool
    pid: int
    health: int
    load: int
    calls: int
    syncing: bool
    services: tuple[ServiceReport, ...]
    pid_start: int = 0  # start time from /proc/PID/stat, against a reused pid


class FreeswitchHung(msgspec.Struct, frozen=True, tag=True):
    """Three `api status` probes went unanswered (FREESWITCH.md 7)."""

    pid: int


class SwitchoverRequested(msgspec.Struct, frozen=True, tag=True):
    """Hand `service` over; `to` -1 lets the ranking choose. Answered by `Answered`."""

    request: int
    service: ServiceIndex
    to: NodeIndex


class MaintenanceRequested(msgspec.Struct, frozen=True, tag=True):
    """This node shall (not) be a candidate. `request` -1: what a starting agent found on disk."""

    request: int
    on: bool
    left_us: int = FOR_GOOD_US


class PauseOrdered(msgspec.Struct, frozen=True, tag=True):
    """Nothing shall move by itself for `left_us`; 0: the cluster is not (any more) paused.

    `version` grows with every order of an operator, wherever it was given. `request` -1: heard
    from another node or found on disk, to be answered to nobody.
    """

    request: int
    version: int
    left_us: int
    by: str


class Marked(msgspec.Struct, frozen=True, array_like=True):
    """`by` has verified that `node` is dead; `version` grows with every order about marks."""

    node: NodeIndex
    version: int
    by: str


class MarksOrdered(msgspec.Struct, frozen=True, tag=True):
    """All nodes that are marked dead. `request` as in PauseOrdered; with a request, a node that
    is heard here is refused."""

    request: int
    marks: tuple[Marked, ...]


class StageRequested(msgspec.Struct, frozen=True, tag=True):
    """Agree to `spec` as the next set of voters; it is on disk already. Answered by `Answered`.

    `spec.me` is -1 where this node is not in it. `kept`: it was staged before a restart, and what
    was said then is not judged again. Without `voted` it is only known here, and is taken up when
    others have it in force (a node that was away finds the newer file at its start).
    """

    request: int
    spec: ClusterSpec
    voted: bool = True
    kept: bool = False


class Overheard(msgspec.Struct, frozen=True, tag=True):
    """An authentic beat that cannot be read here says that this revision is in force."""

    revision: int
    config_hash: int


class RecoveryEnded(msgspec.Struct, frozen=True, tag=True):
    """The agent has a verdict for every call, or (not ok) cannot recover here at all."""

    service: ServiceIndex
    identity: Identity
    ok: bool
    reason: str = ""


class UpgradeRequested(msgspec.Struct, frozen=True, tag=True):
    """Executed by heart's loop itself; never reaches the core."""

    request: int


class KeysGiven(msgspec.Struct, frozen=True, tag=True):
    """Another key ring from now on, newest first as in `wire.KeyRing`: (id, secret) each.

    Executed by heart's loop itself; never reaches the core, nor a recording.
    """

    request: int
    keys: tuple[tuple[int, bytes], ...]

    def __repr__(self) -> str:
        return f"KeysGiven(request={self.request}, ids={[key for key, _ in self.keys]})"


class TraceRequested(msgspec.Struct, frozen=True, tag=True):
    """Hand out the recording, or (not `whole`) only the present state; in `TraceParts`.

    Answered by heart's loop itself; never reaches the core.
    """

    request: int
    whole: bool


FromAgent = (
    LocalReport
    | FreeswitchHung
    | SwitchoverRequested
    | MaintenanceRequested
    | PauseOrdered
    | MarksOrdered
    | StageRequested
    | RecoveryEnded
    | UpgradeRequested
    | StopRequested
    | KeysGiven
    | TraceRequested
)

Input = (
    Received
    | Tick
    | Froze
    | Restored
    | FenceClosed
    | AddressesAdded
    | AddressesRemoved
    | FreeswitchExited
    | CarrierChanged
    | AgentChanged
    | StopRequested
    | AlienAnswered
    | LocalReport
    | FreeswitchHung
    | SwitchoverRequested
    | MaintenanceRequested
    | PauseOrdered
    | MarksOrdered
    | StageRequested
    | Overheard
    | RecoveryEnded
)
