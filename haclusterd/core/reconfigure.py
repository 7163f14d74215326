"""Changing the voters: one node at a time, by a majority of the present set (docs/adr/0009).

Every set has a revision. A node *stages* the next one when an operator has it reload the file: from
then on, and only once that is on disk, it says so in its beats. When a majority of the present
voters has staged the same configuration it is *decided* for good; `dead_us` later each node takes
it up by itself, which is an upgrade of its heart (`Flip`) whose state is put into the new numbers
(`core.adoption`).

Safety rests on two things. Neighbouring sets differ by one node, so a majority of one and a
majority of the next share a voter, and the rules of promises hold between them as within one set.
And who counts by an older set than the neighbour's gets neither echo nor grant from a node that has
gone on (`floor`): to decide n+2 a majority of set n+1 has staged it, each of them refuses set n
from then on, and every majority of set n shares a voter with them. What a node of set n had until
then has run out when set n+2 is taken up.
"""

from __future__ import annotations

from haclusterd.core.actions import Action, Answered, Decided, Flip, InForce
from haclusterd.core.inputs import Overheard, StageRequested
from haclusterd.core.model import Beat, ClusterSpec, Flag
from haclusterd.core.state import FAR, NEVER, Node, Roll, is_departing, listens_until_us

FLIP_AGAIN_US = 2_000_000  # an upgrade that did not come about is tried again
TURNS_US = 60_000_000  # after which a node does not wait for the others any more
_AGENT_UP, _SYNCING, _BY_MARKS = int(Flag.AGENT_UP), int(Flag.SYNCING), int(Flag.BY_MARKS)
STAGED_LONG_US = 60_000_000
# `discovery_us` for which who has started holds down for a later set: one that cannot be taken up
# must not cost its vote for good.
RETURN_TIMES = 10
KIN_MAX = 3


def begin(node: Node, *, proven: bool, kin: tuple[int, ...], hold_down_us: int = 0) -> None:
    """At a start: what is known from the disk, before the first step.

    `hold_down_us` is that of the file this node counted by last: what it granted then may be good
    for longer than the present one waits.
    """
    revision = node.spec.revision
    known = revision if proven else revision - 1
    # Who came with this set does not know the one before; it comes anew with every start.
    blind = revision > 1 and not kin
    node.roll = Roll(
        proven=proven, known=known, kin=kin, blind=blind, returned=True,
        listens_us=node.start_us + hold_down_us,
    )  # fmt: skip
    node.dialect = 2 if revision > 1 else 1
    set_floor(node)


def objections(present: ClusterSpec, wanted: ClusterSpec) -> list[str]:
    """Why `wanted` cannot be the set after `present`; empty if it can. Each names its fix."""
    found = []
    if wanted.revision != present.revision + 1:
        found.append(
            f"cluster.revision is {wanted.revision}, revision {present.revision} is in force here: "
            f"set it to {present.revision + 1}"
        )
    if wanted.name != present.name:
        found.append(f'cluster.name is "{wanted.name}", not "{present.name}": keep the name')
    if wanted.timing != present.timing:
        found.append("preset or [timing] have changed: change them by a restart, and apart")
    if (wanted.quorum, wanted.freeswitch) != (present.quorum, present.freeswitch):
        found.append("quorum or [freeswitch] have changed: change them by a restart, and apart")
    found += _node_objections(present, wanted)
    if _named(present) != _named(wanted):
        found.append("services have changed: change them by a restart of all nodes, and apart")
    return found


def _named(spec: ClusterSpec) -> list[tuple[object, ...]]:
    """Services but for `preferred`, which counts at a cold start only and may name who goes."""
    return [(s.name, s.addresses, s.profiles, s.priority) for s in spec.services]


def _node_objections(present: ClusterSpec, wanted: ClusterSpec) -> list[str]:
    found = []
    before, after = {n.id: n for n in present.nodes}, {n.id: n for n in wanted.nodes}
    added = [i for i in after if i not in before]
    removed = [i for i in before if i not in after]
    if len(added) + len(removed) > 1:
        what = [f"{i} is new" for i in added] + [f"{i} is gone" for i in removed]
        found.append(f"more than one node has changed ({', '.join(what)}): one revision for each")
    for i in before:
        if i not in after:
            continue
        if (before[i].links, before[i].witness) != (after[i].links, after[i].witness):
            found.append(f"node {i}: links or witness have changed: remove it, then add it anew")
    return found


def stage(node: Node, event: StageRequested, now_us: int, out: list[Action]) -> None:
    """An operator's reload, once it is on disk; or what a start found there."""
    reasons = refusals(node, event)
    if reasons:
        out.append(Answered(event.request, False, "; ".join(reasons)))
        return
    roll, wanted = node.roll, event.spec
    if roll.voted and not event.voted:
        # Its word for one file must hold until a set is in force: only that lets it vote anew.
        text = f"{_me(node)} has agreed to revision {roll.staged} and waits for what is in force"
        out.append(Answered(event.request, False, text))
        return
    text = f"{_me(node)} has staged revision {wanted.revision}"
    before = (roll.staged, roll.staged_hash, roll.voted)
    if before == (wanted.revision, wanted.config_hash, event.voted):
        out.append(Answered(event.request, True, text))
        return
    if roll.staged_hash != wanted.config_hash:
        roll.staged_us = now_us
    roll.staged, roll.staged_hash = wanted.revision, wanted.config_hash
    roll.voted, roll.stays = event.voted, wanted.me >= 0
    roll.kin = tuple(dict.fromkeys((wanted.config_hash, *roll.kin)))[:KIN_MAX]
    roll.due_us = FAR
    set_floor(node)
    node.rank_dirty = True
    node.next_beat_us = node.wake_us = now_us
    if event.voted:
        out.append(Decided(now_us, "M31", text))
    out.append(Answered(event.request, True, text))


def refusals(node: Node, event: StageRequested) -> list[str]:
    """Why this node does not stage it; all reasons at once."""
    roll, wanted = node.roll, event.spec
    in_force = (roll.known, roll.known_hash) == (wanted.revision, wanted.config_hash)
    if event.kept or not event.voted or in_force:
        if wanted.revision > node.spec.revision:
            return []  # it is decided, or only to be known: nothing depends on this node's word
        return [f"revision {node.spec.revision} is in force here, not {wanted.revision - 1}"]
    found = objections(node.spec, wanted)
    if roll.voted and (roll.staged, roll.staged_hash) != (wanted.revision, wanted.config_hash):
        found.append(
            f"{_me(node)} has staged another file as revision {roll.staged}: install that one on "
            "the other nodes and reload there, then change it by one more revision"
        )
    if roll.known > node.spec.revision:
        found.append(f"revision {roll.known} is in force elsewhere: install the file of a node "
                     "that has it")  # fmt: skip
    if not roll.proven:
        found.append(f"{_me(node)} does not know yet whether its own revision is in force")
    if node.dialect == 1:
        found.append(deaf(node.plain_us != NEVER))
    dead = [node.spec.nodes[m.node].id for m in node.marks if not m.cleared]
    if dead:
        # Nobody is locked out: what decides is a majority of all voters, which needs no marks.
        found.append(
            f"{', '.join(dead)} is marked dead: `haclusterctl node unmark {dead[0]}` first, with a "
            "majority of all nodes alive; a dead node is removed without a mark"
        )
    return found


def deaf(older: bool) -> str:
    """Version 1 of the wire, which knows no revisions, is sealed still: why, and what to do."""
    if older:
        return "a node was heard in the last seconds that does not know `reload`: upgrade it first"
    return (
        "it is not known yet whether all nodes know `reload`, this one has not listened for long "
        "enough: try again in a few seconds"
    )


def overhear(node: Node, revision: int, config_hash: int, now_us: int, out: list[Action]) -> None:
    """A node of the cluster has this revision in force: that is for good, however old the word."""
    roll = node.roll
    if revision <= roll.known:
        return
    roll.known, roll.known_hash = revision, config_hash
    set_floor(node)
    node.wake_us = now_us


def join(node: Node, beat: Beat, now_us: int, out: list[Action]) -> None:
    """A two-way beat, heard by a node that does not know its own set to be in force.

    Here the word has to be fresh: one that was recorded may be of a set long left behind.
    """
    spec = node.spec
    if (beat.revision, beat.config_hash) != (spec.revision, spec.config_hash):
        return
    node.roll.proven = True
    node.rank_dirty = True
    node.wake_us = now_us
    out.append(InForce(spec.revision))
    text = f"{_me(node)} joins: revision {spec.revision} is in force"
    out.append(Decided(now_us, "M33", text))


def heard_beyond(node: Node, event: Overheard, now_us: int, out: list[Action]) -> None:
    """`overhear` from a beat whose numbers mean nothing here."""
    overhear(node, event.revision, event.config_hash, now_us, out)


def set_floor(node: Node) -> None:
    """From its own set, from what it has agreed to, and from what is in force elsewhere."""
    roll = node.roll
    staged = roll.staged if roll.voted else 0
    # Never lower again: what was refused because of a staged set stays refused.
    roll.floor = max(roll.floor, max(node.spec.revision, staged, roll.known) - 1)


def is_akin(node: Node, config_hash: int) -> bool:
    """One's own configuration, or its neighbour in a change of voters."""
    return config_hash == node.spec.config_hash or config_hash in node.roll.kin


def may_claim(node: Node) -> bool:
    """Not while others have gone on to a set that this node is not about to take up itself."""
    roll = node.roll
    return roll.known <= node.spec.revision or (
        roll.known == node.spec.revision + 1 == roll.staged
        and roll.known_hash == roll.staged_hash
        and roll.stays
    )


def settle_in(node: Node, now_us: int) -> None:
    """With every Tick of who came with this set: it may count by marks once all others count by it,
    and had time to write that down. Before, some may come back by the set before, unheard here."""
    roll = node.roll
    me, revision = node.spec.me, node.spec.revision
    if not all(n == me or (p.alive and p.revision >= revision) for n, p in enumerate(node.peers)):
        roll.whole_us = NEVER
    elif roll.whole_us == NEVER:
        roll.whole_us = now_us
    else:
        roll.blind = now_us - roll.whole_us < node.spec.timing.discovery_us


def judge(node: Node, now_us: int, out: list[Action]) -> None:
    """With every Tick: is the staged set decided, and is it time to take it up?"""
    roll = node.roll
    if now_us < listens_until_us(node):
        return  # who has just come back may stand by nobody yet, and an owner may count without it
    roll.returned = roll.returned and _may_miss_an_owner(node, now_us)
    if not roll.staged:
        return
    if roll.due_us == FAR:
        if not is_decided(node):
            return
        roll.due_us = now_us + wait_us(node)
        roll.decided_us = now_us
        text = f"revision {roll.staged} is decided: {_me(node)} takes it up"
        out.append(Decided(now_us, "M35", text))
    if now_us >= roll.due_us:
        roll.due_us = now_us + FLIP_AGAIN_US
        if not roll.stays:
            out.append(InForce(roll.staged))  # it does not come back by a restart
        out.append(Flip(roll.staged, roll.staged_hash, roll.stays))
    node.wake_us = min(node.wake_us, roll.due_us)


def _may_miss_an_owner(node: Node, now_us: int) -> bool:
    """A later set is in force, and who counts by it may own by marks, unheard here: unless this
    node reads such nodes, and they count by none."""
    waits_us = RETURN_TIMES * node.spec.timing.discovery_us
    if node.roll.known <= node.spec.revision or now_us >= node.start_us + waits_us:
        return False
    later = [p for p in node.peers if p.alive and p.revision > node.spec.revision]
    return not later or any(peer.flags & _BY_MARKS for peer in later)


def whose_turn(node: Node, now_us: int) -> str:
    """Whom this node lets take the new set up first, empty when it is its own turn.

    A new heart has a new agent, which knows no copies of calls yet. So they go one after the other,
    owners last, and each waits until the one before it is in sync; not for ever.
    """
    roll = node.roll
    if roll.decided_us == NEVER or roll.returned or now_us - roll.decided_us >= TURNS_US:
        return ""
    owners = {service.promise.node for service in node.services}
    mine = (node.spec.me in owners, node.spec.me)
    for n, peer in enumerate(node.peers):
        if n == node.spec.me or not peer.alive:
            continue
        renewed = peer.revision >= roll.staged
        whole = peer.flags & (_AGENT_UP | _SYNCING) == _AGENT_UP
        waits = not renewed and peer.staged_hash == roll.staged_hash and (n in owners, n) < mine
        if waits or (renewed and not whole):
            return node.spec.nodes[n].id
    return ""


def wait_us(node: Node) -> int:
    """From the decision to the new set: what older sets gave has run out by then."""
    return node.spec.timing.dead_us


def is_decided(node: Node) -> bool:
    """By somebody's word that has it in force; or by a majority of the present voters."""
    roll = node.roll
    wanted = (roll.staged, roll.staged_hash)
    if (roll.known, roll.known_hash) == wanted:
        return True
    if not roll.voted or not roll.proven or roll.staged != node.spec.revision + 1:
        return False
    votes = 1 + sum(
        1
        for n, peer in enumerate(node.peers)
        if n != node.spec.me and peer.alive and (peer.staged, peer.staged_hash) == wanted
    )
    return votes > len(node.spec.nodes) // 2


def lacking(node: Node) -> list[str]:
    """Who has not staged what this node has, as far as it hears; empty while nothing is staged."""
    roll = node.roll
    if not roll.voted:
        return []
    return [
        node.spec.nodes[n].id
        for n, peer in enumerate(node.peers)
        if n != node.spec.me
        and peer.revision < roll.staged
        and (peer.staged, peer.staged_hash) != (roll.staged, roll.staged_hash)
    ]


def complaint(node: Node, now_us: int) -> str:
    """What an operator has to do for this node or for the others; empty if nothing."""
    roll, me = node.roll, _me(node)
    if not roll.proven:
        return (
            f"{me} knows revision {node.spec.revision} from its file only and waits for a node "
            "that has it in force; if all of the cluster is new, set cluster.revision to 1"
        )
    if not may_claim(node):
        return (
            f"revision {roll.known} is in force elsewhere, {me} has {node.spec.revision} and takes "
            f"nothing over: install the new file on {me} and run `haclusterctl reload` there; if "
            f"that file does not name {me}, {me} is no longer part of the cluster, and that ends it"
        )
    late = lacking(node)
    if late and roll.due_us == FAR and now_us - roll.staged_us > STAGED_LONG_US:
        return (
            f"revision {roll.staged} is staged on {me} for more than a minute; "
            f"`haclusterctl reload` is missing on {', '.join(late)}"
        )
    return ""


def _me(node: Node) -> str:
    return node.spec.nodes[node.spec.me].id


__all__ = [
    "begin",
    "complaint",
    "heard_beyond",
    "is_akin",
    "is_decided",
    "is_departing",
    "join",
    "judge",
    "lacking",
    "may_claim",
    "objections",
    "overhear",
    "refusals",
    "stage",
    "wait_us",
    "whose_turn",
]
