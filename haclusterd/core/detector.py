"""Hearing: which peers and links work both ways, and what of a beat is news.

A beat counts as two-way when it echoes something this node sent within `two_way_us` on the same
link and to the same incarnation (DESIGN 6; BFD's three-way idea). Only that proves freshness: a
replayed or delayed beat cannot have it.
"""

from __future__ import annotations

from haclusterd.core.actions import Action, Decided, PeerCurrent
from haclusterd.core.model import Beat, Flag, NodeIndex
from haclusterd.core.quorum import needed
from haclusterd.core.state import FAR, NEVER, SENT_TIMES_KEPT, Node, Peer, PeerLink

_STARTING, _BY_MARKS = int(Flag.STARTING), int(Flag.BY_MARKS)
LINK_GOOD_BEATS = 5  # two-way beats before a link counts as up again (RELIABILITY 2, NIC flap)
LOW32 = 0xFFFFFFFF


def remember_send(node: Node, now_us: int) -> int:
    """Number a send and keep its time, so that an echo of it can be dated."""
    node.seq += 1
    node.sent_us[node.seq] = now_us
    node.sent_us.pop(node.seq - SENT_TIMES_KEPT, None)
    return node.seq


def hear(node: Node, link: int, beat: Beat, now_us: int, out: list[Action]) -> tuple[bool, bool]:
    """Take note of a beat. Returns (its content is news, it is two-way news).

    The second is true at most once per beat of a peer, by whichever copy was two-way first.
    """
    peer = node.peers[beat.sender]
    line = peer.links[link]
    two_way = _measure(node, line, beat, now_us)
    if beat.incarnation != peer.incarnation:
        if not _meet(node, line, beat, two_way, now_us):
            _notice(node, beat, now_us)
            return False, False
        peer.met_us = now_us
        out.append(PeerCurrent(beat.sender, beat.incarnation))
        node.rank_dirty = True
    elif line.incarnation != beat.incarnation or beat.seq > line.seq:
        _note(line, beat, now_us)
    peer.heard_us = now_us
    if two_way:
        _two_way(node, beat, peer, line, now_us, out)
    news = beat.seq > peer.seq
    if news:
        peer.seq = beat.seq
        _take(node, peer, beat)
    if beat.sender in node.left_out:
        leave_out(node, node.left_out, now_us)
    two_way_news = two_way and beat.seq > peer.two_way_seq
    if two_way_news:
        peer.two_way_seq = beat.seq
    return news, two_way_news


def _measure(node: Node, line: PeerLink, beat: Beat, now_us: int) -> bool:
    echo = beat.echoes[node.spec.me]
    if echo is None or echo.incarnation != node.incarnation & LOW32:
        return False
    sent_us = node.sent_us.get(echo.seq)
    if sent_us is None or now_us - sent_us > node.spec.timing.two_way_us:
        return False
    rtt_us = now_us - sent_us - echo.held_us
    if rtt_us >= 0:
        line.rtt_us = (7 * line.rtt_us + rtt_us) // 8 if line.rtt_us else rtt_us
    return True


def _meet(node: Node, line: PeerLink, beat: Beat, two_way: bool, now_us: int) -> bool:
    """An incarnation that is not the current one: believe it only once it is two-way.

    While the current one is fresh another is not even echoed, so that replayed beats of a dead
    incarnation cannot push the living one out of the echo.
    """
    peer = node.peers[beat.sender]
    if two_way:
        for other in peer.links:
            other.incarnation, other.seq, other.two_way_seq = 0, -1, -1
            other.good, other.number, other.up = 0, 0, False
        peer.incarnation, peer.seq, peer.two_way_seq = beat.incarnation, -1, -1
        _note(line, beat, now_us)
        return True
    if now_us - peer.two_way_us > node.spec.timing.two_way_us:
        _note(line, beat, now_us)
    return False


def _notice(node: Node, beat: Beat, now_us: int) -> None:
    """Not proved fresh, but a sign of life: what waited in a socket here is too old for more."""
    peer = node.peers[beat.sender]
    if peer.coming != beat.incarnation:
        peer.coming, peer.coming_us = beat.incarnation, now_us
    peer.starting = bool(beat.flags & _STARTING)
    peer.noticed_us = now_us
    if beat.flags & _BY_MARKS:
        node.marks_heard = True
    if beat.sender in node.left_out:
        leave_out(node, node.left_out, now_us)


def is_stranger(node: Node, link: int, beat: Beat) -> bool:
    """A start or a thaw, echoed but not proved fresh: an answer at once proves it in one round
    trip, and an owner that was stunned for 120 ms has no more than that (DESIGN 2.4)."""
    peer = node.peers[beat.sender]
    return peer.incarnation != beat.incarnation == peer.links[link].incarnation


def _note(line: PeerLink, beat: Beat, now_us: int) -> None:
    line.incarnation = beat.incarnation
    line.seq = beat.seq
    line.heard_us = now_us
    if not beat.reply:
        missed = beat.number - line.number - 1
        if 0 <= missed < 1000 and line.number:
            line.loss_permille += (1000 * missed // (missed + 1) - line.loss_permille) // 16
        line.number = beat.number


def _two_way(
    node: Node, beat: Beat, peer: Peer, line: PeerLink, now_us: int, out: list[Action]
) -> None:
    line.two_way_us = now_us
    if not line.up:
        line.good += 1
        if line.good >= LINK_GOOD_BEATS:
            line.up = True
            text = f"link {beat.link + 1} to {_id(node, beat.sender)} works both ways"
            out.append(Decided(now_us, "M1", text))
    peer.two_way_us = now_us
    if not node.majority:
        node.wake_us = now_us  # this peer may be the one that was lacking
    if not peer.alive:
        peer.alive, peer.alive_since_us = True, now_us
        node.rank_dirty = True
        out.append(Decided(now_us, "M3", f"{_id(node, beat.sender)} is alive"))


def _take(node: Node, peer: Peer, beat: Beat) -> None:
    """Keep the content of the newest beat; note when the ranking may change with it."""
    if (
        peer.flags != beat.flags
        or peer.config_hash != beat.config_hash
        or peer.health != beat.health
        or peer.load != beat.load
        or peer.calls != beat.calls
        or len(peer.services) != len(beat.services)
    ):
        node.rank_dirty = True
    elif peer.services != beat.services:
        for old, new in zip(peer.services, beat.services, strict=True):
            if old.state != new.state or old.ready != new.ready or old.calls != new.calls:
                node.rank_dirty = True
                break
    peer.flags, peer.health, peer.load, peer.calls = beat.flags, beat.health, beat.load, beat.calls
    peer.starting = bool(beat.flags & _STARTING)
    peer.config_hash, peer.rank_hash = beat.config_hash, beat.rank_hash
    if beat.flags & _BY_MARKS:
        node.marks_heard = True
    peer.services, peer.releases = beat.services, beat.releases
    if peer.staged_hash != beat.staged_hash or peer.revision != beat.revision:
        node.wake_us = node.next_beat_us  # it may have been the one that was lacking
        peer.revision, peer.staged, peer.staged_hash = beat.revision, beat.staged, beat.staged_hash


def survey(node: Node, now_us: int, out: list[Action]) -> None:
    """Links and peers that went silent; whether a majority that can vote is in two-way reach.

    A node in its start hold-down does not vote: a claim that needs it could only fail.
    """
    timing = node.spec.timing
    down_us = timing.suspect_us + timing.heartbeat_us
    if node.unvoting:
        leave_out(node, node.unvoting, now_us)
    reach = 1
    for n, peer in enumerate(node.peers):
        if n == node.spec.me:
            continue
        fresh = now_us - peer.two_way_us <= timing.two_way_us and not peer.flags & _STARTING
        if fresh and n not in node.left_out:
            reach += 1
        for i, line in enumerate(peer.links):
            if line.good and now_us - line.two_way_us > down_us:
                line.good = 0
                if line.up:
                    line.up = False
                    out.append(Decided(now_us, "M2", f"link {i + 1} to {_id(node, n)} is down"))
        if peer.alive and now_us - peer.two_way_us >= timing.dead_us:
            peer.alive = False
            node.rank_dirty = True
            silent_ms = (now_us - peer.two_way_us) // 1000
            text = (
                f"{_id(node, n)} is dead: silent on all {len(peer.links)} links for {silent_ms} ms"
            )
            out.append(Decided(now_us, "M4", text))
    majority = reach >= needed(node)
    if majority and not node.majority:
        node.majority_since_us = now_us
    node.majority = majority


def leave_out(node: Node, marked: frozenset[NodeIndex], now_us: int) -> None:
    """Who of the `marked` is silent. Who is heard again lives, and has to be counted: it will have
    a vote after its hold-down, whatever is known of it here. Not before it has been up for a lease:
    what it gave in an earlier life is void then, and it says what it has heard (owner.hear_votes);
    and no lease without it reaches to the end of its hold-down (alone_until_us).

    Silence is what could have been heard: not the time in which this node stood still. A beat of an
    incarnation that was not met ends it, too (_notice). And it is longer than any after which a
    node that stood still keeps its vote (node._stood_still).
    """
    timing = node.spec.timing
    silent_us = now_us - timing.dead_us - timing.two_way_us
    node.left_out = frozenset(
        n
        for n in marked
        if max(newest_us(node.peers[n]), node.thawed_us) <= silent_us
        or (n in node.left_out and _has_just_started(node.peers[n], now_us - timing.lease_us))
    )


def newest_us(peer: Peer) -> int:
    """When it was last heard, in whichever life."""
    return max(peer.heard_us, peer.noticed_us)


def first_heard_us(peer: Peer) -> int:
    """Since when it is heard in its present life, met or not."""
    if peer.coming == peer.incarnation or peer.noticed_us > peer.heard_us:
        return peer.coming_us
    return peer.met_us


def _has_just_started(peer: Peer, before_us: int) -> bool:
    return peer.starting and first_heard_us(peer) > before_us


def alone_until_us(node: Node, now_us: int) -> int:
    """How far a lease may reach that counts without who is heard, and has just started. That one
    takes part a beat after its `hold_down` at the earliest; of its start this node, unless it
    froze, heard within a lease; and it may hear nothing of what this node says meanwhile."""
    timing = node.spec.timing
    if node.spec.needed == 1:
        return FAR  # nobody is left out of one vote
    spare_us = 3 * (timing.dead_us - timing.lease_us) // 4
    reach_us = timing.lease_us + timing.heartbeat_us + spare_us
    silent_us = now_us - timing.dead_us - timing.two_way_us
    heard = (p for p in (node.peers[n] for n in node.left_out) if newest_us(p) > silent_us)
    return min((first_heard_us(peer) + reach_us for peer in heard), default=FAR)


def forget_all(node: Node, now_us: int) -> None:
    """After a freeze nothing that was heard is fresh any more."""
    node.thawed_us = now_us
    for peer in node.peers:
        peer.two_way_us, peer.alive = NEVER, False
        for line in peer.links:
            line.two_way_us, line.good, line.up = NEVER, 0, False
    node.sent_us.clear()
    node.majority = False


def _id(node: Node, n: NodeIndex) -> str:
    return node.spec.nodes[n].id
