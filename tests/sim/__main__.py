"""`python -m tests.sim --seeds A:B --minutes M`: play seeds; exit 1 if an invariant broke.

A failure is made small (`shrink`) and told: seed, commit, world, faults, one line per event.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time

from tests.sim import words
from tests.sim.returns import swarm_of_returns
from tests.sim.shrink import commit, shrink, story
from tests.sim.swarm import swarm_of_changes, swarm_of_marks, swarm_of_versions
from tests.sim.world import World

WORLDS = {
    "changes": swarm_of_changes,
    "marks": swarm_of_marks,
    "returns": swarm_of_returns,
    "versions": swarm_of_versions,
}


def play(job: tuple[int, float, bool, str]) -> tuple[int, str, str, int, float]:
    """One seed: (seed, what broke first, the story, changes of owner, cpu s)."""
    seed, minutes, small, worlds = job
    began = time.process_time()
    world = World(seed, WORLDS[worlds](seed) if worlds else None)
    violations = world.run(minutes)
    cpu_s = time.process_time() - began
    told = ""
    if violations:
        told = story(shrink(world, minutes), commit()) if small else "\n".join(world.history[-60:])
    return seed, violations[0] if violations else "", told, world.checkers.changes, cpu_s


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=words.seeds, default="0:20",
                        help="A:B, from A up to but not B; or one seed")  # fmt: skip
    parser.add_argument("--minutes", type=words.span, default=10.0,
                        help="simulated minutes per seed")  # fmt: skip
    parser.add_argument("--jobs", type=words.count, default=multiprocessing.cpu_count())
    parser.add_argument("--trace", action="store_true", help="print every event (one seed)")
    parser.add_argument("--no-shrink", action="store_true", help="tell failures as they are")
    parser.add_argument("--worlds", choices=sorted(WORLDS), default="",
                        help="what else befalls them, see docs/reliability.md")  # fmt: skip
    options = parser.parse_args()
    seeds = options.seeds
    if options.trace:
        drawn = WORLDS[options.worlds](seeds[0]) if options.worlds else None
        world = World(seeds[0], drawn)
        print(world.swarm)
        violations = world.run(options.minutes)
        print("\n".join([*world.history, *(f"VIOLATION {v}" for v in violations)]))
        return bool(violations)
    broken = changes = 0
    cpu_s = 0.0
    began = time.monotonic()
    with multiprocessing.Pool(options.jobs) as pool:
        jobs = [(seed, options.minutes, not options.no_shrink, options.worlds) for seed in seeds]
        for seed, violation, told, moved, spent_s in pool.imap_unordered(play, jobs):
            cpu_s += spent_s
            changes += moved
            if violation:
                broken += 1
                print(f"seed {seed}: {violation}\n{told}", flush=True)
    minutes = options.minutes * len(seeds)
    wall_s = time.monotonic() - began
    print(f"changes of owner: {changes}; {wall_s:.0f} s wall, {cpu_s:.0f} s of CPU")
    print(
        f"seeds={len(seeds)} minutes={minutes:g} violations={broken} "
        f"speed={minutes * 60 / max(cpu_s, 1e-9):.0f}x"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
