"""Which version of the wire a node seals: the newest that everybody in earshot opens.

Nodes are upgraded one by one. A beat says with `READS_2` that its sender opens version 2, whatever
it seals itself; while anybody without that word was heard lately, version 1 goes out. Heard is
enough: a node that opens version 1 only is deaf to version 2 and could never be two-way.

A later set of voters than the first cannot be said in version 1. Such nodes speak version 2 only.
"""

from __future__ import annotations

from haclusterd.core.actions import Action, Decided, Speak
from haclusterd.core.model import Beat, Flag
from haclusterd.core.state import NEVER, Node, holding_down

OLDEST, NEWEST = 1, 2
_READS_2 = int(Flag.READS_2)
_SILENT_TIMES = 20  # `dead_us` without a word in version 1 alone, before version 2 is tried


def hear(node: Node, beat: Beat, now_us: int, out: list[Action]) -> None:
    """Somebody who opens no more than version 1: speak so that it hears, from this moment on."""
    if beat.flags & _READS_2:
        return
    node.plain_us = now_us
    if node.dialect != OLDEST and node.spec.revision == 1:
        _speak(node, OLDEST, now_us, out)


def settle(node: Node, now_us: int, out: list[Action]) -> None:
    """Version 2 once nobody needs version 1; not before a start had time to hear everybody."""
    if node.dialect == NEWEST:
        return
    silent_us = now_us - max(node.plain_us, node.start_us)
    needless = silent_us > _SILENT_TIMES * node.spec.timing.dead_us and not holding_down(
        node, now_us
    )
    agreed = node.roll.voted and node.plain_us == NEVER  # before this start, when all read it
    if needless or agreed or node.spec.revision > 1:
        _speak(node, NEWEST, now_us, out)


def _speak(node: Node, version: int, now_us: int, out: list[Action]) -> None:
    node.dialect = version
    out.append(Speak(version))
    who = node.spec.nodes[node.spec.me].id
    why = "a node reads no newer one" if version == OLDEST else "everybody in earshot reads it"
    out.append(Decided(now_us, "M37", f"{who} seals version {version} of the wire: {why}"))
