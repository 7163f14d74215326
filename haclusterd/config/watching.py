"""Values of `[[sensor]]`, `[health]` and movers; read by `config.sensors` and `config.movers`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sensor:
    """One `[[sensor]]`. Of the keys that belong to kinds only those of its own are set."""

    name: str
    kind: str
    interval_ms: int
    timeout_ms: int
    fails: int
    passes: int
    weight: int
    required: bool
    nodes: tuple[str, ...]
    warn: int
    critical: int
    path: str
    write: bool
    nic: str
    host: str
    gateway: str
    target: str
    port: int
    event: str
    raise_if: tuple[tuple[str, str], ...]
    clear_if: tuple[tuple[str, str], ...]
    clear_after_s: int
    exec: tuple[str, ...]

    @property
    def notices_ms(self) -> int:
        """How long a fault may last before this sensor has said so."""
        if self.kind == "event":
            return 0
        return self.fails * self.interval_ms + self.timeout_ms


@dataclass(frozen=True, slots=True)
class HealthSection:
    """Section `[health]`. Without `hand_over` health orders the slaves and moves nothing."""

    hand_over: bool = False
    better_by: int = 30
    after_s: int = 30
    every_s: int = 600


@dataclass(frozen=True, slots=True)
class Mover:
    """`mover = "exec"` of one service. Empty commands are not run."""

    service: str
    mover_add: tuple[str, ...]
    mover_remove: tuple[str, ...]
    mover_check: tuple[str, ...]
    mover_dry_run: tuple[str, ...]
    mover_deadline_ms: int
    mover_check_ms: int
