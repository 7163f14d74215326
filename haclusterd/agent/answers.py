"""What the agent answers to those who ask over the API: its parts, brought together for reading."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from haclusterd import __version__
from haclusterd.agent import capacity, drained, risks, schema, status
from haclusterd.agent.alarms import alarms, differing
from haclusterd.agent.clock import now_us, wall_text
from haclusterd.agent.events import Book
from haclusterd.agent.metrics import Outside
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.page import brief
from haclusterd.agent.peers import REPORTS_TOLD, Word
from haclusterd.agent.registrations import Listed
from haclusterd.agent.schema_upkeep import Drain
from haclusterd.agent.switch import SwitchError
from haclusterd.agent.syncing import alarms as syncing_alarms
from haclusterd.agent.syncing import distrust, is_stale
from haclusterd.config import config_hash
from haclusterd.core.records import CallRecord
from haclusterd.core.view import View
from haclusterd.freeswitch.risks import Ringing

if TYPE_CHECKING:
    from haclusterd.agent.daemon import Agent

VIEW_OLD_US = 2_500_000  # heart tells its view every second


class Answers:
    """Reads the agent; changes nothing. It is the `commands.Source` of socket and HTTP."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._started = wall_text()
        self.history = agent.history
        self.reports = agent.reports
        self.operators = agent.operators
        self.orders = agent.orders
        self.maintaining, self.failover = agent.upkeep.maintaining, agent.upkeep.failover
        self.rotation = agent.upkeep.rotation
        self.traces = agent.traces
        self.spec = agent.spec
        self._capacity: tuple[View | None, list[schema.Alarm]] = (None, [])

    @property
    def events(self) -> Book:
        """The events of all nodes."""
        return self._agent.events

    def view(self) -> View:
        """Heart's newest word. Raises OperatorError before the first."""
        return self._agent.view()

    def status(self) -> schema.Status:
        """`status --json`. Raises OperatorError before heart's first word."""
        agent = self._agent
        switch = agent.life.switch if agent.life is not None else None
        words = agent.peers.words if agent.peers is not None else {}
        found = [
            *alarms(agent.problems, agent.life, switch),
            *agent.notices.alarms,
            *agent.health.alarms,
            *agent.movers.alarms,
            *differing({agent.me: self.word(), **words}),
            *self._too_little(self.view()),
        ]
        if problem := agent.orders.problem or agent.orders.lost:
            found.append(schema.Alarm("orders_file", problem))
        if agent.shared is not None:
            found += agent.shared.alarms()
        if agent.replicator is not None:
            found += syncing_alarms(agent.replicator.overflowed())
            found += distrust(agent.replicator.mesh.distrusted())
        if silent := self.heart_silent():
            found.append(schema.Alarm("heart_silent", silent))
        drains = self._drains(words)
        found += [*drained.alarms(drains), *agent.upkeep.alarms()]
        return status.status(
            self.view(), self._own_sync(), words, found, self.registration_counts(),
            self.reports.under_way(), 0 if switch is None else switch.orphans, self.stale(),
            agent.health.sensors.words(),
            drains, self.closed(),
        )  # fmt: skip

    def stale(self) -> bool:
        """Whether this node is being filled: what it says of others' calls and registrations may
        be old (MS20)."""
        config = self._agent.config
        replicates = self._agent.replicator is not None and config.freeswitch is not None
        replicates = replicates and not config.node.witness
        return any(is_stale(sync, replicates) for sync in (self._own_sync(), self._phones_sync()))

    def closed(self) -> dict[str, str]:
        """By service: why it takes no new calls. Raises OperatorError."""
        return self._agent.upkeep.drains.closed(self.view())

    def _drains(self, words: Mapping[str, Word]) -> list[Drain]:
        agent = self._agent
        names = [service.name for service in agent.spec.services]
        reports = agent.last_report.services if agent.last_report is not None else ()
        problems = dict(agent.upkeep.drains.problems)
        for word in words.values():
            problems |= word.stuck
        return drained.shown(
            self.view(),
            self.orders.drains(),
            agent.config.maintenance_service,
            {name: report.calls for name, report in zip(names, reports, strict=False)},
            problems,
        )

    def registration_counts(self) -> schema.Registered | None:
        """How many registrations this node knows; None where it keeps none."""
        shared = self._agent.shared
        if shared is None or shared.registrations.keeper is None:
            return None
        own, copies = shared.registrations.counts()
        return schema.Registered(own, copies, shared.registrations.keeper.counters["refused"])

    def registrations(self) -> Iterator[Listed]:
        """Every registration this node knows. Raises OperatorError where it keeps none."""
        if self._agent.shared is None:
            raise OperatorError("registrations are shared between nodes, and there is only one")
        return self._agent.shared.registrations.listed()

    def _too_little(self, view: View) -> list[schema.Alarm]:
        """Whether the loss of any one node fits (MS12); worked out once for each view."""
        if self._capacity[0] is not view:
            bad = [case for case in capacity.cases(view, self.spec, 1) if case.overloaded]
            found = [schema.Alarm("capacity_n1", capacity.sentence(bad))] if bad else []
            self._capacity = (view, found)
        return self._capacity[1]

    def outside(self) -> Outside:
        """What was told outside of the cluster."""
        notices = self._agent.notices
        return Outside(notices.counts, notices.dns_counts)

    def certificate_ends(self) -> dict[str, float]:
        """Seconds since 1970 by the name of the file."""
        return self._agent.upkeep.expiring.ends()

    def word(self) -> Word:
        """What this agent tells the others of itself."""
        agent = self._agent
        told = [brief(r) for r in self.reports.all()[-REPORTS_TOLD:]]
        names = [service.name for service in agent.spec.services]
        reports = agent.last_report.services if agent.last_report is not None else ()
        return Word(
            __version__,
            self._own_sync(),
            told,
            agent.orders.word(),
            agent.comparison.digest,
            agent.comparison.differences(agent.owners()),
            {n: r.reason for n, r in zip(names, reports, strict=False) if r.reason},
            agent.health.sensors.words(),
            agent.health.known_moves(),
            agent.upkeep.drains.problems,
            agent.upkeep.awaited.words(),
        )

    def _own_sync(self) -> schema.Sync:
        agent = self._agent
        if agent.replicator is None or agent.config.freeswitch is None:
            return schema.Sync("none", 0)
        fresh = {s.name: agent.replicator.freshness(s.name) for s in agent.spec.services}
        running = "replication" not in agent.problems
        return status.own_sync(agent.owners(), agent.me, fresh, running)

    def _phones_sync(self) -> schema.Sync:
        """Of the registrations: no part of `_own_sync`, which says what it takes to take over."""
        agent = self._agent
        if agent.shared is None:
            return schema.Sync("in-sync", 0)
        kept = agent.shared.registrations.freshness()
        owners = {name: owned for name, owned in agent.owners().items() if name in kept}
        return status.own_sync(owners, agent.me, kept, replicating=True)

    def health_reasons(self) -> list[str]:
        """What takes from whose health, and what this node does about it."""
        words = self._agent.peers.words if self._agent.peers is not None else {}
        return self._agent.health.why(self.view(), words)

    def about(self) -> schema.About:
        """Which daemon this is."""
        config = self._agent.config
        return schema.About(
            version=__version__,
            node=config.node.id,
            cluster=config.name,
            pid=os.getpid(),
            heart_pid=os.getppid(),
            started=self._started,
            config=str(config.path),
            config_hash=f"{config_hash(config):08x}",
            run_dir=str(config.run_dir),
        )

    def sync(self) -> object:
        """What replication says of itself."""
        if self._agent.replicator is None:
            raise OperatorError(self._agent.problems.get("replication", "there is no other node"))
        return self._agent.replicator.status()

    def service_risks(self) -> dict[str, str]:
        """By own service: why none of its calls would survive now."""
        agent = self._agent
        words = agent.peers.words if agent.peers is not None else {}
        seen = agent.view().services
        return {
            s.name: risks.nobody_ready(s.name, words)
            for s in seen
            if s.owner == agent.me and not s.successors
        }

    async def ringing(self) -> list[tuple[str, Ringing]]:
        """(service, leg) of unanswered calls here. Raises OperatorError."""
        life = self._agent.life
        if life is None or life.switch is None or not life.switch.up:
            return []
        services = {p: s.name for s in self._agent.spec.services for p in s.profiles}
        try:
            found = await life.switch.ringing()
        except SwitchError as error:
            raise OperatorError(f"FreeSWITCH does not tell which calls ring: {error}") from None
        return [(services[leg.profile], leg) for leg in found if leg.profile in services]

    def at_risk(self) -> list[str]:
        """Own calls that no standby has acknowledged."""
        replicator = self._agent.replicator
        return [] if replicator is None else replicator.at_risk()

    def calls_here(self) -> Iterator[tuple[str, str, CallRecord]]:
        """(service, own or copy, record) of all calls this node knows, unpacked one by one."""
        replicator = self._agent.replicator
        if replicator is None:
            return
        for service in self._agent.spec.services:
            here, items = replicator.items_of(service.name)
            for item in items:
                for record in replicator.store.unpack([item]):
                    yield service.name, here, record

    def own_reports(self) -> list[schema.Report]:
        """Of this node."""
        return self.reports.all()

    def known_reports(self) -> list[schema.Report]:
        """Of this node in full, and what the others told of theirs, without single calls."""
        told = self._agent.peers.reports if self._agent.peers is not None else {}
        return [*self.reports.all(), *(report for few in told.values() for report in few)]

    def heart_silent(self) -> str:
        """Why the view is not of now; empty if it is. Raises OperatorError before the first view.

        A heart that stands still owns nothing any more: its kernel has fenced it within a lease.
        """
        silent_us = now_us() - self.view().at_us
        if silent_us < VIEW_OLD_US:
            return ""
        return f"heart has said nothing for {silent_us // 1_000_000} s: what is shown is of then"

    def not_ready(self) -> str:
        """Why this node neither serves nor stands by; empty if it does."""
        if silent := self.heart_silent():
            return silent
        role = status.role_of(self.view())
        return "" if role in ("master", "slave") else f"this node is {role}"

    def counters(self) -> dict[str, int]:
        """What only counts up since the agent started."""
        replicator, life = self._agent.replicator, self._agent.life
        counts = {
            "decisions": self.history.total,
            "heart_malformed": self._agent.link.malformed,
            "heart_dropped": self._agent.link.dropped,
        }
        if life is not None and life.switch is not None:
            counts |= life.switch.counters()
        if replicator is not None:
            counts |= {f"sync_{k}": v for k, v in replicator.status().counters.items()}
        if self._agent.shared is not None:
            counts |= self._agent.shared.counters()
        counts |= self._agent.movers.counters()
        counts |= {f"health_moves_{k}": n for k, n in self._agent.health.moves.items()}
        return counts
