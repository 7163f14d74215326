"""Small directed worlds: one fault at a chosen moment, and what then has to be true.

A random history shows a guard that keeps two from holding. Guards that keep a service where it is,
or make it come back soon, need a calm world in which one knows what the outcome has to be.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import partial

from haclusterd.core.actions import Decided, KillFreeswitch
from haclusterd.core.inputs import MaintenanceRequested
from haclusterd.core.model import Timing
from haclusterd.core.state import owns
from tests.sim.host import Host
from tests.sim.swarm import LAN, Swarm
from tests.sim.world import World

stage: list[World] = []  # the worlds of the drama that is being played, for its report
SERVED_WITHIN_MS = 215  # lan: dead 150, grace 10, a beat, one resend


def calm(nodes: int, services: int, links: int, timing: Timing = LAN) -> Swarm:
    """A world without chance: nothing is lost, every beat takes 100 us, clocks agree."""
    return Swarm(
        nodes=nodes,
        links=links,
        services=services,
        timing=timing,
        freeswitch=True,
        delay_min_us=100,
        delay_mean_us=0,
        loss=0.0,
        duplicate=0.0,
        replay=0.0,
        through_wire=False,
        rates_ppm=(0,) * nodes,
        fault_mean_us=10**9,
        boundary=0.0,
        kinds=(),
    )


def begin(
    seed: int, nodes: int, services: int = 1, timing: Timing = LAN
) -> tuple[World, random.Random]:
    """A cluster at rest, at a phase of its beats that depends on the seed."""
    rng = random.Random(seed)
    swarm = dataclasses.replace(calm(nodes, services, 1, timing), delay_mean_us=100)
    world = World(seed, swarm)
    stage.append(world)
    for host in world.hosts:
        world.at(rng.randrange(40_000), world.boot, host)
    world.play_until(2_500_000 + rng.randrange(50_000))
    return world, rng


def burn(world: World, *nodes: int) -> None:
    """Their power is gone, and nobody starts them before `operators.burnt` is cleared."""
    for n in nodes:
        world.operators.burnt.add(n)
        world.hosts[n].kill(world.now, power=True)


def owners_of(world: World, k: int = 0) -> list[int]:
    return [h.me for h in world.hosts if h.alive and h.node and owns(h.node.services[k])]


def all_ways(world: World) -> list[tuple[int, int, int]]:
    nodes = range(world.swarm.nodes)
    return [(a, b, 0) for a in nodes for b in nodes if a != b]


def switches_reboot(seed: int) -> list[str]:
    """Nobody hears anybody for a while: the owner has its service again, without a takeover."""
    world, rng = begin(seed, some_nodes(seed))
    before = owners_of(world)
    ways = all_ways(world)
    rng.shuffle(ways)
    down_us = rng.randrange(200_000, 3_000_000)
    for way in ways:  # the ports come up one after the other, within a few ms
        world.network.add_cut([way], world.now, down_us + rng.randrange(3_000))
    world.play_until(world.now + down_us + 1_500_000)
    return kept(world, before, f"the switches were down for {down_us // 1000} ms")


def stunned(seed: int) -> list[str]:
    """An owner that stood still for 105 to 120 ms has its service again."""
    world, rng = begin(seed, 3)
    before = owners_of(world)
    world.hosts[before[0]].freeze(world.now, rng.randrange(105_000, 120_000))
    world.play_until(world.now + 1_000_000)
    return kept(world, before, "a stun of 120 ms")


def slave_thawed(seed: int) -> list[str]:
    """A slave that stood still for long claims nothing when it is back."""
    world, rng = begin(seed, 3)
    before = owners_of(world)
    slave = rng.choice([h for h in world.hosts if h.me not in before])
    world.hosts[slave.me].freeze(world.now, rng.randrange(200_000, 600_000))
    began = len(world.history)
    world.play_until(world.now + 1_500_000)
    claims = [line for line in world.history[began:] if f"n{slave.me} T101" in line]
    return kept(world, before, "a slave's stun") + [f"V5: a needless claim: {c}" for c in claims]


def kept(world: World, before: list[int], what: str) -> list[str]:
    found = list(world.checkers.violations)
    after = owners_of(world)
    moved = [host for _, host, _ in world.recoveries[1:]]
    if after != before or moved:
        found.append(f"S5: {what}, and s0 went from {before} to {after} (takeovers: {moved})")
    return found


def lost_claim(seed: int) -> list[str]:
    """The owner dies and the first claim is lost on all ways: served in time all the same (V2)."""
    world, _ = begin(seed, 3)
    served: list[float] = []
    world.tell = partial(_lose_claim, world, served)
    began = world.now
    world.hosts[owners_of(world)[0]].kill(world.now, power=True)
    world.play_until(began + 600_000)
    found = list(world.checkers.violations)
    after_ms = (served[0] - began) / 1000 if served else float("inf")
    if after_ms > SERVED_WITHIN_MS:
        found.append(f"V2: s0 is served {after_ms:.1f} ms after its owner died")
    return found


def _lose_claim(
    world: World, served: list[float], host: int, what: Decided | KillFreeswitch
) -> None:
    if not isinstance(what, Decided):
        return
    if what.row == "T101" and not world.network.cut:
        world.network.add_cut([w for w in all_ways(world) if w[0] == host], world.now, 2_000)
    elif what.row == "T301":
        served.append(world.now)


def freeswitch_dies_under_load(seed: int) -> list[str]:
    """Its FreeSWITCH dies and closing the fence is not confirmed: nobody else may serve yet."""
    world, rng = begin(seed, 3)
    owner = world.hosts[owners_of(world)[0]]
    owner.kernel.fence_fails_until = world.now + rng.randrange(5_000, 80_000)
    owner.kernel.removal_fails_until = owner.kernel.fence_fails_until
    owner.telephony.exit()
    owner.run(world.now, owner.life)
    world.play_until(world.now + 500_000)
    return list(world.checkers.violations)


def owner_unplugged(seed: int) -> list[str]:
    """An owner that nobody heard for 105 to 120 ms has its service again."""
    world, rng = begin(seed, some_nodes(seed))
    before = owners_of(world)
    ways = [w for w in all_ways(world) if before[0] in w[:2]]
    world.network.add_cut(ways, world.now, rng.randrange(105_000, 120_000))
    world.play_until(world.now + 1_000_000)
    return kept(world, before, "the owner was unplugged for 120 ms")


def promise_conflict(seed: int) -> list[str]:
    """A slave that claimed in vain meets the owner again, which wins it back without a gap."""
    world, rng = begin(seed, 5)
    before = owners_of(world)
    slave = rng.choice([h.me for h in world.hosts if h.me not in before])
    pair = {before[0], slave}
    ways = [w for w in all_ways(world) if set(w[:2]) == pair]
    world.network.add_cut(ways, world.now, rng.randrange(300_000, 900_000))
    began = len(world.history)
    world.play_until(world.now + 2_000_000)
    gaps = [line for line in world.history[began:] if " T401 " in line]
    return kept(world, before, "a conflict") + [f"S5: a gap for a conflict: {g}" for g in gaps]


def blank_claimant(seed: int) -> list[str]:
    """After a few changes of owner, the only node that may take over restarts without memory as
    the owner dies: it serves soon after its hold-down (V2)."""
    world, rng = begin(seed, 3)
    owner = owners_of(world)[0]
    for _ in range(5):
        world.hosts[owner].freeze(world.now, 110_000)
        world.play_until(world.now + 500_000)
    blank, voter = rng.sample([h for h in world.hosts if h.me != owner], 2)
    voter.give(world.now, MaintenanceRequested(1, True))
    world.play_until(world.now + 200_000)
    world.hosts[owner].kill(world.now, power=True)
    blank.kill(world.now, power=False)
    world.at(world.now + rng.randrange(1_000, 50_000), _boot_blank, blank)
    world.play_until(world.now + 1_000_000)
    found = list(world.checkers.violations)
    return found if owners_of(world) else [*found, "V2: nobody serves s0 a second after"]


def late_grants(seed: int) -> list[str]:
    """The claimant is heard no more once it has claimed, and hears the grants late: whoever claims
    next may not meet it (S1)."""
    world, rng = begin(seed, 5)
    world.tell = partial(_late_grants, world, rng)
    world.hosts[owners_of(world)[0]].kill(world.now, power=True)
    world.play_until(world.now + 1_000_000)
    return list(world.checkers.violations)


def _late_grants(
    world: World, rng: random.Random, host: int, what: Decided | KillFreeswitch
) -> None:
    if isinstance(what, Decided) and what.row == "T101" and not world.network.clogged:
        until = world.now + rng.randrange(60_000, 97_000)
        to_it = [w for w in all_ways(world) if w[1] == host]
        world.network.clogged.update(dict.fromkeys(to_it, until))
        world.at(world.now + 1_000, partial(_silence, world), host)


def _silence(world: World, t: int, host: int) -> None:
    world.network.add_cut([w for w in all_ways(world) if w[0] == host], t, 600_000)


def some_nodes(seed: int) -> int:
    return 3 + seed % 3


def voters_forget(seed: int) -> list[str]:
    """All nodes but the owner's slaves restart without memory; then everything comes together."""
    world, rng = begin(seed, 3)
    for host in rng.sample(world.hosts, rng.choice((1, 2))):
        host.kill(world.now, power=False)
        world.at(world.now + rng.randrange(10_000, 400_000), _boot_blank, host)
    world.play_until(world.now + 3_000_000)
    found = list(world.checkers.violations)
    owners = owners_of(world)
    if len(owners) != 1:
        found.append(f"V3: s0 is owned by {owners}")
    return found


def epoch_won_twice(seed: int) -> list[str]:
    """While the owner stands still the others lose their memory, and one of them wins its epoch
    anew. It dies as the owner thaws, whose voter stands by the dead one at that epoch (S4)."""
    world, rng = begin(seed, 3)
    (owner,) = owners_of(world)
    thaws_us = world.now + 6_000_000 + rng.randrange(100_000)
    world.hosts[owner].freeze(world.now, thaws_us - world.now)
    for host in world.hosts:
        if host.me != owner:
            host.kill(world.now, power=True)
            world.at(world.now + rng.randrange(20_000, 60_000), _boot_blank, host)
    world.play_until(thaws_us - rng.randrange(1_000, 140_000))
    (winner,) = (n for n in owners_of(world) if n != owner)
    world.hosts[winner].kill(world.now, power=True)
    world.play_until(thaws_us + 1_000_000)
    return list(world.checkers.violations)


def winners_meet(seed: int) -> list[str]:
    """One node wins an epoch while another is down. Then nobody hears it; its voter loses its
    memory, grants that epoch to the other, and dies for good. The two winners, both fenced, one of
    them perhaps restarted, meet: neither may go on without the calls of the other (S4)."""
    world, rng = begin(seed, 3)
    (owner,) = owners_of(world)
    late, *others = rng.sample(world.hosts, 3)
    for host in world.hosts:
        if host is late or host.me == owner:
            host.kill(world.now, power=True)
    for host in others:
        world.at(world.now + 500_000, world.boot, host)
    world.play_until(world.now + 3_000_000)
    (first,) = owners_of(world)
    (voter,) = (host for host in others if host.me != first)
    heals_us = world.now + 6_000_000 + rng.randrange(100_000)
    of_first = [w for w in all_ways(world) if first in w[:2]]
    world.network.add_cut(of_first, world.now, heals_us - world.now)
    voter.kill(world.now, power=True)
    world.at(world.now + 1_000, _boot_blank, voter)
    world.at(world.now + 1_000, world.boot, late)
    world.play_until(heals_us - rng.randrange(500_000, 900_000))
    voter.kill(world.now, power=True)
    if rng.random() < 0.5:
        late.kill(world.now, power=False)
        world.at(world.now + 1_000, world.boot, late)
    world.play_until(heals_us + 5_000_000)
    found = list(world.checkers.violations)
    if not owners_of(world):
        found.append("V3: nobody owns s0")
    return found


def _boot_blank(t: int, host: Host) -> None:
    host.boot(t, remember=False)
    host.run(t, host.life)


DRAMAS: dict[str, Callable[[int], list[str]]] = {
    f.__name__: f
    for f in (
        switches_reboot,
        stunned,
        slave_thawed,
        lost_claim,
        owner_unplugged,
        promise_conflict,
        blank_claimant,
        late_grants,
        freeswitch_dies_under_load,
        voters_forget,
        epoch_won_twice,
        winners_meet,
    )
}
