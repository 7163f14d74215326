"""The faults: what each kind does to a host, its kernel, its FreeSWITCH, or the links around it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from haclusterd.core import inputs as inp
from haclusterd.core.state import owns

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.nemesis import Nemesis
    from tests.sim.network import Way


class Blow:
    """One fault as it strikes at `t`: where it takes its chances, and what it can reach."""

    def __init__(self, nemesis: Nemesis, rng: random.Random, t: int) -> None:
        self.nemesis, self.rng, self.t = nemesis, rng, t
        self.world, self.swarm = nemesis.world, nemesis.swarm
        self.network = self.world.network

    def spell(self, low_ms: int, high_ms: int) -> int:
        """A time in us, longer for slower presets."""
        return self.rng.randrange(low_ms, high_ms) * 1000 * self.nemesis.scale

    def others(self, host: Host) -> list[Host]:
        return [h for h in self.world.hosts if h is not host]

    def ways(self, sources: list[int], targets: list[int]) -> list[Way]:
        links = range(self.swarm.links)
        return [(a, b, x) for a in sources for b in targets if a != b for x in links]

    def both(self, left: list[int], right: list[int]) -> list[Way]:
        return self.ways(left, right) + self.ways(right, left)

    def cut(self, ways: list[Way], for_us: int) -> None:
        self.network.add_cut(ways, self.t, for_us)

    def later(self, after_us: int, what: Callable[[Blow, Host], None], host: Host) -> None:
        """The next stroke of the same fault, unless all faults are over by then."""
        self.world.at(self.t + after_us, partial(_later, self.nemesis, self.rng, what), host)


def _later(
    nemesis: Nemesis, rng: random.Random, what: Callable[[Blow, Host], None], t: int, host: Host
) -> None:
    if not nemesis.over:
        what(Blow(nemesis, rng, t), host)


# processes ----------------------------------------------------------------------------------


def _down(blow: Blow, host: Host, power: bool, remember: bool, low_ms: int, high_ms: int) -> None:
    if host.alive:
        # Beside marked nodes nobody else loses its memory (docs/design.md, Marked dead).
        remember = remember or blow.world.operators.are_about()
        host.kill(blow.t, power)
        blow.world.at(blow.t + blow.spell(low_ms, high_ms), blow.nemesis.up, (host, remember))


def crash(blow: Blow, host: Host) -> None:
    _down(blow, host, False, True, 10, 4000)


def restart_forget(blow: Blow, host: Host) -> None:
    _down(blow, host, False, False, 10, 4000)


def power_off(blow: Blow, host: Host) -> None:
    _down(blow, host, True, blow.rng.random() < 0.8, 10, 4000)


def storm(blow: Blow, host: Host) -> None:
    """A restart storm: it comes up and dies again and again."""
    for i in range(6):
        blow.later(i * blow.spell(300, 900) + 1, _die_at_once, host)


def _die_at_once(blow: Blow, host: Host) -> None:
    _down(blow, host, False, True, 5, 200)


def freeze(blow: Blow, host: Host) -> None:
    host.freeze(blow.t, blow.spell(20, 400))


def freeze_long(blow: Blow, host: Host) -> None:
    host.freeze(blow.t, blow.spell(400, 8000))


def stun(blow: Blow, host: Host) -> None:
    host.freeze(blow.t, blow.spell(90, 160))


def short_stuns(blow: Blow, host: Host) -> None:
    """Shorter than the lease, many times in a row."""
    for i in range(10):
        blow.later(1 + i * blow.spell(80, 160), _short_stun, host)


def _short_stun(blow: Blow, host: Host) -> None:
    host.freeze(blow.t, blow.spell(20, 60))


def upgrade(blow: Blow, host: Host) -> None:
    host.upgrade(blow.t, blow.rng.randrange(500, 40_000))


# links --------------------------------------------------------------------------------------


def cut_node(blow: Blow, host: Host) -> None:
    others = [h.me for h in blow.others(host)]
    blow.cut(blow.both([host.me], others), blow.spell(50, 5000))


def cut_pair(blow: Blow, host: Host) -> None:
    """Non-transitive: two do not hear each other, everybody else hears both."""
    other = blow.rng.choice(blow.others(host))
    blow.cut(blow.both([host.me], [other.me]), blow.spell(50, 8000))


def cut_one_way(blow: Blow, host: Host) -> None:
    others = [h.me for h in blow.others(host)]
    if blow.rng.random() < 0.5:
        others = [blow.rng.choice(others)]
    ways = blow.ways([host.me], others)
    if blow.rng.random() < 0.5:
        ways = blow.ways(others, [host.me])
    blow.cut(ways, blow.spell(50, 5000))


def cut_half(blow: Blow, host: Host) -> None:
    """Two halves; in a third of the cases they share one node (a bridge)."""
    nodes = list(range(blow.swarm.nodes))
    blow.rng.shuffle(nodes)
    at = blow.rng.randrange(1, blow.swarm.nodes)
    left, right = nodes[:at], nodes[at:]
    if blow.rng.random() < 0.3:
        (left if len(left) > 1 else right).pop()
    blow.cut(blow.both(left, right), blow.spell(50, 5000))


def cut_link(blow: Blow, host: Host) -> None:
    """One NIC, of everybody or of this node."""
    nodes, link = list(range(blow.swarm.nodes)), blow.rng.randrange(blow.swarm.links)
    ways = [w for w in blow.ways(nodes, nodes) if w[2] == link]
    if blow.rng.random() < 0.5:
        ways = [w for w in ways if host.me in w[:2]]
    blow.cut(ways, blow.spell(50, 5000))


def switches_reboot(blow: Blow, host: Host) -> None:
    """Nobody hears anybody for a while."""
    nodes = list(range(blow.swarm.nodes))
    blow.cut(blow.ways(nodes, nodes), blow.spell(100, 4000))


def flap(blow: Blow, host: Host) -> None:
    """A NIC of this node goes down and up."""
    link = blow.rng.randrange(blow.swarm.links)
    others = [h.me for h in blow.others(host)]
    ways = [w for w in blow.both([host.me], others) if w[2] == link]
    for i in range(8):
        blow.world.at(blow.t + 1 + i * blow.spell(500, 600), partial(_cut, blow.nemesis), ways)


def _cut(nemesis: Nemesis, t: int, ways: list[Way]) -> None:
    if not nemesis.over:
        nemesis.world.network.add_cut(ways, t, 300_000 * nemesis.scale)


def swizzle(blow: Blow, host: Host) -> None:
    """Links stop one by one and come back in another order."""
    nodes = list(range(blow.swarm.nodes))
    ways = blow.ways(nodes, nodes)
    blow.rng.shuffle(ways)
    step_us = blow.spell(5, 120)
    back = list(range(len(ways)))
    blow.rng.shuffle(back)
    whole_us = step_us * len(ways)
    for i, way in enumerate(ways):
        until_us = whole_us + back[i] * step_us - i * step_us
        blow.world.at(blow.t + 1 + i * step_us, partial(_cut_for, blow.nemesis, until_us), [way])


def _cut_for(nemesis: Nemesis, for_us: int, t: int, ways: list[Way]) -> None:
    if not nemesis.over:
        nemesis.world.network.add_cut(ways, t, max(1, for_us))


def clog(blow: Blow, host: Host) -> None:
    """What this node sends waits, and then comes all at once."""
    until = blow.t + blow.spell(20, 2000)
    for way in blow.ways([host.me], [h.me for h in blow.others(host)]):
        if blow.rng.random() < 0.7:
            blow.network.clogged[way] = until


def replay_recorded(blow: Blow, host: Host) -> None:
    """What was recorded on the links comes again, at a host that may just have restarted."""
    if blow.rng.random() < 0.5:
        _down(blow, host, False, blow.rng.random() < 0.5, 1, 50)
    of = blow.rng.choice(blow.others(host)).me
    tape = [x for x in blow.network.recorded if x[1] == host.me and x[0] == of]
    after_us = blow.spell(1, 300)
    for sent in tape[-100:]:
        after_us += blow.rng.randrange(1, 3000)
        blow.world.at(blow.t + after_us, blow.network.arrive, sent)


# FreeSWITCH, agent, kernel ------------------------------------------------------------------


def freeswitch(blow: Blow, host: Host) -> None:
    if host.alive and blow.swarm.freeswitch and host.telephony.up:
        host.telephony.exit()
        host.run(blow.t, host.life)


def freeswitch_hangs(blow: Blow, host: Host) -> None:
    if host.alive and blow.swarm.freeswitch:
        host.telephony.hang(blow.spell(300, 1000))


def recovery_fails(blow: Blow, host: Host) -> None:
    host.telephony.recoveries_fail = blow.rng.choice((0.0, 0.5, 1.0))


def agent_stalls(blow: Blow, host: Host) -> None:
    if host.alive and host.telephony.agent_up:
        host.telephony.stall(blow.spell(50, 5000))
        host.run(blow.t, host.life)


def carrier(blow: Blow, host: Host) -> None:
    """The NIC of a service's addresses loses its carrier for a while."""
    k = blow.rng.randrange(blow.swarm.services)
    host.give(blow.t, inp.CarrierChanged(k, False))
    blow.world.at(blow.t + blow.spell(50, 4000), partial(_carrier_back, k), host)


def _carrier_back(k: int, t: int, host: Host) -> None:
    host.give(t, inp.CarrierChanged(k, True))


def kernel_trouble(blow: Blow, host: Host) -> None:
    """The fence's table is flushed, or netlink refuses, or takes its time."""
    kernel, until = host.kernel, blow.t + blow.spell(20, 600)
    how = blow.rng.randrange(4)
    if how == 0:
        kernel.fence_fails_until = until
    elif how == 1:
        kernel.removal_fails_until = until
    elif how == 2:
        kernel.adding_takes_us = blow.spell(1, 400)
    else:
        kernel.refused = {k for k in range(blow.swarm.services) if blow.rng.random() < 0.7}
    blow.world.at(until, _mend_kernel, host)


def _mend_kernel(t: int, host: Host) -> None:
    host.kernel.mend()


# operators ----------------------------------------------------------------------------------


def switchover(blow: Blow, host: Host) -> None:
    """To the first in line, or to somebody in particular, ready or not."""
    if host.node is None or not host.alive:
        return
    held = [k for k, s in enumerate(host.node.services) if owns(s)] or [0]
    to = -1 if blow.rng.random() < 0.7 else host.number_of(blow.rng.randrange(blow.swarm.nodes))
    request = inp.SwitchoverRequested(blow.rng.randrange(1, 1 << 30), blow.rng.choice(held), to)
    host.give(blow.t, request)


def maintenance(blow: Blow, host: Host) -> None:
    host.give(blow.t, inp.MaintenanceRequested(blow.rng.randrange(1, 1 << 30), True))
    blow.world.at(blow.t + blow.spell(100, 6000), end_maintenance, host)


def end_maintenance(t: int, host: Host) -> None:
    host.give(t, inp.MaintenanceRequested(1, False))


def stop(blow: Blow, host: Host) -> None:
    """A planned stop; heart does not wait for ever. Later the node is started again."""
    if not host.alive or host.stopping:
        return
    host.stopping = True
    host.give(blow.t, inp.StopRequested())
    blow.world.at(blow.t + blow.spell(3000, 5000), partial(_enough, host.life), host)
    blow.world.at(blow.t + blow.spell(5000, 8000), blow.nemesis.up, (host, True))


def _enough(life: int, t: int, host: Host) -> None:
    if host.life == life and host.alive:
        host.kill(t, power=False)


def ambush(blow: Blow, host: Host) -> None:
    """The worst moment: something happens just when the next service moves."""
    kinds = [k for k in blow.swarm.kinds if k != "ambush"] or ["freeze"]
    blow.nemesis.ambushes.append((blow.rng.choice(kinds), blow.rng))


# aimed at one rule each ---------------------------------------------------------------------


def triangle(blow: Blow, host: Host) -> None:
    """Owner and one slave never hear each other; what lies between blinks or forgets.

    The slave claims again and again, refused by voters that hear the owner: aimed at the deferral
    and at the hold-down.
    """
    others = blow.others(host)
    slave = blow.rng.choice(others)
    blow.cut(blow.both([host.me], [slave.me]), blow.spell(3000, 6000))
    what = blink if blow.rng.random() < 0.7 else lapse_of_memory
    at = blow.spell(200, 400)
    for _ in range(8):
        blow.later(at, partial(what, slave.me), host)
        at += blow.spell(250, 600)


def blink(slave: int, blow: Blow, host: Host) -> None:
    """Just shorter than `dead_us`: the silence a voter defers a claim for."""
    rest = [h.me for h in blow.others(host) if h.me != slave]
    dead_us = blow.swarm.timing.dead_us
    blow.cut(blow.both([host.me], rest), blow.rng.randrange(dead_us * 7 // 10, dead_us))


def lapse_of_memory(slave: int, blow: Blow, host: Host) -> None:
    """A voter restarts at once and remembers nothing."""
    voter = blow.rng.choice([h for h in blow.others(host) if h.me != slave])
    _down(blow, voter, False, False, 1, 20)


def late_echoes(blow: Blow, host: Host) -> None:
    """Nobody hears this node any more, and what it still hears was said before that.

    Aimed at leases: they count from what the owner sent, not from when it heard the answer.
    """
    others = [h.me for h in blow.others(host)]
    blow.cut(blow.ways([host.me], others), blow.spell(300, 600))
    until = blow.t + blow.spell(60, 96)
    blow.network.clogged.update(dict.fromkeys(blow.ways(others, [host.me]), until))


def pair_flickers(blow: Blow, host: Host) -> None:
    """Owner and one slave hear each other for moments only: a claim that meets its owner."""
    slave = blow.rng.choice(blow.others(host))
    ways = blow.both([host.me], [slave.me])
    at = blow.t
    for _ in range(20):
        apart_us = blow.spell(170, 330)
        blow.world.at(at + 1, partial(_cut_for, blow.nemesis, apart_us), ways)
        at += apart_us + blow.spell(2, 45)


def torn_release(blow: Blow, host: Host) -> None:
    """The target of a switchover hears the RELEASE and is cut off while it claims.

    The owner takes its service back; the target returns and still speaks of the old RELEASE, to
    voters only: owner and target do not hear each other for seconds.
    """
    others = blow.others(host)
    target = blow.rng.choice(others)
    held = [k for k, s in enumerate(host.node.services) if owns(s)] if host.node else []
    if not host.alive or not held:
        return
    request = inp.SwitchoverRequested(1, blow.rng.choice(held), host.number_of(target.me))
    host.give(blow.t, request)
    rest = [h.me for h in others if h is not target]
    soon = blow.t + blow.rng.randrange(2_000) * blow.nemesis.scale
    apart, off = blow.both([host.me], [target.me]), blow.both([target.me], rest)
    blow.world.at(soon, partial(_cut_for, blow.nemesis, blow.spell(2000, 4000)), apart)
    blow.world.at(soon, partial(_cut_for, blow.nemesis, blow.spell(50, 300)), off)


KINDS: dict[str, Callable[[Blow, Host], None]] = {
    f.__name__: f
    for f in (
        crash, restart_forget, power_off, storm, freeze, freeze_long, stun, short_stuns, upgrade,
        cut_node, cut_pair, cut_one_way, cut_half, cut_link, switches_reboot, flap, swizzle, clog,
        replay_recorded, freeswitch, freeswitch_hangs, recovery_fails, agent_stalls, carrier,
        kernel_trouble, switchover, maintenance, stop, ambush, triangle, torn_release, late_echoes,
        pair_flickers,
    )
}  # fmt: skip
