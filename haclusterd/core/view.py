"""The cluster as one node sees it now: what status, API and hooks are made of.

Pure projection of `core.state.Node`; it decides nothing.
"""

from __future__ import annotations

import msgspec

from haclusterd.core.model import NOBODY_NODE, Flag, State
from haclusterd.core.orders import span
from haclusterd.core.quorum import voters
from haclusterd.core.ranking import Facts, why
from haclusterd.core.reconfigure import complaint, is_akin, lacking
from haclusterd.core.standing import RANK_DIFFERS_US, facts, lost_services, odd_config
from haclusterd.core.state import FAR, NEVER, Node, holding_down, is_paused, owns

ALIEN_ALARM_US = 60_000_000  # an alien that was not heard for so long is no alarm any more


class LinkView(msgspec.Struct, frozen=True):
    """One link to a node; `rtt_us` 0 and `loss_permille` 0 where not measured yet."""

    address: str
    up: bool
    rtt_us: int
    loss_permille: int


class NodeView(msgspec.Struct, frozen=True):
    """One node. `role` in master, slave, starting, syncing, maintenance, failed, dead, left.

    `syncing`: in order, and no slave yet: copies of calls are missing here, or the majority is.
    """

    id: str
    role: str
    services: tuple[str, ...]
    rank: int  # 0 primary, 1 secondary ..; -1 none
    health: int
    links: tuple[LinkView, ...]
    calls: int
    capacity: int
    flags: int
    silent_us: int
    ready: tuple[bool, ...]  # by service
    witness: bool = False  # it votes only
    unheard_us: int = 0  # since anything of it was heard, both ways or not


class ServiceView(msgspec.Struct, frozen=True):
    """One service. `state` in owned, moving, unserved; `owner` empty while nobody has it."""

    name: str
    owner: str
    epoch: int
    state: str
    local_state: str
    addresses: tuple[str, ...]
    successors: tuple[str, ...]
    lease_left_us: int  # of this node, 0 if it is not the owner
    reason: str  # why this node could not take it over, empty if it could


class AlarmView(msgspec.Struct, frozen=True):
    name: str
    text: str


class PauseView(msgspec.Struct, frozen=True):
    """A pause in force; `left_us` is FOR_GOOD_US or more where it has no end of its own."""

    version: int
    by: str
    left_us: int


class MarkView(msgspec.Struct, frozen=True):
    """A node that an operator marked dead; `cleared`: it is heard as a standby again."""

    node: str
    version: int
    by: str
    cleared: bool


class LinkTally(msgspec.Struct, frozen=True):
    """What one own link met since heart started: datagrams by outcome, and its socket's lot."""

    address: str
    received: dict[str, int]
    socket: dict[str, int]


class PeerTally(msgspec.Struct, frozen=True):
    """What came from a peer's address; `unreadable_now`: why nothing of it can be read, or empty.

    `node` and `address` are those of the configuration: an address is no proof of the sender.
    """

    node: str
    address: str
    readable: int
    unreadable: int
    unreadable_now: str


class StagedView(msgspec.Struct, frozen=True):
    """What another node says: the revision it counts by, and the one it has staged (0: none)."""

    node: str
    alive: bool
    active: int
    staged: int
    staged_hash: int


class RevisionView(msgspec.Struct, frozen=True):
    """The set of voters in force here, and the one that is staged (0: none).

    `known`: the newest in force anywhere, as far as this node heard. `lacking`: who has not staged
    what is staged here. `plain`: version 1 of the wire is sealed, as a node reads no newer one;
    `early`: or as it is not known yet whether one does.
    """

    active: int
    staged: int = 0
    staged_hash: int = 0
    known: int = 0
    known_hash: int = 0
    lacking: tuple[str, ...] = ()
    others: tuple[StagedView, ...] = ()
    plain: bool = False
    early: bool = False


class View(msgspec.Struct, frozen=True):
    """A node's whole word on the cluster at `at_us`."""

    cluster: str
    node: str
    at_us: int
    policy: str
    voters: int
    reachable: int
    quorate: bool
    rank_hash: int
    incarnation: int
    nodes: tuple[NodeView, ...]
    services: tuple[ServiceView, ...]
    alarms: tuple[AlarmView, ...]
    why: tuple[str, ...]
    pause: PauseView | None = None
    marks: tuple[MarkView, ...] = ()
    link_tallies: tuple[LinkTally, ...] = ()  # heart's, not the core's: added when published
    peer_tallies: tuple[PeerTally, ...] = ()
    revision: RevisionView = RevisionView(1)


def view(node: Node, now_us: int) -> View:
    """Project `node` at `now_us`."""
    spec = node.spec
    owners = [_owner(node, k) for k in range(len(spec.services))]
    nodes = tuple(_node_view(node, n, owners, now_us) for n in range(len(spec.nodes)))
    services = tuple(_service_view(node, k, owners[k], now_us) for k in range(len(spec.services)))
    timing = spec.timing
    reachable = 1 + sum(
        1
        for n, p in enumerate(node.peers)
        if n != spec.me and now_us - p.two_way_us <= timing.two_way_us and n not in node.left_out
    )
    return View(
        spec.name,
        spec.nodes[spec.me].id,
        now_us,
        spec.quorum.value,
        voters(node),
        reachable,
        node.majority,
        node.rank_hash,
        node.incarnation,
        nodes,
        services,
        tuple(_alarms(node, nodes, services, now_us)),
        tuple(why(spec, facts(node, now_us))),
        _pause_view(node, now_us),
        tuple(MarkView(spec.nodes[m.node].id, m.version, m.by, m.cleared) for m in node.marks),
        revision=_revision(node),
    )


def _revision(node: Node) -> RevisionView:
    roll, spec = node.roll, node.spec
    return RevisionView(
        active=spec.revision,
        staged=roll.staged if roll.voted else 0,
        staged_hash=roll.staged_hash if roll.voted else 0,
        known=roll.known,
        known_hash=roll.known_hash,
        lacking=tuple(lacking(node)),
        others=tuple(
            StagedView(spec.nodes[n].id, p.alive, p.revision, p.staged, p.staged_hash)
            for n, p in enumerate(node.peers)
            if n != spec.me
        ),
        plain=node.dialect == 1 and node.plain_us != NEVER,
        early=node.dialect == 1 and node.plain_us == NEVER,
    )


def _pause_view(node: Node, now_us: int) -> PauseView | None:
    if not is_paused(node, now_us):
        return None
    return PauseView(node.pause_version, node.paused_by, node.paused_until_us - now_us)


def _owner(node: Node, k: int) -> int:
    """Whom this node believes to own `k`: itself, or a living peer that says so."""
    me = node.spec.me
    if owns(node.services[k]):
        return me
    best, epoch = NOBODY_NODE, 0
    for n, peer in enumerate(node.peers):
        if n != me and peer.alive and peer.services:
            entry = peer.services[k]
            if entry.state in (State.ACQUIRING, State.OWNED) and entry.promise.epoch > epoch:
                best, epoch = n, entry.promise.epoch
    return best


def _node_view(node: Node, n: int, owners: list[int], now_us: int) -> NodeView:
    spec = node.spec
    me = n == spec.me
    word = facts(node, now_us)[n]
    owned = tuple(s.name for s, o in zip(spec.services, owners, strict=True) if o == n)
    links = tuple(
        LinkView(address, True, 0, 0)
        if me
        else LinkView(address, line.up, line.rtt_us, line.loss_permille)
        for address, line in zip(spec.nodes[n].links, node.peers[n].links, strict=True)
    )
    ready = tuple(e.ready for e in word.services)
    silent_us = 0 if me else min(now_us - node.peers[n].two_way_us, 10**15)
    # Without a majority nobody could take over now, as far as this node can tell.
    rank = node.slaves.index(n) if n in node.slaves and node.majority else -1
    return NodeView(
        spec.nodes[n].id,
        _role(node, n, bool(owned), now_us),
        owned,
        rank,
        word.health,
        links,
        word.calls,
        spec.nodes[n].capacity,
        word.flags,
        silent_us,
        ready,
        spec.nodes[n].witness,
        0 if me else min(now_us - node.peers[n].heard_us, 10**15),
    )


def _role(node: Node, n: int, master: bool, now_us: int) -> str:
    word = facts(node, now_us)[n]
    if not word.alive:
        return "left" if word.flags & Flag.LEAVING else "dead"
    if master:
        return "master"
    if word.flags & Flag.LEAVING:
        return "left"
    if n in node.marked or word.flags & Flag.MARKED:
        return "failed"
    if word.flags & Flag.STARTING:
        return "starting"
    if word.flags & Flag.MAINTENANCE or node.spec.nodes[n].witness:
        return "maintenance"  # of a witness, too: it lives, and takes nothing over
    if n in node.slaves and node.majority:
        return "slave"
    return "syncing" if word.flags & Flag.SYNCING or _waits(node, word) else "failed"


def _waits(node: Node, word: Facts) -> bool:
    """Nothing is wrong with it but that this node reaches no majority."""
    fit = word.flags & Flag.FREESWITCH_UP or not node.spec.freeswitch
    able = any(e.ready or e.state != State.STANDBY for e in word.services)
    return not node.majority and bool(fit) and able


def _service_view(node: Node, k: int, owner: int, now_us: int) -> ServiceView:
    spec, service = node.spec.services[k], node.services[k]
    ids = [x.id for x in node.spec.nodes]
    moving = service.state not in (State.STANDBY, State.OWNED, State.LAPSED) or any(
        p.alive and p.services and p.services[k].state in _MOVING for p in node.peers
    )
    state = "owned" if owner != NOBODY_NODE else "moving" if moving else "unserved"
    line = node.successors[k] if node.successors else ()
    return ServiceView(
        spec.name,
        ids[owner] if owner >= 0 else "",
        service.promise.epoch,
        state,
        service.state.name.lower(),
        tuple(f"{a.ip}/{a.prefix} dev {a.nic}" for a in spec.addresses),
        tuple(ids[n] for n in line if n != owner),
        max(0, service.lease_until_us - now_us) if owns(service) else 0,
        "" if service.ready else service.reason,
    )


_MOVING = (State.CLAIMING, State.ACQUIRING, State.RECLAIMING, State.RELEASING)


def _alarms(
    node: Node, nodes: tuple[NodeView, ...], services: tuple[ServiceView, ...], now_us: int
) -> list[AlarmView]:
    alarms = []
    spec = node.spec
    if not node.majority:
        alarms.append(AlarmView("no_quorum", f"{_id(node)} reaches no majority of the voters"))
    if not node.agent_up:
        alarms.append(AlarmView("unprotected", f"the agent of {_id(node)} is not running"))
    lost = lost_services(node)
    for k, s in enumerate(services):
        if s.state == "unserved" and (k in lost or not s.successors):
            if not holding_down(node, now_us):
                alarms.append(AlarmView("unserved", f"nobody serves {s.name}"))
        elif s.state == "owned" and not s.successors and len(nodes) > 1:
            alarms.append(AlarmView("unprotected", f"no node is ready to take {s.name} over"))
    for n, word in enumerate(facts(node, now_us)):
        if word.alive and word.flags & Flag.MAINTENANCE:
            text = f"{spec.nodes[n].id} is in maintenance: it takes nothing over"
            alarms.append(AlarmView("maintenance", text))
    alarms += _ordered(node, now_us)
    for n, peer in enumerate(node.peers):
        if n == spec.me or not peer.alive:
            continue
        if not is_akin(node, peer.config_hash):
            text = f"{spec.nodes[n].id} runs another configuration than {_id(node)}"
            alarms.append(AlarmView("config_mismatch", text))
        if len(peer.links) > 1 and sum(line.up for line in peer.links) == 1:
            alarms.append(AlarmView("single_link", f"one link left to {spec.nodes[n].id}"))
    if late := complaint(node, now_us):
        alarms.append(AlarmView("revision", late))
    if odd_config(node):
        text = f"most nodes run another configuration: {_id(node)} claims nothing"
        alarms.append(AlarmView("config_odd", text))
    if node.rank_differs_us != NEVER and now_us - node.rank_differs_us > RANK_DIFFERS_US:
        alarms.append(AlarmView("rank_mismatch", "nodes disagree about the order of the slaves"))
    mine = {
        a.ip
        for k, s in enumerate(node.services)
        if owns(s)
        for a in node.spec.services[k].addresses
    }
    for address, alien in node.aliens.items():
        # After a cut it was the rightful owner that answered: no alarm of a node that owns nothing.
        if now_us - alien.heard_us < ALIEN_ALARM_US and address in mine:
            alarms.append(AlarmView("alien_address", f"{alien.mac} answers for {address}"))
    return alarms


def _ordered(node: Node, now_us: int) -> list[AlarmView]:
    """What operators have ordered and must not forget."""
    spec, alarms = node.spec, []
    if is_paused(node, now_us):
        left_us = node.paused_until_us - now_us
        end = (
            "until `haclusterctl resume`"
            if node.paused_until_us == FAR
            else f"{span(left_us)} left"
        )
        text = f"paused by {node.paused_by}: nothing moves by itself ({end})"
        alarms.append(AlarmView("paused", text))
        for n, peer in enumerate(node.peers):
            if n != spec.me and peer.alive and not peer.flags & Flag.PAUSED:
                text = f"{spec.nodes[n].id} has not heard of the pause and may take over"
                alarms.append(AlarmView("pause_unknown", text))
    for mark in node.marks:
        if not mark.cleared:
            text = f"{spec.nodes[mark.node].id} is marked dead by {mark.by}: it has no vote"
            alarms.append(AlarmView("marked_dead", text))
    return alarms


def _id(node: Node) -> str:
    return node.spec.nodes[node.spec.me].id
