"""What the nodes share beside calls, started as one part: registrations, the usage of limits, and,
where it is asked for, presence and subscriptions. Also what of calls and registrations found no
room in the streams to others."""

from __future__ import annotations

from collections.abc import Callable

from haclusterd.agent.left_out import LeftOut, Read
from haclusterd.agent.limits import Limits
from haclusterd.agent.presence import Presence
from haclusterd.agent.registrations import Registrations
from haclusterd.agent.replication import AgentReplicator
from haclusterd.agent.schema import Alarm
from haclusterd.agent.subscriptions import Subscriptions
from haclusterd.config import FreeSwitch
from haclusterd.core.model import ClusterSpec
from haclusterd.core.records import Registration
from haclusterd.core.view import View
from haclusterd.freeswitch.esl import EslFactory
from haclusterd.sync.lane import REGISTRATIONS


class Shared:
    """See the module. `busy(service)` names what keeps a service's calls busy, empty if nothing."""

    def __init__(
        self,
        spec: ClusterSpec,
        replicator: AgentReplicator,
        busy: Callable[[str], str],
        policy: str = "recover",
    ) -> None:
        self._services = [service.name for service in spec.services]
        self._profiles = {service.name: service.profiles for service in spec.services}
        self._replicator = replicator
        self._left_out: list[LeftOut] = []
        nodes = [node.id for node in spec.nodes]
        self.registrations = Registrations(spec, replicator, busy, policy)
        self.limits = Limits(nodes[spec.me], nodes, replicator, busy)
        self._presence = Presence(nodes[spec.me], nodes, replicator)
        self._subscriptions = Subscriptions(spec, replicator)
        self._with_presence = False

    async def start(
        self, section: FreeSwitch, esl_factory: EslFactory, password: str, all_calls: Read
    ) -> None:
        """Begin to follow the local FreeSWITCH."""
        lanes = self._replicator.calls, self._replicator.registrations
        for lane, read in zip(lanes, (all_calls, self._all_registrations), strict=True):
            self._left_out.append(LeftOut(lane.change_log, read))
            self._left_out[-1].start()
        await self.registrations.start(section, esl_factory)
        if section.limits_port:
            await self.limits.start(esl_factory, section.limits_port, password)
        if section.presence:
            self._with_presence = True
            await self._presence.start(esl_factory)
            await self._subscriptions.start(section.core_db, esl_factory)

    async def stop(self) -> None:
        for left_out in self._left_out:
            await left_out.stop()
        await self._subscriptions.stop()
        await self._presence.stop()
        await self.limits.stop()
        await self.registrations.stop()

    async def _all_registrations(self, lane_name: str) -> list[Registration] | None:
        keeper = self.registrations.keeper
        if keeper is None:
            return None
        profiles = self._profiles.get(lane_name.removeprefix(REGISTRATIONS), ())
        return [record for profile in profiles for record in keeper.source.known(profile)]

    def observe(self, view: View) -> None:
        """Heart's view."""
        self.registrations.observe(view)
        self.limits.observe(view)
        if self._with_presence:
            self._presence.observe(view)
            self._subscriptions.observe(view)

    def recover(self, service: int, epoch: int) -> None:
        """This node took the service over."""
        name = self._services[service]
        self.registrations.recover(name, epoch)
        self.limits.recover(name)
        if self._with_presence:
            self._subscriptions.recover(name, epoch)

    def alarms(self) -> list[Alarm]:
        """What a person has to look at."""
        parts = {
            "registrations": self.registrations.problem,
            "limits": self.limits.problem,
            "clocks": self.registrations.clocks.problem,
        }
        return [Alarm(name, problem) for name, problem in parts.items() if problem]

    def counters(self) -> dict[str, int]:
        """What only counts up since the agent started."""
        counted = self.registrations.counters() | self.limits.counters()
        if self._with_presence:
            counted |= self._presence.counters() | self._subscriptions.counters()
        return counted


def shared_with(
    spec: ClusterSpec,
    replicator: AgentReplicator | None,
    busy: Callable[[str], str],
    policy: str = "recover",
) -> Shared | None:
    """None where there is nobody to share with."""
    return None if replicator is None else Shared(spec, replicator, busy, policy)
