"""What operators ordered for the whole cluster, as the agents keep it and pass it on: pure.

Each order has a version, unique and growing; of two words about the same thing the newer wins, so
that all who hear of each other come to agree, in whatever order they do. A version is above all
that its giver knew of and, as far as wall clocks agree, says when it was given: of two orders that
knew nothing of each other the one given last wins. A pause for a time counts down by every node's
own clock, and ends for all with the first.
"""

from __future__ import annotations

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


class AgreedWord(msgspec.Struct, frozen=True):
    """All that one agent knows, for another, and for its disk."""

    pause: PauseWord = PauseWord()
    marks: tuple[MarkWord, ...] = ()


class Agreed:
    """One node's copy. Times are its own BOOTTIME in us."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        self._nodes = {node.id: n for n, node in enumerate(spec.nodes)}
        self._pause = PauseWord()
        self._until_us = 0
        self._marks: dict[str, MarkWord] = {}

    # -- giving orders --

    def order_pause(self, left_us: int, by: str, now_us: int, wall_s: int = 0) -> None:
        """Pause for `left_us`, or (0) resume. `wall_s`: the wall clock, 0 for none."""
        self._set_pause(PauseWord(self._next_version(wall_s), by, left_us), now_us)

    def order_mark(self, node: str, by: str, dead: bool, wall_s: int = 0) -> None:
        """Mark a configured node dead, or take that back."""
        self._marks[node] = MarkWord(node, self._next_version(wall_s), by, dead)

    def _next_version(self, wall_s: int) -> int:
        newest = max([self._pause.version, *(mark.version for mark in self._marks.values())])
        number = max(newest // NODES_MAX + 1, min(wall_s, WALL_S_MAX))
        return number * NODES_MAX + self._spec.me % NODES_MAX

    # -- hearing of them --

    def merge(self, word: AgreedWord, now_us: int) -> bool:
        """Take over what is newer in the word of another; True if anything changed."""
        changed = False
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
        return changed

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
        return AgreedWord(pause, tuple(self._marks[node] for node in sorted(self._marks)))

    def mark_of(self, node: str) -> MarkWord | None:
        """The mark in force on a node."""
        mark = self._marks.get(node)
        return mark if mark is not None and mark.dead else None

    # -- for heart --

    def pause_input(self, request: int, now_us: int) -> PauseOrdered:
        return PauseOrdered(request, self._pause.version, self.left_us(now_us), self._pause.by)

    def marks_input(self, request: int) -> MarksOrdered:
        marks = [mark for mark in self._marks.values() if mark.dead]
        return MarksOrdered(
            request, tuple(Marked(self._nodes[m.node], m.version, m.by) for m in marks)
        )


def _is_sane(version: int, by: str) -> bool:
    return 0 < version <= VERSION_MAX and len(by) <= NAME_MAX
