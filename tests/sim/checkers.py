"""The invariants (RELIABILITY 3.5), checked as the world moves: S1, S2, S3 and, at the end, V3."""

from __future__ import annotations

import dataclasses

from haclusterd.core.model import Identity

REPEAT_MAX = 20  # violations kept of one run


@dataclasses.dataclass
class Checkers:
    """Watches one world. Times are true microseconds of the simulation."""

    nodes: int
    services: int
    violations: list[str] = dataclasses.field(default_factory=list)
    emit_until: list[list[int]] = dataclasses.field(default_factory=list)  # [service][node]
    winners: dict[tuple[int, int], Identity] = dataclasses.field(default_factory=dict)
    promised: dict[tuple[int, int, int], Identity] = dataclasses.field(default_factory=dict)
    changes: int = 0
    forgot: int = 0  # nodes that ever lost their promises

    def __post_init__(self) -> None:
        self.emit_until = [[0] * self.nodes for _ in range(self.services)]

    def report(self, t_us: int, text: str) -> None:
        if len(self.violations) < REPEAT_MAX:
            self.violations.append(f"{t_us / 1000:.3f} ms: {text}")

    def may_emit(self, t_us: int, service: int, node: int, until_us: int) -> None:
        """S1: from `t_us` to `until_us` this node can answer for the service, unless told anew."""
        row = self.emit_until[service]
        if until_us > t_us:
            for other, other_until in enumerate(row):
                if other != node and other_until > t_us:
                    overlap_ms = (min(until_us, other_until) - t_us) / 1000
                    both = f"n{node} and n{other} both hold s{service}"
                    self.report(t_us, f"S1: {both} (up to {overlap_ms:.1f} ms)")
        row[node] = until_us

    def won(self, t_us: int, service: int, identity: Identity) -> None:
        """S2: one owner per epoch. A voter that lost its memory may be the one that two majorities
        share: then an epoch can repeat (DESIGN 6, Identity), but never while both hold (S1)."""
        self.changes += 1
        key = (service, identity.epoch)
        before = self.winners.setdefault(key, identity)
        if before != identity and not self.forgot:
            self.report(t_us, f"S2: s{service} epoch {identity.epoch}: {before} and {identity}")
        self.winners[key] = identity

    def promise(self, t_us: int, node: int, service: int, identity: Identity) -> None:
        """S3: a node stands by at most one claimant per epoch while it remembers."""
        key = (node, service, identity.epoch)
        before = self.promised.setdefault(key, identity)
        if before != identity:
            self.report(t_us, f"S3: n{node} promised s{service} to {before} and {identity}")

    def restart(self, node: int, persisted: tuple[Identity, ...]) -> None:
        """Promises made in the last moments before a crash may not have reached the disk."""
        for key in [k for k in self.promised if k[0] == node and k[2] > persisted[k[1]].epoch]:
            self.forgot += 1
            del self.promised[key]

    def forget(self, node: int) -> None:
        """A restart that lost the promises: the hold-down has to make up for it."""
        self.forgot += 1
        for key in [k for k in self.promised if k[0] == node]:
            del self.promised[key]
