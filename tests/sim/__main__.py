"""`python -m tests.sim --seeds A:B --minutes M`: play seeds; exit 1 if an invariant broke."""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import time

from tests.sim.world import World


def play(job: tuple[int, float]) -> tuple[int, list[str], list[str], str, int, int, float]:
    """One seed: (seed, violations, last sentences, swarm, changes of owner, trace, cpu s)."""
    seed, minutes = job
    began = time.process_time()
    world = World(seed)
    violations = world.run(minutes)
    cpu_s = time.process_time() - began
    tail = world.history[-60:] if violations else []
    return seed, violations, tail, str(world.swarm), world.checkers.changes, world.trace, cpu_s


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", default="0:20", help="A:B, from A up to but not B; or one seed")
    parser.add_argument("--minutes", type=float, default=10.0, help="simulated minutes per seed")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--trace", action="store_true", help="print every sentence (one seed)")
    options = parser.parse_args()
    first, _, last = options.seeds.partition(":")
    seeds = range(int(first), int(last)) if last else [int(first)]
    if options.trace:
        world = World(seeds[0])
        print(world.swarm)
        for violation in world.run(options.minutes):
            print("VIOLATION", violation)
        print("\n".join(world.history))
        return bool(world.checkers.violations)
    broken = cpu_s = changes = 0.0
    began = time.monotonic()
    with multiprocessing.Pool(options.jobs) as pool:
        jobs = [(seed, options.minutes) for seed in seeds]
        for seed, violations, tail, swarm, moved, trace, spent_s in pool.imap_unordered(play, jobs):
            cpu_s += spent_s
            changes += moved
            if violations:
                broken += 1
                print(f"seed {seed} at commit {commit()} (trace {trace:08x}): {swarm}")
                print("\n".join([*tail, *(f"VIOLATION {v}" for v in violations)]), flush=True)
    minutes = options.minutes * len(seeds)
    wall_s = time.monotonic() - began
    print(f"changes of owner: {int(changes)}; {wall_s:.0f} s wall, {cpu_s:.0f} s of CPU")
    print(
        f"seeds={len(seeds)} minutes={minutes:g} violations={int(broken)} "
        f"speed={minutes * 60 / max(cpu_s, 1e-9):.0f}x"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
