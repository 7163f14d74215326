"""The words of the protocol: what a cluster is made of and what its nodes tell each other.

Times are integer microseconds of CLOCK_BOOTTIME (`*_us`); a value named so from another node is
on that node's clock and is only ever given back to it. Nodes, services and links are small
integers: their position in the configuration, which is the same file on every node.
"""

from __future__ import annotations

import enum

import msgspec

NodeIndex = int
ServiceIndex = int
LinkIndex = int

NOBODY_NODE = -1
FOR_GOOD_US = 10**15  # of an order: until it is taken back
EPOCH_MAX = 2**32 - 1  # nobody counts that far: whoever says so is broken, and is not followed


class Timing(msgspec.Struct, frozen=True):
    """Protocol times in microseconds (DESIGN section 6 table; presets are made in config.py)."""

    heartbeat_us: int
    lease_us: int
    stop_us: int
    dead_us: int
    arm_us: int
    fence_us: int
    rank_delay_us: int
    discovery_us: int
    resend_us: tuple[int, ...] = (4_000, 15_000, 40_000)

    @property
    def two_way_us(self) -> int:
        """How old may the beat of mine be that a peer's beat echoes (75 ms for `lan`)."""
        return 3 * self.heartbeat_us

    @property
    def suspect_us(self) -> int:
        """Two-way silence after which a peer is SUSPECT (diagnosis only, never a decision)."""
        return self.heartbeat_us * 12 // 5

    @property
    def defer_us(self) -> int:
        """How far short of `dead_us` a voter may be and still defer a claim (DESIGN 6, Grant)."""
        return self.heartbeat_us + min(5_000, self.heartbeat_us)

    @property
    def grace_us(self) -> int:
        """How much longer than `dead_us` a slave waits before it claims for silence alone.

        An owner that is back after a stun of 120 ms (`lan`) was silent for up to 151 ms: a beat
        before it, and its first words after it. To keep it is worth 10 ms to everybody else.
        """
        return self.heartbeat_us * 2 // 5

    @property
    def gather_us(self) -> int:
        """How long the answers to owners' beats of one round may be gathered into one."""
        return min(1_000, self.heartbeat_us // 25)

    @property
    def bounds_us(self) -> tuple[int, ...]:
        """What nodes that vote for each other have in common: a lease is shorter than `dead_us`
        whoever grants it (S1). How soon a node ranks or discovers is its own affair."""
        return (
            self.heartbeat_us, self.lease_us, self.stop_us, self.dead_us, self.arm_us,
            self.fence_us,
        )  # fmt: skip

    @property
    def hold_down_us(self) -> int:
        """After a start: neither echo, grant nor claim (DESIGN 6, Grant)."""
        return self.dead_us + self.lease_us


class NodeSpec(msgspec.Struct, frozen=True):
    """One configured node. `links` holds one address per heartbeat NIC, in NIC order."""

    id: str
    links: tuple[str, ...]
    priority: int = 100
    capacity: int = 1000  # calls
    witness: bool = False


class AddressSpec(msgspec.Struct, frozen=True):
    """A service address: IPv4 or IPv6 in text, prefix length, and the NIC that carries it."""

    ip: str
    prefix: int
    nic: str


class ServiceSpec(msgspec.Struct, frozen=True):
    """One configured service. `preferred` is the owner at a cold start, -1 for none."""

    name: str
    addresses: tuple[AddressSpec, ...]
    profiles: tuple[str, ...] = ()
    preferred: NodeIndex = NOBODY_NODE
    priority: int = 10


class Quorum(enum.Enum):
    """Who may act when not all voters are reachable (DESIGN section 6, policies)."""

    MAJORITY = "majority"
    WITNESS = "witness"
    AVAILABILITY = "availability"


class LastResort(enum.Enum):
    """Whether a node that already owns a service may take another one (DESIGN 2.5)."""

    MASTERS = "masters"
    NONE = "none"


class ClusterSpec(msgspec.Struct, frozen=True):
    """All that the core knows of the configuration, seen from node `me`."""

    name: str
    me: NodeIndex
    nodes: tuple[NodeSpec, ...]
    services: tuple[ServiceSpec, ...]
    timing: Timing
    quorum: Quorum = Quorum.MAJORITY
    last_resort: LastResort = LastResort.MASTERS
    config_hash: int = 0
    freeswitch: bool = True  # False: the cluster moves addresses only
    relinquish_us: int = 0  # how long without a slave until a master may step down; 0: never
    revision: int = 1  # of the set of voters: +1 with every change (core.reconfigure)
    shape: int = 0  # a hash of what the numbers of nodes and services stand for; 0: not known
    times: int = 0  # one of `timing.bounds_us`, 16 bits; 0: not known

    @property
    def links(self) -> int:
        return len(self.nodes[0].links)

    @property
    def needed(self) -> int:
        """Votes, one's own included, that make a lease or a win."""
        return 1 if self.quorum is Quorum.AVAILABILITY else len(self.nodes) // 2 + 1


class Identity(msgspec.Struct, frozen=True, array_like=True, order=True, gc=False):
    """Who holds a service: promise, echo and RELEASE all name it in full (DESIGN 6, Identity).

    Epochs may repeat after a cold start that lost them; `nonce` is fresh for every claim.
    """

    epoch: int
    node: NodeIndex
    nonce: int


NOBODY = Identity(0, NOBODY_NODE, 0)


class State(enum.IntEnum):
    """One service as one node stands to it. The numbers travel: never renumber."""

    STANDBY = 0
    CLAIMING = 1
    ACQUIRING = 2
    OWNED = 3
    LAPSED = 4
    RELEASING = 5
    RECLAIMING = 6


class Flag(enum.IntFlag):
    """Facts about the sender of a beat."""

    STARTING = 1  # in its start hold-down
    MAINTENANCE = 2
    LEAVING = 4  # a planned stop is under way
    FREESWITCH_UP = 8
    AGENT_UP = 16
    SYNCING = 32
    PAUSED = 64  # knows of a pause that is in force
    MARKED = 128  # knows that an operator marked it dead
    READS_2 = 256  # opens wire version 2, whatever it seals
    BY_MARKS = 512  # counts without nodes that an operator marked dead


class Echo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The newest beat heard from one peer on the link this travels on.

    `incarnation` is the low 32 bits, `held_us` the time between hearing it and this beat.
    """

    incarnation: int
    seq: int
    held_us: int


class ServiceEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the sender says of one service.

    `promise` is whom it supports. A node in CLAIMING or RECLAIMING promises itself: the entry is
    the claim, and the same promise in another node's entry is the grant, its nonce included.
    `lease_seq` is the newest beat of the promised owner for which the sender gives the lease echo.
    `held` is the highest epoch at which the sender knows the service to have been owned, by
    itself or another, since it started; 0 for none.
    """

    promise: Identity
    lease_seq: int
    state: int
    ready: bool
    calls: int
    held: int = 0


class Release(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`identity` holds `service` no more, fence closed and address gone; `to` may claim at once."""

    service: ServiceIndex
    identity: Identity
    to: NodeIndex


class Beat(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One heartbeat on one link. `seq` counts every send, `number` only the regular beats.

    All copies of a beat on different links share `seq` and differ in `link` and `echoes`.
    """

    sender: NodeIndex
    link: LinkIndex
    incarnation: int
    seq: int
    number: int
    reply: bool
    config_hash: int
    rank_hash: int
    flags: int
    health: int  # 0 (unusable) .. 100
    load: int  # load class, 0 idle .. 10 full
    calls: int
    echoes: tuple[Echo | None, ...]  # by node
    services: tuple[ServiceEntry, ...]  # by service
    releases: tuple[Release, ...]
    # Version 2 of the wire. Of version 1 the set of voters is the first one.
    revision: int = 1  # by whose set the sender counts; 0: it does not know that set in force
    staged: int = 0  # the next revision, to which the sender has agreed; 0 for none
    staged_hash: int = 0
