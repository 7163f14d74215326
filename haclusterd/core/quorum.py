"""Who votes, and how many votes it takes, once nodes that an operator marked dead are left out.

Two nodes that act on different sets of marks still share a voter, as long as every marked node is
dead: each needs more than half of its own voters, all of them alive, and no set of its own voters
is smaller than that of the living (docs/design.md, Marked dead). So a claim leaves out only who is
silent. Who is heard again may vote in the next moment, by all voters; the owner's lease does not
need it before it stands by the owner.
"""

from __future__ import annotations

from haclusterd.core.model import NodeIndex, Quorum
from haclusterd.core.state import Node


def needed(node: Node) -> int:
    """Votes, one's own included, that make a lease."""
    return _majority_without(node, node.unvoting)


def needed_to_win(node: Node) -> int:
    """Votes, one's own included, that a claim takes."""
    return _majority_without(node, silent(node))


def _majority_without(node: Node, left_out: frozenset[NodeIndex]) -> int:
    if not left_out or node.spec.quorum is Quorum.AVAILABILITY:
        return node.spec.needed
    return (len(node.spec.nodes) - len(left_out)) // 2 + 1


def voters(node: Node) -> int:
    """How many nodes count for a lease."""
    return len(node.spec.nodes) - len(node.unvoting)


def silent(node: Node) -> frozenset[NodeIndex]:
    """Who does not count for a claim: marked dead, and not heard again."""
    if not node.unvoting:
        return node.unvoting
    return frozenset(n for n in node.unvoting if not node.peers[n].alive)


def votes(node: Node, n: NodeIndex) -> bool:
    """Whether the echoes of node `n` carry a lease."""
    return n not in node.unvoting
