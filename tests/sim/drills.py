"""Mutation drills: take one guard away and see that the simulator notices.

`python -m tests.sim.drills` runs every drill in worlds aimed at its guard; exit 0 if each was
caught within `--seeds` seeds, by the invariants it names, in a world that is clean with the guard
in force. `--ordinary` plays the swarm's own worlds instead, which takes long.
The guards of a `Net` stand for the same case: it breaks without all of them, and holds while any
one of them is left. Both are played. `--tell` shows how each was caught: seed, commit, trace.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import time
from functools import partial
from multiprocessing.pool import Pool, ThreadPool

from tests.sim import (
    dramas_changes,
    dramas_files,
    dramas_marks,
    dramas_orders,
    dramas_returns,
    dramas_rules,
    dramas_stunned,
    words,
)
from tests.sim.dramas import DRAMAS, stage
from tests.sim.drills_table import DRILLS as DRILLS
from tests.sim.nets import NETS
from tests.sim.shrink import commit, kind_of, shrink, story
from tests.sim.swarm import LAN, Swarm
from tests.sim.windows import WINDOWS
from tests.sim.world import World

ALL_DRAMAS = {
    **DRAMAS,
    **WINDOWS,
    **dramas_changes.DRAMAS,
    **dramas_files.DRAMAS,
    **dramas_marks.DRAMAS,
    **dramas_orders.DRAMAS,
    **dramas_returns.DRAMAS,
    **dramas_rules.DRAMAS,
    **dramas_stunned.DRAMAS,
}
NET_SEEDS = 60


def aimed_swarm(name: str, broken: bool = False) -> Swarm:
    """Three nodes, one service, a majority, a quick and honest network, and the drill's faults
    each second: nothing but those is drawn. `broken`: what belongs to the mutation, too."""
    drill = DRILLS[name]
    quick = Swarm(
        nodes=3,
        links=1,
        services=1,
        timing=LAN,
        freeswitch=False,
        delay_min_us=100,
        delay_mean_us=500,
        loss=0.0,
        duplicate=0.0,
        replay=0.0,
        through_wire=False,
        rates_ppm=(4000, -4000, 0),
        fault_mean_us=1_000_000,
        boundary=0.0,
        kinds=drill.kinds,
    )
    return dataclasses.replace(quick, **dict(drill.swarm), **dict(drill.broken if broken else ()))


def play(
    name: str, seed: int, minutes: float, aimed: bool = True, broken: bool = False
) -> tuple[list[str], World]:
    """What breaks in one world of a drill (with or without its mutation in force), and that."""
    if aimed and DRILLS[name].drama:
        return act_out(DRILLS[name].drama, seed)
    world = World(seed, aimed_swarm(name, broken) if aimed else None)
    if aimed and not DRILLS[name].calls:
        world.checkers.muted |= {"S4"}
    return world.run(minutes), world


def act_out(drama: str, seed: int) -> tuple[list[str], World]:
    stage.clear()
    violations = ALL_DRAMAS[drama](seed)
    return violations, stage[-1]


def tell(violations: list[str], world: World, minutes: float, drama: str = "") -> str:
    """Seed, commit and the shortest trace of a world that broke; a drama is as short as it is."""
    if not drama:
        return story(shrink(world, minutes), commit())
    lines = [f"drama {drama}, seed {world.seed} at commit {commit()}", *world.history[-80:]]
    return "\n".join([*lines, *(f"VIOLATION {v}" for v in violations)])


@dataclasses.dataclass(frozen=True)
class Job:
    """A drill to play, up to `seeds` worlds of `minutes`."""

    name: str
    seeds: int
    minutes: float = 1.0
    aimed: bool = True
    loud: bool = False  # the trace is wanted


@dataclasses.dataclass(frozen=True)
class Found:
    """What came of a drill; `seed` -1: it was not caught."""

    name: str
    seed: int = -1
    violation: str = ""
    told: str = ""
    spent_s: float = 0.0
    anyway: str = ""  # what breaks in the same world with every guard in force

    @property
    def is_caught(self) -> bool:
        return self.seed >= 0 and not self.anyway


def forks(processes: int = 1) -> Pool:
    """Each job gets a process of its own, forked from this one, which plays with every guard."""
    return multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1)


def hunt(pool: Pool, job: Job) -> Found:
    """Run a drill until it is caught. The very world that caught it has to be clean with every
    guard, or it would have caught anything (`Found.anyway`). `pool`: of `forks`."""
    found: Found = pool.apply(_catch, (job,))
    if found.seed < 0:
        return found
    violations, _ = pool.apply(_with_every_guard, (job, found.seed))
    return dataclasses.replace(found, anyway=violations[0] if violations else "")


def _catch(job: Job) -> Found:
    drill = DRILLS[job.name]
    drill.take_away()  # patches this process, which plays nothing else
    began = time.monotonic()
    for seed in range(job.seeds):
        violations, world = play(job.name, seed, job.minutes, job.aimed, broken=True)
        if violations and (not job.aimed or kind_of(violations) in drill.by.split()):
            spent_s = time.monotonic() - began
            drama = drill.drama if job.aimed else ""
            told = tell(violations, world, job.minutes, drama) if job.loud else ""
            return Found(job.name, seed, violations[0], told, spent_s)
    return Found(job.name, spent_s=time.monotonic() - began)


def _with_every_guard(job: Job, seed: int) -> tuple[list[str], int]:
    violations, world = play(job.name, seed, job.minutes, job.aimed)
    return violations, world.trace


def hunt_net(pool: Pool, name: str, spared: int, seeds: int) -> Found:
    """Take the guards of a net away, but for one of them (`spared`, -1 for none)."""
    found: Found = pool.apply(_break_net, (name, spared, seeds))
    if found.seed < 0:
        return found
    violations, _ = pool.apply(act_out_afar, (NETS[name].drama, found.seed))
    return dataclasses.replace(found, anyway=violations[0] if violations else "")


def act_out_afar(drama: str, seed: int) -> tuple[list[str], int]:
    """`act_out`, for another process."""
    violations, world = act_out(drama, seed)
    return violations, world.trace


def _break_net(name: str, spared: int, seeds: int) -> Found:
    net = NETS[name]
    for i, take_away in enumerate(net.guards):
        if i != spared:
            take_away()
    left = f", with the guard of `{net.guards[spared].__name__}` alone" if spared >= 0 else ""
    began = time.monotonic()
    for seed in range(seeds):
        violations, _ = act_out(net.drama, seed)
        if violations:
            return Found(name + left, seed, violations[0], "", time.monotonic() - began)
    return Found(name + left, spent_s=time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.drills", description=__doc__)
    parser.add_argument("--seeds", type=words.count, default=1000)
    parser.add_argument("--minutes", type=words.span, default=1.0)
    parser.add_argument("--jobs", type=words.count, default=multiprocessing.cpu_count())
    parser.add_argument("--ordinary", action="store_true", help="the swarm's own worlds")
    parser.add_argument("--tell", action="store_true", help="show the trace of what was caught")
    parser.add_argument("--only", choices=list(DRILLS), action="append")
    options = parser.parse_args()
    names = options.only or list(DRILLS)
    jobs = [
        Job(name, options.seeds, options.minutes, not options.ordinary, options.tell)
        for name in names
    ]
    bad = 0
    with forks(options.jobs) as pool, ThreadPool(options.jobs) as threads:
        for found in threads.imap_unordered(partial(hunt, pool), jobs):
            bad += not found.is_caught
            print(_said(found, options.seeds), flush=True)
        nets = {} if options.only or options.ordinary else NETS
        bad += sum(not _holds(pool, threads, name) for name in nets)
    print(f"drills={len(names)} nets={len(nets)} bad={bad}")
    return 1 if bad else 0


def _said(found: Found, seeds: int) -> str:
    if found.seed < 0:
        return f"MISSED {found.name} in {seeds} seeds ({found.spent_s:.0f} s)"
    if found.anyway:
        text = f"UNSOUND {found.name}: with every guard seed {found.seed} breaks"
        return f"{text}: {found.anyway}"
    text = f"caught {found.name} after {found.seed + 1} seeds: {found.violation}"
    return f"{text}\n{found.told}".strip()


def _holds(pool: Pool, threads: ThreadPool, name: str) -> bool:
    """All of a net gone is caught, all but one is not."""
    gone = hunt_net(pool, name, -1, NET_SEEDS)
    broke = f"{gone.violation} {gone.anyway and 'AS WITH ALL OF THEM'}".strip()
    print(f"net {name}: without all its guards {broke or 'NOTHING BREAKS'}", flush=True)
    good = gone.is_caught
    spared = [(name, i, NET_SEEDS) for i in range(len(NETS[name].guards))]
    for found in threads.imap_unordered(lambda job: hunt_net(pool, *job), spared):
        good = good and found.seed < 0
        said = found.violation or f"holds for {NET_SEEDS} seeds"
        print(f"net {found.name}: {said}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
