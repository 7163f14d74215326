"""Nodes that an operator marked dead: no vote, no silence to wait for, and the way back.

The operator's way out when no majority is left (ML18). A mark takes effect in two steps. At once,
the marked node gets neither echo nor grant from here. After `dead + lease`, when nothing that was
echoed or granted to it or by it before can hold any more, it is left out of every majority for as
long as it is silent (`detector.leave_out`), and what it owned needs no silence. That is safe as
long as the marked node is dead; docs/design.md, Marked dead.
"""

from __future__ import annotations

from haclusterd.core.actions import Action, Answered, Decided
from haclusterd.core.detector import newest_us
from haclusterd.core.inputs import Marked, MarksOrdered
from haclusterd.core.leaving import leave_all
from haclusterd.core.model import Flag, NodeIndex, State
from haclusterd.core.state import FAR, NEVER, Mark, Node, owns

EPOCHS_SKIPPED = 1000  # beyond what a node that is not heard here can have counted to meanwhile
_HOLDERS = (State.ACQUIRING, State.OWNED)
_UNSETTLED = (State.CLAIMING, State.LAPSED, State.RECLAIMING)


def order(node: Node, event: MarksOrdered, now_us: int, out: list[Action]) -> None:
    """Take over the whole list of marks, or refuse it because a node on it is alive."""
    known = {(mark.node, mark.version): mark for mark in node.marks}
    fresh = [
        m
        for m in event.marks
        if 0 <= m.node < len(node.spec.nodes) and (m.node, m.version) not in known
    ]
    refusal = next((r for m in fresh if (r := _refusal(node, m.node, now_us))), "")
    refusal = refusal or (_change_under_way(node) if fresh else "")
    if event.request >= 0 and refusal:
        out.append(Answered(event.request, False, refusal))
        return
    kept = [known[m.node, m.version] for m in event.marks if (m.node, m.version) in known]
    for mark in node.marks:
        if not mark.cleared and all(mark.node != m.node for m in event.marks):
            text = f"{_id(node, mark.node)} is not marked dead any more"
            out.append(Decided(now_us, "M23", text))
    # Who is marked once more had nothing from here since the first word.
    since = {mark.node: mark.in_force_us for mark in node.marks if not mark.cleared}
    due_us = now_us + node.spec.timing.hold_down_us
    node.marks = kept + [
        Mark(m.node, m.version, m.by, min(due_us, since.get(m.node, FAR))) for m in fresh
    ]
    _take_effect(node, now_us)
    for m in fresh:
        _said(node, m, now_us, out)
    if event.request >= 0:
        out.append(Answered(event.request, True, "done"))


def _refusal(node: Node, n: NodeIndex, now_us: int) -> str:
    """Why this node does not believe that `n` is dead; empty if it may be."""
    me = _id(node, node.spec.me)
    if n == node.spec.me:
        return f"{me} is alive: it was asked"
    if not node.roll.proven:
        # It would keep the mark until it joins, and nobody could tell it that it is cleared.
        return (
            f"{me} does not know whether revision {node.spec.revision} is in force, and has no "
            "vote: order it on a node that is part of the cluster"
        )
    if node.roll.blind:
        return (
            f"{me} came with revision {node.spec.revision} and has not heard all others count by "
            "it yet, so it could not hear who comes back by the one before: order it on a node "
            "that was in that one"
        )
    peer = node.peers[n]
    silent_us = now_us - max(peer.heard_us, peer.two_way_us)
    if peer.alive or silent_us < 2 * node.spec.timing.dead_us:
        return f"{_id(node, n)} is heard by {me}: it is not dead; stop it first"
    return ""


def _change_under_way(node: Node) -> str:
    """A change of the voters that can still be decided has to be, first: marks beside it are safe
    only while those who decided it live (docs/design.md). Without a majority of all voters it
    cannot be, and marks are the way out."""
    present = node.spec.revision
    staged = max(node.roll.staged if node.roll.voted else 0, *(p.staged for p in node.peers))
    living = 1 + sum(p.alive for n, p in enumerate(node.peers) if n != node.spec.me)
    if staged <= present or 2 * living <= len(node.spec.nodes):
        return ""
    return (
        f"the nodes change to revision {staged}, and {living} of {len(node.spec.nodes)} are alive, "
        "a majority without any mark: finish it first, `haclusterctl reload` on all of them"
    )


def _said(node: Node, marked: Marked, now_us: int, out: list[Action]) -> None:
    """Epochs go on beyond all that the marked node can have; if that is this node, it yields."""
    for service in node.services:
        service.highest += EPOCHS_SKIPPED
    text = f"{marked.by} has verified that {_id(node, marked.node)} is dead: it has no vote"
    out.append(Decided(now_us, "M21", text))
    if marked.node == node.spec.me:
        leave_all(node, f"this node was marked dead by {marked.by}", now_us, out)


def review(node: Node, now_us: int, out: list[Action]) -> None:
    """Marks come into force; the mark of who stands by its owners again goes."""
    if not node.marks:
        return
    for mark in node.marks:
        if not mark.cleared and _stands_by(node, mark.node, now_us):
            mark.cleared = True
            text = f"{_id(node, mark.node)} is heard as a standby again: its mark is cleared"
            out.append(Decided(now_us, "M23", text))
    _take_effect(node, now_us)


def are_known(node: Node) -> bool:
    """This node has marked somebody, or somebody has said since it started that it counts so."""
    return node.marks_heard or any(not mark.cleared for mark in node.marks)


def are_about(node: Node) -> bool:
    """Or it has not met somebody since then, who may have marked it while it was down."""
    others = (peer for n, peer in enumerate(node.peers) if n != node.spec.me)
    return are_known(node) or any(peer.met_us == NEVER for peer in others)


def may_be_left_out(node: Node, now_us: int) -> bool:
    """This node stood still, and who counts by marks may have heard nothing of it for so long that
    it left this node out: longer than `dead` (detector.leave_out), in one piece or in several, for
    what was sent between two of them need not have been heard. Who was heard until then has to have
    proved that it heard this node."""
    timing = node.spec.timing
    if now_us - node.steady_us >= timing.dead_us:
        return True
    long_us = timing.dead_us - timing.heartbeat_us  # the proof may be `two_way` old, by its clock
    silent_us = node.steady_us - timing.dead_us - timing.two_way_us
    return any(
        peer.flags & Flag.BY_MARKS
        and n not in node.marked
        and newest_us(peer) > silent_us
        and now_us - peer.two_way_us >= long_us
        for n, peer in enumerate(node.peers)
    )


def _take_effect(node: Node, now_us: int) -> None:
    marked = frozenset(mark.node for mark in node.marks if not mark.cleared)
    unvoting = frozenset(
        mark.node
        for mark in node.marks
        if not mark.cleared and now_us >= mark.in_force_us and mark.node != node.spec.me
        # Who cannot read some that may be back leaves nobody out.
        if not node.roll.blind
    )
    if (marked, unvoting) != (node.marked, node.unvoting):
        node.marked, node.unvoting = marked, unvoting
        node.left_out &= unvoting
        if not unvoting:
            node.by_marks_us = FAR
        elif node.by_marks_us == FAR:
            node.by_marks_us = now_us
        node.rank_dirty = True
        node.wake_us = now_us


def _stands_by(node: Node, n: NodeIndex, now_us: int) -> bool:
    """Node `n` is back, and supports whoever owns something now; it may own something itself."""
    peer = node.peers[n]
    timing = node.spec.timing
    if n == node.spec.me or not peer.alive or now_us - peer.two_way_us > timing.two_way_us:
        return False
    if peer.flags & Flag.STARTING or not peer.services:
        return False
    for k, (service, entry) in enumerate(zip(node.services, peer.services, strict=True)):
        if entry.state != State.STANDBY and entry.state not in _HOLDERS:
            return False
        if owns(service):
            # Its vote may be needed from now on: it has to have given it, not only to wait.
            echoed = now_us - node.sent_us.get(entry.lease_seq, NEVER) <= timing.two_way_us
            stands = entry.state == State.STANDBY and entry.promise == service.identity
            if not stands or not echoed:
                return False
        elif service.state in _UNSETTLED:
            return False  # heard, it counts anyway; if it dies again, it should not be needed
        elif any(
            other.alive
            and other.services
            and other.services[k].state in _HOLDERS
            and other.services[k].promise != entry.promise
            for other in node.peers
        ):
            return False
    return True


def _id(node: Node, n: NodeIndex) -> str:
    return node.spec.nodes[n].id
