"""What one seed is about: the size of its world, its timing and which faults it likes (swarm)."""

from __future__ import annotations

import dataclasses
import random
import zlib

import msgspec

from haclusterd.core.model import (
    AddressSpec,
    ClusterSpec,
    LastResort,
    NodeSpec,
    Quorum,
    ServiceSpec,
    Timing,
)
from tests.sim.orders import ALL_KINDS

LAN = Timing(25_000, 100_000, 40_000, 150_000, 10_000, 60_000, 15_000, 2_000_000)
WAN = Timing(
    200_000,
    1_200_000,
    200_000,
    1_500_000,
    50_000,
    700_000,
    150_000,
    5_000_000,
    resend_us=(48_000, 180_000, 480_000),
)


# At the limit of what config.py accepts: lease + stop = 0.99 dead. Here clocks may differ by 1 %.
TIGHT = msgspec.structs.replace(LAN, lease_us=108_500)


@dataclasses.dataclass(frozen=True)
class Swarm:
    """Probabilities are per opportunity; means are of exponential waiting times in us."""

    nodes: int
    links: int
    services: int
    timing: Timing
    freeswitch: bool
    delay_min_us: int
    delay_mean_us: int
    loss: float
    duplicate: float
    replay: float  # a copy of a beat comes again up to seconds later
    through_wire: bool  # every beat is sealed and opened
    rates_ppm: tuple[int, ...]  # clock rate of each node
    fault_mean_us: int  # waiting time between faults
    boundary: float  # chance of a stop at an action boundary while a service moves
    kinds: tuple[str, ...]  # faults this seed uses
    damage: float = 0.0  # chance of a damaged datagram, where beats go through the wire
    ending: str = "whole"  # what is left for the liveness phase, see `liveness`
    quorum: Quorum = Quorum.MAJORITY  # WITNESS: the last node only votes
    last_resort: LastResort = LastResort.MASTERS
    relinquish_us: int = 0
    members: int = 0  # voters at first, the other nodes being spare; 0 for all
    copies: int = 1  # how many more come of a beat that is duplicated
    old: tuple[int, ...] = ()  # nodes that know version 1 of the wire only


def draw_swarm(rng: random.Random) -> Swarm:
    """The options of one seed. Every seed leaves some faults out, so that others go far."""
    timing = rng.choice((LAN, LAN, LAN, TIGHT, WAN))
    nodes = rng.choice((3, 3, 3, 4, 5))
    quick = rng.random() < 0.5
    scale = timing.heartbeat_us // 25_000
    share = rng.choice((0.25, 0.5))
    kinds = tuple(k for k in ALL_KINDS if rng.random() < share) or ("crash",)
    ppm = 4_500 if timing is TIGHT else 9_000
    through_wire = rng.random() < 0.1
    swarm = Swarm(
        nodes=nodes,
        links=rng.choice((1, 2, 2, 3)),
        services=rng.choice((1, 1, 2)) if nodes < 5 else rng.choice((1, 2, 3)),
        timing=timing,
        freeswitch=rng.random() < 0.6,
        delay_min_us=rng.choice((50, 100, 500)) * scale,
        delay_mean_us=(rng.choice((100, 500)) if quick else rng.choice((2_000, 8_000))) * scale,
        loss=rng.choice((0.0, 0.0, 0.01, 0.1, 0.3)),
        duplicate=rng.choice((0.0, 0.02, 0.5)),
        replay=rng.choice((0.0, 0.01)),
        through_wire=through_wire,
        rates_ppm=tuple(rng.choice((-ppm, ppm, rng.randrange(-ppm, ppm))) for _ in range(nodes)),
        fault_mean_us=rng.choice((1_000_000, 2_000_000, 5_000_000, 10_000_000)),
        boundary=rng.choice((0.0, 0.02, 0.2)),
        kinds=kinds,
        damage=rng.choice((0.002, 0.02)) if through_wire else 0.0,
        ending=rng.choice(("whole", "whole", "core", "core", "minority")),
    )
    return with_policies(swarm, rng)


def with_policies(swarm: Swarm, rng: random.Random) -> Swarm:
    """The seed's quorum policy, and what goes with it; most have a majority and nothing else."""
    quorum = rng.choice((Quorum.MAJORITY,) * 6 + (Quorum.WITNESS, Quorum.AVAILABILITY))
    services = swarm.services
    if quorum is Quorum.WITNESS:
        services = min(services, swarm.nodes - 1)
    swarm = dataclasses.replace(
        swarm,
        quorum=quorum,
        services=services,
        last_resort=rng.choice((LastResort.MASTERS, LastResort.MASTERS, LastResort.NONE)),
        relinquish_us=rng.choice((0, 0, 20)) * swarm.timing.dead_us,
    )
    if quorum is Quorum.AVAILABILITY and swarm.ending == "minority":
        swarm = dataclasses.replace(swarm, ending="core")
    if "mark_dead" not in swarm.kinds or quorum is Quorum.AVAILABILITY:
        return swarm
    # Marked nodes come back where they hear the others, and nobody else is left outside for good.
    return dataclasses.replace(swarm, ending="whole", loss=min(swarm.loss, 0.1))


def swarm_of_changes(seed: int) -> Swarm:
    """An ordinary seed's world, in which operators change the voters all the while."""
    rng = random.Random(seed)
    plain = draw_swarm(rng)
    nodes = rng.choice((5, 6))
    ppm = 4_500 if plain.timing is TIGHT else 9_000
    return dataclasses.replace(
        plain,
        nodes=nodes,
        members=rng.choice((3, 3, 4, 5)),
        services=min(plain.services, 2),
        kinds=tuple(k for k in plain.kinds if k != "mark_dead")
        + ("reconfigure",) * max(1, len(plain.kinds) // 2),
        quorum=Quorum.MAJORITY,
        ending="whole",
        rates_ppm=tuple(rng.choice((-ppm, ppm, rng.randrange(-ppm, ppm))) for _ in range(nodes)),
    )


def swarm_of_marks(seed: int) -> Swarm:
    """As `swarm_of_changes`; besides, nodes burn while the voters change, and are marked dead."""
    plain = swarm_of_changes(seed)
    few = tuple(k for k in plain.kinds if k != "reconfigure")[:4]
    return dataclasses.replace(
        plain,
        kinds=(*few, "reconfigure", "reconfigure", "mark_dead", "mark_dead"),
        fault_mean_us=min(plain.fault_mean_us, 1_000_000),
        loss=min(plain.loss, 0.1),
    )


def swarm_of_versions(seed: int) -> Swarm:
    """Half of the nodes know version 1 of the wire only, and are upgraded one by one."""
    rng = random.Random(seed)
    plain = draw_swarm(rng)
    return dataclasses.replace(
        plain,
        kinds=(*plain.kinds, *("swap",) * max(1, len(plain.kinds) // 3)),
        old=tuple(rng.sample(range(plain.nodes), (plain.nodes + 1) // 2)),
    )


def spec_for(swarm: Swarm, me: int) -> ClusterSpec:
    """The configuration of node `me` in this world, at first."""
    return spec_of(swarm, tuple(range(swarm.members or swarm.nodes)), 1, me)


def spec_of(swarm: Swarm, members: tuple[int, ...], revision: int, me: int) -> ClusterSpec:
    """The configuration of one set of voters, as node `me` (-1 in it, if it is not) reads it."""
    nodes = tuple(
        NodeSpec(
            f"n{i}",
            tuple(f"10.{x}.0.{i + 1}" for x in range(swarm.links)),
            witness=swarm.quorum is Quorum.WITNESS and i == swarm.nodes - 1,
        )
        for i in members
    )
    services = tuple(
        ServiceSpec(
            f"s{k}",
            (AddressSpec(f"203.0.113.{k + 1}", 24, "eth0"),),
            profiles=(f"p{k}",) if swarm.freeswitch else (),
            preferred=members.index(k) if k in members else -1,
            priority=10 * k,
        )
        for k in range(swarm.services)
    )
    changed = revision > 1
    return ClusterSpec(
        "sim",
        members.index(me) if me in members else -1,
        nodes,
        services,
        swarm.timing,
        config_hash=zlib.crc32(repr((members, revision)).encode()) if changed else 0,
        quorum=swarm.quorum,
        last_resort=swarm.last_resort,
        freeswitch=swarm.freeswitch,
        relinquish_us=swarm.relinquish_us,
        revision=revision,
    )
