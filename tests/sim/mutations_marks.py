"""Mutations of the rules about nodes marked dead (core.marks, core.quorum): see `drills`."""

from __future__ import annotations

import msgspec

from haclusterd.core import detector, marks, moves, node, owner, speech, state, voter
from haclusterd.core.actions import Action
from haclusterd.core.agreed import Agreed
from haclusterd.core.model import Beat, Flag
from haclusterd.core.state import FAR, NEVER, Node
from tests.sim.mutations import patch


def who_is_back_is_not_asked() -> None:
    """Who is marked dead and heard again counts for every majority."""

    def leave_out(node: Node, marked: frozenset[int], now_us: int) -> None:
        node.left_out = node.unvoting

    patch(detector, "leave_out", leave_out)


def deaf_is_silent() -> None:
    """While an owner by marks stands still nobody is silent: here it counts without them at once
    when it thaws."""
    true = detector.forget_all

    def forget_all(node: Node, now_us: int) -> None:
        true(node, now_us)
        node.thawed_us = NEVER

    patch(detector, "forget_all", forget_all)


def one_way_is_not_waited_for() -> None:
    """An owner by marks is waited for by all who hear it one way only."""
    true = voter.hear_entries

    def hear_entries(
        node: Node, beat: Beat, news: bool, two_way: bool, now_us: int, out: list[Action]
    ) -> voter.Answer:
        if not state.holding_down(node, now_us):
            beat = msgspec.structs.replace(beat, flags=beat.flags & ~Flag.BY_MARKS)
        return true(node, beat, news, two_way, now_us, out)

    patch(voter, "hear_entries", hear_entries)


def thawed_and_voting() -> None:
    """Who stood still so long that it may have been left out by marks begins its hold-down anew."""
    for rule in ("are_known", "are_about"):
        patch(marks, rule, lambda node: False)


def waiting_is_no_echo() -> None:
    """Who is back, and waits for the owner's silence in its hold-down, carries its lease."""
    patch(owner, "_waits_since_us", lambda node, beat, now_us: NEVER)


def cleared_without_echo() -> None:
    """An owner clears a mark only once it has that node's echo in hand."""
    true = marks._stands_by

    def stands_by(node: Node, n: int, now_us: int) -> bool:
        kept, node.sent_us = (
            node.sent_us,
            {entry.lease_seq: now_us for entry in node.peers[n].services},
        )
        answer = true(node, n, now_us)
        node.sent_us = kept
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


def said_once_in_force() -> None:
    """An owner that has marked somebody says so from then on, not only once it counts by it."""
    true = state.flags

    def flags(n: Node, now_us: int) -> int:
        return true(n, now_us) if n.unvoting else true(n, now_us) & ~Flag.BY_MARKS

    patch(speech, "flags", flags)


def unmet_has_marked_nobody() -> None:
    """Whoever has not been met since the start may have marked this node while it was down."""
    true = marks.are_about

    def are_about(n: Node) -> bool:
        met_us = [peer.met_us for peer in n.peers]
        for peer in n.peers:
            peer.met_us = max(peer.met_us, 0)
        answer = true(n)
        for peer, us in zip(n.peers, met_us, strict=True):
            peer.met_us = us
        return answer

    patch(marks, "are_about", are_about)


def listened_in_pieces() -> None:
    """Who stands still in its hold-down has not listened."""
    patch(node, "listens_until_us", lambda n: NEVER)


def listened_for_dead() -> None:
    """Who stood still in its hold-down, and has not met who may count by marks, listens for all of
    one."""
    true = node._stood_still

    def stood_still(n: Node, gap_us: int, now_us: int) -> None:
        listens_us, began = n.roll.listens_us, now_us - gap_us < state.listens_until_us(n)
        true(n, gap_us, now_us)
        if began:
            n.roll.listens_us = max(listens_us, now_us + n.spec.timing.dead_us)
            n.roll.thawed = False

    patch(node, "_stood_still", stood_still)


def heard_between_pieces() -> None:
    """Who stood still in pieces need not have been heard between them."""

    def may_be_left_out(n: Node, now_us: int) -> bool:
        return now_us - n.ran_us >= n.spec.timing.dead_us

    patch(marks, "may_be_left_out", may_be_left_out)


def alone_for_a_lease() -> None:
    """A lease without who has just started ends before that one votes."""
    for module in (owner, moves):
        patch(module, "alone_until_us", lambda n, now_us: FAR)


def wins_for_a_lease() -> None:
    """What is won without who has just started ends before that one votes, as what is renewed."""
    patch(moves, "alone_until_us", lambda n, now_us: FAR)


def strangers_unguarded() -> None:
    """An owner that needs no vote is waited for in an incarnation that was not met, too."""
    patch(voter, "hear_stranger", lambda n, beat, now_us: None)


def unmet_is_silent() -> None:
    """A beat of an incarnation that was not met is a sign of life."""
    patch(detector, "_notice", lambda n, beat, now_us: None)


def marks_forgotten() -> None:
    """Who has once heard that somebody counts by marks does not forget it."""
    true = marks.are_known

    def are_known(n: Node) -> bool:
        heard, n.marks_heard = n.marks_heard, any(p.flags & Flag.BY_MARKS for p in n.peers)
        answer = true(n)
        n.marks_heard = heard
        return answer

    patch(marks, "are_known", are_known)


def one_vote_and_unguarded() -> None:
    """Where one vote is enough, an owner that was heard in the hold-down is waited for."""
    true = voter.hear_entries

    def hear_entries(
        node: Node, beat: Beat, news: bool, two_way: bool, now_us: int, out: list[Action]
    ) -> voter.Answer:
        guards = [(s.guard, s.guard_us) for s in node.services]
        answer = true(node, beat, news, two_way, now_us, out)
        if not beat.flags & Flag.BY_MARKS:
            for service, (guard, guard_us) in zip(node.services, guards, strict=True):
                service.guard, service.guard_us = guard, guard_us
        return answer

    patch(voter, "hear_entries", hear_entries)


def marks_outlive_the_boot() -> None:
    """Who was marked dead is not marked any more on a host that has restarted."""
    patch(Agreed, "forget_dead", lambda self: [])
