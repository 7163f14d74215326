"""What two holders of an address come to, held against what the fence in use admits to.

The kernel's fence admits to nothing. The fallback without nf_tables has a bound, which `status`
shows (`admitted_ms`), and leaves it at that for an IPv6 socket: that may speak again when it is
thawed, until heart or its watchdog has had its first turn.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from haclusterd.lab.holders import Span, overlaps

THAW_MS = 50.0  # heart's first turn on a busy machine
_BOUND = re.compile(r"(\d+) ms \(overlap_bound_ms\)")

Pair = tuple[Span, Span]


@dataclass(frozen=True)
class Overlap:
    """Times in ms: `end_ms` and `thaw_ms` 0 where nobody spoke beside another one.

    `end_ms` counts from the fault, `thaw_ms` from the thaw: when two of them last spoke at once.
    `beyond`: (speaking, intruding) that the fence in use does not admit to.
    """

    end_ms: float
    longest_ms: float  # that two of them spoke at once
    thaw_ms: float
    beyond: tuple[Pair, ...]


def admitted_ms(status: Mapping[str, Any] | None) -> int:
    """The bound in the alarms of `status --json`; 0 where there is none."""
    alarms = status["alarms"] if status else []
    return max((int(ms) for a in alarms for ms in _BOUND.findall(a["text"])), default=0)


def judge_overlap(spans: Sequence[Span], fault_ns: int, thawed_ns: int, bound_ms: int) -> Overlap:
    """`thawed_ns`: when the frozen were let go on, 0 if none were."""
    held: list[Pair] = []
    thawed: list[Pair] = []
    for pair in overlaps(list(spans)):
        late = thawed_ns and max(span.first_ns for span in pair) >= thawed_ns
        (thawed if late else held).append(pair)
    beyond = [pair for pair in held if _until_ms(pair, fault_ns) > bound_ms]
    beyond += [pair for pair in thawed if not (bound_ms and _thawing(pair, thawed_ns))]
    return Overlap(
        end_ms=max((_until_ms(pair, fault_ns) for pair in held), default=0.0),
        longest_ms=max((_together_ms(pair) for pair in held), default=0.0),
        thaw_ms=max((_until_ms(pair, thawed_ns) for pair in thawed), default=0.0),
        beyond=tuple(beyond),
    )


def told(pair: Pair, names: Mapping[bytes, str], fault_ns: int) -> str:
    """One line for people; `names`: MAC -> node."""
    one, other = pair

    def who(span: Span) -> str:
        name = names.get(span.mac, span.mac.hex(":"))
        first_ms, last_ms = (span.first_ns - fault_ns) / 1e6, (span.last_ns - fault_ns) / 1e6
        return f"{name} from {first_ms:.1f} to {last_ms:.1f} ms"

    return f"{ipaddress.ip_address(one.address)}: {who(other)}, while {who(one)}"


def _until_ms(pair: Pair, since_ns: int) -> float:
    """When the two last spoke at once; never 0, also where that was before `since_ns`."""
    return max((min(span.last_ns for span in pair) - since_ns) / 1e6, 0.1)


def _together_ms(pair: Pair) -> float:
    one, other = pair
    return (min(one.last_ns, other.last_ns) - max(one.first_ns, other.first_ns)) / 1e6


def _thawing(pair: Pair, thawed_ns: int) -> bool:
    return len(pair[0].address) == 16 and _until_ms(pair, thawed_ns) <= THAW_MS
