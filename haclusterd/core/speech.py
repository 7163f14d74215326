"""What a node says: its regular beats, and its answers.

The nodes beat in step: each sends its regular beat when it hears that of the first living node, so
that a round of the whole cluster is over within about a millisecond. Every node then wakes a few
times a round instead of once per datagram, which is most of what a heart costs. An answer to an
owner may wait for the rest of the round (`gather_us`) and serve all owners; all others go at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from haclusterd.core import detector, owner, standing
from haclusterd.core.actions import Action, SendBeat
from haclusterd.core.model import Beat, Echo, LinkIndex, NodeIndex, State
from haclusterd.core.state import FAR, Node, Service, draw, flags

ANSWER_SPACING_US = 250


def beat(node: Node, now_us: int, out: list[Action]) -> None:
    """A regular beat on every link, the fence renewed just before it."""
    owner.insist(node, now_us, out)
    owner.renew_all(node, now_us, out)
    node.number += 1
    seq = detector.remember_send(node, now_us)
    out.append(SendBeat(_compose(node, range(node.spec.links), seq, False, now_us)))
    _forget_answers(node)  # the beat has echoed everybody
    interval_us = node.spec.timing.heartbeat_us
    if not node.majority and any(_lapsed_just_now(node, s, now_us) for s in node.services):
        interval_us //= 5  # `dead` may be a whole number of beats: be heard before it is over
    jitter_us = interval_us // 20
    if not _is_first(node, node.spec.me):
        interval_us += jitter_us  # the first node's beat brings the next one forward
    node.beat_us = now_us
    node.next_beat_us = now_us + interval_us - jitter_us + draw(node) % (2 * jitter_us + 1)


def _is_first(node: Node, n: NodeIndex) -> bool:
    """No living node comes before `n` in the configuration."""
    return not any(node.peers[i].alive or i == node.spec.me for i in range(n))


def keep_step(node: Node, sender: NodeIndex, now_us: int) -> None:
    """The regular beat of `sender` was heard both ways: if it is the first node's, beat with it.

    Never sooner than 3/5 of an interval after one's own, whatever the first node does.
    """
    spacing_us = node.spec.timing.heartbeat_us * 3 // 5
    if sender < node.spec.me and now_us - node.beat_us >= spacing_us and _is_first(node, sender):
        node.next_beat_us = min(node.next_beat_us, now_us)
        node.wake_us = now_us  # its own deadlines would hardly ever come: look at the time, too


def _lapsed_just_now(node: Node, service: Service, now_us: int) -> bool:
    fresh = now_us - service.lease_until_us < node.spec.timing.dead_us
    return service.state is State.LAPSED and fresh


def answer(node: Node, link: LinkIndex, to: NodeIndex, now_us: int, out: list[Action]) -> None:
    """Echo a beat at once; bounded to four answers per ms and peer, whatever a peer sends."""
    peer = node.peers[to]
    if now_us - peer.replied_us >= ANSWER_SPACING_US:
        peer.replied_us = now_us
        peer.answer_on = -1
        seq = detector.remember_send(node, now_us)
        out.append(SendBeat(_compose(node, (link,), seq, True, now_us), (to,)))


def answer_soon(node: Node, link: LinkIndex, to: NodeIndex, now_us: int) -> None:
    """Echo a beat with the answers to the other beats of this round."""
    node.peers[to].answer_on = link
    node.answer_us = min(node.answer_us, now_us + node.spec.timing.gather_us)


def answer_gathered(node: Node, now_us: int, out: list[Action]) -> None:
    """The answers of a round: one ciphertext for each link that owners were heard on."""
    seq = detector.remember_send(node, now_us)
    for link in range(node.spec.links):
        to = tuple(n for n, peer in enumerate(node.peers) if peer.answer_on == link)
        if to:
            out.append(SendBeat(_compose(node, (link,), seq, True, now_us), to))
    _forget_answers(node)


def _forget_answers(node: Node) -> None:
    if node.answer_us != FAR:
        node.answer_us = FAR
        for peer in node.peers:
            peer.answer_on = -1


def _compose(
    node: Node, links: Iterable[int], seq: int, reply: bool, now_us: int
) -> tuple[Beat, ...]:
    """One beat, as it goes out on each of `links`."""
    mine, services = flags(node, now_us), standing.entries(node)
    releases = tuple(s.release for s in node.services if s.release is not None)
    return tuple(
        Beat(
            node.spec.me,
            link,
            node.incarnation,
            seq,
            node.number,
            reply,
            node.spec.config_hash,
            node.rank_hash,
            mine,
            node.health,
            node.load,
            node.calls,
            _echoes(node, link, now_us),
            services,
            releases,
            node.spec.revision if node.roll.proven else 0,
            node.roll.staged if node.roll.voted else 0,
            node.roll.staged_hash if node.roll.voted else 0,
        )
        for link in links
    )


def _echoes(node: Node, link: int, now_us: int) -> tuple[Echo | None, ...]:
    lines = [peer.links[link] for peer in node.peers]
    return tuple(
        Echo(line.incarnation & 0xFFFFFFFF, line.seq, min(now_us - line.heard_us, 2**31))
        if line.incarnation
        else None
        for line in lines
    )
