"""What operators do to a cluster that runs, put together: drains, failover, rotation of keys.

Switchover, maintenance and orders for the whole cluster are older and stand in `daemon` themselves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from haclusterd.agent.awaited import Awaited
from haclusterd.agent.drains import Drains
from haclusterd.agent.expiring import Expiring
from haclusterd.agent.failover import Failover
from haclusterd.agent.freeswitch import can_go
from haclusterd.agent.maintaining import Maintaining
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.rotation import Rotation
from haclusterd.agent.schema import Alarm
from haclusterd.core.view import View

if TYPE_CHECKING:
    from haclusterd.agent.daemon import Agent
    from haclusterd.agent.replication import AgentReplicator


class Upkeep:
    """Beside `agent`, of which it uses the parts. Made before its replicator: a rotation of keys
    that a crash cut short is finished first."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        config, spec, operators = agent.config, agent.spec, agent.operators
        self._forced: dict[str, float] = {}  # service: until when this node takes it as it stands
        self.drains = Drains(
            spec, config.maintenance_service, agent.orders, operators, agent.history,
            self._newest_view, lambda: agent.services.switch,
            lambda name: agent.services.busy(name) or operators.switching(name), self._own_calls,
            lambda name: agent.services.at_rest(name),
        )  # fmt: skip
        self.awaited = Awaited(
            spec, config.state_dir, operators, agent.history, agent.view,
            agent.orders.keep_maintenance,
        )  # fmt: skip
        self.maintaining = Maintaining(
            config, spec, operators, agent.orders, agent.view, self.awaited
        )
        self.failover = Failover(
            spec, operators, agent.history, agent.view, self._force, self._unready
        )
        self.rotation = Rotation(config, operators, agent.history, agent.view)
        self.expiring = Expiring(config)
        operators.voters, operators.is_closed = agent.voters, self.drains.is_closed
        operators.hold, operators.let_go = self.drains.hold, self.drains.let_go
        operators.keep_maintenance = self.awaited.keep_maintenance
        agent.orders.changed = self.drains.poke
        agent.voters.forbidden = lambda: self.rotation.under_way

    def start(self) -> None:
        given = self.rotation.tell_heart()
        if given is not None:
            self._agent.link.send(given)
        self.drains.start()
        if self._agent.life is not None:
            self._agent.life.came_up = self.drains.lifting.came_up
            self._agent.life.can_go = lambda: can_go(self._newest_view(), self._agent.me)
        self.expiring.start()

    async def stop(self) -> None:
        await self.expiring.stop()
        await self.drains.stop()

    def join(self, mesh: AgentReplicator) -> None:
        self.failover.join(mesh)
        self.rotation.join(mesh)
        self.awaited.join(mesh)

    def alarms(self) -> list[Alarm]:
        return [*self.rotation.alarms(), *self.expiring.alarms(), *self.drains.lifting.alarms()]

    def forced(self) -> frozenset[str]:
        """Services that this node counts as ready for, whatever its copy lacks."""
        now = asyncio.get_running_loop().time()
        return frozenset(name for name, until in self._forced.items() if now < until)

    def _force(self, service: str, seconds: float) -> None:
        self._forced[service] = asyncio.get_running_loop().time() + seconds
        self._agent.changed()

    def _newest_view(self) -> View | None:
        try:
            return self._agent.view()
        except OperatorError:
            return None  # heart has not said anything yet

    def _own_calls(self, service: str) -> int:
        replicator = self._agent.replicator
        return replicator.own_calls(service) if replicator is not None else 0

    def _unready(self, node: str, service: str) -> str:
        """Why that node could not take it over now, as it says itself."""
        agent = self._agent
        word = agent.answers.word() if node == agent.me else None
        if word is None and agent.peers is not None:
            word = agent.peers.words.get(node)
        return word.unready.get(service, "") if word is not None else ""
