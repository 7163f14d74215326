"""Dramas that strike inside a window: a claim under way, a thaw, a restart.

A guard that is needed for a few ms of a rare case hides behind luck in a random history. Each of
these leads a small world into the one case in which its guard stands alone; with all guards in
force nothing breaks (`test_drills.py` plays both).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from haclusterd.core.actions import Decided, KillFreeswitch
from haclusterd.core.inputs import MaintenanceRequested, SwitchoverRequested
from tests.sim.dramas import SERVED_WITHIN_MS, all_ways, begin, kept, owners_of
from tests.sim.host import Host
from tests.sim.world import World

FOR_LONG_US = 10**10
MS = 1000

Heard = Callable[[int, str], None]  # a host's decision: node, row


def watch(world: World, heard: Heard) -> None:
    """Have every decision told as it is made, before its beat goes out."""

    def tell(host: int, what: Decided | KillFreeswitch) -> None:
        if isinstance(what, Decided):
            heard(host, what.row)

    world.tell = tell


def connect(world: World, pairs: Iterable[tuple[int, int]]) -> None:
    """Only these pairs hear each other from now on."""
    whole = {frozenset(pair) for pair in pairs}
    world.network.cut.clear()
    world.network.cut.update({way: 1 for way in all_ways(world) if frozenset(way[:2]) not in whole})


def cut(world: World, pairs: Iterable[tuple[int, int]], for_us: int = FOR_LONG_US) -> None:
    apart = {frozenset(pair) for pair in pairs}
    world.network.add_cut(
        [way for way in all_ways(world) if frozenset(way[:2]) in apart], world.now, for_us
    )


def no_candidates(world: World, hosts: Iterable[int]) -> None:
    """These nodes vote, and take nothing over."""
    for n in hosts:
        world.hosts[n].give(world.now, MaintenanceRequested(1, True))
    world.play_until(world.now + 200 * MS)


def start_again(t: int, host: Host) -> None:
    host.boot(t, remember=True)
    host.run(t, host.life)


def stop_now(t: int, host: Host) -> None:
    host.kill(t, power=False)


def others(world: World, *but: int) -> list[int]:
    return [n for n in range(world.swarm.nodes) if n not in but]


# the claim window ---------------------------------------------------------------------------


def owner_back_in_pieces(seed: int) -> list[str]:
    """An owner comes back just before its successor's turn, to that one first, and to the others
    some ms later: it has its service again."""
    world, rng = begin(seed, 5)
    before = owners_of(world)
    owner = before[0]
    first = rng.choice(others(world, owner))
    no_candidates(world, others(world, owner, first))
    whole = [(owner, n) for n in others(world, owner)]
    cut(world, whole)
    world.play_until(world.now + 2 * MS)
    slave = world.hosts[first]
    silent = slave.true(slave.node.services[0].silence_us) if slave.node else 0
    back_us = silent + rng.randrange(120, 154) * MS
    world.at(back_us, partial(join, world), [(owner, first)])
    world.at(silent + rng.randrange(190, 280) * MS, partial(join, world), whole)
    world.play_until(world.now + 1_000 * MS)
    return kept(world, before, "the owner was back before anybody's turn")


def join(world: World, t: int, pairs: list[tuple[int, int]]) -> None:
    whole = {frozenset(pair) for pair in pairs}
    for way in all_ways(world):
        if frozenset(way[:2]) in whole:
            world.network.cut.pop(way, None)


def grants_after_the_next(seed: int) -> list[str]:
    """The grants of a claim come when the next claimant has won: they are of the past (S5)."""
    world, rng = begin(seed, 5)
    claimed: list[int] = []

    def heard(host: int, row: str) -> None:
        if row == "T101" and not claimed:
            claimed.append(host)
            until = world.now + rng.randrange(165, 330) * MS
            to_it = [way for way in all_ways(world) if way[1] == host]
            world.network.clogged.update(dict.fromkeys(to_it, until))
            world.at(world.now + MS, silence, host)

    def silence(t: int, host: int) -> None:
        world.network.add_cut([w for w in all_ways(world) if w[0] == host], t, 600 * MS)

    watch(world, heard)
    world.hosts[owners_of(world)[0]].kill(world.now, power=True)
    world.play_until(world.now + 1_000 * MS)
    return list(world.checkers.violations)


def crossed_nonces(seed: int) -> list[str]:
    """A claimant forgets its claim before it is on the disk, and claims anew at the same epoch;
    the voter that had granted the former claim may support somebody else meanwhile (S1)."""
    world, rng = begin(seed, 5)
    owner = owners_of(world)[0]
    claimant, early, late, third = rng.sample(others(world, owner), 4)
    no_candidates(world, (early, late, third))
    all_but = [claimant, early, late, third]
    connect(world, [(a, b) for a in all_but for b in all_but if a < b])
    world.hosts[owner].kill(world.now, power=True)
    world.at(world.now + 1_000 * MS, start_again, world.hosts[owner])

    def heard(host: int, row: str) -> None:
        reborn = world.hosts[claimant].life > 1
        if (host, row) == (claimant, "T101"):
            if not reborn:
                connect(world, [(claimant, early), (late, third)])
            else:
                near = [(claimant, late), (claimant, early)]
                connect(world, [*near, (early, third), (early, owner), (owner, third)])
        elif (host, row) == (early, "V1") and not reborn:
            connect(world, [(claimant, late), (claimant, third), (late, third)])
            world.at(world.now + 1, stop_now, world.hosts[claimant])
            back = world.now + rng.randrange(5, 40) * MS
            world.at(back, start_again, world.hosts[claimant])
        elif (host, row) == (claimant, "T201"):
            connect(world, [(claimant, late), (early, third), (early, owner), (owner, third)])

    watch(world, heard)
    world.play_until(world.now + 3_500 * MS)
    return list(world.checkers.violations)


def claims_of_one_epoch(seed: int) -> list[str]:
    """An owner meets a voter that promised itself at the very epoch which the owner holds: nothing
    that this voter echoes carries the owner's lease, for it may support anybody (S1)."""
    world, rng = begin(seed, 3)
    owner = owners_of(world)[0]
    loser, voter = rng.sample(others(world, owner), 2)
    host = world.hosts[owner]
    host.kernel.adding_takes_us = 280 * MS  # until then it wins nobody back (T409)
    cut(world, [(owner, loser)])
    seen: set[str] = set()

    def heard(who: int, row: str) -> None:
        if (who, row) == (loser, "T101") and "T101" not in seen:
            host.freeze(world.now, rng.randrange(104, 125) * MS)
        elif (who, row) == (owner, "T601") and "T601" not in seen:
            connect(world, [(owner, loser), (loser, voter)])
        seen.add(row)

    watch(world, heard)
    world.play_until(world.now + 1_000 * MS)
    return list(world.checkers.violations)


def winner_unheard(seed: int) -> list[str]:
    """A slave wins and is cut off before anybody hears it own. The former owner meets the voter
    that granted this: it may not go on with calls that may have been another's since (S4)."""
    world, rng = begin(seed, 3)
    owner = owners_of(world)[0]
    cut(world, [(owner, n) for n in others(world, owner)])
    won: list[int] = []

    def heard(host: int, row: str) -> None:
        if row == "T201" and not won:
            won.append(host)
            (voter,) = others(world, owner, host)
            cut(world, [(host, voter)])
            back_us = world.now + rng.randrange(1, 90) * MS
            world.at(back_us, partial(join, world), [(owner, voter)])

    watch(world, heard)
    world.play_until(world.now + 1_500 * MS)
    return list(world.checkers.violations)


# the restart --------------------------------------------------------------------------------


def release_after_a_restart(seed: int) -> list[str]:
    """A voter that has just made a new owner restarts with what its disk had before, and hears
    the former owner's RELEASE: it may not grant that one's new claim at once (S1)."""
    world, rng = begin(seed, 3)
    owner = owners_of(world)[0]
    target, voter = rng.sample(others(world, owner), 2)
    host = world.hosts[voter]
    on_disk = host.persisted, host.owned
    granted: list[int] = []

    def again(t: int, it: Host) -> None:
        it.persisted, it.owned = on_disk  # a write may take 50 ms
        start_again(t, it)

    def heard(who: int, row: str) -> None:
        if (who, row) == (target, "T101"):
            cut(world, [(owner, target)])
        elif (who, row) == (voter, "V1") and not granted:
            granted.append(who)
            after = world.now + rng.randrange(2, 45) * MS
            world.at(after, stop_now, host)
            world.at(after + rng.randrange(1, 25) * MS, again, host)

    watch(world, heard)
    world.hosts[owner].give(world.now, SwitchoverRequested(1, 0, target))
    world.play_until(world.now + 1_000 * MS)
    return list(world.checkers.violations)


def words_of_the_dead(seed: int) -> list[str]:
    """The owner dies, a voter restarts, and all that the owner said in the last two seconds comes
    again at that voter alone: somebody else serves all the same (V2)."""
    world, rng = begin(seed, 3)
    owner = owners_of(world)[0]
    voter = world.hosts[rng.choice(others(world, owner))]
    world.network.recorded = deque(maxlen=10_000)
    world.network.records = True
    world.play_until(world.now + 2_000 * MS)
    tape = [sent for sent in world.network.recorded if sent[:2] == (owner, voter.me)]
    world.network.records = False
    world.hosts[owner].kill(world.now, power=True)
    voter.kill(world.now, power=False)
    back = world.now + rng.randrange(5, 50) * MS
    world.at(back, start_again, voter)
    for i, sent in enumerate(tape):
        world.at(back + (i + 1) * 20 * MS, world.network.arrive, sent)
    world.play_until(world.now + 1_000 * MS)
    found = list(world.checkers.violations)
    return found if owners_of(world) else [*found, "V2: nobody serves s0 a second after"]


def late_words(seed: int) -> list[str]:
    """One voter hears the owner half a second late. When the owner dies the others do not wait
    until that voter has heard it all (V2)."""
    world, rng = begin(seed, 3)
    owner = owners_of(world)[0]
    voter = rng.choice(others(world, owner))
    no_candidates(world, [voter])
    world.network.slow[owner, voter, 0] = rng.randrange(400, 600) * MS
    world.play_until(world.now + 1_000 * MS + rng.randrange(25) * MS)
    began = world.now
    served: list[float] = []
    watch(world, lambda host, row: served.append(world.now) if row == "T301" else None)
    world.hosts[owner].kill(began, power=True)
    world.play_until(began + 1_000 * MS)
    found = list(world.checkers.violations)
    after_ms = (served[0] - began) / MS if served else float("inf")
    if after_ms > SERVED_WITHIN_MS:
        found.append(f"V2: s0 is served {after_ms:.1f} ms after its owner died")
    return found


# the thaw -----------------------------------------------------------------------------------


def claim_at_the_thaw(seed: int) -> list[str]:
    """A voter thaws while somebody who does not hear the owner claims: it has not listened yet,
    so it grants nothing, and the owner keeps its service."""
    world, rng = begin(seed, 5)
    before = owners_of(world)
    owner = before[0]
    claimant, friend, voter, _ = rng.sample(others(world, owner), 4)
    no_candidates(world, others(world, owner, claimant))
    cut(world, [(owner, claimant), (owner, friend)])
    claims: list[int] = []

    def heard(host: int, row: str) -> None:
        if (host, row) != (claimant, "T101"):
            return
        claims.append(world.now)
        it = world.hosts[claimant]
        if len(claims) == 2 and it.node:
            next_us = it.true(it.node.services[0].paced_until_us)
            thaw = next_us + rng.randrange(200, 38_000)
            frozen_us = rng.randrange(160, 205) * MS
            world.at(thaw - frozen_us, partial(_freeze, frozen_us), world.hosts[voter])

    watch(world, heard)
    world.play_until(world.now + 2_000 * MS)
    if len(claims) < 3:
        return [f"the drama did not take place: {len(claims)} claims"]
    return kept(world, before, "a voter's stun")


def _freeze(for_us: int, t: int, host: Host) -> None:
    host.freeze(t, for_us)


def thaw_meets_the_dead(seed: int) -> list[str]:
    """The owner dies while a slave stands still: what the slave's sockets hold of it is the past,
    and nobody is alive for it that has not spoken since (V1)."""
    world, rng = begin(seed, 3)
    owner = owners_of(world)[0]
    slave = rng.choice(others(world, owner))
    world.hosts[slave].freeze(world.now, rng.randrange(300, 1500) * MS)
    world.play_until(world.now + rng.randrange(60, 200) * MS)
    world.hosts[owner].kill(world.now, power=True)
    began = len(world.history)
    world.play_until(world.now + 2_000 * MS)
    raised = [x for x in world.history[began:] if x.endswith(f"n{owner} is alive")]
    found = list(world.checkers.violations)
    return found + [f"V1: it was dead by then: {line.strip()}" for line in raised]


def thawed_in_the_dark(seed: int) -> list[str]:
    """A frozen owner thaws where it hears nobody: it stands fenced (S1)."""
    world, rng = begin(seed, 3)
    owner = owners_of(world)[0]
    host = world.hosts[owner]
    cut(world, [(owner, n) for n in others(world, owner)])
    frozen_us = rng.randrange(110, 2_000) * MS
    host.freeze(world.now, frozen_us)
    world.play_until(world.now + frozen_us + 300 * MS)
    found = list(world.checkers.violations)
    if owner in owners_of(world):
        found.append(f"S1: n{owner} serves without a majority")
    return found


# the fence ----------------------------------------------------------------------------------


def unfenced_grant(seed: int) -> list[str]:
    """Without nf_tables, and with an address that does not go: a lapsed owner meets a claimant,
    which may not win by its vote while it still answers (S1)."""
    world, rng = begin(seed, 3)
    owner = owners_of(world)[0]
    claimant, gone = rng.sample(others(world, owner), 2)
    kernel = world.hosts[owner].kernel
    kernel.times_out = False
    world.play_until(world.now + 100 * MS)
    world.hosts[gone].kill(world.now, power=True)
    world.play_until(world.now + rng.randrange(300, 400) * MS)
    cut(world, [(owner, claimant)], rng.randrange(170, 250) * MS)
    world.at(world.now + 60 * MS, partial(stuck, rng.randrange(620, 800) * MS), world.hosts[owner])
    world.play_until(world.now + 1_200 * MS)
    found = list(world.checkers.violations)
    return found if owners_of(world) else [*found, "V2: nobody serves s0 in the end"]


def stuck(for_us: int, t: int, host: Host) -> None:
    """Nothing that closes the fence or removes an address is confirmed."""
    host.kernel.fence_fails_until = host.kernel.removal_fails_until = t + for_us


def unfenced_claim(seed: int) -> list[str]:
    """The fence's table is gone while an owner is unplugged that nobody can replace: it serves
    again, with its calls, as soon as the fence is in force (V2)."""
    world, rng = begin(seed, 3)
    before = owners_of(world)
    owner = before[0]
    no_candidates(world, others(world, owner))
    cut(world, [(owner, n) for n in others(world, owner)], rng.randrange(150, 250) * MS)
    # Its last renewal is less than 60 ms away, its lease ends after 75 to 100.
    world.at(world.now + 60 * MS, partial(stuck, rng.randrange(400, 600) * MS), world.hosts[owner])
    world.play_until(world.now + 1_200 * MS)
    found = kept(world, before, "an unplugged owner whose fence was out of order for a while")
    return found


WINDOWS: dict[str, Callable[[int], list[str]]] = {
    f.__name__: f
    for f in (
        owner_back_in_pieces,
        grants_after_the_next,
        crossed_nonces,
        claims_of_one_epoch,
        winner_unheard,
        release_after_a_restart,
        words_of_the_dead,
        late_words,
        claim_at_the_thaw,
        thaw_meets_the_dead,
        thawed_in_the_dark,
        unfenced_grant,
        unfenced_claim,
    )
}
