"""What a node says: its regular beats, and the answers that a peer is given at once."""

from __future__ import annotations

from collections.abc import Iterable

from haclusterd.core import detector, owner, standing
from haclusterd.core.actions import Action, SendBeat
from haclusterd.core.model import Beat, Echo, State
from haclusterd.core.state import Node, Service, draw, flags

ANSWER_SPACING_US = 250


def beat(node: Node, now_us: int, out: list[Action]) -> None:
    """A regular beat on every link, the fence renewed just before it."""
    owner.insist(node, now_us, out)
    owner.renew_all(node, now_us, out)
    node.number += 1
    seq = detector.remember_send(node, now_us)
    out.append(SendBeat(_compose(node, range(node.spec.links), seq, False, now_us)))
    interval_us = node.spec.timing.heartbeat_us
    if not node.majority and any(_lapsed_just_now(node, s, now_us) for s in node.services):
        interval_us //= 5  # `dead` may be a whole number of beats: be heard before it is over
    jitter_us = interval_us // 10
    node.next_beat_us = now_us + interval_us - jitter_us + draw(node) % (2 * jitter_us + 1)


def _lapsed_just_now(node: Node, service: Service, now_us: int) -> bool:
    fresh = now_us - service.lease_until_us < node.spec.timing.dead_us
    return service.state is State.LAPSED and fresh


def answer(node: Node, link: int, to: int, now_us: int, out: list[Action]) -> None:
    """Echo a beat at once; bounded to four answers per ms and peer, whatever a peer sends."""
    peer = node.peers[to]
    if now_us - peer.replied_us >= ANSWER_SPACING_US:
        peer.replied_us = now_us
        seq = detector.remember_send(node, now_us)
        out.append(SendBeat(_compose(node, (link,), seq, True, now_us), to))


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
