"""Mutations of the rules about nodes marked dead (core.marks, core.quorum): see `drills`."""

from __future__ import annotations

from haclusterd.core import detector, marks, owner, state
from haclusterd.core.model import Flag
from haclusterd.core.state import NEVER, Node
from tests.sim.mutations import patch


def who_is_back_is_not_asked() -> None:
    """Who is marked dead and heard again counts for every majority."""

    def leave_out(node: Node, now_us: int) -> None:
        node.left_out = node.unvoting

    patch(detector, "_leave_out_who_is_silent", leave_out)


def deaf_is_silent() -> None:
    """While an owner by marks stands still nobody is silent: here it counts without them at once
    when it thaws."""
    true = detector.forget_all

    def forget_all(node: Node, now_us: int) -> None:
        true(node, now_us)
        node.thawed_us = NEVER

    patch(detector, "forget_all", forget_all)


def waiting_is_no_echo() -> None:
    """Who is back, and waits for the owner's silence in its hold-down, carries its lease."""
    patch(owner, "_waits_since_us", lambda node, beat, now_us: NEVER)


def cleared_without_echo() -> None:
    """An owner clears a mark only once it has that node's echo in hand."""
    true = marks._stands_by

    def stands_by(node: Node, n: int, now_us: int) -> bool:
        kept = [service.voter_sent_us[n] for service in node.services]
        for service in node.services:
            service.voter_sent_us[n] = now_us
        answer = true(node, n, now_us)
        for service, sent_us in zip(node.services, kept, strict=True):
            service.voter_sent_us[n] = sent_us
        return answer

    patch(marks, "_stands_by", stands_by)


def cleared_while_starting() -> None:
    """A mark stands while that node is in its hold-down, and votes for nobody."""
    true = marks._stands_by

    def stands_by(node: Node, n: int, now_us: int) -> bool:
        peer = node.peers[n]
        flags = peer.flags
        peer.flags &= ~Flag.STARTING
        answer = true(node, n, now_us)
        peer.flags = flags
        return answer

    patch(marks, "_stands_by", stands_by)


def marks_unsaid() -> None:
    """An owner that counts by marks says so, and is waited for by who has heard it."""
    patch(state, "_BY_MARKS", 0)
