"""Operators of a world, and the agents that keep and pass on what they order for all (`Agreed`).

Whoever marks a node dead here tells the truth: the node was powered off before, and it is started
again only when the network is whole (docs/design.md, Marked dead); and he marks nothing on a side
that was left behind by a change of the voters. What else they order comes as it may: in partitions,
twice, on both sides. Who loses its power forgets who was marked dead, and is told again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core.agreed import Agreed
from haclusterd.core.model import FOR_GOOD_US
from haclusterd.core.state import is_paused
from tests.sim.faults import KINDS, Blow

if TYPE_CHECKING:
    import random

    from tests.sim.host import Host
    from tests.sim.world import World

GOSSIP_US = 400_000
QUIESCE_US = 250_000


class Operators:
    """What was ordered, as each host's agent has it on its disk."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.agreed: list[Agreed] = []
        self.burnt: set[int] = set()  # powered off for as long as the network is not whole
        self.requests = 100
        self.apart = False  # agents tell each other nothing
        self.marking: dict[tuple[int, int], str] = {}  # by host and request: without an answer yet
        self.refused = 0  # marks
        self.unpowered: set[int] = set()  # since its agent last ran
        self.clocks_step = False

    def attach(self, hosts: list[Host]) -> None:
        self.agreed = [Agreed(host.spec) for host in hosts]
        self.world.at(GOSSIP_US, self._gossip, None)

    def _gossip(self, t: int, _: Any) -> None:
        """Agents that reach each other tell each other what they know; then their hearts."""
        self.world.at(t + GOSSIP_US, self._gossip, None)
        hosts = [h for h in self.world.hosts if self._talks(h, t)]
        for a in hosts:
            self._clear_marks(a, t)
            for b in hosts:
                if a is not b and self._reaches(a, b):
                    word = self.agreed[a.me].word(a.local(t))
                    if self.agreed[b.me].merge(word, b.local(t)):
                        self.tell(b, t)

    def _talks(self, host: Host, t: int) -> bool:
        return host.alive and host.thaw_at <= t and host.telephony.agent_up and not host.busy

    def _reaches(self, a: Host, b: Host) -> bool:
        """Agents talk only to nodes of their own set."""
        if self.apart or a.number_of(b.me) < 0 or b.number_of(a.me) < 0:
            return False
        network, links = self.world.network, range(self.world.swarm.links)
        cut = {} if network.whole else network.cut
        return any((a.me, b.me, x) not in cut and (b.me, a.me, x) not in cut for x in links)

    def renew(self, host: Host, t: int) -> None:
        """Another agent, perhaps of another set of voters, reads what the one before has kept."""
        known = self.agreed[host.me].word(host.local(t))
        self.agreed[host.me] = Agreed(host.spec)
        self.agreed[host.me].merge(known, host.local(t))

    def _clear_marks(self, host: Host, t: int) -> None:
        """What heart has cleared is cleared for all."""
        agreed = self.agreed[host.me]
        for mark in host.node.marks if host.node else ():
            name = host.spec.nodes[mark.node].id
            known = agreed.mark_of(name)
            if mark.cleared and known is not None and known.version == mark.version:
                agreed.order_mark(name, "the cluster", dead=False, wall_s=self._wall_s(host, t))
                self.tell(host, t)

    def tell(self, host: Host, t: int) -> None:
        """To heart, without a request: it may have heard of it before."""
        agreed = self.agreed[host.me]
        host.todo.append(agreed.pause_input(-1, host.local(t)))
        host.todo.append(agreed.marks_input(-1))
        host.run(t, host.life)

    def boot(self, host: Host, t: int, remember: bool) -> None:
        """What its agent says first."""
        if remember:
            self.renew(host, t)
        else:
            self.agreed[host.me] = Agreed(host.spec)
        agreed = self.agreed[host.me]
        if host.me in self.unpowered:
            self.unpowered.discard(host.me)
            if agreed.forget_dead():
                again_us = t + host.rng.randrange(200_000, 4_000_000)
                self.world.at(again_us, tell_again, host)
        host.todo.append(agreed.pause_input(-1, host.local(t)))
        host.todo.append(agreed.marks_input(-1))

    def _wall_s(self, host: Host, t: int) -> int:
        """The time of day of a host: up to a day off, and another one every few seconds."""
        if not self.clocks_step:
            return 0
        off_s = (-86_400, -3, 0, 86_400)[(host.me + t // 4_000_000) % 4]
        return 100_000 + t // 1_000_000 + off_s

    def _request(self) -> int:
        self.requests += 1
        return self.requests

    def pause(self, host: Host, t: int, left_us: int) -> None:
        agreed = self.agreed[host.me]
        agreed.order_pause(left_us, "an operator", host.local(t), self._wall_s(host, t))
        host.give(t, agreed.pause_input(self._request(), host.local(t)))

    def mark(self, host: Host, t: int, name: str) -> bool:
        """Refused where this node, or one that it hears, hears the other one; as the agents do."""
        n = int(name[1:])
        if host.number_of(n) < 0 or self._is_heard(host, n):
            return False
        wall_s = self._wall_s(host, t)
        self.agreed[host.me].order_mark(name, "an operator", dead=True, wall_s=wall_s)
        request = self._request()
        self.marking[host.me, request] = name
        host.give(t, self.agreed[host.me].marks_input(request))
        return True

    def _is_heard(self, host: Host, n: int) -> bool:
        """By this node or by one that it hears."""
        asked = [h for h in self.world.hosts if h is host or _hears(host, h.me)]
        return any(h.me != n and _hears(h, n) for h in asked)

    def unmark(self, host: Host, t: int, n: int) -> None:
        """Take the mark of a node back. Refused where it is heard: it goes by itself there."""
        if self._is_heard(host, n):
            return
        self.agreed[host.me].order_mark(f"n{n}", "an operator", dead=False)
        host.give(t, self.agreed[host.me].marks_input(self._request()))

    def answered(self, host: Host, action: act.Answered) -> None:
        """What heart refuses to mark is not marked: the agent takes it back for all."""
        name = self.marking.pop((host.me, action.request), "")
        if name and not action.ok:
            self.refused += 1
            self.world.note(f"n{host.me} REFUSES to mark {name} dead: {action.text}")
            self.agreed[host.me].order_mark(name, "an operator", dead=False)
            host.todo.append(self.agreed[host.me].marks_input(-1))

    def relinquish(self, host: Host, action: act.Relinquish) -> None:
        """The agent's switchover: the core asks for it, and may refuse it by then."""
        life, request = host.life, self._request()

        def order(t: int, _: Any) -> None:
            if host.life == life and host.telephony.agent_up:
                host.give(t, inp.SwitchoverRequested(request, action.service, action.to))

        self.world.at(self.world.now + QUIESCE_US, order, None)

    def marked(self) -> set[int]:
        """Whom some host knows to be marked dead: its heart, or its agent's disk."""
        found: set[int] = set()
        for host in self.world.hosts:
            agreed = self.agreed[host.me]
            if host.me not in self.unpowered:
                found.update(n for n in range(len(self.world.hosts)) if agreed.mark_of(f"n{n}"))
            for mark in host.node.marks if host.node and host.alive else ():
                if not mark.cleared:
                    found.add(host.numbers[mark.node])
        return found

    def are_about(self) -> bool:
        """Nodes are marked dead, or will be."""
        return bool(self.burnt or (self.world.network.whole and self.marked()))

    def resume_all(self, t: int) -> None:
        """The end of the safety phase: nothing is paused for good, and the burnt come back."""
        self.burnt.clear()
        for host in self.world.hosts:  # also who is down: its disk may know of a newer pause
            wall_s = self._wall_s(host, t)
            self.agreed[host.me].order_pause(0, "an operator", host.local(t), wall_s)

    def check_claim(self, host: Host, k: int, t: int) -> None:
        """P1: who knows of a pause claims only what was released, its own, or marked."""
        node = host.node
        if node is None or not is_paused(node, host.local(t)):
            return
        service = node.services[k]
        free = service.release is not None or service.from_node in (node.spec.me, *node.unvoting)
        if not free:
            text = f"P1: n{host.me} claims s{k} from n{service.from_node} in a pause"
            self.world.checkers.report(t, text)


def _hears(host: Host, n: int) -> bool:
    number = host.number_of(n)
    return host.node is not None and number >= 0 and host.node.peers[number].alive


# faults ---------------------------------------------------------------------------------------


def pause(blow: Blow, host: Host) -> None:
    """Mostly for a while, now and then until somebody resumes."""
    if host.alive and host.telephony.agent_up:
        lasts_us = FOR_GOOD_US if blow.rng.random() < 0.3 else blow.spell(200, 6000)
        blow.world.operators.pause(host, blow.t, lasts_us)
        if lasts_us == FOR_GOOD_US:
            other = blow.rng.choice(blow.world.hosts)
            blow.later(blow.spell(500, 8000), resume, other)


def resume(blow: Blow, host: Host) -> None:
    if host.alive and host.telephony.agent_up:
        blow.world.operators.pause(host, blow.t, 0)


def mark_dead(blow: Blow, host: Host) -> None:
    """Nodes burn, perhaps a majority of them; some time later an operator says so to the rest."""
    operators, hosts = blow.world.operators, blow.world.hosts
    count = blow.rng.choice((1, 1, len(hosts) // 2, len(hosts) - 1))
    count = min(count, len(hosts) - 1 - len(operators.burnt))
    for victim in blow.rng.sample([h for h in hosts if h.me not in operators.burnt], max(0, count)):
        operators.burnt.add(victim.me)
        if victim.alive:
            victim.kill(blow.t, power=True)
    for _ in range(3):  # as an operator would who is refused, or forgets a node
        blow.later(blow.spell(200, 4000), tell_of_the_dead, host)


def tell_of_the_dead(blow: Blow, host: Host) -> None:
    _tell_all(blow.world, blow.rng, blow.t)


def tell_again(t: int, host: Host) -> None:
    """The operator reads on a host that has restarted whose marks do not hold any more."""
    _tell_all(host.world, host.rng, t)


def _tell_all(world: World, rng: random.Random, t: int) -> None:
    operators = world.operators
    talking = [h for h in world.hosts if operators._talks(h, t)]
    nodes = [h.node for h in world.hosts if h.node is not None]  # the dead ones', too
    in_force = max((n.spec.revision for n in nodes if n.roll.proven), default=1)
    living = [h for h in talking if h.spec.revision >= in_force]
    for n in sorted(operators.burnt) if living else ():
        teller = rng.choice(living)
        if operators.agreed[teller.me].mark_of(f"n{n}") is None:
            operators.mark(teller, t, f"n{n}")


KINDS.update({f.__name__: f for f in (pause, mark_dead)})
ALL_KINDS = KINDS
