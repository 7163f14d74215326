"""An order before it is in force: given to a copy, which is written before anybody hears of it."""

from __future__ import annotations

from collections.abc import Callable

from haclusterd.agent.clock import wall_s
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.schema import USAGE
from haclusterd.core.agreed import NAME_MAX, Agreed
from haclusterd.core.model import FOR_GOOD_US, ClusterSpec

Give = Callable[[Agreed, int], None]  # gives an order, at that time


def signed(by: str, place: str = "") -> str:
    """Who gives an order, and on which node. Raises OperatorError."""
    by = by.strip()
    if not by or not by.isprintable():
        raise OperatorError("who orders this must be named, in printable characters", USAGE)
    by = f"{by} on {place}" if place else by
    if len(by) > NAME_MAX:
        raise OperatorError(f"the name is too long: at most {NAME_MAX} characters", USAGE)
    return by


def named(spec: ClusterSpec, node: str) -> None:
    """Another node of the cluster, or OperatorError is raised."""
    known = [n.id for n in spec.nodes]
    if node not in known:
        raise OperatorError(f"there is no node {node}; known: {', '.join(known)}", USAGE)
    if node == known[spec.me]:
        raise OperatorError(f"{node} is alive: it was asked")


def pausing(left_us: int, by: str) -> Give:
    """A pause, or (0) its end."""
    return lambda agreed, now: agreed.order_pause(left_us, by, now, wall_s())


def marking(node: str, by: str, dead: bool) -> Give:
    return lambda agreed, now: agreed.order_mark(node, by, dead, wall_s())


def draining(target: str, left_us: int, by: str, move_us: int = FOR_GOOD_US) -> Give:
    """A drain, or (0) its end."""
    return lambda agreed, now: agreed.order_drain(target, left_us, by, now, move_us, wall_s())


def given(spec: ClusterSpec, agreed: Agreed, give: Give | None, now_us: int) -> Agreed:
    """`agreed` as it will be once the order is given; itself where there is none."""
    if give is None:
        return agreed
    trial = Agreed(spec)
    trial.merge(agreed.word(now_us), now_us)
    give(trial, now_us)
    return trial
