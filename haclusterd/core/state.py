"""What one node knows: the whole memory of `core.node`, as plain values.

Everything is a msgspec Struct of ints, tuples and lists, so that the state can be handed to an
upgraded heart or replayed from a trace. It belongs to whoever calls `step`, which changes it in
place.
"""

from __future__ import annotations

import msgspec

from haclusterd.core.model import (
    NOBODY,
    ClusterSpec,
    Flag,
    Identity,
    NodeIndex,
    Release,
    ServiceEntry,
    ServiceIndex,
    State,
)
from haclusterd.core.ranking import service_order

NEVER = -(10**15)  # a time so long ago that every deadline from it has passed
FAR = 1 << 62  # a time that does not come
SENT_TIMES_KEPT = 512  # own sends remembered: 3 heartbeats of regular beats and replies to spare


class PeerLink(msgspec.Struct, gc=False):
    """One link to one peer: what was heard on it, and whether it works both ways."""

    incarnation: int = 0
    seq: int = 0
    heard_us: int = NEVER
    two_way_us: int = NEVER
    good: int = 0
    up: bool = False
    rtt_us: int = 0
    number: int = 0  # newest regular beat, for the loss figure
    loss_permille: int = 0
    two_way_seq: int = -1  # newest beat here that echoed something recent of mine


class Peer(msgspec.Struct):
    """Another node, or this one: its newest word and when it was proved fresh."""

    links: list[PeerLink]
    incarnation: int = 0
    met_us: int = NEVER  # when that was proved current
    seq: int = -1
    two_way_seq: int = -1
    heard_us: int = NEVER
    two_way_us: int = NEVER
    coming: int = 0  # the newest incarnation that was noticed and not met, and since when
    coming_us: int = NEVER
    noticed_us: int = NEVER  # the newest beat of such a one
    starting: bool = False  # by its newest beat, of whichever incarnation
    alive: bool = False
    alive_since_us: int = NEVER
    replied_us: int = NEVER
    answer_on: int = -1  # the link on which a gathered answer is due to it, -1 for none
    config_hash: int = 0
    revision: int = 1
    staged: int = 0
    staged_hash: int = 0
    rank_hash: int = 0
    flags: int = 0
    health: int = 0
    load: int = 0
    calls: int = 0
    services: tuple[ServiceEntry, ...] = ()
    releases: tuple[Release, ...] = ()


class Claim(msgspec.Struct):
    """A claim of mine that is under way."""

    identity: Identity
    sent_us: int
    granted: int  # bit mask of nodes, one's own included
    resent: int = 0
    cause: str = ""


class Deferred(msgspec.Struct):
    """A claim that came a few ms before this voter's silence was long enough."""

    identity: Identity
    due_us: int


class Alien(msgspec.Struct):
    """Somebody else who answers for a service address of this node."""

    mac: str
    heard_us: int
    said_us: int


class Service(msgspec.Struct):
    """One service as this node stands to it."""

    voter_sent_us: list[int]  # by node: send time of my newest beat that it echoed with a lease
    state: State = State.STANDBY
    promise: Identity = NOBODY
    promised_us: int = NEVER  # when the promise was given
    silence_us: int = NEVER  # when the promised owner was last heard two-way
    lease_seq: int = -1
    owner_seen: bool = False  # a live owner was heard since this node started
    highest: int = 0  # epoch
    owned_epoch: int = 0  # the highest that anybody is known to have owned it at
    restored: bool = False  # the promise is to this node itself, from before a restart
    # as owner
    identity: Identity = NOBODY
    stood_by: int = 0  # who granted or echoed `identity` at any time, a bit by node
    won_too: int = 0  # who won the epoch of `identity` as well, a bit by node
    lease_until_us: int = NEVER
    fence_until_us: int = NEVER
    fence_closed: bool = True
    addresses: bool = False
    carrier: bool = True
    acquiring_us: int = NEVER  # when the addresses were last asked to come
    stop_asked_us: int = NEVER  # when fence or addresses were last asked to go
    recovering: Identity = NOBODY  # of the newest Recover: what RecoveryEnded is about
    unrecovered: str = ""  # why the calls cannot be recovered here; they leave when they can
    holding: bool = False  # FreeSWITCH here carries this service's calls
    passed_on: tuple[Identity, ...] = ()  # what was granted to whom since, the newest of each node
    # as claimant
    claim: Claim | None = None
    lost_us: int = NEVER  # since when the service is known to be lost, NEVER while it is not
    paced_until_us: int = NEVER
    failed: int = 0  # claims in a row that found no majority
    lapsed_heard_us: int = NEVER
    moving_to: NodeIndex = -1  # whom a release under way is for
    given_up: str = ""  # why it is released
    from_node: NodeIndex = -1  # whom the claim takes it from
    times: dict[str, int] = {}  # for the report: event -> us
    # as voter
    release: Release | None = None  # of the present promise; own or heard
    released_us: int = NEVER
    deferred: Deferred | None = None
    guard: NodeIndex = -1  # an owner by marks, heard while this node could not stand by it,
    guard_us: int = NEVER  # and when
    # report of the agent
    ready: bool = False
    reason: str = "no report yet"
    calls: int = 0
    backoff_until_us: int = NEVER  # this node failed to take it over: not ready until then


class Mark(msgspec.Struct):
    """An operator's word that a node is dead. Its vote counts for nothing from `in_force_us` on,
    and again once it is `cleared`: heard as a standby that knows the present owners."""

    node: NodeIndex
    version: int
    by: str
    in_force_us: int
    cleared: bool = False


class Roll(msgspec.Struct):
    """Where this node stands in a change of the voters (core.reconfigure)."""

    proven: bool = True  # False: the first start in a set that others may not have in force yet
    floor: int = 0  # nodes that count by an older revision get neither echo nor grant
    known: int = 1  # the newest revision known to be in force
    known_hash: int = 0
    kin: tuple[int, ...] = ()  # hashes of the configurations beside one's own that are read here
    staged: int = 0
    staged_hash: int = 0
    staged_us: int = NEVER
    voted: bool = False  # agreed to, and on disk
    stays: bool = True  # this node is in the staged set
    due_us: int = FAR  # when the staged set is taken up
    decided_us: int = NEVER
    blind: bool = False  # it came with this set, and cannot read who counts by the one before
    whole_us: int = NEVER  # since when it hears all others count by this set
    returned: bool = False  # it has started, and may miss an owner by a later set
    listens_us: int = NEVER  # until when it holds down anew: it took that set up, or stood still
    thawed: bool = False  # because it stood still, and it has made no step since


class Node(msgspec.Struct):
    """The state of `core.node.step`."""

    spec: ClusterSpec
    incarnation: int
    start_us: int
    peers: list[Peer]
    services: list[Service]
    order: list[ServiceIndex]  # services by importance
    random: int
    seq: int = 0
    number: int = 0
    sent_us: dict[int, int] = {}
    beat_us: int = NEVER  # when the newest regular beat was sent
    next_beat_us: int = 0
    answer_us: int = FAR  # when the gathered answers go out
    wake_us: int = 0
    majority: bool = False
    majority_since_us: int = NEVER
    rank_dirty: bool = True
    ranked_flags: int = 0  # one's own, that the ranking was made with
    ranked_doomed: frozenset[ServiceIndex] = frozenset()  # that it was made with
    slaves: tuple[NodeIndex, ...] = ()
    successors: tuple[tuple[NodeIndex, ...], ...] = ()
    rank_hash: int = 0
    rank_differs_us: int = NEVER
    freeswitch_up: bool = False  # the agent's word: a starting agent does not know yet
    freeswitch_gone: bool = False  # heart saw it exit, and nobody has seen it up since
    agent_up: bool = False
    syncing: bool = False
    maintenance: bool = False
    leaving: bool = False
    health: int = 0
    load: int = 0
    calls: int = 0
    aliens: dict[str, Alien] = {}  # by service address
    # orders
    maintenance_until_us: int = FAR
    pause_version: int = 0
    paused_by: str = ""
    paused_until_us: int = NEVER
    resumed_us: int = NEVER
    marks: list[Mark] = []
    marked: frozenset[NodeIndex] = frozenset()  # not cleared: no echo and no grant for these
    unvoting: frozenset[NodeIndex] = frozenset()  # of these, whose mark is in force
    left_out: frozenset[NodeIndex] = frozenset()  # of these, who is silent: no voter
    by_marks_us: int = FAR  # since when `unvoting` is not empty
    thawed_us: int = NEVER  # before that nobody was heard, nor silent
    ran_us: int = NEVER  # the newest step
    woke_number: int = 0  # of beats, when it last stood still for longer than `two_way`
    steady_us: int = NEVER  # the newest time at which it had sent some since such a time
    marks_heard: bool = False  # somebody has said since this node started that it counts by marks
    spare_node: NodeIndex = -1  # who would step down (core.relinquish), -1 nobody
    spare_since_us: int = NEVER
    relinquished_us: int = NEVER
    roll: Roll = msgspec.field(default_factory=Roll)
    dialect: int = 1  # the version of the wire that is sealed (core.dialect)
    plain_us: int = NEVER  # when somebody was last heard who opens nothing newer than version 1


def unknown_service(spec: ClusterSpec, now_us: int) -> Service:
    """A service of which this node knows nothing yet."""
    return Service(voter_sent_us=[NEVER] * len(spec.nodes), silence_us=now_us)


def start(spec: ClusterSpec, now_us: int, incarnation: int) -> Node:
    """The state of a node that starts now; `incarnation` is 64 random bits."""
    services = [unknown_service(spec, now_us) for _ in spec.services]
    peers = [Peer(links=[PeerLink() for _ in range(spec.links)]) for _ in spec.nodes]
    return Node(
        spec=spec,
        incarnation=incarnation,
        start_us=now_us,
        ran_us=now_us,
        peers=peers,
        services=services,
        order=service_order(spec),
        random=incarnation & 0xFFFFFFFF,
        next_beat_us=now_us,
        wake_us=now_us,
        health=100 if not spec.freeswitch else 0,
    )


def holding_down(node: Node, now_us: int) -> bool:
    """In the hold-down after a start a node neither echoes, grants nor claims (DESIGN 6); nor
    while it does not know that the set it counts by is in force; nor where it hears by then that a
    later one is, before it has taken that up and listened anew: who counts by it, and cannot read
    others, may own already by marks."""
    roll = node.roll
    if now_us < roll.listens_us or now_us < node.start_us + node.spec.timing.hold_down_us:
        return True
    if not roll.proven:
        return True
    return roll.returned and roll.known > node.spec.revision


def listens_until_us(node: Node) -> int:
    """When this node has heard, for `hold_down_us` in one piece, who owns what by its set."""
    return max(node.start_us + node.spec.timing.hold_down_us, node.roll.listens_us)


def is_departing(node: Node) -> bool:
    """This node has agreed to a set of voters that it is not in."""
    return node.roll.voted and not node.roll.stays


def is_paused(node: Node, now_us: int) -> bool:
    """An operator paused the cluster: nothing moves by itself."""
    return now_us < node.paused_until_us


def draw(node: Node) -> int:
    """The next 32 pseudo-random bits (a linear congruence seeded by the incarnation)."""
    node.random = (node.random * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
    return node.random >> 32


# Plain names, because the operators and class lookups of enum are slow and this is asked often.
_STARTING, _MAINTENANCE, _LEAVING = int(Flag.STARTING), int(Flag.MAINTENANCE), int(Flag.LEAVING)
_READS_2 = int(Flag.READS_2)
_FREESWITCH_UP, _AGENT_UP, _SYNCING = int(Flag.FREESWITCH_UP), int(Flag.AGENT_UP), int(Flag.SYNCING)
_PAUSED, _MARKED, _BY_MARKS = int(Flag.PAUSED), int(Flag.MARKED), int(Flag.BY_MARKS)
_OWNED, _ACQUIRING = State.OWNED, State.ACQUIRING


def flags(node: Node, now_us: int) -> int:
    """`Flag` bits of this node's next beat."""
    return (
        (_STARTING if holding_down(node, now_us) else 0)
        | (_MAINTENANCE if node.maintenance else 0)
        | (_LEAVING if node.leaving or is_departing(node) else 0)
        | (_FREESWITCH_UP if node.freeswitch_up else 0)
        | (_AGENT_UP if node.agent_up else 0)
        | (_SYNCING if node.syncing else 0)
        | (_PAUSED if now_us < node.paused_until_us else 0)
        | (_MARKED if node.spec.me in node.marked else 0)
        | (_BY_MARKS if node.marked and node.marked != {node.spec.me} else 0)
        | _READS_2
    )


def owns(service: Service) -> bool:
    """The states in which a lease is held and the fence may be open."""
    return service.state is _OWNED or service.state is _ACQUIRING
