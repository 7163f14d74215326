"""Operators who change the cluster while faults go on: its voters, and the version of its software.

They do what the runbook says, at any time and half of the time incompletely: write the next file,
copy it to most of the nodes, reload there. What they may not do is refused by the nodes themselves.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from haclusterd.core.state import owns
from tests.sim.faults import KINDS, Blow
from tests.sim.returns import burn_and_return
from tests.sim.swarm import spec_of

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.nemesis import Nemesis
    from tests.sim.world import World

VOTERS_MIN, VOTERS_MAX = 2, 5
RELOADED_EVERY_US = 400_000


def reconfigure(blow: Blow, host: Host) -> None:
    """Bring the newest file to more nodes, or write the next one if it is in force."""
    world, rng = blow.world, blow.rng
    if _is_in_force(world) or rng.random() < 0.1:
        _write_next(world, rng)
    revision = len(world.sets) if rng.random() < 0.1 else next_revision(world)
    members = set(world.sets[revision - 1]) | set(world.sets[max(0, revision - 2)])
    for n in sorted(sorted(members), key=lambda _: rng.random()):
        if rng.random() < 0.85:
            world.at(
                blow.t + 1 + rng.randrange(600_000),
                _bring_for(blow.nemesis, revision),
                world.hosts[n],
            )
    if rng.random() < 0.4:  # a crash between the staging and the taking up
        victim = world.hosts[rng.choice(world.sets[-1])]
        for _ in range(2):
            blow.later(1 + rng.randrange(900_000), _crash_for(rng.random() < 0.15), victim)


def _crash_for(forgets: bool) -> Callable[[Blow, Host], None]:
    def crash(blow: Blow, host: Host) -> None:
        if host.alive:
            host.kill(blow.t, power=False)
            back_us = blow.rng.choice((20, 200, 1500)) * 1000
            blow.world.at(blow.t + back_us, blow.nemesis.up, (host, not forgets))

    return crash


def _bring_for(nemesis: Nemesis, revision: int) -> Callable[[int, Host], None]:
    def brought(t: int, host: Host) -> None:
        if not nemesis.over:
            bring(t, host, revision)

    return brought


def _in_force(world: World) -> int:
    """The newest that a node knows to be in force; of a dead one it is remembered until the end."""
    nodes = [h.node for h in world.hosts if h.node and (h.alive or not world.nemesis.over)]
    return max((node.spec.revision for node in nodes if node.roll.proven), default=1)


def next_revision(world: World) -> int:
    """The one to bring about now: one after the other, each on all of its nodes."""
    in_force = _in_force(world)
    whole = all(
        (node := world.hosts[n].node) is not None and node.spec.revision >= in_force
        for n in world.sets[in_force - 1]
        if n not in world.outside
    )
    return min(in_force + whole, len(world.sets))


def reinstall(host: Host) -> None:
    """A node without its state gets the file that is in force, as the runbook says; or nearly."""
    world = host.world
    if len(world.sets) == 1:
        return
    careful = world.nemesis.over or host.rng.random() < 0.8
    revision = _in_force(world) if careful else len(world.sets)
    host.file = spec_of(world.swarm, world.sets[revision - 1], revision, host.me)


def bring(t: int, host: Host, revision: int) -> None:
    """The file is installed on a host, and reloaded or, on a new node, started with."""
    world = host.world
    if world.nemesis.over and _is_stuck(host):
        host.kill(t, power=False)
        reinstall(host)
        host.boot(t, remember=False)
        host.run(t, host.life)
        return
    members = world.sets[revision - 1]
    if host.me in world.operators.burnt:
        return
    if host.me in members and host.me in world.retired:
        _join(t, host, revision)
    elif host.me not in world.retired:
        host.reload(t, spec_of(world.swarm, members, revision, host.me))


def _is_stuck(host: Host) -> bool:
    """Started without its state, with a file that is in force nowhere."""
    if not host.alive or host.node is None or host.node.roll.proven:
        return False
    in_force = _in_force(host.world)
    return host.node.spec.revision > in_force and host.me in host.world.sets[in_force - 1]


def _join(t: int, host: Host, revision: int) -> None:
    """A node that was no voter, or is none any more, comes as if from the factory."""
    world = host.world
    if host.alive:
        host.kill(t, power=True)
    host.file = spec_of(world.swarm, world.sets[revision - 1], revision, host.me)
    world.retired.discard(host.me)
    host.telephony.up = True
    world.note(f"n{host.me} JOINS with the file of revision {host.file.revision}")
    host.boot(t, remember=False)
    host.run(t, host.life)


def _is_in_force(world: World) -> bool:
    """On each of its nodes that runs."""
    revision = len(world.sets)
    nodes = [world.hosts[n].node for n in world.sets[-1] if world.hosts[n].alive]
    return bool(nodes) and all(node and node.spec.revision >= revision for node in nodes)


def _write_next(world: World, rng: random.Random) -> None:
    present = world.sets[-1]
    spare = [h.me for h in world.hosts if h.me in world.retired and h.me not in present]
    grow = len(present) <= VOTERS_MIN or (len(present) < VOTERS_MAX and rng.random() < 0.5)
    if grow and spare:
        world.sets.append((*present, rng.choice(spare)))
    elif len(present) > VOTERS_MIN:
        # `reload` refuses while the node that goes owns a service, unless it takes one meanwhile.
        idle = [n for n in present if not _serves(world.hosts[n])]
        gone = rng.choice(idle if idle and rng.random() < 0.7 else present)
        world.sets.append(tuple(n for n in present if n != gone))
    else:
        return
    world.note(f"OPERATOR writes revision {len(world.sets)}: {world.sets[-1]}")


def _serves(host: Host) -> bool:
    return host.node is not None and any(map(owns, host.node.services))


def swap(blow: Blow, host: Host) -> None:
    """A node that knows only version 1 of the wire is upgraded to one that knows both."""
    old = [h for h in blow.world.hosts if h.old and h.alive]
    if old:
        swap_now(blow.t, blow.rng.choice(old))


def swap_now(t: int, host: Host) -> None:
    if host.upgrade(t, host.rng.randrange(500, 40_000)):
        _made_new(host)
        host.world.note(f"n{host.me} KNOWS VERSION 2")


def _made_new(host: Host) -> None:
    host.old = False
    if host.node is not None:
        host.node.plain_us = min(host.node.plain_us, host.local(host.world.now))


# the end ------------------------------------------------------------------------------------


def see_through(world: World) -> None:
    """What was begun is brought to its end: every node is upgraded and has the newest file."""
    for host in world.hosts:
        if host.me not in world.outside:
            _made_new(host)
    if len(world.sets) > 1:
        world.at(world.now + 2_000, _again, world)


def _again(t: int, world: World) -> None:
    if len(world.sets) > 1 and _nobody_knows(world):
        _begin_anew(t, world)
    for host in world.hosts:
        if host.me not in world.outside:
            _unmark_who_goes(t, host)
            bring(t, host, next_revision(world))
    running = all(world.hosts[n].alive for n in world.sets[-1] if n not in world.outside)
    if not running or not _is_in_force(world):
        world.at(t + RELOADED_EVERY_US, _again, world)


def _unmark_who_goes(t: int, host: Host) -> None:
    """A dead node is removed without a mark: the refusal of a reload asks for that."""
    if host.node is None or not host.alive:
        return
    world = host.world
    for n in [host.numbers[mark.node] for mark in host.node.marks if not mark.cleared]:
        goes = n not in world.sets[-1] or n in world.retired
        if goes and not world.hosts[n].alive:
            world.operators.unmark(host, t, n)


def _nobody_knows(world: World) -> bool:
    """Every node that runs has lost what it knew of the sets."""
    nodes = [h.node for h in world.hosts if h.alive and h.node is not None]
    return bool(nodes) and not any(node.roll.proven for node in nodes)


def _begin_anew(t: int, world: World) -> None:
    """All are stopped, and the newest set is called revision 1 (docs/adr/0009)."""
    newest = world.sets[-1]
    world.note(f"OPERATOR begins anew: {newest}")
    world.sets[:] = [newest]
    for host in world.hosts:
        if host.alive:
            host.kill(t, power=True)
        host.telephony.up = True
        host.file = spec_of(world.swarm, newest, 1, host.me)
    world.retired.update(h.me for h in world.hosts if h.me not in newest)
    world.retired.difference_update(newest)
    for n in newest:
        if n not in world.outside:
            world.hosts[n].boot(t, remember=False)
            world.hosts[n].run(t, world.hosts[n].life)


def what_is_missing(world: World, left: list[Host]) -> list[str]:
    """V8: every node of the newest set counts by it."""
    revision = len(world.sets)
    return [
        f"V8: n{h.me} has revision {h.node.spec.revision}, not {revision}: {h.node.roll}"
        for h in left
        if h.node is not None and h.node.spec.revision != revision
    ]


ALL: dict[str, Callable[[Blow, Host], None]] = {
    **KINDS,
    **{f.__name__: f for f in (reconfigure, swap, burn_and_return)},
}
__all__ = ["ALL", "bring", "reconfigure", "see_through", "swap", "swap_now"]
