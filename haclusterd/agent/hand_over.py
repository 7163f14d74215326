"""When does an ill master hand over (`[health] hand_over`)? Rarely, once, and only to the better.

Pure: `Watch.look` is given what this node sees and what all nodes know of moves by health.

The rules, which together keep a fault of all nodes from moving anything (ML9) and the last master
in place (MS11): the owner is impaired, by its sensors; a slave in the service's line is not, and is
better by `better_by`; both have been so for `after_s`, which is longer than any sensor takes to
notice; the service was not moved by health within `every_s`, nor any other within `after_s`; and
what makes the owner ill is not just what the service was moved away from already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from haclusterd.config.watching import HealthSection
from haclusterd.core.ranking import IMPAIRED_HEALTH
from haclusterd.core.view import NodeView, ServiceView, View

REMEMBERED = 6  # times `every_s`: for so long the same sensors do not move a service again
MOVES_MAX = 64


class Move(msgspec.Struct, frozen=True, array_like=True):
    """A switchover by health: away from `node`, because of `sensors`, `age_s` ago."""

    service: str
    node: str
    sensors: tuple[str, ...]
    age_s: float


class Step(msgspec.Struct, frozen=True):
    """What to do about one own service: `to` empty, it stays, and `why`."""

    service: str
    to: str
    why: str


class Watch:
    """Follows heart's views of one node; times are of one clock that only goes on."""

    def __init__(self, policy: HealthSection) -> None:
        self._policy = policy
        self._since: dict[tuple[str, str], float] = {}
        self._moves: dict[tuple[str, str], tuple[tuple[str, ...], float]] = {}

    # -- moves, by this node or another --

    def moved(self, service: str, node: str, sensors: Iterable[str], at: float) -> None:
        """A service was moved away from `node`."""
        known = self._moves.get((service, node))
        if known is None or known[1] < at:
            self._moves[service, node] = (tuple(sensors), at)
        while len(self._moves) > MOVES_MAX:
            del self._moves[min(self._moves, key=lambda key: self._moves[key][1])]

    def heard(self, moves: Sequence[Move], now: float) -> None:
        """What another agent knows of moves. An older one says nothing that is not known."""
        for move in moves[:MOVES_MAX]:
            known = self._moves.get((move.service, move.node))
            at = now - max(0.0, move.age_s)
            if known is None or known[1] < at - 5.0:  # the same one, told with some delay
                self.moved(move.service, move.node, move.sensors, at)

    def known(self, now: float) -> list[Move]:
        """For the others, so that the memory outlives an agent."""
        self._forget(now)
        return [Move(s, n, why, round(now - at, 1)) for (s, n), (why, at) in self._moves.items()]

    def _forget(self, now: float) -> None:
        oldest = now - REMEMBERED * self._policy.every_s
        self._moves = {key: value for key, value in self._moves.items() if value[1] > oldest}

    # -- the decision --

    def look(self, view: View, ill: Sequence[str], now: float) -> list[Step]:
        """For each own service whether it goes, and why; nothing while this node is well.

        `ill`: the sensors that take from this node's health.
        """
        self._forget(now)
        me = next(n for n in view.nodes if n.id == view.node)
        own = [s for s in view.services if s.owner == me.id and s.local_state == "owned"]
        if not self._policy.hand_over or not ill or me.health >= IMPAIRED_HEALTH or not own:
            self._since.clear()
            return []
        self._follow(view, me, own, now)
        steps: list[Step] = []
        for service in own:
            going = any(step.to for step in steps)  # one at a time: the next round sees more
            steps.append(self._step(view, me, service, ill, now, going))
        return steps

    def _follow(self, view: View, me: NodeView, own: Sequence[ServiceView], now: float) -> None:
        """Since when each slave has been clearly better, without a break."""
        better = {(s.name, n.id) for s in own for n in self._better(view, me, s)}
        self._since = {pair: self._since.get(pair, now) for pair in better}

    def _better(self, view: View, me: NodeView, service: ServiceView) -> list[NodeView]:
        """Slaves that could take it, and would clearly be better at it, in their order."""
        return [
            node
            for node in sorted(view.nodes, key=lambda n: n.rank)
            if node.id in service.successors
            and node.rank >= 0
            and node.health >= max(IMPAIRED_HEALTH, me.health + self._policy.better_by)
        ]

    def _step(
        self,
        view: View,
        me: NodeView,
        service: ServiceView,
        ill: Sequence[str],
        now: float,
        going: bool,
    ) -> Step:
        better = self._better(view, me, service)
        name = service.name
        if view.pause is not None or not view.quorate:
            return Step(name, "", "the cluster is paused, or has no majority")
        if not better:
            return Step(name, "", f"no slave is clearly better than health {me.health}")
        if reason := self._recent(name, ill, now):
            return Step(name, "", reason)
        ripe = [n for n in better if now - self._since[name, n.id] >= self._policy.after_s]
        if not ripe:
            left_s = self._policy.after_s - max(now - self._since[name, n.id] for n in better)
            return Step(name, "", f"{better[0].id} is better: waiting {left_s:.0f} s more")
        if going:
            return Step(name, "", "another service goes first")
        to = ripe[0]
        why = f"health {me.health} by {', '.join(ill)}; {to.id} has {to.health}"
        return Step(name, to.id, why)

    def _recent(self, service: str, ill: Sequence[str], now: float) -> str:
        """What earlier moves by health forbid."""
        for (name, node), (sensors, at) in self._moves.items():
            ago_s = now - at
            if name == service and ago_s < self._policy.every_s:
                left_s = self._policy.every_s - ago_s
                return f"it was moved by health {ago_s:.0f} s ago: not again for {left_s:.0f} s"
            if name == service and set(ill) <= set(sensors):
                return f"it was moved away from {node} for the same ({', '.join(ill)}) already"
            if ago_s < self._policy.after_s:
                return f"{name} was moved by health {ago_s:.0f} s ago: that has to settle first"
        return ""
