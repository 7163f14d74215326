"""Mutation drills: take one guard away and see that the simulator notices.

`python -m tests.sim.drills` runs every drill in worlds aimed at its guard; exit 0 if each was
caught within `--seeds` seeds. `--ordinary` plays the swarm's own worlds instead, which takes long.
A guard in `NETS` is one of two for the same case: nothing breaks without it while the other holds,
and the drill says which that is.
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

import msgspec

from tests.sim import mutations as m
from tests.sim import mutations_time as t
from tests.sim.dramas import DRAMAS
from tests.sim.swarm import LAN, Swarm, draw_swarm
from tests.sim.world import World


@dataclasses.dataclass(frozen=True)
class Drill:
    """A guard to take away, and the worlds that aim at it: kinds of faults, or a drama."""

    take_away: Callable[[], None]
    kinds: tuple[str, ...] = ()
    drama: str = ""
    swarm: tuple[tuple[str, Any], ...] = ()  # what differs from `aimed_swarm`
    calls: bool = False  # it is about calls: S4 counts; otherwise a fault there hides none here

    @property
    def rule(self) -> str:
        """The first sentence of what the mutation says of itself."""
        return (self.take_away.__doc__ or "").split("\n")[0]


def worlds(*kinds: str, **swarm: Any) -> dict[str, Any]:
    return {"kinds": kinds, "swarm": tuple(swarm.items())}


TOO_LONG = msgspec.structs.replace(LAN, dead_us=80_000)  # config.py refuses it
FIVE = {"nodes": 5, "rates_ppm": (9000, -9000, 0, 9000, -9000)}

DRILLS: dict[str, Drill] = {
    # grants
    "grant once": Drill(m.grant_twice, **worlds("power_off", "crash", "cut_pair", "freeze")),
    "silence before grant": Drill(m.no_silence, **worlds("cut_one_way", "triangle")),
    "restart timers on granting": Drill(
        m.granting_without_timer, **worlds("stun", "cut_node", "torn_release")
    ),
    "deferral judged again": Drill(m.deferral_blind, **worlds("triangle")),
    "an owner grants nobody": Drill(m.owner_grants, **worlds("pair_flickers")),
    "majority": Drill(m.minority_wins, **worlds("cut_half", nodes=4, rates_ppm=(0, 0, 0, 0))),
    "the holder's own claim needs no silence": Drill(m.own_claim_waits, drama="promise_conflict"),
    # releases
    "release of the present promise only": Drill(m.release_of_anything, **worlds("torn_release")),
    "release after the stop only": Drill(m.release_before_stop, drama="freeswitch_dies_under_load"),
    # claims
    "claim pacing": Drill(m.claims_unpaced, **worlds("triangle", "stun", "cut_half")),
    "resend": Drill(m.no_resend, drama="lost_claim"),
    "two beats after rejoin": Drill(m.no_two_beats, drama="switches_reboot"),
    "the lapsed owner goes first": Drill(m.lapsed_owner_not_first, drama="owner_unplugged"),
    "reclaim only without a higher epoch": Drill(
        m.reclaims_in_spite_of_a_successor,
        calls=True,
        **worlds("cut_node", "power_off", "freeze_long"),
    ),
    "epochs adopted": Drill(m.epochs_not_adopted, drama="blank_claimant"),
    "claim with a majority only": Drill(
        m.claims_without_majority, **worlds("cut_node", ending="minority")
    ),
    # leases and the fence
    "echo restarts the silence timer": Drill(t.echo_without_timer, **worlds("triangle")),
    "lease from the owner's send time": Drill(t.lease_from_hearing, **worlds("late_echoes")),
    "lease from the claim's send time": Drill(t.lease_from_win, drama="late_grants"),
    "the lease is watched": Drill(t.lease_not_watched, **worlds("cut_node")),
    "renew within the lease": Drill(t.renewed_beyond_lease, **worlds("cut_node", boundary=0.2)),
    "clock read before renewing": Drill(t.clock_not_read, **worlds("freeze", "stun", boundary=0.3)),
    "arm before renew": Drill(t.no_arm, **worlds("freeze", "stun", boundary=0.2)),
    "lease relation": Drill(t.lease_longer, **worlds("cut_node", "stun", timing=TOO_LONG)),
    # restarts, freezes, freshness
    "hold-down": Drill(m.no_hold_down, **worlds("triangle", "restart_forget")),
    "promises restored": Drill(t.promises_not_restored, **worlds("crash", "freeze")),
    # one of two nets for the same case, see NETS
    "hold-down for releases": Drill(
        m.hold_down_waived_for_release, **worlds("torn_release", "restart_forget", "switchover")
    ),
    "silence timers restart after a thaw": Drill(t.thaw_keeps_timers, drama="slave_thawed"),
    "two-way": Drill(t.one_way_is_enough, **worlds("cut_one_way", "clog", "replay_recorded")),
    "freshness within three beats": Drill(
        t.old_echoes_count, **worlds("clog", "cut_node", "freeze")
    ),
    "flush after thaw": Drill(t.no_flush, **worlds("freeze", "freeze_long", "stun")),
    "new incarnation after thaw": Drill(
        t.same_incarnation, **worlds("freeze", "freeze_long", "stun", "clog")
    ),
    "fence first after a thaw": Drill(t.freeze_not_noticed, **worlds("freeze", "stun")),
    "promise match": Drill(
        t.echo_of_any_promise, **worlds("restart_forget", "crash", "cut_pair", "triangle", **FIVE)
    ),
    "claim nonce": Drill(m.nonce_ignored, **worlds("restart_forget", "crash", boundary=0.2)),
    "void grants": Drill(m.late_grants_count, drama="late_grants"),
    "lapsed owner grants nobody before it is fenced": Drill(
        m.lapsed_grants_unfenced, **worlds("kernel_trouble", "pair_flickers", "stun", "triangle")
    ),
}

# Nothing breaks without these while their neighbour holds.
NETS: dict[str, str] = {
    "the lapsed owner goes first": "an owner heard again within `dead` claims in the first "
    "exchange, and whoever regains a majority waits two beats",
    "hold-down for releases": "a node in its hold-down makes no majority (detector.survey), so "
    "nobody claims with it in mind",
    "silence timers restart after a thaw": "who claims needs two-way contact first, and the beat "
    "that gives it restarts the timer",
    "two-way": "a lease counts from the owner's send time, whatever proves the echo fresh",
    "freshness within three beats": "a lease counts from the owner's send time",
    "flush after thaw": "the new incarnation and the forgotten send times make the past stale",
    "new incarnation after thaw": "the sockets were flushed and the send times are forgotten",
    "fence first after a thaw": "the kernel's fence has run out by itself, and the lease with it",
    "promise match": "two owners of one epoch need voters that forgot, which the hold-down covers",
    "claim nonce": "an epoch comes twice only where voters forgot, which the hold-down covers",
    "void grants": "the lease counts from the claim's send time and is over by then",
    "lapsed owner grants nobody before it is fenced": "the kernel's fence ends with the lease; "
    "without nf_tables this guard stands alone, which no world here shows",
}


def aimed_swarm(name: str, seed: int) -> Swarm:
    """Three nodes, one service, a quick and honest network, and the drill's faults each second."""
    drill = DRILLS[name]
    plain = dataclasses.replace(
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
        damage=0.0,
        rates_ppm=(4000, -4000, 0),
        fault_mean_us=1_000_000,
        boundary=0.0,
        kinds=drill.kinds,
        ending="whole",
    )
    return dataclasses.replace(plain, **dict(drill.swarm))


def play(name: str, seed: int, minutes: float, aimed: bool = True) -> list[str]:
    """What breaks in one world of a drill (with or without its mutation in force)."""
    if aimed and DRILLS[name].drama:
        return DRAMAS[DRILLS[name].drama](seed)
    world = World(seed, aimed_swarm(name, seed) if aimed else None)
    if aimed and not DRILLS[name].calls:
        world.checkers.muted = frozenset({"S4"})
    return world.run(minutes)


def hunt(job: tuple[str, int, float, bool]) -> tuple[str, int, str, float]:
    """Run a drill until it is caught: (name, seeds needed or -1, first violation, seconds).

    `job`: name, seeds, minutes of each, and whether the worlds are aimed.
    """
    name, seeds, minutes, aimed = job
    DRILLS[name].take_away()  # patches this process, which plays nothing else
    began = time.monotonic()
    for seed in range(seeds):
        violations = play(name, seed, minutes, aimed)
        if violations:
            return name, seed + 1, violations[0], time.monotonic() - began
    return name, -1, "", time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.drills", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--ordinary", action="store_true", help="the swarm's own worlds")
    parser.add_argument("--nets", action="store_true", help="also guards behind another guard")
    parser.add_argument("--only", choices=list(DRILLS), action="append")
    options = parser.parse_args()
    names = options.only or [name for name in DRILLS if options.nets or name not in NETS]
    missed = 0
    with multiprocessing.Pool(options.jobs, maxtasksperchild=1) as pool:
        jobs = [(name, options.seeds, options.minutes, not options.ordinary) for name in names]
        for name, seeds, violation, spent_s in pool.imap_unordered(hunt, jobs, chunksize=1):
            if seeds < 0:
                missed += name not in NETS
                why = f" (as expected: {NETS[name]})" if name in NETS else ""
                print(f"MISSED {name} in {options.seeds} seeds ({spent_s:.0f} s){why}", flush=True)
            else:
                print(f"caught {name} after {seeds} seeds: {violation}", flush=True)
    print(f"drills={len(names)} missed={missed}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
