"""Somebody else who answers for a service address of this node: an alarm, never a decision."""

from __future__ import annotations

from haclusterd.core.actions import Action, Decided
from haclusterd.core.inputs import AlienAnswered
from haclusterd.core.state import NEVER, Alien, Node

ALIENS_KEPT = 64
ALIEN_SAID_EVERY_US = 10_000_000


def answered(node: Node, event: AlienAnswered, now_us: int, out: list[Action]) -> None:
    """Said at most every ten seconds for an address, however many MACs take turns."""
    alien = node.aliens.get(event.address)
    if alien is None:
        if len(node.aliens) >= ALIENS_KEPT:
            return
        alien = node.aliens[event.address] = Alien(event.mac, now_us, NEVER)
    alien.mac, alien.heard_us = event.mac, now_us
    if now_us - alien.said_us >= ALIEN_SAID_EVERY_US:
        alien.said_us = now_us
        me = node.spec.nodes[node.spec.me].id
        text = f"{event.mac} answers for {event.address}, which {me} owns"
        out.append(Decided(now_us, "M13", text, event.service))
