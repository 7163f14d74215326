"""Hands the recording to the agent in small pieces, so that no heartbeat waits for it.

A piece is one message on the socketpair. Only a few go in one turn, none while the agent has not
taken what it was sent before, and an agent that takes nothing for long gets no more of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from haclusterd.core.actions import ToAgent, TracePart
from haclusterd.core.inputs import TraceRequested
from haclusterd.trace.recorder import Recorder

PIECE_BYTES_MAX = 48 * 1024
PIECES_PER_TURN = 4
PAUSE_US = 1_000
PATIENCE_US = 5_000_000
_NOT_DUE = 1 << 62


class Agent(Protocol):
    """What is needed of `agent_link.AgentLink`."""

    @property
    def waiting(self) -> int: ...
    def send(self, message: ToAgent) -> None: ...


class TraceOut:
    """At most one recording at a time is on its way."""

    def __init__(self, agent: Agent, recorder: Recorder) -> None:
        self._agent, self._recorder = agent, recorder
        self._pieces: deque[memoryview] = deque()
        self._request = -1
        self._due_us = _NOT_DUE
        self._moved_us = 0

    def due_us(self) -> int:
        """When `advance` is wanted next."""
        return self._due_us

    def begin(self, message: TraceRequested, now_us: int) -> None:
        """Take the recording as it is now, and start to hand it out."""
        refusal = "heart is handing out a recording already: ask again in a second"
        if not self._pieces:
            body = self._recorder.body(now_us, message.whole)  # first: it may find the fault
            refusal = self._recorder.fault
        if refusal:
            self._agent.send(TracePart(message.request, b"", True, refusal))
            return
        self._pieces = _sliced(body)
        self._request = message.request
        self._due_us = self._moved_us = now_us

    def advance(self, now_us: int) -> None:
        """Send the next few pieces."""
        if now_us < self._due_us:
            return
        for _piece in range(PIECES_PER_TURN):
            if not self._pieces or self._agent.waiting:
                break
            piece = self._pieces.popleft()
            self._agent.send(TracePart(self._request, bytes(piece), not self._pieces))
            self._moved_us = now_us
        if now_us - self._moved_us > PATIENCE_US:
            self._pieces.clear()
        self._due_us = now_us + PAUSE_US if self._pieces else _NOT_DUE

    def drop(self) -> None:
        """The agent that asked has ended: the next one shall not get the rest of it."""
        self._pieces.clear()
        self._due_us = _NOT_DUE


def _sliced(pieces: Sequence[bytes | bytearray]) -> deque[memoryview]:
    """In order, none longer than a piece may be, and the short ones together."""
    found: deque[memoryview] = deque()
    small = bytearray()
    for piece in pieces:
        if len(small) + len(piece) <= PIECE_BYTES_MAX:
            small += piece
            continue
        if small:
            found.append(memoryview(small))
        small = bytearray()
        view = memoryview(piece)
        for at in range(0, len(piece), PIECE_BYTES_MAX):
            found.append(view[at : at + PIECE_BYTES_MAX])
    if small:
        found.append(memoryview(small))
    return found
