"""What an order does to the majority: said where it would leave services without one.

The votes are counted as `core.quorum` counts them. An order that takes them away is no fault of the
core's: no two owners come of it, only none.
"""

from __future__ import annotations

from haclusterd.core.model import ClusterSpec, Quorum
from haclusterd.core.view import View


def lost_by_change(view: View, present: ClusterSpec, wanted: ClusterSpec) -> list[str]:
    """Why the set `wanted` would be in force without a majority, with the ways out; else empty.

    Whoever is new cannot be heard before that set is in force, so its vote is not counted on.
    """
    gone = {other.node for other in view.revision.others if not other.alive}
    gone |= {node.id for node in view.nodes if node.role == "left"}  # still heard, and stopping
    names = {node.id for node in wanted.nodes}
    living = [n.id for n in present.nodes if n.id in names - gone]
    if len(living) >= wanted.needed:
        return []
    away, new = sorted(gone & names), sorted(names - {node.id for node in present.nodes})
    under_way = any(other.staged for other in view.revision.others)
    remove = "" if under_way or not away else f", or remove {away[0]} first and alone"
    fix = f"Start {' or '.join(away)} first{remove}. " if away else ""
    when = f"Where {new[0]} runs already, or it" if new else "If it"
    return [
        f"revision {wanted.revision} would leave nobody a majority: it takes {wanted.needed} of "
        f"its {len(names)} nodes, and of those in force {len(living)} are heard "
        f"({', '.join(living) or 'none'}). {fix}{when} has to be: `haclusterctl reload "
        "--without-majority`; services end until enough of its nodes run"
    ]


def lost_by_unmarking(view: View | None, node: str) -> str:
    """What `node unmark` of a silent node costs this one, empty if nothing."""
    if view is None or view.policy == Quorum.AVAILABILITY.value or not view.quorate:
        return ""
    counted = min(view.voters + 1, len(view.nodes))
    marked = {mark.node for mark in view.marks if not mark.cleared}
    if node not in marked or view.reachable > counted // 2:
        return ""
    served = [s.name for s in view.services if s.owner == view.node]
    what = f"{', '.join(served)} ends" if served else "nothing can be served"
    return (
        f"; with it {view.node} hears {view.reachable} of {counted} voters, which is no majority: "
        f"{what} here until {counted // 2 + 1} are heard"
    )
