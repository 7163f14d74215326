"""What a start finds on the disk about the set of voters, given to the core and to the wire.

Which file is in force is `config.revisions`' knowledge, what follows from it is the core's.
"""

from __future__ import annotations

from haclusterd.config import Config, cluster_spec, seen_by
from haclusterd.config.revisions import Start
from haclusterd.core import reconfigure
from haclusterd.core.actions import EndCalls, Recover
from haclusterd.core.adoption import adopt
from haclusterd.core.inputs import StageRequested
from haclusterd.core.model import ClusterSpec
from haclusterd.core.numbering import numbering
from haclusterd.core.state import Node, start
from haclusterd.heart.upgrade import HandOver, unpack_wire
from haclusterd.wire import KeyRing, Wire, wire_state_in

_NOBODYS = -1  # request: nobody waits for the answer


class Voters:
    """The sets of voters around one start of heart."""

    def __init__(self, begun: Start) -> None:
        self.spec = cluster_spec(begun.config)
        self.proven, self._hold_down_us = begun.proven, begun.hold_down_us
        self._previous = self._seen(begun.config, begun.previous)
        self._staged = self._seen(begun.config, begun.staged)
        self._newer = self._seen(begun.config, begun.newer)

    @staticmethod
    def _seen(here: Config, other: Config | None) -> ClusterSpec | None:
        return None if other is None else seen_by(other, here.node.id)

    def node(self, now_us: int, incarnation: int) -> Node:
        """The core's state of a fresh start."""
        node = start(self.spec, now_us, incarnation)
        kin = () if self._previous is None else (self._previous.config_hash,)
        reconfigure.begin(node, proven=self.proven, kin=kin, hold_down_us=self._hold_down_us)
        return node

    def former(self) -> list[tuple[str, ...]]:
        """The links of who was removed by the last change."""
        present = {node.id for node in self.spec.nodes}
        before = () if self._previous is None else self._previous.nodes
        return [node.links for node in before if node.id not in present]

    def wire(self, ring: KeyRing, incarnation: int, version: int) -> Wire:
        """Reads the neighbouring sets, too."""
        wire = Wire(self.spec, ring, incarnation)
        wire.version = version
        for other in (self._previous, self._staged, self._newer):
            if other is not None:
                wire.know(other)
        return wire

    def staged(self) -> list[StageRequested]:
        """For the core, before its first step: what it had agreed to, and what lies on the host."""
        found = []
        if self._staged is not None:
            found.append(StageRequested(_NOBODYS, self._staged, kept=True))
        if self._newer is not None:
            found.append(StageRequested(_NOBODYS, self._newer, voted=False))
        return found

    def taken_over(
        self, state: HandOver, ring: KeyRing, now_us: int
    ) -> tuple[Node, Wire, tuple[Recover | EndCalls, ...], tuple[int, ...]]:
        """What a predecessor handed over, in the numbers of this set of voters: the core's state,
        the wire, what the first agent has to be told, and the services whose addresses are held.
        A service that is not here any more is left out."""
        node, before = state.node, state.node.spec
        memory, orders, held = unpack_wire(state.wire), state.recovering, state.held
        if before.revision == self.spec.revision:
            node.spec = self.spec
        else:
            adopt(node, self.spec, now_us)
            by = numbering(before, self.spec)
            memory = wire_state_in(memory, by, self.spec.links)
            orders = tuple(order for order in map(by.order, orders) if order.service >= 0)
            held = tuple(by.services[k] for k in held if by.services[k] >= 0)
        wire = self.wire(ring, node.incarnation, node.dialect)
        wire.know(before)
        wire.import_state(memory)
        return node, wire, orders, held
