"""An order before it is in force: given to a copy, which is written before anybody hears of it."""

from __future__ import annotations

from collections.abc import Callable

from haclusterd.agent.clock import wall_s
from haclusterd.core.agreed import Agreed
from haclusterd.core.model import FOR_GOOD_US, ClusterSpec

Give = Callable[[Agreed, int], None]  # gives an order, at that time


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
