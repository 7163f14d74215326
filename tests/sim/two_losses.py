"""Two masters lost within 10 ms, many times: each slave takes exactly one, nobody takes two (EG25).

`python -m tests.sim.two_losses --runs 1000`: how often that held, and how soon both were served.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from functools import partial

from haclusterd.core.actions import Decided, KillFreeswitch
from haclusterd.core.inputs import FreeswitchExited
from haclusterd.core.state import owns
from tests.sim import words
from tests.sim.dramas import calm
from tests.sim.host import Host
from tests.sim.world import World

MASTERS, SLAVES = 3, 2
LOSSES = ("node", "freeswitch")
GAP_US_MAX = 10_000


@dataclass(frozen=True)
class Result:
    """One run: who took the two services, and when they were served (ms after the first loss)."""

    takers: tuple[int, ...]
    slaves: tuple[int, ...]
    served_ms: tuple[float, ...]
    violations: tuple[str, ...]

    @property
    def good(self) -> bool:
        return self.takers == self.slaves and not self.violations


def lose_two(seed: int) -> Result:
    """A calm cluster of three masters and two slaves; two of the masters go, of two causes."""
    rng = random.Random(seed)
    world = World(seed, calm(MASTERS + SLAVES, MASTERS, 2))
    for host in world.hosts:
        host.rng = random.Random(rng.random())
        world.at(rng.randrange(40_000), _boot, host)
    world.play_until(2_500_000 + rng.randrange(50_000))
    began_us = world.now
    owners = [owners_of(world, k)[0] for k in range(MASTERS)]
    served: dict[int, float] = {}

    def hear(_host: int, what: Decided | KillFreeswitch) -> None:
        if isinstance(what, Decided) and what.row == "T301":
            served.setdefault(what.service, (world.now - began_us) / 1000)

    world.tell = hear
    first, second = rng.sample(range(MASTERS), 2)
    # Half of the pairs are closer than a message on its way.
    gap_us = rng.choice((rng.randrange(300), rng.randrange(GAP_US_MAX)))
    for k, at_us in ((first, began_us), (second, began_us + gap_us)):
        world.at(at_us, partial(_lose, world, rng.choice(LOSSES)), world.hosts[owners[k]])
    world.play_until(began_us + 700_000)
    lost = (first, second)
    return Result(
        tuple(sorted(n for k in lost for n in owners_of(world, k))),
        tuple(n for n in range(MASTERS + SLAVES) if n not in owners),
        tuple(served.get(k, float("inf")) for k in lost),
        tuple(world.checkers.violations),
    )


def _boot(t: int, host: Host) -> None:
    host.boot(t, remember=True)
    host.run(t, host.life)


def _lose(world: World, how: str, t: int, host: Host) -> None:
    if how == "node":
        host.kill(t, power=True)
    else:
        host.give(t, FreeswitchExited("was killed"))


def owners_of(world: World, k: int) -> list[int]:
    return [h.me for h in world.hosts if h.alive and h.node and owns(h.node.services[k])]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.two_losses", description=__doc__)
    parser.add_argument("--runs", type=words.count, default=1000)
    runs = parser.parse_args().runs
    results = [lose_two(seed) for seed in range(runs)]
    bad = [(seed, result) for seed, result in enumerate(results) if not result.good]
    for seed, result in bad[:20]:
        print(f"seed {seed}: {result}")
    served = sorted(ms for result in results for ms in result.served_ms)
    print(
        f"runs={runs} bad={len(bad)} served p50 {served[len(served) // 2]:.1f} ms, "
        f"max {served[-1]:.1f} ms"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
