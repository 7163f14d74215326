"""Directed worlds about another file: node by node, slaves first, as docs/upgrade.md says.

The numbers of nodes and services are their places in the file. Beats go through the wire, which
has to know whether a number of another file stands for the same.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import msgspec

from haclusterd.config.model import shape, times
from haclusterd.core.inputs import SwitchoverRequested
from haclusterd.core.model import ClusterSpec, Timing
from tests.sim.dramas import burn, calm, owners_of, stage
from tests.sim.host import Host
from tests.sim.member import Disk
from tests.sim.swarm import LAN, WAN, spec_of
from tests.sim.world import World

MS = 1000
# Who wins and what is called up is judged by the numbers of one file.
MUTED = frozenset({"S2", "S3", "S4", "S5", "S7", "S10", "V5"})
Change = Callable[[ClusterSpec], ClusterSpec]


def _shaped(spec: ClusterSpec, config_hash: int) -> ClusterSpec:
    here, by = shape(spec.nodes, spec.services), times(spec.timing)
    return msgspec.structs.replace(spec, config_hash=config_hash, shape=here, times=by)


def _begin(seed: int, nodes: int, timing: Timing = LAN) -> tuple[World, random.Random]:
    """Two services at rest: of three nodes one has both, of four two have one each."""
    rng = random.Random(seed)
    swarm = calm(nodes, 2, 1, timing)
    world = World(seed, dataclasses.replace(swarm, delay_mean_us=100, through_wire=True))
    stage.append(world)
    world.checkers.muted = MUTED
    for host in world.hosts:
        host.configure(_shaped(host.spec, 1))
        world.at(rng.randrange(40_000), world.boot, host)
    world.play_until(3_500 * MS + 5 * timing.dead_us + rng.randrange(50_000))
    if nodes == 3:
        (to,), (owner,) = owners_of(world, 0), owners_of(world, 1)
        world.hosts[owner].give(world.now, SwitchoverRequested(1, 1, to))
        world.play_until(world.now + 1_500 * MS)
    return world, rng


def _restart(
    world: World, host: Host, rng: random.Random, change: Change, down_ms: tuple[int, int]
) -> None:
    """With the other file; promises are on the disk by name."""
    kept = {
        service.name: (promise, owned)
        for service, promise, owned in zip(
            host.spec.services, host.persisted, host.owned, strict=True
        )
    }
    host.kill(world.now, power=False)
    host.configure(_shaped(change(host.spec), 2))
    found = [kept[service.name] for service in host.spec.services]
    host.persisted, host.owned = tuple(p for p, _ in found), tuple(o for _, o in found)
    world.play_until(world.now + rng.randrange(*down_ms) * MS)
    world.boot(world.now, host)
    world.play_until(world.now + rng.randrange(2_000, 4_000) * MS)


def _roll_out(
    seed: int, nodes: int, change: Change, timing: Timing = LAN,
    down_ms: tuple[int, int] = (20, 100),
) -> list[str]:  # fmt: skip
    world, rng = _begin(seed, nodes, timing)
    masters = sorted({*owners_of(world, 0), *owners_of(world, 1)})
    for n in [*(n for n in range(world.swarm.nodes) if n not in masters), *masters]:
        _restart(world, world.hosts[n], rng, change, down_ms)
    world.play_until(world.now + 3_000 * MS)
    found = list(world.checkers.violations)
    if not found:
        found += [f"V3: nobody owns s{k}" for k in range(2) if len(owners_of(world, k)) != 1]
    return found


def services_change_places(seed: int) -> list[str]:
    """Two `[[service]]` blocks of the file change places (F35)."""

    def change(spec: ClusterSpec) -> ClusterSpec:
        return msgspec.structs.replace(spec, services=spec.services[::-1])

    return _roll_out(seed, 3, change)


def addresses_change_places(seed: int) -> list[str]:
    """Two services change their addresses (F35)."""

    return _roll_out(seed, 4, _addresses_swapped)


def times_become_shorter(seed: int) -> list[str]:
    """Preset `wan` becomes `lan`, and restarts take a while: the slaves would not wait for as long
    as the lease lasts that they are asked for (F38)."""
    return _roll_out(seed, 3, _on_a_lan, WAN, down_ms=(1_500, 3_000))


def times_become_shorter_at_once(seed: int) -> list[str]:
    """The same with quick restarts: what a slave granted before lasts longer than its hold-down by
    the new file (F38)."""
    return _roll_out(seed, 3, _on_a_lan, WAN, down_ms=(300, 800))


def times_become_longer(seed: int) -> list[str]:
    """And back."""

    def change(spec: ClusterSpec) -> ClusterSpec:
        return msgspec.structs.replace(spec, timing=WAN)

    return _roll_out(seed, 3, change, LAN, down_ms=(20, 3_000))


def _left_behind(seed: int, change: Change) -> World:
    """n0 is away while the others take set 2 up, with n3, and change something by restarts. It is
    back with its old file, by which it counts; then the newest is installed and reloaded."""
    rng = random.Random(seed)
    swarm = dataclasses.replace(calm(4, 2, 1), delay_mean_us=100, members=3)
    world = World(seed, dataclasses.replace(swarm, through_wire=True))
    stage.append(world)
    world.checkers.muted = MUTED
    hosts = world.hosts
    for host in hosts[:3]:
        host.configure(_shaped(host.spec, 1))
        world.at(rng.randrange(40_000), world.boot, host)
    world.play_until(6_500 * MS + rng.randrange(50_000))
    world.sets[:] = ((0, 1, 2), (0, 1, 2, 3))
    burn(world, 0)
    world.play_until(world.now + 3_000 * MS)
    for n in (1, 2):
        hosts[n].reload(world.now, _of_set_2(world, n))
    world.play_until(world.now + 500 * MS)
    hosts[3].file = _of_set_2(world, 3)
    world.retired.discard(3)
    hosts[3].boot(world.now, remember=False)
    hosts[3].run(world.now, hosts[3].life)
    world.play_until(world.now + 5_000 * MS)
    for n in (2, 3, 1):
        host, before = hosts[n], hosts[n].disk.previous
        host.kill(world.now, power=False)
        host.file = _shaped(change(host.spec), 777)
        host.disk = Disk(host.file, True, None, before)
        world.play_until(world.now + rng.randrange(1_500, 3_000) * MS)
        world.boot(world.now, host)
        world.play_until(world.now + rng.randrange(2_000, 4_000) * MS)
    world.operators.burnt.clear()
    world.boot(world.now, hosts[0])
    world.play_until(world.now + 10 * LAN.discovery_us + 3_000 * MS)
    hosts[0].stubborn = True  # its new heart is slow to start
    hosts[0].reload(world.now, _shaped(change(_of_set_2(world, 0)), 777))
    world.play_until(world.now + 300 * MS)
    return world


def _of_set_2(world: World, n: int) -> ClusterSpec:
    spec = spec_of(world.swarm, (0, 1, 2, 3), 2, n)
    return _shaped(spec, spec.config_hash)


def left_behind_with_other_addresses(seed: int) -> list[str]:
    """Two services have changed their addresses meanwhile, and the owner of one is lost before n0
    has taken the set up: by its numbers that one's name goes with the other's address (F39)."""
    world = _left_behind(seed, _addresses_swapped)
    burn(world, owners_of(world, 0)[0])
    world.play_until(world.now + 1_500 * MS)
    return list(world.checkers.violations)


def _addresses_swapped(spec: ClusterSpec) -> ClusterSpec:
    one, other = spec.services
    swapped = (
        msgspec.structs.replace(one, addresses=other.addresses),
        msgspec.structs.replace(other, addresses=one.addresses),
    )
    return msgspec.structs.replace(spec, services=swapped)


def _on_a_lan(spec: ClusterSpec) -> ClusterSpec:
    return msgspec.structs.replace(spec, timing=LAN)


DRAMAS: dict[str, Callable[[int], list[str]]] = {
    f.__name__: f
    for f in (
        services_change_places,
        addresses_change_places,
        times_become_shorter,
        times_become_shorter_at_once,
        times_become_longer,
        left_behind_with_other_addresses,
    )
}
