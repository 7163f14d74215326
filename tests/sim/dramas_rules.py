"""Dramas of single rules of grants, claims, releases and leases: the one case that needs each.

In the manner of `windows`: a small world is led to where nothing else stands behind the rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from haclusterd.core.actions import Decided, KillFreeswitch
from haclusterd.core.inputs import SwitchoverRequested
from tests.sim.dramas import all_ways, begin, owners_of
from tests.sim.host import Host
from tests.sim.swarm import LAN
from tests.sim.windows import (
    MS,
    connect,
    cut,
    join,
    no_candidates,
    others,
    start_again,
    stop_now,
    stuck,
    watch,
)
from tests.sim.world import World

timing = LAN  # of `slow_to_stop`; a mutation puts another here
TURN_US = LAN.dead_us + LAN.grace_us  # when the first in line claims, after it heard the owner
FENCED_MS = 600  # a lease, two `dead`, and the claims in vain of an owner that reaches one node
PROMPT_MS = 8  # no word of the claim comes between 15 and 40 ms after it
SOON_MS = 60  # a switchover that waits for no silence, one beat lost


def silent_since(world: World, n: int) -> int:
    """When node `n` last heard the owner it stands by (true time, us)."""
    host = world.hosts[n]
    return host.true(host.node.services[0].silence_us) if host.node else 0


def served_by(world: World, *nodes: int) -> list[int]:
    """When one of these begins to serve (us): a list that fills."""
    served: list[int] = []

    def heard(host: int, row: str) -> None:
        if row == "T301" and host in nodes:
            served.append(world.now)

    watch(world, heard)
    return served


def late(served: list[int], since_us: int, within_ms: float, what: str) -> list[str]:
    after_ms = (served[0] - since_us) / MS if served else float("inf")
    return [f"V2: s0 is served {after_ms:.1f} ms after {what}"] if after_ms > within_ms else []


# grants -------------------------------------------------------------------------------------


def back_before_a_deferral_is_due(seed: int) -> list[str]:
    """A voter defers a claim, and before that is due the owner is back, reclaims by this very vote
    and serves: the claim is of the past (S5)."""
    world, rng = begin(seed, 5)
    (owner,) = owners_of(world)
    claimant, friend, voter, _ = rng.sample(others(world, owner), 4)
    no_candidates(world, others(world, owner, claimant))
    cut(world, [(owner, claimant), (owner, friend)])
    claims: list[int] = []

    def heard(host: int, row: str) -> None:
        it = world.hosts[claimant]
        if (host, row) != (claimant, "T101") or it.node is None:
            return
        claims.append(world.now)
        if len(claims) == 2:
            next_us = it.true(it.node.services[0].paced_until_us)
            world.at(next_us - rng.randrange(100, 125) * MS, _cut_later, (world, (owner, voter)))
            world.at(next_us + rng.randrange(1, 3) * MS, partial(join, world), [(owner, voter)])

    watch(world, heard)
    world.play_until(world.now + 2_000 * MS)
    return list(world.checkers.violations)


def _cut_later(t: int, what: tuple[World, tuple[int, int]]) -> None:
    world, pair = what
    cut(world, [pair])


def forgets_and_hears_the_owner(seed: int) -> list[str]:
    """A voter grants a claim, and restarts with what its disk had before, in reach of the owner. It
    gives no lease: its grant may be the one that the claim still wins by (S5)."""
    world, rng = begin(seed, 5)
    (owner,) = owners_of(world)
    claimant, voter, slow, _ = rng.sample(others(world, owner), 4)
    no_candidates(world, others(world, owner, claimant))
    host = world.hosts[voter]
    on_disk = host.persisted, host.owned
    cut(world, [(owner, claimant), (owner, voter)])
    world.play_until(world.now + 2 * MS)
    turn_us = silent_since(world, claimant) + TURN_US
    world.at(turn_us - rng.randrange(52, 58) * MS, _cut_later, (world, (owner, slow)))
    granted: list[int] = []

    def again(t: int, it: Host) -> None:
        it.persisted, it.owned = on_disk
        join(world, t, [(owner, voter)])
        start_again(t, it)

    def heard(who: int, row: str) -> None:
        if (who, row) == (voter, "V1") and not granted:
            granted.append(who)
            world.at(world.now + MS, stop_now, host)
            world.at(world.now + rng.randrange(2, 6) * MS, again, host)

    watch(world, heard)
    world.play_until(turn_us + 500 * MS)
    return list(world.checkers.violations)


def a_beat_short(seed: int) -> list[str]:
    """The voter heard the owner a beat later than the claimant did, and late: it grants as soon as
    its silence is over, and waits for no further word of the claim (V2)."""
    world, rng = begin(seed, 3)
    (owner,) = owners_of(world)
    claimant, voter = rng.sample(others(world, owner), 2)
    no_candidates(world, [voter])
    world.network.slow[owner, voter, 0] = rng.randrange(4_500, 9_000)
    world.play_until(world.now + 200 * MS)
    world.network.cut[owner, claimant, 0] = 1
    before = silent_since(world, voter)
    while silent_since(world, voter) == before:
        world.play_until(world.now + 200)
    served = served_by(world, claimant)
    world.hosts[owner].kill(world.now, power=True)
    over_us = silent_since(world, voter) + LAN.dead_us
    world.play_until(world.now + 600 * MS)
    found = list(world.checkers.violations)
    return found + late(served, over_us, PROMPT_MS, "its voter had been silent for long enough")


def lets_go_and_answers(seed: int) -> list[str]:
    """Without nf_tables, an owner that is to let go does not get rid of its address. The claimant
    needs its vote, and gets it once the address is gone (S1)."""
    world, rng = begin(seed, 3)
    (owner,) = owners_of(world)
    claimant, gone = rng.sample(others(world, owner), 2)
    world.hosts[owner].kernel.times_out = False
    world.play_until(world.now + 100 * MS)
    world.hosts[gone].kill(world.now, power=True)
    world.play_until(world.now + rng.randrange(300, 400) * MS)
    stuck(rng.randrange(400, 700) * MS, world.now, world.hosts[owner])
    world.hosts[owner].give(world.now, SwitchoverRequested(1, 0, claimant))
    world.play_until(world.now + 1_200 * MS)
    found = list(world.checkers.violations)
    return found if owners_of(world) else [*found, "V2: nobody serves s0 in the end"]


def granted_and_restarted(seed: int) -> list[str]:
    """A slave wins, and nobody hears it own. Its voter, long after the grant, restarts: nobody wins
    that epoch once more (S2)."""
    world, rng = begin(seed, 3)
    (owner,) = owners_of(world)
    winner, voter = rng.sample(others(world, owner), 2)
    no_candidates(world, [voter])
    won: list[tuple[int, int]] = []

    def tell(host: int, what: Decided | KillFreeswitch) -> None:
        if isinstance(what, Decided) and what.row in ("T201", "T601"):
            won.append((what.epoch, host))
            cut(world, [(winner, voter), (winner, owner)])

    world.tell = tell
    world.hosts[owner].kill(world.now, power=True)
    world.play_until(world.now + rng.randrange(500, 900) * MS)
    world.hosts[voter].kill(world.now, power=False)
    for n in (voter, owner):
        world.at(world.now + rng.randrange(5, 50) * MS, start_again, world.hosts[n])
    world.play_until(world.now + 1_500 * MS)
    found = list(world.checkers.violations)
    epochs = [epoch for epoch, _ in won]
    return found + [f"S2: epoch {e} was won by {won}" for e in set(epochs) if epochs.count(e) > 1]


# claims -------------------------------------------------------------------------------------


def refused_and_heard(seed: int) -> list[str]:
    """One slave misses the owner before that dies, claims before anybody may grant it, and is heard
    no more. The others have heard the claim, and claim nothing themselves for `dead` (V5)."""
    world, rng = begin(seed, 5)
    (owner,) = owners_of(world)
    running = world.hosts[owner].node
    early = next(n for n in (running.successors[0] if running else ()) if n != owner)
    cut(world, [(owner, early)])
    world.play_until(world.now + rng.randrange(80, 100) * MS)
    claims: list[tuple[int, int]] = []

    def heard(host: int, row: str) -> None:
        if row == "T101":
            claims.append((world.now, host))
            if host == early:
                world.at(world.now + MS, _power_off, world.hosts[early])

    watch(world, heard)
    world.hosts[owner].kill(world.now, power=True)
    world.play_until(world.now + 1_000 * MS)
    found = list(world.checkers.violations)
    (first_us, first), *rest = claims
    for at_us, n in rest:
        if n != first and MS <= at_us - first_us < LAN.dead_us * 0.97:
            found.append(f"V5: n{n} claims {(at_us - first_us) / MS:.1f} ms after n{first} did")
    return found


def fenced_out_of_reach(seed: int) -> list[str]:
    """An owner that stands fenced is heard by the first in line alone, and reaches no majority to
    reclaim by: it is waited for, but not for ever (V2)."""
    world, rng = begin(seed, 5)
    (owner,) = owners_of(world)
    slave = rng.choice(others(world, owner))
    no_candidates(world, others(world, owner, slave))
    began = world.now
    cut(world, [(owner, n) for n in others(world, owner, slave)])
    served = served_by(world, slave)
    world.play_until(began + 1_000 * MS)
    found = list(world.checkers.violations)
    return found + late(served, began, FENCED_MS, "its owner was cut off")


# releases -----------------------------------------------------------------------------------


def released_to_one_alone(seed: int) -> list[str]:
    """The target alone hears the RELEASE, and the owner dies: the claim carries it to who has to
    grant it, without waiting for silence (V2)."""
    world, rng = begin(seed, 3)
    (owner,) = owners_of(world)
    target, voter = rng.sample(others(world, owner), 2)
    world.network.cut[owner, voter, 0] = 1
    served: list[int] = []

    def heard(host: int, row: str) -> None:
        if (host, row) == (target, "T101"):
            world.at(world.now + 1, _power_off, world.hosts[owner])
        elif row == "T301":
            served.append(world.now)

    watch(world, heard)
    began = world.now
    world.hosts[owner].give(began, SwitchoverRequested(1, 0, target))
    world.play_until(began + 600 * MS)
    found = list(world.checkers.violations)
    return found + late(served, began, SOON_MS, "its owner was to give it to the target")


def _power_off(t: int, host: Host) -> None:
    host.kill(t, power=True)


def release_lost_at_first(seed: int) -> list[str]:
    """The beat that says the RELEASE first is lost on all ways: the next one says it again (V2)."""
    world, rng = begin(seed, 3)
    (owner,) = owners_of(world)
    target = rng.choice(others(world, owner))
    served: list[int] = []

    def heard(host: int, row: str) -> None:
        if (host, row) == (owner, "T701"):
            world.network.add_cut([w for w in all_ways(world) if w[0] == owner], world.now, 2 * MS)
        elif (host, row) == (target, "T301"):
            served.append(world.now)

    watch(world, heard)
    began = world.now
    world.hosts[owner].give(began, SwitchoverRequested(1, 0, target))
    world.play_until(began + 600 * MS)
    found = list(world.checkers.violations)
    return found + late(served, began, SOON_MS, "the owner was to give it to its target")


# leases -------------------------------------------------------------------------------------


def numbers_of_another(seed: int) -> list[str]:
    """A slave takes over and is heard no more. It has numbered fewer beats than the dead owner: as
    it comes to the numbers that its voters heard last of that one, none of them is an echo (S1)."""
    world, rng = begin(seed, 5)
    (owner,) = owners_of(world)
    heir, _, *voters = rng.sample(others(world, owner), 4)
    no_candidates(world, voters)
    newest = max(host.node.seq for host in world.hosts if host.node)
    for n, ahead in ((heir, 0), (owner, rng.randrange(11, 15))):  # used as its lease ends
        node = world.hosts[n].node
        if node is not None:
            node.seq = newest + ahead
    world.play_until(world.now + 60 * MS)

    def heard(host: int, row: str) -> None:
        if (host, row) == (heir, "T201"):
            world.network.add_cut([w for w in all_ways(world) if w[0] == heir], world.now, 900 * MS)

    watch(world, heard)
    world.hosts[owner].kill(world.now, power=True)
    world.play_until(world.now + 1_000 * MS)
    return list(world.checkers.violations)


# the relation of the times ------------------------------------------------------------------


def slow_to_stop(seed: int) -> list[str]:
    """Without nf_tables, a lapsed owner takes nearly `stop` to be silent: nobody serves beside it,
    for `dead` covers the lease and the stop (S1)."""
    world, rng = begin(seed, 3, timing=timing)
    (owner,) = owners_of(world)
    host = world.hosts[owner]
    host.kernel.times_out = False
    no_candidates(world, [rng.choice(others(world, owner))])
    connect(world, [(a, b) for a in others(world, owner) for b in others(world, owner) if a < b])
    world.play_until(world.now + 10 * MS)
    lease_us = host.true(host.node.services[0].lease_until_us) if host.node else 0
    # It asks again after half a beat, with a beat of then 5 ms: within 40 ms in all.
    world.at(lease_us - MS, partial(stuck, (1 + rng.randrange(18, 24)) * MS), host)
    world.play_until(world.now + 1_000 * MS)
    return list(world.checkers.violations)


DRAMAS: dict[str, Callable[[int], list[str]]] = {
    f.__name__: f
    for f in (
        back_before_a_deferral_is_due,
        forgets_and_hears_the_owner,
        a_beat_short,
        lets_go_and_answers,
        granted_and_restarted,
        refused_and_heard,
        fenced_out_of_reach,
        released_to_one_alone,
        release_lost_at_first,
        numbers_of_another,
        slow_to_stop,
    )
}
