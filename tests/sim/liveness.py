"""After the safety phase: what is left of the world, and what it then has to come to.

`whole` heals everything. `core` heals a majority and leaves the rest dead, frozen or cut off for
good. `minority` leaves fewer than a majority: nobody may serve, and everybody has to say so.
V1 the silent are dead for all, V3 one owner and one view, V4 whoever is back stands by, V6 every
command is answered, V7 what is not served is reported.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from haclusterd.core.inputs import AgentChanged, CarrierChanged, MaintenanceRequested
from haclusterd.core.model import LastResort, State
from haclusterd.core.state import owns
from haclusterd.core.view import view
from tests.sim import changes

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.world import World

# A network that loses every third beat ends a lease now and then: whole within C of some moment.
CONVERGED_WITHIN_US = 3_000_000
LOOK_EVERY_US = 50_000
LAN_DEAD_US = 150_000
FOR_EVER_US = 10**12
_AT_REST = (State.STANDBY, State.OWNED)


def prepare(world: World, rng: random.Random) -> None:
    """End the faults: heal whom `ending` leaves, and let the others fail for good."""
    nodes = list(world.sets[-1])
    majority = len(nodes) // 2 + 1
    rng.shuffle(nodes)
    left = {
        "whole": set(nodes),
        "core": set(nodes[:majority]),
        "minority": set(nodes[: majority - 1]),
    }[world.swarm.ending]
    world.note(
        f"LIVENESS {world.swarm.ending}: {', '.join(f'n{n}' for n in sorted(left))} are left"
    )
    world.healed_us = world.now
    world.nemesis.heal()
    world.network.heal()
    world.operators.resume_all(world.now)
    world.outside = set(nodes) - left
    changes.see_through(world)
    for host in world.hosts:
        if host.me in world.retired:
            continue
        if host.me in left or host.me not in nodes:
            _mend(world, host)
        else:
            _fail(world, host, rng.choice(("dead", "frozen", "cut off")))


def _mend(world: World, host: Host) -> None:
    t = world.now
    host.kernel.mend()
    host.telephony.recoveries_fail = 0.0
    if not host.alive or host.stopping:
        world.at(t + 1, _start, host)
        return
    host.thaw_at = 0
    host.telephony.up = host.telephony.agent_up = True
    host.todo.append(AgentChanged(True))
    world.operators.tell(host, t)
    host.todo.extend(CarrierChanged(k, True) for k in range(world.swarm.services))
    host.telephony.report()
    host.give(t, MaintenanceRequested(2, False))


def _start(t: int, host: Host) -> None:
    if host.alive:
        host.kill(t, power=False)
    host.telephony.up = True
    host.boot(t, remember=True)
    host.run(t, host.life)


def _fail(world: World, host: Host, how: str) -> None:
    world.note(f"n{host.me} is {how} for good")
    if how == "dead":
        host.kill(world.now, power=True)
    elif how == "frozen":
        host.thaw_at = 0
        host.freeze(world.now, FOR_EVER_US)
    else:
        world.network.cut_off({host.me})


def converged_within_us(world: World) -> int:
    """After the end; a change of voters takes upgrades, of which some are tried again."""
    changing = len(world.sets) > 1 or world.swarm.old
    scale = world.swarm.timing.dead_us // LAN_DEAD_US + 1
    return CONVERGED_WITHIN_US * (10 * scale if changing else 1)


def insiders(world: World) -> list[Host]:
    return [h for h in world.hosts if h.me in world.sets[-1] and h.me not in world.outside]


def silent_are_dead(world: World) -> list[str]:
    """V1: whoever is left regards the others as dead."""
    found = []
    for host in insiders(world):
        node = host.node
        for n in world.outside:
            known = node is not None and host.number_of(n) >= 0
            if node is not None and known and host.alive and node.peers[host.number_of(n)].alive:
                found.append(f"V1: n{n} is silent for good, n{host.me} takes it for alive")
    return found


def what_is_not_whole(world: World) -> list[str]:
    """V3, V4, V6, V7: everything that is not yet as it has to become."""
    left = insiders(world)
    found = [f"V4: n{h.me} does not run" for h in left if not h.alive or h.node is None]
    found += changes.what_is_missing(world, left)
    if found:
        return found
    for host in left:
        found += [f"V6: n{host.me} never answered request {r}" for r in sorted(host.asked)]
    if world.swarm.ending == "minority":
        return found + _nobody_serves(world, left)
    services = range(world.swarm.services)
    without = [k for k in services if not any(h.node and owns(h.node.services[k]) for h in left)]
    if 0 < len(without) <= len(services) - _room(world, left):
        found += _say_so(world, left, without)
    else:
        without = []
    for k in services:
        if k not in without:
            found += _service(k, left)
    found += [f"V4: n{h.me} stands as marked dead" for h in left if _is_marked(h, left)]
    hashes = {h.node.rank_hash for h in left if h.node}
    if len(hashes) > 1:
        found.append(f"V3: {len(hashes)} different rankings: {[_slaves(h) for h in left]}")
    return found


def _room(world: World, left: list[Host]) -> int:
    """How many services those who are left may own: a witness none, and where masters are no last
    resort everybody else one."""
    if world.swarm.last_resort is LastResort.MASTERS:
        return world.swarm.services
    return sum(h.node is not None and not h.node.spec.nodes[h.node.spec.me].witness for h in left)


def _say_so(world: World, left: list[Host], without: list[int]) -> list[str]:
    found = []
    for host in left:
        alarms = view(host.node, host.local(world.now)).alarms if host.node else ()
        told = {alarm.text for alarm in alarms if alarm.name == "unserved"}
        missing = [k for k in without if f"nobody serves s{k}" not in told]
        found += [f"V7: n{host.me} does not say that nobody serves s{k}: {told}" for k in missing]
    return found


def _is_marked(host: Host, left: list[Host]) -> bool:
    return any(h.node is not None and h.number_of(host.me) in h.node.marked for h in left)


def _slaves(host: Host) -> tuple[int, ...]:
    return host.node.slaves if host.node else ()


def _service(k: int, left: list[Host]) -> list[str]:
    nodes = [h.node for h in left if h.node]
    owners = [n for n in nodes if owns(n.services[k])]
    states = {f"n{n.spec.me}": State(n.services[k].state).name for n in nodes}
    if len(owners) != 1:
        return [f"V3: s{k} is owned by {[n.spec.me for n in owners]}: {states}"]
    found = []
    identity = owners[0].services[k].identity
    for node in nodes:
        service = node.services[k]
        if service.promise != identity:
            stands = f"n{node.spec.me} stands by {service.promise}"
            found.append(f"V3: {stands}, s{k} is {identity}")
        if service.state not in _AT_REST:
            found.append(f"V4: n{node.spec.me} is not at rest for s{k}: {states}")
    for host in left:
        left_over = k in host.telephony.calls and k not in host.telephony.unsure
        if host.node is not None and left_over and not owns(host.node.services[k]):
            found.append(f"V4: n{host.me} still has calls of s{k}, which another owns")
    return found


def _nobody_serves(world: World, left: list[Host]) -> list[str]:
    found = []
    settled_us = world.healed_us + 10 * world.swarm.timing.dead_us
    for (n, _, k), claimed_us in world.checkers.claimed.items():
        if claimed_us > settled_us and n not in world.outside:
            found.append(f"V5: n{n} claims s{k}, which nobody can grant it")
    for host in left:
        if host.node is None:
            continue
        if any(map(owns, host.node.services)):
            found.append(f"S1: n{host.me} serves without a majority")
        codes = {alarm.name for alarm in view(host.node, host.local(world.now)).alarms}
        if "no_quorum" not in codes:
            found.append(f"V7: n{host.me} reaches no majority and does not say so: {codes}")
    return found
