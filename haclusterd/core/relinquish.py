"""B19: when no slave is left, a master that can be spared hands its services over and becomes one.

Only where the configuration says so. One node at most steps down, the same in everybody's eyes,
after things were at rest for `relinquish_us` with that very node as the choice; ten times as long
while a node lives that owns nothing, for it may become a slave yet; and the same node not again
for ten times as long. Nothing here ever moves a service back.
"""

from __future__ import annotations

import msgspec

from haclusterd.core.actions import Action, Decided, Relinquish
from haclusterd.core.model import ClusterSpec, Flag, NodeIndex, ServiceIndex, State
from haclusterd.core.ranking import ABSENT, Facts, calls_of
from haclusterd.core.standing import facts, odd_config
from haclusterd.core.state import NEVER, Node, is_paused

LONG = 10  # times `relinquish_us`
_COMING = ABSENT | Flag.SYNCING  # who is that may be a slave again without anybody's sacrifice


class Sacrifice(msgspec.Struct, frozen=True):
    """`node` can be spared: `moves` says to whom each of its services goes."""

    node: NodeIndex
    moves: tuple[tuple[ServiceIndex, NodeIndex], ...]


def consider(node: Node, now_us: int, out: list[Action]) -> None:
    """Step down if it is this node that has been spare for long enough."""
    patience_us = node.spec.relinquish_us
    if not patience_us:
        return
    words = () if _is_busy(node, now_us) else facts(node, now_us)
    found = spare(node.spec, words) if words else None
    chosen = found.node if found is not None else -1
    if chosen != node.spare_node:
        node.spare_node, node.spare_since_us = chosen, now_us
    if found is None or chosen != node.spec.me:
        return
    waited_us = patience_us * (LONG if _has_idle_node(node.spec, words) else 1)
    if now_us - node.spare_since_us < waited_us:
        return
    if now_us - node.relinquished_us < LONG * patience_us:
        return
    node.relinquished_us = node.spare_since_us = now_us
    ids = [n.id for n in node.spec.nodes]
    for k, to in found.moves:
        name, calls = node.spec.services[k].name, node.services[k].calls
        text = (
            f"{ids[chosen]} relinquishes {name} with {calls} calls to {ids[to]}: no slave is left"
        )
        out.append(Decided(now_us, "M27", text, k))
        out.append(Relinquish(k, to))


def _is_busy(node: Node, now_us: int) -> bool:
    """Not at rest: something is unserved, on its way, about to return, or not agreed upon."""
    if node.slaves or not node.majority or is_paused(node, now_us) or odd_config(node):
        return True
    if node.rank_differs_us != NEVER or node.marked:
        return True
    return any(
        service.claim is not None or service.state not in (State.STANDBY, State.OWNED)
        for service in node.services
    )


def _has_idle_node(spec: ClusterSpec, words: tuple[Facts, ...]) -> bool:
    return any(
        f.alive
        and not spec.nodes[n].witness
        and all(entry.state != State.OWNED for entry in f.services)
        for n, f in enumerate(words)
    )


def spare(spec: ClusterSpec, words: tuple[Facts, ...]) -> Sacrifice | None:
    """The one master that steps down, if one can: by lowest priority, then last in the file.

    The order does not look at calls, which change all the time and look different from each node.
    """
    living = [n for n, f in enumerate(words) if f.alive and not spec.nodes[n].witness]
    owners = {
        k: [n for n in living if words[n].services and words[n].services[k].state == State.OWNED]
        for k in range(len(spec.services))
    }
    if any(len(found) != 1 for found in owners.values()):
        return None
    if any(words[n].flags & _COMING for n in living):
        return None
    masters = sorted({found[0] for found in owners.values()})
    for n in sorted(masters, key=lambda n: (spec.nodes[n].priority, -n)):
        own = [k for k, found in owners.items() if found[0] == n]
        moves = _moves(spec, words, own, [m for m in masters if m != n])
        if moves is not None and all(entry.ready for entry in words[n].services):
            return Sacrifice(n, moves)
    return None


def _moves(
    spec: ClusterSpec, words: tuple[Facts, ...], own: list[ServiceIndex], masters: list[NodeIndex]
) -> tuple[tuple[ServiceIndex, NodeIndex], ...] | None:
    """Who takes each of these services, within everybody's capacity; None if one finds nobody."""
    added = dict.fromkeys(masters, 0)
    moves = []
    for k in own:
        calls = calls_of(words, k)
        fits = [
            n
            for n in masters
            if words[n].services[k].ready
            and words[n].calls + added[n] + calls <= spec.nodes[n].capacity
        ]
        if not fits:
            return None
        to = min(fits, key=lambda n: (words[n].load, words[n].calls + added[n], spec.nodes[n].id))
        added[to] += calls
        moves.append((k, to))
    return tuple(moves)
