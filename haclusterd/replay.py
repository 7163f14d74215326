"""Which datagrams of a peer were seen before: windows by incarnation and link.

Kept beside the opened keys of each incarnation, because both live and end with it.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

REPLAY_WINDOW = 256  # beats by which one link may reorder
CANDIDATES_MAX = 4  # incarnations of a peer that are not (yet) proved current

_WINDOW_MASK = (1 << REPLAY_WINDOW) - 1


class Window(msgspec.Struct):
    """Which seqs one link has brought: `seen` bit i stands for `newest - i`."""

    newest: int = -1
    seen: int = 0

    def has(self, seq: int) -> bool:
        age = self.newest - seq
        return age >= 0 and (age >= REPLAY_WINDOW or bool(self.seen >> age & 1))

    def add(self, seq: int) -> None:
        ahead = seq - self.newest
        if ahead > 0:
            # A leap can be 2**64 wide; shifting by more than the window only costs memory.
            moved = self.seen << ahead & _WINDOW_MASK if ahead < REPLAY_WINDOW else 0
            self.newest, self.seen = seq, moved | 1
        else:
            self.seen |= 1 << -ahead


class Incarnation:
    """One boot of one peer: its opened keys by key id, its window by link."""

    __slots__ = ("ciphers", "windows")

    def __init__(self, links: int) -> None:
        self.ciphers: dict[int, AESGCM] = {}
        self.windows = tuple(Window() for _ in range(links))


class PeerWindows:
    """The incarnations of one peer: the current one, and a few others with their windows."""

    __slots__ = ("candidates", "current", "current_number")

    def __init__(self) -> None:
        self.current_number = -1
        self.current: Incarnation | None = None
        self.candidates: OrderedDict[int, Incarnation] = OrderedDict()

    def find(self, number: int) -> Incarnation | None:
        if number == self.current_number:
            return self.current
        return self.candidates.get(number)

    def add_candidate(self, number: int, links: int) -> Incarnation:
        """Another incarnation that was heard; the one not heard for longest is forgotten."""
        found = Incarnation(links)
        self.remember(number, found)
        return found

    def remember(self, number: int, incarnation: Incarnation) -> None:
        """Keep it among the few others."""
        if len(self.candidates) >= CANDIDATES_MAX:
            self.candidates.popitem(last=False)
        self.candidates[number] = incarnation
