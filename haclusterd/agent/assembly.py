"""The part that speaks with FreeSWITCH, put together from configuration and the agent's parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from haclusterd.agent.freeswitch import FreeswitchLife
from haclusterd.agent.local_switch import LocalSwitch, recovery_options
from haclusterd.agent.recoveries import Recoveries
from haclusterd.agent.services import Services
from haclusterd.agent.switch import SwitchEvents
from haclusterd.config import Config, FreeSwitch
from haclusterd.core.model import ClusterSpec
from haclusterd.freeswitch.capabilities import Capabilities


def why_without(config: Config, problems: Mapping[str, str]) -> str:
    """Why calls cannot be recovered while ESL has not even been started; empty without ESL."""
    section = config.freeswitch
    if section is None or not section.esl_port or config.node.witness:
        return ""
    return problems.get("freeswitch", "the part that speaks with FreeSWITCH is starting")


def local_switch(
    config: Config,
    section: FreeSwitch,
    spec: ClusterSpec,
    life: FreeswitchLife,
    services: Services,
    recoveries: Recoveries,
    compared: Callable[[Capabilities], None],
) -> LocalSwitch:
    """Not started yet. Raises SwitchError where the password cannot be read."""

    def connected() -> None:
        life.connected()
        services.freeswitch_connected()

    by_profile = {p: s.name for s in spec.services for p in s.profiles}
    events = SwitchEvents(
        services.call_changes, services.freeswitch_replaced, connected,
        life.disconnected, life.health_changed, life.shut_down, compared, recoveries.settled,
        life.profile_started,
    )  # fmt: skip
    nodes = [node.id for node in spec.nodes if not node.witness]
    options = recovery_options(config.recovery)
    return LocalSwitch(section, by_profile, events, config.api.socket, nodes, options)
