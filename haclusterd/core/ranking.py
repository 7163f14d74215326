"""Who would take over what: one total order of the slaves that every node computes alike.

A pure function of what the heartbeats say (EG16, EG20): nodes that have heard the same beats
come to the same order, and its hash travels in the beat so that a lasting difference is noticed.
"""

from __future__ import annotations

import zlib

import msgspec

from haclusterd.core.model import (
    ClusterSpec,
    Flag,
    LastResort,
    NodeIndex,
    ServiceEntry,
    ServiceIndex,
    State,
)

ABSENT = Flag.STARTING | Flag.MAINTENANCE | Flag.LEAVING | Flag.MARKED
TAKEN = (State.CLAIMING, State.ACQUIRING, State.OWNED)
IMPAIRED_HEALTH = 50  # below it a node comes after all others that could, whatever its priority


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What the ranking knows of one node: its newest beat, or its own state for oneself."""

    alive: bool
    flags: int
    health: int
    load: int
    calls: int
    services: tuple[ServiceEntry, ...]


class Ranking(msgspec.Struct, frozen=True):
    """`slaves` in order (rank 0 first); `successors` by service; `hash` over both, 32 bits."""

    slaves: tuple[NodeIndex, ...]
    successors: tuple[tuple[NodeIndex, ...], ...]
    hash: int


def service_order(spec: ClusterSpec) -> list[ServiceIndex]:
    """Services by importance: higher `priority` first, then name (DESIGN 2.5, EG23)."""
    return sorted(
        range(len(spec.services)), key=lambda k: (-spec.services[k].priority, spec.services[k].name)
    )


def _merit(spec: ClusterSpec, facts: tuple[Facts, ...], n: NodeIndex) -> tuple[object, ...]:
    """Smaller is better. Health counts in steps of ten so that noise does not reorder.

    Who is impaired is still a candidate: where all have lost the same, they rank as ever (ML9).
    """
    f = facts[n]
    node = spec.nodes[n]
    return (f.health < IMPAIRED_HEALTH, -node.priority, -(f.health // 10), f.load, node.id)


def _candidates(spec: ClusterSpec, facts: tuple[Facts, ...]) -> list[NodeIndex]:
    present = [
        n
        for n, f in enumerate(facts)
        if f.alive and not spec.nodes[n].witness and not f.flags & ABSENT and f.services
    ]
    return sorted(present, key=lambda n: _merit(spec, facts, n))


def rank(spec: ClusterSpec, facts: tuple[Facts, ...], lost: frozenset[ServiceIndex]) -> Ranking:
    """The order of the slaves and, per service, who would take it over now.

    `lost` are the services without a live owner. They are assigned jointly: the k-th ready slave
    takes the k-th of them (DESIGN 2.5); what is left goes, if `last_resort` allows, to nodes that
    own services already, the least loaded first and only within their capacity. For a service
    that is not lost the answer is the order that would hold if it were lost next.
    """
    nodes = _candidates(spec, facts)
    busy = {n for n in nodes if any(e.state in TAKEN for e in facts[n].services)}
    slaves = [n for n in nodes if n not in busy and any(e.ready for e in facts[n].services)]
    taken: set[NodeIndex] = set(busy)
    successors: list[tuple[NodeIndex, ...]] = [()] * len(spec.services)
    order = service_order(spec)
    added = dict.fromkeys(nodes, 0)
    for k in [k for k in order if k in lost] + [k for k in order if k not in lost]:
        line = _line(spec, facts, nodes, taken, k, added)
        successors[k] = tuple(line)
        if k in lost and line:
            taken.add(line[0])
            added[line[0]] += calls_of(facts, k)
    text = repr((slaves, successors)).encode()
    return Ranking(tuple(slaves), tuple(successors), zlib.crc32(text))


def _line(
    spec: ClusterSpec,
    facts: tuple[Facts, ...],
    nodes: list[NodeIndex],
    taken: set[NodeIndex],
    k: ServiceIndex,
    added: dict[NodeIndex, int],
) -> list[NodeIndex]:
    """Candidates for service `k`: its lapsed owner, free slaves in order, then busy nodes.

    A slave too small for the service's calls comes last: some of the calls are more than none.
    """
    lapsed: list[NodeIndex] = []
    free: list[NodeIndex] = []
    occupied: list[NodeIndex] = []
    small: list[NodeIndex] = []
    for n in nodes:
        entry = facts[n].services[k]
        if entry.state in (State.LAPSED, State.RECLAIMING):
            lapsed.append(n)
        elif entry.state in (State.ACQUIRING, State.OWNED, State.RELEASING) or not entry.ready:
            continue
        elif n not in taken:
            (free if _fits(spec, facts, n, k, added[n]) else small).append(n)
        elif _fits(spec, facts, n, k, added[n]):
            occupied.append(n)
    if spec.last_resort is LastResort.NONE:
        occupied = []
    occupied.sort(
        key=lambda n: (
            facts[n].health < IMPAIRED_HEALTH,
            facts[n].load,
            facts[n].calls + added[n],
            spec.nodes[n].id,
        )
    )
    return lapsed + free + occupied + small


def calls_of(facts: tuple[Facts, ...], k: ServiceIndex) -> int:
    """How many calls a service has, by the word of whoever knows most of them."""
    return max((f.services[k].calls for f in facts if f.services), default=0)


def _fits(
    spec: ClusterSpec, facts: tuple[Facts, ...], n: NodeIndex, k: ServiceIndex, added: int
) -> bool:
    return facts[n].calls + added + calls_of(facts, k) <= spec.nodes[n].capacity


def why(spec: ClusterSpec, facts: tuple[Facts, ...]) -> list[str]:
    """One line per node: its place in the order, or why it has none (E4, `rank --why`)."""
    lines = []
    nodes = _candidates(spec, facts)
    for n, f in enumerate(facts):
        name = spec.nodes[n].id
        if spec.nodes[n].witness:
            lines.append(f"{name}: votes only (witness)")
        elif not f.alive:
            lines.append(f"{name}: not heard both ways")
        elif f.flags & ABSENT:
            reasons = [x.name.lower() for x in Flag if x & f.flags & ABSENT and x.name]
            lines.append(f"{name}: {', '.join(reasons)}")
        else:
            ready = [spec.services[k].name for k, e in enumerate(f.services) if e.ready]
            owned = [spec.services[k].name for k, e in enumerate(f.services) if e.state in TAKEN]
            impaired = " (impaired)" if f.health < IMPAIRED_HEALTH else ""
            lines.append(
                f"{name}: place {nodes.index(n) if n in nodes else '-'} by priority "
                f"{spec.nodes[n].priority}, health {f.health}{impaired}, load {f.load}; "
                f"owns {', '.join(owned) or 'nothing'}; could take {', '.join(ready) or 'nothing'}"
            )
    return lines
