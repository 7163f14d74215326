"""Small worlds, all of them: three nodes, one service, every order of a few events.

`python -m tests.sim.exhaustive` walks the tree of all sequences of up to `--events` events at each
of the given distances, in a world without chance. An event that changes nothing (to start what
runs, to mend what is whole) ends its branch, for the rest of it is another branch. After every
event the safety invariants have been checked; after the last one the world is mended and has to
come together (`liveness`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from haclusterd.core import inputs as inp
from tests.sim import liveness, words
from tests.sim.dramas import all_ways, calm, owners_of
from tests.sim.host import Host
from tests.sim.world import World

NODES = 3
# Within an exchange; within a lease; while the slaves claim; when the next owner has begun.
GAPS_US = (100, 60_000, 159_900, 400_000)
SETTLED_WITHIN_US = 8_000_000
LOOK_EVERY_US = 250_000
FREEZE_US = 130_000

Job = tuple[str, tuple[str, ...], int, int]  # first event, alphabet, distance, how many
Event = Callable[[World], bool]  # does it to the world; False: it changed nothing


def _owner(world: World) -> Host:
    """Who owns the service, or else who did last: the events follow it."""
    owners = owners_of(world)
    newest = world.checkers.newest.get(0)
    return world.hosts[owners[0] if owners else newest.node if newest else 0]


def _next(world: World) -> Host:
    """The first of the others."""
    owner = _owner(world)
    return next(h for h in world.hosts if h is not owner)


def kill_owner(world: World) -> bool:
    host = _owner(world)
    if not host.alive:
        return False
    host.kill(world.now, power=True)
    return True


def kill_slave(world: World) -> bool:
    host = _next(world)
    if not host.alive:
        return False
    host.kill(world.now, power=False)
    return True


def restart_all(world: World) -> bool:
    """Whoever is down starts, with its memory."""
    down = [h for h in world.hosts if not h.alive]
    for host in down:
        host.boot(world.now, remember=True)
        host.run(world.now, host.life)
    return bool(down)


def _freeze(world: World, host: Host) -> bool:
    if not host.alive or host.thaw_at > world.now:
        return False
    host.freeze(world.now, FREEZE_US)
    return True


def freeze_owner(world: World) -> bool:
    return _freeze(world, _owner(world))


def freeze_slave(world: World) -> bool:
    return _freeze(world, _next(world))


def _cut(world: World, ways: list[tuple[int, int, int]]) -> bool:
    new = [way for way in ways if way not in world.network.cut]
    world.network.cut.update(dict.fromkeys(new, 1))
    return bool(new)


def cut_owner(world: World) -> bool:
    me = _owner(world).me
    return _cut(world, [w for w in all_ways(world) if me in w[:2]])


def cut_from_owner(world: World) -> bool:
    """One way: nobody hears the owner."""
    me = _owner(world).me
    return _cut(world, [w for w in all_ways(world) if w[0] == me])


def cut_pair(world: World) -> bool:
    pair = {_owner(world).me, _next(world).me}
    return _cut(world, [w for w in all_ways(world) if set(w[:2]) == pair])


def heal(world: World) -> bool:
    healed = bool(world.network.cut)
    world.network.cut.clear()
    return healed


def switchover(world: World) -> bool:
    owners = owners_of(world)
    if not owners:
        return False
    host = world.hosts[owners[0]]
    host.give(world.now, inp.SwitchoverRequested(7, 0, -1))
    return True


def freeswitch_dies(world: World) -> bool:
    host = _owner(world)
    if not host.alive or not host.telephony.up:
        return False
    host.telephony.exit()
    host.run(world.now, host.life)
    return True


def upgrade_owner(world: World) -> bool:
    return _owner(world).upgrade(world.now, 5_000)


ALPHABET: dict[str, Event] = {
    f.__name__: f
    for f in (
        kill_owner, restart_all, freeze_owner, cut_owner, heal, switchover,
        kill_slave, freeze_slave, cut_from_owner, cut_pair, freeswitch_dies, upgrade_owner,
    )
}  # fmt: skip
# All orders of six of these fit into an evening; of the whole alphabet, sequences of four do.
SMALL = ("kill_owner", "restart_all", "freeze_owner", "cut_owner", "heal", "switchover")


@dataclass
class Walk:
    """What one walk through the tree came upon."""

    worlds: int = 0
    violations: list[str] = field(default_factory=list)

    def add(self, other: Walk) -> None:
        self.worlds += other.worlds
        self.violations += other.violations


def first_world() -> World:
    """Three nodes at rest, n0 the owner."""
    world = World(1, calm(NODES, 1, 1))
    for host in world.hosts:
        host.rng = random.Random(host.me)
        world.at(3_000 * host.me, world.boot, host)
    world.play_until(2_500_000)
    return world


def walk(
    world: bytes, names: tuple[str, ...], gap_us: int, path: tuple[str, ...], left: int
) -> Walk:
    """All sequences of up to `left` more events from the world that is pickled in `world`."""
    found = Walk()
    if path:
        found.worlds += 1
        found.violations += _settle(pickle.loads(world), path, gap_us)
    if not left:
        return found
    for name in names:
        after: World = pickle.loads(world)
        if not ALPHABET[name](after):
            continue
        after.play_until(after.now + gap_us)
        if after.checkers.violations:
            found.worlds += 1
            found.violations.append(_told((*path, name), gap_us, after.checkers.violations[0]))
            continue
        found.add(walk(pickle.dumps(after, 5), names, gap_us, (*path, name), left - 1))
    return found


def _settle(world: World, path: tuple[str, ...], gap_us: int) -> list[str]:
    liveness.prepare(world, random.Random(1))
    end = world.now + SETTLED_WITHIN_US
    wrong = ["not looked yet"]
    while wrong and world.now < end and not world.checkers.violations:
        world.play_until(world.now + LOOK_EVERY_US)
        wrong = liveness.what_is_not_whole(world)
    wrong = [*world.checkers.violations, *wrong]
    return [_told(path, gap_us, wrong[0])] if wrong else []


def _told(path: tuple[str, ...], gap_us: int, what: str) -> str:
    return f"{', '.join(path)} ({gap_us / 1000:g} ms apart): {what}"


def branch(job: Job) -> Walk:
    """One first event: a piece of work for one process."""
    name, names, gap_us, events = job
    world = first_world()
    if not ALPHABET[name](world):
        return Walk()
    world.play_until(world.now + gap_us)
    if world.checkers.violations:
        return Walk(1, [_told((name,), gap_us, world.checkers.violations[0])])
    return walk(pickle.dumps(world, 5), names, gap_us, (name,), events - 1)


def jobs(names: tuple[str, ...], gaps: tuple[int, ...], events: int) -> list[Job]:
    return [(name, names, gap_us, events) for gap_us in gaps for name in names]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.exhaustive", description=__doc__)
    parser.add_argument("--events", type=words.count, default=6)
    parser.add_argument("--all", action="store_true", help="the whole alphabet, not six events")
    parser.add_argument(
        "--gap-ms", type=words.span, action="append", help="distances between events"
    )
    parser.add_argument("--jobs", type=words.count, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    names = tuple(ALPHABET) if options.all else SMALL
    gaps = tuple(int(ms * 1000) for ms in options.gap_ms or ()) or GAPS_US
    began, total = time.monotonic(), Walk()
    with multiprocessing.Pool(options.jobs) as pool:
        for part in pool.imap_unordered(branch, jobs(names, gaps, options.events)):
            total.add(part)
            for violation in part.violations[:20]:
                print(violation, flush=True)
    took_s = time.monotonic() - began
    print(f"worlds={total.worlds} violations={len(total.violations)} in {took_s:.0f} s")
    return 1 if total.violations else 0


if __name__ == "__main__":
    sys.exit(main())
