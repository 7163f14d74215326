"""What a fault came to, as the clients saw it, and the JSON of the contract (DESIGN section 8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from haclusterd.lab.calls import CallVerdict, gaps
from haclusterd.lab.overlap import Overlap


@dataclass
class Outcome:
    """Everything known of one fault; `as_json` is the contract's part of it."""

    fault: str
    preset: str
    victims: dict[str, str]  # service -> node that had it
    owners: dict[str, str]  # service -> node that has it afterwards, empty if nobody
    outage_ms: float
    exit_visible_ms: float | None
    holders: int
    overlap: Overlap  # of the holders
    overlap_bound_ms: int  # until when after the fault the fence in use admits to one
    late_ms: float  # the prober's own worst lateness: an outage of that size means nothing
    verdicts: list[CallVerdict] = field(default_factory=list)  # calls of the services lost
    foreign: list[CallVerdict] = field(default_factory=list)
    stun_ms: float | None = None  # how long a stun really lasted
    spread_ms: float | None = None  # how far apart the faults of several nodes were
    report: dict[str, Any] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    @property
    def moved(self) -> bool:
        return any(self.owners[name] != node for name, node in self.victims.items())

    @property
    def lost(self) -> list[CallVerdict]:
        return [verdict for verdict in self.verdicts if verdict.lost]

    @property
    def rtp_lost(self) -> int:
        """Packets numbered by their sender that never came, of the calls of the services lost."""
        return sum(verdict.rtp_lost for verdict in self.verdicts)

    @property
    def rtp_restarts(self) -> int:
        """How often another sender went on with the media of one of these calls."""
        return sum(verdict.rtp_restarts for verdict in self.verdicts)

    @property
    def touched(self) -> list[CallVerdict]:
        return [verdict for verdict in self.foreign if verdict.touched]

    @property
    def first_reinvite_ms(self) -> float | None:
        found = [v.first_reinvite_ms for v in self.verdicts if v.first_reinvite_ms is not None]
        return min(found, default=None)

    @property
    def problems(self) -> list[str]:
        """Why this run is a failure, in sentences; empty if it is none."""
        found = list(self.complaints)
        found += [f"call {verdict.call_id} was lost: {verdict.lost}" for verdict in self.lost]
        found += [
            f"call {v.call_id} of another service was touched: "
            f"{v.lost or f'{v.reinvites} re-INVITE(s)'}"
            for v in self.touched
        ]
        if self.overlap.beyond:
            found.append(f"{self.holders} nodes held an address at once")
        return found

    def as_json(self) -> dict[str, Any]:
        total, lost = len(self.verdicts), len(self.lost)
        return {
            "fault": self.fault,
            "preset": self.preset,
            "address_outage_ms": round(self.outage_ms, 1),
            "exit_visible_ms": _rounded(self.exit_visible_ms),
            "first_reinvite_ms": _rounded(self.first_reinvite_ms),
            "media_gap_ms": gaps(self.verdicts),
            "calls": {
                "total": total,
                "recovered": total - lost,
                "lost": lost,
                "foreign_touched": len(self.touched),
            },
            "holders_max": self.holders,
            "overlap_ms": round(self.overlap.longest_ms, 1),
            "overlap_end_ms": round(self.overlap.end_ms, 1),
            "overlap_bound_ms": self.overlap_bound_ms,
            "thaw_ms": round(self.overlap.thaw_ms, 1),
            "owner_kept": not self.moved,
            "rtp_lost": self.rtp_lost,
            "rtp_restarts": self.rtp_restarts,
            "stun_ms": _rounded(self.stun_ms),
            "spread_ms": _rounded(self.spread_ms),
            "report": self.report,
        }

    def line(self) -> str:
        """One line for people."""
        moves = ", ".join(
            f"{name} {node} -> {self.owners[name] or 'nobody'}"
            if self.owners[name] != node
            else f"{name} stays on {node}"
            for name, node in self.victims.items()
        )
        words = [f"{self.fault}: {moves}", f"address silent {self.outage_ms:.1f} ms"]
        if self.exit_visible_ms is not None:
            words.append(f"exit visible after {self.exit_visible_ms:.1f} ms")
        if self.stun_ms is not None:
            words.append(f"stunned for {self.stun_ms:.1f} ms")
        if self.spread_ms is not None:
            words.append(f"within {self.spread_ms:.1f} ms")
        if self.verdicts:
            total = len(self.verdicts)
            gap = gaps(self.verdicts)
            words.append(f"{total - len(self.lost)}/{total} calls up")
            words.append(f"media gap p50 {gap['p50']} max {gap['max']} ms")
            words.append(f"{self.rtp_lost} RTP packets lost")
        words.append(f"holders {self.holders}")
        if self.holders > 1:
            words.append(
                f"for {self.overlap.longest_ms:.0f} ms, until {self.overlap.end_ms:.0f} ms,"
                f" bound {self.overlap_bound_ms} ms, {self.overlap.thaw_ms:.1f} ms at the thaw"
            )
        if self.late_ms > 5:
            words.append(f"(disturbed: the prober itself was {self.late_ms:.0f} ms late)")
        return ", ".join(words)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
