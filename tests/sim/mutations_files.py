"""Mutations of the rules about other files (wire, core.numbering): see `drills`."""

from __future__ import annotations

from haclusterd import wire
from haclusterd.core import numbering, reconfigure
from haclusterd.core.state import Node
from tests.sim.mutations import patch


def read_by_counts() -> None:
    """Shapes: another file is read if it has as many nodes and services."""
    patch(wire, "SHAPE_MASK", 0)


def times_unasked() -> None:
    """Times: another file is read although it has others."""
    patch(wire, "TIMES_MASK", 0)


def neighbours_by_name() -> None:
    """Between two sets of voters a service is its name and its addresses."""
    patch(numbering, "served_by", lambda services: [service.name for service in services])


def held_down_by_the_new_file() -> None:
    """What was granted by the file before may be good for longer than one waits by the new one."""
    true = reconfigure.begin

    def begin(node: Node, *, proven: bool, kin: tuple[int, ...], hold_down_us: int = 0) -> None:
        true(node, proven=proven, kin=kin)

    patch(reconfigure, "begin", begin)
