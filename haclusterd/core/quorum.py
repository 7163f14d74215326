"""Who votes, and how many votes it takes, once nodes that an operator marked dead are left out.

Two nodes that act on different sets of marks still share a voter, as long as every marked node is
dead: each needs more than half of its own voters, all of them alive, and no set of its own voters
is smaller than that of the living (docs/design.md, Marked dead).
"""

from __future__ import annotations

from haclusterd.core.model import NodeIndex, Quorum
from haclusterd.core.state import Node


def needed(node: Node) -> int:
    """Votes, one's own included, that make a lease or a win."""
    if not node.unvoting or node.spec.quorum is Quorum.AVAILABILITY:
        return node.spec.needed
    return voters(node) // 2 + 1


def voters(node: Node) -> int:
    """How many nodes count."""
    return len(node.spec.nodes) - len(node.unvoting)


def votes(node: Node, n: NodeIndex) -> bool:
    """Whether the word of node `n` counts."""
    return n not in node.unvoting


def granted(node: Node, mask: int) -> int:
    """How many of the nodes in a bit mask count."""
    for n in node.unvoting:
        mask &= ~(1 << n)
    return mask.bit_count()
