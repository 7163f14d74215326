"""Mutation drills: take one guard away and see that the simulator notices.

`python -m tests.sim.drills` runs every drill in worlds aimed at its guard; exit 0 if each was
caught within `--seeds` seeds. `--ordinary` plays the swarm's own worlds instead, which takes long.
The guards of a `Net` stand for the same case: it breaks without all of them, and holds while any
one of them is left. Both are played. `--tell` shows how each was caught: seed, commit, trace.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from multiprocessing.pool import Pool
from typing import Any

import msgspec

from tests.sim import (
    dramas_changes,
    dramas_files,
    dramas_marks,
    dramas_orders,
    dramas_returns,
    dramas_stunned,
)
from tests.sim import mutations as m
from tests.sim import mutations_changes as c
from tests.sim import mutations_files as f
from tests.sim import mutations_marks as d
from tests.sim import mutations_time as t
from tests.sim.dramas import DRAMAS, stage
from tests.sim.nets import NETS
from tests.sim.shrink import commit, shrink, story
from tests.sim.swarm import LAN, Swarm, draw_swarm
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
    **dramas_stunned.DRAMAS,
}
NET_SEEDS = 60


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
    "hold-down for releases": Drill(
        m.hold_down_waived_for_release, drama="release_after_a_restart"
    ),
    "release after the stop only": Drill(m.release_before_stop, drama="freeswitch_dies_under_load"),
    # claims
    "claim pacing": Drill(m.claims_unpaced, **worlds("triangle", "stun", "cut_half")),
    "resend": Drill(m.no_resend, drama="lost_claim"),
    "two beats after rejoin": Drill(m.no_two_beats, drama="switches_reboot"),
    "the lapsed owner goes first": Drill(m.lapsed_owner_not_first, drama="owner_back_in_pieces"),
    "claim nonce": Drill(m.nonce_ignored, drama="crossed_nonces"),
    "void grants": Drill(m.late_grants_count, drama="grants_after_the_next"),
    "reclaim only without a higher epoch": Drill(
        m.reclaims_in_spite_of_a_successor,
        calls=True,
        **worlds("cut_node", "power_off", "freeze_long"),
    ),
    "a grant may have won unheard": Drill(m.grants_of_others_ignored, drama="winner_unheard"),
    "a voter that forgot": Drill(m.forgetting_unseen, calls=True, drama="epoch_won_twice"),
    "two winners of one epoch": Drill(m.always_newest, calls=True, drama="winners_meet"),
    "a FreeSWITCH that came back": Drill(
        m.freeswitch_back_unseen,
        calls=True,
        **worlds("freeswitch", "agent_stalls", "cut_node", freeswitch=True),
    ),
    "epochs adopted": Drill(m.epochs_not_adopted, drama="blank_claimant"),
    "claim with a majority only": Drill(
        m.claims_without_majority, **worlds("cut_node", ending="minority")
    ),
    "no claim for silence in a pause": Drill(m.claims_in_a_pause, **worlds("pause", "power_off")),
    "a former owner keeps its vote in a pause": Drill(
        dramas_orders.former_owner_votes, drama="owner_restarts_in_a_pause"
    ),
    # leases and the fence
    "echo restarts the silence timer": Drill(t.echo_without_timer, **worlds("triangle")),
    "lease from the owner's send time": Drill(t.lease_from_hearing, **worlds("late_echoes")),
    "lease from the claim's send time": Drill(t.lease_from_win, drama="late_grants"),
    "the lease is watched": Drill(t.lease_not_watched, **worlds("cut_node")),
    "renew within the lease": Drill(t.renewed_beyond_lease, **worlds("cut_node", boundary=0.2)),
    "clock read before renewing": Drill(t.clock_not_read, **worlds("freeze", "stun", boundary=0.3)),
    "arm before renew": Drill(t.no_arm, **worlds("freeze", "stun", boundary=0.2)),
    "promise match": Drill(t.echo_of_any_promise, drama="claims_of_one_epoch"),
    "lapsed owner grants nobody before it is fenced": Drill(
        m.lapsed_grants_unfenced, drama="unfenced_grant"
    ),
    "lapsed owner claims nothing before it is fenced": Drill(
        m.lapsed_claims_unfenced, drama="unfenced_claim"
    ),
    "lease relation": Drill(t.lease_longer, **worlds("cut_node", "stun", timing=TOO_LONG)),
    # restarts
    "hold-down": Drill(m.no_hold_down, **worlds("triangle", "restart_forget")),
    "promises restored": Drill(t.promises_not_restored, **worlds("crash", "freeze")),
    # the set of voters
    "nothing for an older set": Drill(c.no_floor, drama="left_behind"),
    "one node at a time": Drill(c.many_at_once, drama="two_at_once"),
    "written before it is said": Drill(c.said_before_written, drama="unwritten"),
    "a decided set waits for older leases": Drill(c.taken_up_at_once, drama="lease_left_over"),
    "who is about to be removed takes nothing": Drill(
        c.removed_and_claiming, drama="thaws_when_it_is_removed"
    ),
    "a file alone puts no set in force": Drill(c.file_is_enough, drama="late_file"),
    "a set is decided by a majority": Drill(c.decided_by_one, drama="without_a_majority"),
    "agreed to one file at a time": Drill(c.agrees_twice, drama="agreed_twice"),
    "no mark beside a change of the voters": Drill(
        c.marks_beside_a_change, drama="marked_beside_a_change"
    ),
    # other files
    "a file is read by its shape": Drill(f.read_by_counts, drama="services_change_places"),
    "a file is read by its times": Drill(f.times_unasked, drama="times_become_shorter"),
    "a neighbour's services go by their addresses": Drill(
        f.neighbours_by_name, drama="left_behind_with_other_addresses"
    ),
    "a hold-down is by the file before, too": Drill(
        f.held_down_by_the_new_file, drama="times_become_shorter_at_once"
    ),
    # nodes marked dead
    "who is back is asked": Drill(d.who_is_back_is_not_asked, drama="claims_as_they_return"),
    "who is back carries a lease": Drill(d.waiting_is_no_echo, drama="alone_as_they_return"),
    "an owner by marks is waited for": Drill(d.marks_unsaid, drama="stunned_as_they_return"),
    "who may have been left out listens": Drill(
        d.thawed_and_voting, drama="asleep_after_they_took_over"
    ),
    "pieces count together": Drill(d.heard_between_pieces, drama="unheard_between_pieces"),
    "a sign of life is enough": Drill(d.unmet_is_silent, drama="unheard_as_they_hold_down"),
    "no lease beyond a hold-down": Drill(d.alone_for_a_lease, drama="unheard_as_they_hold_down"),
    "an owner that was not met is waited for": Drill(
        d.strangers_unguarded, drama="stunned_beside_one_vote"
    ),
    "marks are not forgotten": Drill(d.marks_forgotten, drama="marked_by_an_old_word"),
    "an owner beside one vote is waited for": Drill(
        d.one_vote_and_unguarded, drama="stunned_as_the_former_owner_returns"
    ),
    "a mark is said before it is in force": Drill(
        d.said_once_in_force, drama="asleep_before_it_counts"
    ),
    "who was never met may have marked": Drill(
        d.unmet_has_marked_nobody, drama="asleep_before_they_start"
    ),
    "cleared with its echo in hand": Drill(d.cleared_without_echo, drama="marked_dies_again"),
    "not cleared in its hold-down": Drill(d.cleared_while_starting, drama="marked_is_slow_to_vote"),
    "a mark ends with the boot": Drill(
        d.marks_outlive_the_boot, drama="starts_deaf_with_old_marks"
    ),
    # freshness and freezes
    "two-way": Drill(t.one_way_is_enough, drama="words_of_the_dead"),
    "freshness within three beats": Drill(t.old_echoes_count, drama="late_words"),
    "a freeze is noticed": Drill(t.freeze_not_noticed, drama="claim_at_the_thaw"),
    "silence timers restart after a thaw": Drill(t.thaw_keeps_timers, drama="claim_at_the_thaw"),
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


def play(name: str, seed: int, minutes: float, aimed: bool = True) -> tuple[list[str], World]:
    """What breaks in one world of a drill (with or without its mutation in force), and that."""
    if aimed and DRILLS[name].drama:
        return act_out(DRILLS[name].drama, seed)
    world = World(seed, aimed_swarm(name, seed) if aimed else None)
    if aimed and not DRILLS[name].calls:
        world.checkers.muted = frozenset({"S4"})
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


Found = tuple[str, int, str, str, float]  # name, seeds needed or -1, first violation, told, seconds


def hunt(job: tuple[str, int, float, bool, bool]) -> Found:
    """Run a drill until it is caught.

    `job`: name, seeds, minutes of each, whether the worlds are aimed, whether to tell.
    """
    name, seeds, minutes, aimed, loud = job
    drill = DRILLS[name]
    drill.take_away()  # patches this process, which plays nothing else
    began = time.monotonic()
    for seed in range(seeds):
        violations, world = play(name, seed, minutes, aimed)
        if violations:
            spent_s = time.monotonic() - began
            told = tell(violations, world, minutes, drill.drama if aimed else "") if loud else ""
            return name, seed + 1, violations[0], told, spent_s
    return name, -1, "", "", time.monotonic() - began


def hunt_net(job: tuple[str, int, int]) -> Found:
    """Take the guards of a net away, but for one of them (`spared`, -1 for none).

    `job`: name, spared, seeds.
    """
    name, spared, seeds = job
    net = NETS[name]
    for i, take_away in enumerate(net.guards):
        if i != spared:
            take_away()
    left = f", with the guard of `{net.guards[spared].__name__}` alone" if spared >= 0 else ""
    began = time.monotonic()
    for seed in range(seeds):
        violations, _ = act_out(net.drama, seed)
        if violations:
            return name + left, seed + 1, violations[0], "", time.monotonic() - began
    return name + left, -1, "", "", time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.drills", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--ordinary", action="store_true", help="the swarm's own worlds")
    parser.add_argument("--tell", action="store_true", help="show the trace of what was caught")
    parser.add_argument("--only", choices=list(DRILLS), action="append")
    options = parser.parse_args()
    names = options.only or list(DRILLS)
    bad = 0
    with multiprocessing.Pool(options.jobs, maxtasksperchild=1) as pool:
        jobs = [
            (name, options.seeds, options.minutes, not options.ordinary, options.tell)
            for name in names
        ]
        for name, seeds, violation, told, spent_s in pool.imap_unordered(hunt, jobs, chunksize=1):
            bad += seeds < 0
            if seeds < 0:
                print(f"MISSED {name} in {options.seeds} seeds ({spent_s:.0f} s)", flush=True)
            else:
                print(f"caught {name} after {seeds} seeds: {violation}\n{told}".strip(), flush=True)
        nets = {} if options.only or options.ordinary else NETS
        bad += sum(not _holds(pool, name) for name in nets)
    print(f"drills={len(names)} nets={len(nets)} bad={bad}")
    return 1 if bad else 0


def _holds(pool: Pool, name: str) -> bool:
    """All of a net gone is caught, all but one is not."""
    _, seeds, violation, _, _ = pool.apply(hunt_net, ((name, -1, NET_SEEDS),))
    print(f"net {name}: without all its guards {violation or 'NOTHING BREAKS'}", flush=True)
    good = seeds > 0
    spared = [(name, i, NET_SEEDS) for i in range(len(NETS[name].guards))]
    for who, at, broke, _, _ in pool.imap_unordered(hunt_net, spared, chunksize=1):
        good = good and at < 0
        print(f"net {who}: {broke or f'holds for {NET_SEEDS} seeds'}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
