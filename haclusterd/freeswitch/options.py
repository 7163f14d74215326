"""How calls are recovered: the values of section [recovery], as this package needs them."""

from __future__ import annotations

from dataclasses import dataclass, field

from .mends import Mends


@dataclass(frozen=True)
class RecoveryOptions:
    """`urgent_variable` names the channel variable whose digit says what goes first."""

    streams: int = 8
    deadline_ms: int = 3000
    orphan_timeout_ms: int = 10_000
    urgent_variable: str = ""
    end_halves: bool = True
    source: str = "core_db"  # or esl
    profiles: tuple[str, ...] = ()  # of this node, whose media addresses are asked ahead
    mends: Mends = field(default_factory=lambda: Mends(position=False))
