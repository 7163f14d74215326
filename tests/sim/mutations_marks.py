"""Mutations of the rules about nodes marked dead (core.marks, core.quorum): see `drills`."""

from __future__ import annotations

from haclusterd.core import claimant, detector, marks, owner, quorum, state
from haclusterd.core.actions import Action
from haclusterd.core.model import Flag, State
from haclusterd.core.state import NEVER, Node, Service
from tests.sim.mutations import patch


def who_is_back_is_not_asked() -> None:
    """A claim needs a majority of all who are heard, marked dead or not."""
    patch(quorum, "needed_to_win", quorum.needed)


def marked_echoes_count() -> None:
    """What a marked node echoes carries no lease."""
    true = owner.extend_lease

    def extend(n: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
        patch(quorum, "votes", lambda node, i: True)
        true(n, k, service, now_us, out)

    patch(owner, "extend_lease", extend)


def marked_makes_a_majority() -> None:
    """A marked node in reach does not make a majority."""
    true = detector.survey

    def survey(node: Node, now_us: int, out: list[Action]) -> None:
        needed, unvoting = quorum.needed(node), node.unvoting
        patch(detector, "needed", lambda n: needed)
        node.unvoting = frozenset()
        true(node, now_us, out)
        node.unvoting = unvoting

    patch(detector, "survey", survey)


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


def deaf_thaw() -> None:
    """An owner that leaves nodes out by marks listens after a thaw before it goes on."""

    def listened_us(node: Node, service: Service) -> int:
        return NEVER

    patch(claimant, "_listened_us", listened_us)


def cleared_only_at_rest() -> None:
    """A mark goes where that node stands by what is owned here, whatever else it owns."""
    true = marks._stands_by

    def stands_by(node: Node, n: int, now_us: int) -> bool:
        at_rest = all(entry.state == State.STANDBY for entry in node.peers[n].services)
        return at_rest and true(node, n, now_us)

    patch(marks, "_stands_by", stands_by)
