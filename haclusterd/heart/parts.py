"""What a heart is put together from, opened by `main` and used by `process` and `upgrade_run`."""

from __future__ import annotations

from dataclasses import dataclass

from haclusterd.heart.addresses import ServiceAddresses
from haclusterd.heart.agent_link import AgentLink
from haclusterd.heart.fence import Fence
from haclusterd.heart.freeswitch_process import FreeswitchProcess
from haclusterd.heart.journal import Journal
from haclusterd.heart.links import Links
from haclusterd.heart.netlink import NetlinkEvents
from haclusterd.heart.ruleset import RulesetEvents
from haclusterd.heart.sdnotify import ServiceNotifier
from haclusterd.wire import Wire


@dataclass
class Parts:
    """The adapters of one heart. `complaints`: sentences for status, what this host lacks.

    `ruleset`: None where no nf_tables fence is in use.
    """

    wire: Wire
    links: Links
    fence: Fence
    addresses: ServiceAddresses
    freeswitch: FreeswitchProcess
    agent: AgentLink
    events: NetlinkEvents
    ruleset: RulesetEvents | None
    journal: Journal
    notifier: ServiceNotifier
    complaints: tuple[str, ...] = ()
