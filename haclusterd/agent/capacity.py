"""Does the load still fit when nodes are lost, and which node should the next call go to? Pure.

The same order as the core's (`core.ranking`): lost services by importance, each to the first free
slave with room for it, then, if `last_resort` allows, to the least loaded master with room, then to
a slave without enough room. A service's calls are its owner's, shared evenly among its services.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import combinations

from haclusterd.agent.schema import BestNode, CapacityCase, Overload
from haclusterd.core.model import ClusterSpec, LastResort, Quorum
from haclusterd.core.ranking import IMPAIRED_HEALTH, service_order
from haclusterd.core.view import NodeView, View

FAIL_MAX = 3
LOAD_CLASSES = 10
_GONE = ("dead", "left")


def cases(view: View, spec: ClusterSpec, fail: int) -> Iterator[CapacityCase]:
    """What becomes of every set of `fail` nodes that are lost at once, in the file's order."""
    present = [n for n, node in enumerate(view.nodes) if node.role not in _GONE]
    for lost in combinations(present, min(fail, len(present))):
        yield _Case(view, spec, frozenset(lost)).outcome()


def fits(case: CapacityCase) -> bool:
    """Whether everything is served and nobody carries more than it can."""
    return not case.unserved and not case.overloaded


class _Case:
    """One set of losses."""

    def __init__(self, view: View, spec: ClusterSpec, lost: frozenset[int]) -> None:
        self._view, self._spec, self._lost = view, spec, lost
        self._added = dict.fromkeys(range(len(view.nodes)), 0)
        self._taken: set[int] = set()
        ids = [node.id for node in view.nodes]
        self._owner = [ids.index(s.owner) if s.owner in ids else -1 for s in view.services]

    def outcome(self) -> CapacityCase:
        nodes = self._view.nodes
        names = [nodes[n].id for n in sorted(self._lost)]
        affected = [k for k in service_order(self._spec) if self._owner[k] in self._lost]
        if not self._majority():
            every = [service.name for service in self._view.services]
            return CapacityCase(names, {}, every, [], False)
        moves, unserved = {}, []
        for k in affected:
            name = self._view.services[k].name
            target = self._target(k)
            if target is None:
                unserved.append(name)
                continue
            moves[name] = nodes[target].id
            self._taken.add(target)
            self._added[target] += self._calls_of(k)
        overloaded = [
            Overload(node.id, node.calls + self._added[n], node.capacity)
            for n, node in enumerate(nodes)
            if self._added[n] and node.calls + self._added[n] > node.capacity
        ]
        return CapacityCase(names, moves, unserved, overloaded, True)

    def _majority(self) -> bool:
        if self._spec.quorum is Quorum.AVAILABILITY:
            return len(self._lost) < len(self._view.nodes)
        living = sum(
            node.role not in _GONE and n not in self._lost
            for n, node in enumerate(self._view.nodes)
        )
        return 2 * living > len(self._view.nodes)

    def _calls_of(self, k: int) -> int:
        owner = self._view.nodes[self._owner[k]]
        return -(-owner.calls // max(1, len(owner.services)))

    def _target(self, k: int) -> int | None:
        able = [n for n, node in enumerate(self._view.nodes) if self._able(n, node, k)]
        free = sorted(
            (n for n in able if n not in self._taken and self._view.nodes[n].rank >= 0),
            key=lambda n: self._view.nodes[n].rank,
        )
        roomy = [n for n in free if self._room(n, k)]
        if roomy:
            return roomy[0]
        busy = [n for n in able if n not in free and self._room(n, k)]
        if busy and self._spec.last_resort is LastResort.MASTERS:
            return min(busy, key=lambda n: (self._load(n), self._view.nodes[n].id))
        return free[0] if free else None

    def _able(self, n: int, node: NodeView, k: int) -> bool:
        fit = node.role in ("master", "slave") and not self._spec.nodes[n].witness
        return fit and n not in self._lost and k < len(node.ready) and node.ready[k]

    def _room(self, n: int, k: int) -> bool:
        node = self._view.nodes[n]
        return node.calls + self._added[n] + self._calls_of(k) <= node.capacity

    def _load(self, n: int) -> float:
        node = self._view.nodes[n]
        return (node.calls + self._added[n]) / max(1, node.capacity)


def best_nodes(view: View, closed: Container[str] = ()) -> list[BestNode]:
    """Nodes that can take a new call, the best first: by class of load, ties by id (MS3, MS7).

    `closed`: services that take none."""
    addresses = {s.name: [a.partition("/")[0] for a in s.addresses] for s in view.services}
    states = {s.name: s.state for s in view.services}
    found = []
    for node in view.nodes:
        serving = [n for n in node.services if states.get(n) == "owned" and n not in closed]
        if node.role != "master" or not serving or node.calls >= node.capacity:
            continue
        found.append(
            BestNode(
                node=node.id,
                services=serving,
                addresses=[address for name in serving for address in addresses[name]],
                calls=node.calls,
                capacity=node.capacity,
                load_class=LOAD_CLASSES * node.calls // max(1, node.capacity),
                impaired=node.health < IMPAIRED_HEALTH,
            )
        )
    return sorted(found, key=lambda one: (one.impaired, one.load_class, one.node))


def sentence(bad: Sequence[CapacityCase]) -> str:
    """The first of the sets of losses that do not fit, in words."""
    case = bad[0]
    lost = ", ".join(case.lost)
    if not case.majority:
        text = f"without {lost} there is no majority: nothing would be served"
    elif case.unserved:
        text = f"without {lost} nobody could serve {', '.join(case.unserved)}"
    else:
        over = case.overloaded[0]
        text = f"without {lost} {over.node} would carry {over.calls} of {over.capacity} call legs"
    return text + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else "")
