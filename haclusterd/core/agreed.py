"""What operators ordered for the whole cluster, as the agents keep it and pass it on: pure.

Each order has a version, unique and growing; of two words about the same thing the newer wins, so
that all who hear of each other come to agree, in whatever order they do. A version is above all
that its giver knew of and, as far as wall clocks agree, says when it was given: of two orders that
knew nothing of each other the one given last wins. What is for a time counts down by every node's
own clock, and ends for all with the first. That a node is dead holds for this boot of one's own
host: after that others have to say so, or the operator again (docs/design.md, Marked dead).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from haclusterd.core.inputs import Marked, MarksOrdered, PauseOrdered
from haclusterd.core.model import FOR_GOOD_US, ClusterSpec

NODES_MAX = 256  # a version's lowest part tells who gave it
VERSION_MAX = 2**53
WALL_S_MAX = 2**40  # a wall clock gone mad leaves room for later versions
NAME_MAX = 64


class PauseWord(msgspec.Struct, frozen=True):
    """`left_us` as the sender counts: FOR_GOOD_US without an end, 0 for none (any more)."""

    version: int = 0
    by: str = ""
    left_us: int = 0


class MarkWord(msgspec.Struct, frozen=True):
    """The newest order about one node: marked dead, or not (any more)."""

    node: str
    version: int
    by: str
    dead: bool


class DrainWord(msgspec.Struct, frozen=True):
    """The newest order about one target, `service:NAME` or `node:ID`: it gets no new calls.

    Times as in PauseWord. `move_us`: until what a drained node still serves is moved away, calls
    and all; FOR_GOOD_US where nothing is to be moved.
    """

    target: str
    version: int
    by: str
    left_us: int
    move_us: int = FOR_GOOD_US


class AgreedWord(msgspec.Struct, frozen=True):
    """All that one agent knows, for another, and for its disk."""

    pause: PauseWord = PauseWord()
    marks: tuple[MarkWord, ...] = ()
    drains: tuple[DrainWord, ...] = ()
    above: int = 0  # a version that is forgotten here: later orders are newer


class Agreed:
    """One node's copy. Times are its own BOOTTIME in us."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        self._nodes = {node.id: n for n, node in enumerate(spec.nodes)}
        self._pause = PauseWord()
        self._until_us = 0
        self._marks: dict[str, MarkWord] = {}
        self._targets = {*(f"node:{n.id}" for n in spec.nodes),
                         *(f"service:{s.name}" for s in spec.services)}  # fmt: skip
        self._drains: dict[str, tuple[DrainWord, int]] = {}  # with when it was heard
        self._above = 0

    # -- giving orders --

    def order_pause(self, left_us: int, by: str, now_us: int, wall_s: int = 0) -> None:
        """Pause for `left_us`, or (0) resume. `wall_s`: the wall clock, 0 for none."""
        self._set_pause(PauseWord(self._next_version(wall_s), by, left_us), now_us)

    def order_mark(self, node: str, by: str, dead: bool, wall_s: int = 0) -> None:
        """Mark a configured node dead, or take that back."""
        self._marks[node] = MarkWord(node, self._next_version(wall_s), by, dead)

    def order_drain(
        self,
        target: str,
        left_us: int,
        by: str,
        now_us: int,
        move_us: int = FOR_GOOD_US,
        wall_s: int = 0,
    ) -> None:
        """No new calls to a service or node for `left_us`, or (0) new calls again."""
        word = DrainWord(target, self._next_version(wall_s), by, left_us, move_us)
        self._drains[target] = (word, now_us)

    def _next_version(self, wall_s: int) -> int:
        drains = (drain.version for drain, _ in self._drains.values())
        marks = (mark.version for mark in self._marks.values())
        newest = max([self._above, self._pause.version, *marks, *drains])
        number = max(newest // NODES_MAX + 1, min(wall_s, WALL_S_MAX))
        return number * NODES_MAX + self._spec.me % NODES_MAX

    # -- hearing of them --

    def merge(self, word: AgreedWord, now_us: int) -> bool:
        """Take over what is newer in the word of another; True if anything changed."""
        changed = False
        if word.above <= VERSION_MAX:
            self._above = max(self._above, word.above)
        pause = word.pause
        if _is_sane(pause.version, pause.by) and pause.left_us >= 0:
            if pause.version > self._pause.version:
                self._set_pause(pause, now_us)
                changed = True
            elif pause.version == self._pause.version and pause.left_us == 0 < self.left_us(now_us):
                self._until_us = 0  # it is over elsewhere
                changed = True
        for mark in word.marks:
            known = self._marks.get(mark.node)
            newer = known is None or mark.version > known.version
            if newer and mark.node in self._nodes and _is_sane(mark.version, mark.by):
                self._marks[mark.node] = mark
                changed = True
        return any([changed, *(self._hear_drain(drain, now_us) for drain in word.drains)])

    def _hear_drain(self, heard: DrainWord, now_us: int) -> bool:
        sane = _is_sane(heard.version, heard.by) and heard.left_us >= 0 and heard.move_us >= 0
        if not sane or heard.target not in self._targets:
            return False
        known = self.drain_of(heard.target, now_us)
        over = known is not None and heard.version == known.version and heard.left_us == 0
        newest = self._drains[heard.target][0].version if heard.target in self._drains else 0
        if over or heard.version > newest:
            self._drains[heard.target] = (heard, now_us)
            return True
        return False

    def forget_dead(self) -> list[MarkWord]:
        """This host has restarted: nobody is marked dead on a word of before. Returns what is
        forgotten; others, who still have it in force, bring it back."""
        dead = [mark for mark in self._marks.values() if mark.dead]
        for mark in dead:
            del self._marks[mark.node]
        self._above = max([self._above, *(mark.version for mark in dead)])
        return dead

    def _set_pause(self, pause: PauseWord, now_us: int) -> None:
        self._pause = pause
        self._until_us = now_us + min(pause.left_us, FOR_GOOD_US)

    # -- what is known --

    def left_us(self, now_us: int) -> int:
        """How long the pause goes on: 0 for none, FOR_GOOD_US without an end."""
        if self._pause.left_us >= FOR_GOOD_US and self._until_us:
            return FOR_GOOD_US
        return max(0, self._until_us - now_us)

    def word(self, now_us: int) -> AgreedWord:
        """For another agent, or for the disk."""
        pause = msgspec.structs.replace(self._pause, left_us=self.left_us(now_us))
        return AgreedWord(
            pause,
            tuple(self._marks[node] for node in sorted(self._marks)),
            tuple(self._drain_now(target, now_us) for target in sorted(self._drains)),
            self._above,
        )

    def mark_of(self, node: str) -> MarkWord | None:
        """The mark in force on a node."""
        mark = self._marks.get(node)
        return mark if mark is not None and mark.dead else None

    def is_marked(self, node: str, version: int) -> bool:
        """By this very order, and none is newer."""
        mark = self.mark_of(node)
        return mark is not None and mark.version == version

    def unsaid(self, forgotten: Sequence[MarkWord]) -> list[MarkWord]:
        """Those of whose nodes nobody has ordered anything since, nor told an order."""
        return [mark for mark in forgotten if mark.node not in self._marks]

    def is_timed(self, now_us: int) -> bool:
        """Something is in force for a time that runs."""
        lengths = [self.left_us(now_us)]
        lengths += [us for drain in self.drains(now_us) for us in (drain.left_us, drain.move_us)]
        return any(0 < length < FOR_GOOD_US for length in lengths)

    def drain_of(self, target: str, now_us: int) -> DrainWord | None:
        """The drain in force on a target, its times as they stand now."""
        if target not in self._drains:
            return None
        drain = self._drain_now(target, now_us)
        return drain if drain.left_us else None

    def drains(self, now_us: int) -> list[DrainWord]:
        """All drains in force."""
        found = (self.drain_of(target, now_us) for target in sorted(self._drains))
        return [drain for drain in found if drain is not None]

    def _drain_now(self, target: str, now_us: int) -> DrainWord:
        drain, heard_us = self._drains[target]
        gone_us = now_us - heard_us
        return msgspec.structs.replace(
            drain, left_us=_left(drain.left_us, gone_us), move_us=_left(drain.move_us, gone_us)
        )

    # -- for heart --

    def pause_input(self, request: int, now_us: int) -> PauseOrdered:
        return PauseOrdered(request, self._pause.version, self.left_us(now_us), self._pause.by)

    def marks_input(self, request: int) -> MarksOrdered:
        marks = [mark for mark in self._marks.values() if mark.dead]
        return MarksOrdered(
            request, tuple(Marked(self._nodes[m.node], m.version, m.by) for m in marks)
        )


def _left(left_us: int, gone_us: int) -> int:
    return FOR_GOOD_US if left_us >= FOR_GOOD_US else max(0, left_us - gone_us)


def _is_sane(version: int, by: str) -> bool:
    return 0 < version <= VERSION_MAX and len(by) <= NAME_MAX
