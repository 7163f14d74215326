"""Commands of a transcript that concern the cluster as a whole: what its operators order.

pause n0 [5000ms] | resume n0          (told to n0; the agents pass it on within 400 ms)
mark-dead n2 n0 | unmark n2 n0         (n2, told to n0; refused where n2 is heard)
expect paused n0 n1 | expect paused nobody | expect marked n2 | expect marked nobody
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haclusterd.core.model import FOR_GOOD_US
from haclusterd.core.state import is_paused

if TYPE_CHECKING:
    from tests.scenarios.player import Player


def pause(player: Player, words: list[str]) -> None:
    world = player.cluster_world
    left_us = int(words[1].removesuffix("ms")) * 1000 if len(words) > 1 else FOR_GOOD_US
    world.operators.pause(player.host(words[0]), world.now, left_us)


def resume(player: Player, words: list[str]) -> None:
    world = player.cluster_world
    world.operators.pause(player.host(words[0]), world.now, 0)


def mark_dead(player: Player, words: list[str]) -> None:
    world = player.cluster_world
    if not world.operators.mark(player.host(words[1]), world.now, words[0]):
        raise ValueError(f"{words[0]} is heard")


def unmark(player: Player, words: list[str]) -> None:
    world, host = player.cluster_world, player.host(words[1])
    world.operators.agreed[host.me].order_mark(words[0], "an operator", dead=False)
    world.operators.tell(host, world.now)


def expect_paused(player: Player, words: list[str]) -> bool:
    world = player.cluster_world
    paused = [
        f"n{h.me}"
        for h in world.hosts
        if h.alive and h.node and is_paused(h.node, h.local(world.now))
    ]
    return paused == [word for word in words if word != "nobody"]


def expect_marked(player: Player, words: list[str]) -> bool:
    """The same nodes in the eyes of all that live."""
    wanted = {int(word[1:]) for word in words if word != "nobody"}
    nodes = [h.node for h in player.cluster_world.hosts if h.alive and h.node]
    return all(node.marked == wanted for node in nodes)
