"""Node-hours without a fault: how often does a service move, or its owner fence, for nothing?

`python -m tests.sim.calm --hours H` plays H node-hours of clusters at rest on links that lose and
delay beats, with the production core and wire, and counts the takeovers: none of them has a cause.
`--grid` finds what a preset bears: one row per loss, one column per jitter, for instance on one
link: `--grid --preset lan --links 1 --hours 0.4`.

Beside the count it measures how near a takeover was: the longest time for which a node that could
take over had not heard the owner both ways, and the shortest rest of an owner's lease.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import random
import sys
import time

from haclusterd.core.actions import Decided, KillFreeswitch
from haclusterd.core.state import owns
from tests.sim import words
from tests.sim.dramas import calm, owners_of
from tests.sim.swarm import LAN, WAN
from tests.sim.world import World

PRESETS = {"lan": LAN, "wan": WAN}
CLOCK_PPM = 9_000
WORLD_MINUTES = 20
SETTLED_BEATS = 120  # the cold start is over
LOSSES = (0.0, 0.1, 0.2, 0.3)
JITTERS_MS = (10.0, 15.0, 20.0, 30.0, 40.0, 60.0)


@dataclasses.dataclass(frozen=True)
class Weather:
    """What a world is like. `loss` and `jitter_ms` (mean of an exponential) are per beat."""

    preset: str
    loss: float
    jitter_ms: float
    nodes: int = 3
    services: int = 2
    links: int = 3
    through_wire: bool = True


@dataclasses.dataclass
class Tally:
    """What some node-hours came to. `moved`: services won by another node; `fenced`: leases that
    ran out, of which most are reclaimed within a beat; times in ms."""

    node_hours: float = 0.0
    moved: int = 0
    fenced: int = 0
    violations: int = 0
    silent_ms: int = 0
    lease_left_ms: int = 10**9
    cpu_s: float = 0.0
    seeds: tuple[int, ...] = ()  # worlds in which something moved

    def add(self, other: Tally) -> None:
        self.node_hours += other.node_hours
        self.moved += other.moved
        self.fenced += other.fenced
        self.violations += other.violations
        self.silent_ms = max(self.silent_ms, other.silent_ms)
        self.lease_left_ms = min(self.lease_left_ms, other.lease_left_ms)
        self.cpu_s += other.cpu_s
        self.seeds += other.seeds


def play(job: tuple[Weather, int, float]) -> Tally:
    """One world: weather, seed, minutes."""
    weather, seed, minutes = job
    began = time.process_time()
    world = _at_rest(weather, seed)
    tally = Tally(node_hours=weather.nodes * minutes / 60)

    def hear(_host: int, what: Decided | KillFreeswitch) -> None:
        if isinstance(what, Decided):
            tally.moved += what.row == "T201"
            tally.fenced += what.row == "T401"

    world.tell = hear
    world.at(world.now, lambda t, _: _look(t, world, tally), None)
    world.play_until(world.now + int(minutes * 60_000_000))
    tally.violations = len(world.checkers.violations)
    tally.cpu_s = time.process_time() - began
    if tally.moved or tally.violations:
        tally.seeds = (seed,)
    return tally


def _at_rest(weather: Weather, seed: int) -> World:
    rng = random.Random(seed)
    quiet = calm(weather.nodes, weather.services, weather.links, PRESETS[weather.preset])
    swarm = dataclasses.replace(
        quiet,
        through_wire=weather.through_wire,
        rates_ppm=tuple(rng.choice((-CLOCK_PPM, 0, CLOCK_PPM)) for _ in range(weather.nodes)),
    )
    world = World(seed, swarm)
    for host in world.hosts:
        world.at(rng.randrange(40 * swarm.timing.heartbeat_us), world.boot, host)
    world.play_until(SETTLED_BEATS * swarm.timing.heartbeat_us)
    owners = [owners_of(world, k) for k in range(weather.services)]
    if [len(found) for found in owners] != [1] * weather.services:
        raise RuntimeError(f"seed {seed}: no owner after the cold start: {owners}")
    bad = dataclasses.replace(swarm, loss=weather.loss, delay_mean_us=int(weather.jitter_ms * 1000))
    world.network.swarm = bad
    return world


def _look(t: int, world: World, tally: Tally) -> None:
    """Once a beat: how near is a takeover?"""
    for host in world.hosts:
        node = host.node
        if node is None:
            continue
        now_us = host.local(t)
        for service in node.services:
            if owns(service):
                left_ms = (service.lease_until_us - now_us) // 1000
                tally.lease_left_ms = min(tally.lease_left_ms, left_ms)
            else:
                tally.silent_ms = max(tally.silent_ms, (now_us - service.silence_us) // 1000)
    every_us = world.swarm.timing.heartbeat_us
    world.at(t + every_us, lambda at, _: _look(at, world, tally), None)


def play_hours(pool: multiprocessing.pool.Pool, weather: Weather, hours: float, seed: int) -> Tally:
    """`hours` node-hours from `seed` on, in worlds of 20 minutes."""
    worlds = max(1, round(hours * 60 / (weather.nodes * WORLD_MINUTES)))
    minutes = min(WORLD_MINUTES, hours * 60 / weather.nodes)
    total = Tally()
    jobs = [(weather, seed + i, minutes) for i in range(worlds)]
    for tally in pool.imap_unordered(play, jobs, chunksize=1):
        total.add(tally)
    return total


def grid(pool: multiprocessing.pool.Pool, plain: Weather, hours: float) -> None:
    """Services moved / leases that ran out, per node-hour."""
    print("loss \\ jitter " + "".join(f"{ms:>14g} ms" for ms in JITTERS_MS))
    for loss in LOSSES:
        cells = []
        for jitter_ms in JITTERS_MS:
            weather = dataclasses.replace(plain, loss=loss, jitter_ms=jitter_ms)
            tally = play_hours(pool, weather, hours, seed=0)
            per = tally.node_hours
            cells.append(f"{tally.moved / per:>8.3g} / {tally.fenced / per:<6.3g}")
        print(f"{loss * 100:>10g} %  " + "".join(cells), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.calm", description=__doc__)
    parser.add_argument("--hours", type=words.span, default=100.0, help="node-hours (of each cell)")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="wan")
    parser.add_argument("--loss", type=words.share, default=0.2)
    parser.add_argument("--jitter-ms", type=words.jitter, default=50.0)
    parser.add_argument("--nodes", type=words.count, default=3)
    parser.add_argument("--services", type=words.count, default=2)
    parser.add_argument("--links", type=words.count, default=3)
    parser.add_argument("--no-wire", action="store_true", help="beats are not sealed: faster")
    parser.add_argument("--seed", type=words.seed, default=0, help="the first of the seeds")
    parser.add_argument("--jobs", type=words.count, default=multiprocessing.cpu_count())
    parser.add_argument("--grid", action="store_true", help="many weathers, --hours of each")
    options = parser.parse_args()
    weather = Weather(
        options.preset,
        options.loss,
        options.jitter_ms,
        options.nodes,
        options.services,
        options.links,
        not options.no_wire,
    )
    with multiprocessing.Pool(options.jobs) as pool:
        if options.grid:
            grid(pool, weather, options.hours)
            return 0
        tally = play_hours(pool, weather, options.hours, options.seed)
    print(
        f"node-hours={tally.node_hours:.0f} takeovers={tally.moved} leases_run_out={tally.fenced} "
        f"violations={tally.violations} longest_silence={tally.silent_ms} ms "
        f"shortest_lease={tally.lease_left_ms} ms cpu={tally.cpu_s / 60:.1f} min "
        f"({tally.node_hours * 60 / max(tally.cpu_s, 1e-9):.0f} node-hours per CPU-minute)"
    )
    for seed in sorted(tally.seeds)[:20]:
        print(f"seed {seed}: something moved")
    return 1 if tally.moved or tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
