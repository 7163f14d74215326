"""Who votes, and how many votes it takes, once nodes that an operator marked dead are left out.

Two nodes that act on different sets of marks still share a voter, as long as every marked node is
dead: each needs more than half of its own voters, all of them alive, and no set of its own voters
is smaller than that of the living (docs/design.md, Marked dead). Who is heard again lives, and
counts: it can have a vote by all voters before its mark is cleared. Grants and echoes need no
filter: who is left out is silent, or in the first `lease_us` of a life, when it gives neither.
"""

from __future__ import annotations

from haclusterd.core.model import Quorum
from haclusterd.core.state import Node


def needed(node: Node) -> int:
    """Votes, one's own included, that make a lease or a win."""
    if not node.left_out or node.spec.quorum is Quorum.AVAILABILITY:
        return node.spec.needed
    return voters(node) // 2 + 1


def voters(node: Node) -> int:
    """How many nodes count."""
    return len(node.spec.nodes) - len(node.left_out)
