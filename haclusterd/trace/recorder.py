"""The ring: every input of the core with its time, and a running hash of what the core asked for.

Kept by heart in memory only, as msgpack, because encoding an input costs a few microseconds while
thousands of live objects would cost the garbage collector milliseconds. The ring is a row of
segments; each begins with a checkpoint, the whole `Node`, so that the oldest can be dropped and
the rest still be replayed.
"""

from __future__ import annotations

import contextlib
import zlib
from collections import deque
from collections.abc import Sequence

import msgspec

from haclusterd.core.actions import Action
from haclusterd.core.inputs import Input
from haclusterd.core.state import Node

KEEP_US = 60_000_000  # a step may be dropped once it is this old
SEGMENT_US = 5_000_000
RING_BYTES_MAX = 8 << 20  # and sooner, if the ring holds more
BATCH = 128  # steps: a quarter of a second, 0.3 ms to encode
BROKE = -1  # instead of the hash: the core raised, and the recording ends

_UNFIT = (OverflowError, TypeError, ValueError)  # what msgpack says of what it cannot carry
_encoder = msgspec.msgpack.Encoder()
_encode, _encode_into = _encoder.encode, _encoder.encode_into


class Chapter:
    """A segment of the ring: the state when it began, then `count` steps."""

    def __init__(self, node: Node, at_us: int, hash_before: int) -> None:
        self.head = b"\x94" + _encode(at_us) + _encode(hash_before) + _encode(node)
        self.began_us = at_us
        self.steps = bytearray()
        self.count = 0

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self.head) + len(self.steps)


class Recorder:
    """One per loop. `note` is called after every step, and has to cost next to nothing."""

    def __init__(
        self,
        node: Node,
        at_us: int,
        *,
        keep_us: int = KEEP_US,
        segment_us: int = SEGMENT_US,
        bytes_max: int = RING_BYTES_MAX,
    ) -> None:
        self._node = node
        self._keep_us, self._segment_us, self._bytes_max = keep_us, segment_us, bytes_max
        self._chapters: deque[Chapter] = deque()
        self._waiting: list[tuple[Input, int, Sequence[Action]]] = []
        self._hash = 0
        self._at_us = at_us
        self.fault = ""  # why nothing is recorded any more
        self._begin(at_us)

    def note(self, event: Input, at_us: int, actions: Sequence[Action]) -> None:
        """Keep one step: `event` went in at `at_us`, `actions` came out.

        They are values that nobody changes, so that encoding may wait for a batch: a hundred in a
        row cost a few microseconds each, one at a time with cold caches five times that.
        """
        if self.fault:
            return
        self._waiting.append((event, at_us, actions))
        if len(self._waiting) >= BATCH or at_us >= self._until_us:
            full = self._encode_waiting() and len(self._steps) >= self._bytes_max // 8
            if full or at_us >= self._until_us:
                self._begin(at_us)

    def _encode_waiting(self) -> bool:
        """False where one of them ended the recording."""
        waiting, self._waiting = self._waiting, []
        for event, at_us, actions in waiting:
            try:
                if actions:
                    self._hash = zlib.crc32(_encode(actions), self._hash)
                self._append(event, at_us, self._hash)
            except _UNFIT as error:
                self._stop(event, error)
                return False
        return True

    def _stop(self, value: Input | Node, error: Exception) -> None:
        """What msgpack cannot carry ends the recording, never the heart."""
        self.fault = f"recording has stopped: {type(value).__name__}: {error}"
        self._chapters.clear()

    def broke(self, event: Input, at_us: int) -> None:
        """Keep the step in which the core raised: the last one."""
        self._encode_waiting()
        with contextlib.suppress(*_UNFIT):
            self._append(event, at_us, BROKE)

    def _append(self, event: Input, at_us: int, found: int) -> None:
        size = len(self._steps)
        try:
            _encode_into((at_us - self._at_us, event, found), self._steps, -1)
        except _UNFIT:
            del self._steps[size:]  # half of a step would make all of them unreadable
            raise
        self._at_us = at_us
        self._chapter.count += 1

    def _begin(self, at_us: int) -> None:
        """A new segment; the oldest go as far as time and bytes demand."""
        if self.fault:
            return
        try:
            self._chapter = Chapter(self._node, at_us, self._hash)
        except _UNFIT as error:
            self._stop(self._node, error)
            return
        self._steps = self._chapter.steps
        self._at_us = at_us
        self._until_us = at_us + self._segment_us
        chapters = self._chapters
        chapters.append(self._chapter)
        size = sum(chapter.size for chapter in chapters)
        while len(chapters) > 1 and (
            size > self._bytes_max - self._bytes_max // 8
            or chapters[1].began_us < at_us - self._keep_us
        ):
            size -= chapters.popleft().size

    @property
    def size(self) -> int:
        """Bytes that the ring holds."""
        self._encode_waiting()
        return sum(chapter.size for chapter in self._chapters)

    def body(self, at_us: int, whole: bool = True) -> list[bytes | bytearray]:
        """The recording as pieces of one msgpack document; they do not change any more.

        Not `whole`: only the present state, no steps. Empty after a `fault`.
        """
        self._encode_waiting()
        before = list(self._chapters)
        if not self.fault:
            self._begin(at_us)
        if self.fault:
            return _document(())
        return _document(before if whole else [self._chapter])

    def last_words(self) -> list[bytes | bytearray]:
        """The recording after `broke`: no new checkpoint of a state that nobody can trust."""
        self._encode_waiting()
        return _document(list(self._chapters))


def _document(chapters: Sequence[Chapter]) -> list[bytes | bytearray]:
    pieces: list[bytes | bytearray] = [_array(len(chapters))]
    for chapter in chapters:
        # A segment without steps is the newest and will grow: its buffer stays here.
        steps = chapter.steps if chapter.count else b""
        pieces += [chapter.head, _array(chapter.count), steps]
    return pieces


def _array(count: int) -> bytes:
    """The head of a msgpack array of `count` items."""
    return b"\xdd" + count.to_bytes(4, "big")
