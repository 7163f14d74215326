"""What `standing.judge` looks at, gathered from the agent's parts. Reads; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from haclusterd.agent.clock import now_us
from haclusterd.agent.standing import Facts

if TYPE_CHECKING:
    from haclusterd.agent.daemon import Agent
    from haclusterd.agent.freeswitch import FreeswitchLife


def facts_of(agent: Agent, orphaned_us: Mapping[str, int]) -> Facts:
    """`orphaned_us`: since when each service has had no owner.

    Freshness is that of the calls: copies of registrations are unfinished at all nodes at once, as
    long as an owner has not read its own, and a service without any candidate is worse off.
    """
    life, replicator = agent.life, agent.replicator
    switch = life.switch if life is not None else None
    section = agent.config.freeswitch
    names = [service.name for service in agent.spec.services]
    now = now_us()
    return Facts(
        freeswitch=section is not None and not agent.config.node.witness,
        watched=section is not None and section.esl_port != 0,
        process=life.process if life is not None else None,
        esl_up=switch is not None and switch.up,
        problem=agent.problems.get("freeswitch", "") or (switch.problem if switch else ""),
        health_state=switch.health.state if switch is not None else "up",
        calls=_calls(life),
        own_calls={n: replicator.own_calls(n) for n in replicator.owned()}
        if replicator is not None else {},
        owners=agent.owners(),
        orphaned_s={n: (now - at_us) / 1e6 for n, at_us in orphaned_us.items()},
        freshness={n: replicator.freshness(n) for n in names} if replicator else {},
        profiles=life.profiles if life is not None else {},
        lacking=agent.comparison.differences(agent.owners()).lacking,
        busy={n: agent.services.busy(n) for n in names},
        replicating=agent.problems.get("replication", ""),
        ailing=agent.health.sensors.penalty,
        unfit=agent.health.sensors.unfit,
        forced=agent.upkeep.forced(),
    )  # fmt: skip


def _calls(life: FreeswitchLife | None) -> int:
    """Call legs up. What was read of a FreeSWITCH that is gone died with it."""
    if life is None or life.switch is None:
        return 0
    return life.switch.calls if life.process is not None or life.switch.up else 0
