"""Mutation drills: take one guard away and see that the simulator notices.

`python -m tests.sim.drills` runs every drill in worlds aimed at its guard; exit 0 if each was
caught within `--seeds` seeds. `--ordinary` plays the swarm's own worlds instead, which takes long.
A drill that nothing catches means a useless guard or a blind simulator: find out which.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from haclusterd.core import claimant, moves, node, state, voter
from haclusterd.core.actions import Action
from haclusterd.core.model import NOBODY, Identity
from haclusterd.core.state import Node, Service
from tests.sim.swarm import LAN, Swarm, draw_swarm
from tests.sim.world import World


def _patch(owner: object, name: str, by: Callable[..., Any]) -> None:
    setattr(owner, name, by)


def _grant_twice() -> None:
    """Grant once: a second claimant of the same epoch is granted too."""

    def judge(
        n: Node,
        k: int,
        service: Service,
        identity: Identity,
        now_us: int,
        out: list[Action],
        may_defer: bool,
    ) -> None:
        if identity.epoch < service.promise.epoch or state.owns(service):
            return
        # The silence counts from the owner before: what the first grant restarted is ignored.
        newer = identity.epoch > service.promise.epoch
        if newer and voter._silence_missing(n, service, identity, now_us) > 0:
            return
        voter.grant(n, k, service, identity, now_us, out)

    _patch(voter, "_judge", judge)


def _no_silence() -> None:
    """Silence before grant: any claim at a higher epoch is granted at once."""
    _patch(voter, "_silence_missing", lambda *args: 0)
    _patch(claimant, "_is_held", lambda *args: False)


def _echo_without_timer() -> None:
    """Echo restarts the silence timer: the echo is given, the timer is not restarted."""
    true = voter._hear_owner

    def hear_owner(n: Node, k: int, service: Service, *rest: Any) -> None:
        silence_us = service.silence_us
        true(n, k, service, *rest)
        service.silence_us = silence_us

    _patch(voter, "_hear_owner", hear_owner)
    _patch(claimant, "_is_held", lambda *args: False)


def _deferral_blind() -> None:
    """Deferral judged again: when it is due, it is granted without another look."""

    def judge_deferred(n: Node, now_us: int, out: list[Action]) -> None:
        for k, service in enumerate(n.services):
            if service.deferred is not None and now_us >= service.deferred.due_us:
                identity, service.deferred = service.deferred.identity, None
                if identity.epoch > service.promise.epoch:
                    voter.grant(n, k, service, identity, now_us, out)

    true_hear = voter._hear_owner

    def hear_owner(n: Node, k: int, service: Service, *rest: Any) -> None:
        kept = service.deferred
        true_hear(n, k, service, *rest)
        service.deferred = kept

    true_promise = moves.promise

    def promise(n: Node, service: Service, identity: Identity, now_us: int) -> None:
        kept = service.deferred
        true_promise(n, service, identity, now_us)
        service.deferred = kept

    for module in (moves, voter):
        _patch(module, "promise", promise)
    _patch(voter, "judge_deferred", judge_deferred)
    _patch(voter, "_hear_owner", hear_owner)


def _no_arm() -> None:
    """Arm before renew: the kernel renews the fence whenever it is asked."""
    true = World.__init__

    def init(self: World, *args: Any) -> None:
        true(self, *args)
        self.arm_ignored = True

    _patch(World, "__init__", init)


def _release_of_anything() -> None:
    """Release waives only silence of the present promise: here it counts for any promise."""
    true = voter.hear_release

    def hear_release(n: Node, release: Any, now_us: int, out: list[Action]) -> None:
        held = n.services[release.service].promise
        if held != NOBODY and held.node == release.identity.node:
            release = type(release)(release.service, held, release.to)
        true(n, release, now_us, out)

    _patch(voter, "hear_release", hear_release)


def _no_hold_down() -> None:
    """Hold-down: a restarted node echoes, grants and claims at once."""
    for module in (state, voter, claimant, node):
        _patch(module, "holding_down", lambda *args: False)


def _granting_without_timer() -> None:
    """Restart the timers on granting: the silence of the former owner goes on counting."""
    true = moves.promise

    def promise(n: Node, service: Service, identity: Identity, now_us: int) -> None:
        silence_us = service.silence_us
        true(n, service, identity, now_us)
        service.silence_us = silence_us

    for module in (moves, voter):
        _patch(module, "promise", promise)


DRILLS: dict[str, Callable[[], None]] = {
    "grant once": _grant_twice,
    "silence before grant": _no_silence,
    "echo restarts the silence timer": _echo_without_timer,
    "deferral judged again": _deferral_blind,
    "arm before renew": _no_arm,
    "release waives only silence": _release_of_anything,
    "hold-down": _no_hold_down,
    "restart timers on granting": _granting_without_timer,
}


# The faults that each guard stands against: a world of these alone needs few seeds (test_sim.py).
AIM: dict[str, tuple[str, ...]] = {
    "grant once": ("crash", "freeze"),
    "silence before grant": ("cut_one_way", "triangle"),
    "echo restarts the silence timer": ("triangle",),
    "deferral judged again": ("triangle",),
    "arm before renew": ("freeze", "stun"),
    "release waives only silence": ("torn_release",),
    "hold-down": ("triangle", "restart_forget"),
    "restart timers on granting": ("stun", "cut_node", "torn_release"),
}


def aimed_swarm(name: str, seed: int) -> Swarm:
    """Three nodes, one service, a quick and honest network, and the faults of `AIM` every second.

    "arm before renew" lives from freezes between two actions, so there they are frequent.
    """
    return dataclasses.replace(
        draw_swarm(random.Random(seed)),
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
        boundary=0.2 if name == "arm before renew" else 0.0,
        kinds=AIM[name],
    )


def hunt(job: tuple[str, int, float, bool]) -> tuple[str, int, str, float]:
    """Run a drill until it is caught: (name, seeds needed or -1, first violation, seconds).

    `job`: name, seeds, minutes of each, and whether the worlds are aimed.
    """
    name, seeds, minutes, aimed = job
    DRILLS[name]()  # patches this process, which plays nothing else
    began = time.monotonic()
    for seed in range(seeds):
        world = World(seed, aimed_swarm(name, seed) if aimed else None)
        violations = [v for v in world.run(minutes) if "V3" not in v]
        if violations:
            return name, seed + 1, violations[0], time.monotonic() - began
    return name, -1, "", time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.drills", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--ordinary", action="store_true")
    parser.add_argument("--only", choices=list(DRILLS), action="append")
    options = parser.parse_args()
    names = options.only or list(DRILLS)
    missed = 0
    with multiprocessing.Pool(maxtasksperchild=1) as pool:
        jobs = [(name, options.seeds, options.minutes, not options.ordinary) for name in names]
        for name, seeds, violation, spent_s in pool.imap_unordered(hunt, jobs, chunksize=1):
            if seeds < 0:
                missed += 1
                print(f"MISSED {name} in {options.seeds} seeds ({spent_s:.0f} s)", flush=True)
            else:
                print(f"caught {name} after {seeds} seeds: {violation}", flush=True)
    print(f"drills={len(names)} caught={len(names) - missed} missed={missed}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
