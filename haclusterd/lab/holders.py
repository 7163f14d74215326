"""Who held an address when: from frames seen on the wire to the most holders at once.

A node *speaks for* an address when a frame of its MAC answers ARP/ND for it or is sent from it. Its
speaking is cut into *spans*: from a frame to the last one before `QUIET_NS` of silence (the prober
makes a holder speak every millisecond). Two nodes hold an address *at once* if a frame of one lies
inside a span of the other, more than `PASSING_NS` from both its ends: frames that were on their way
when the address moved do not count, an owner that speaks after its successor has spoken does.
"""

from __future__ import annotations

from dataclasses import dataclass

QUIET_NS = 20_000_000
PASSING_NS = 2_000_000
SPANS_MAX = 100_000  # per observation; far more than any run can honestly need


@dataclass
class Span:
    """`mac` spoke for `address` from `first_ns` to `last_ns` (BOOTTIME), `frames` times."""

    address: bytes
    mac: bytes
    first_ns: int
    last_ns: int
    frames: int = 1


class Speakers:
    """Collects spans as frames come in."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._open: dict[tuple[bytes, bytes], Span] = {}

    def seen(self, address: bytes, mac: bytes, at_ns: int) -> None:
        key = (address, mac)
        span = self._open.get(key)
        if span is not None and at_ns - span.last_ns < QUIET_NS:
            span.last_ns = at_ns
            span.frames += 1
        elif len(self.spans) < SPANS_MAX:
            self._open[key] = span = Span(address, mac, at_ns, at_ns)
            self.spans.append(span)
        else:
            raise OverflowError("more changes of speaker than can be recorded")

    def forget(self) -> None:
        self.spans.clear()
        self._open.clear()


def holders_max(spans: list[Span]) -> int:
    """The most MACs that held one address at once; 0 if nobody spoke."""
    by_address: dict[bytes, list[Span]] = {}
    for span in spans:
        by_address.setdefault(span.address, []).append(span)
    return max((_most_at_once(group) for group in by_address.values()), default=0)


def overlaps(spans: list[Span]) -> list[tuple[Span, Span]]:
    """Pairs (speaking, intruding) that held one address at once."""
    return [
        (one, other)
        for one in spans
        for other in spans
        if one.address == other.address
        and one.mac != other.mac
        and any(_inside(at_ns, one) for at_ns in (other.first_ns, other.last_ns))
    ]


def _most_at_once(spans: list[Span]) -> int:
    most = 1
    for speaking in spans:
        for at_ns in (speaking.first_ns, speaking.last_ns):
            others = {s.mac for s in spans if s.mac != speaking.mac and _inside(at_ns, s)}
            most = max(most, 1 + len(others))
    return most


def _inside(at_ns: int, span: Span) -> bool:
    return span.first_ns + PASSING_NS < at_ns < span.last_ns - PASSING_NS
