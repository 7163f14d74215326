"""Prometheus metrics from what the API knows, gathered when they are asked for.

CATALOG is what there is: docs/metrics.md is made of it. A registry of our own, and the library only
once somebody asks: it costs a few MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from haclusterd.agent import capacity
from haclusterd.agent.clock import now_us
from haclusterd.agent.schema import About, Node, Report, Status
from haclusterd.core.model import ClusterSpec
from haclusterd.core.view import View

PREFIX = "haclusterd"
_OUTAGE_BUCKETS_MS = (5, 10, 20, 50, 100, 150, 200, 300, 500, 1000, 3000, 10_000)


class Metric(NamedTuple):
    """`name` without the prefix; a counter's gets `_total` where it is read."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()


_LINK = ("node", "address")
SENSOR_STATES = {"ok": 0, "warn": 1, "critical": 2}
CATALOG = (
    Metric("info", "gauge", "1; which daemon answers", ("cluster", "node", "version")),
    Metric("view_age_seconds", "gauge", "how old heart's word on the cluster is"),
    Metric("quorate", "gauge", "1 while this node reaches a majority"),
    Metric("voters_reachable", "gauge", "voters heard both ways, this one included"),
    Metric("alarms", "gauge", "alarms that stand; `status` has their texts"),
    Metric("alarm", "gauge", "alarms of this name that stand", ("name",)),
    Metric("calls_at_risk", "gauge", "own calls no standby has acknowledged"),
    Metric("orphans", "gauge", "recovered legs here that no phone has answered for yet"),
    Metric("capacity_fits", "gauge", "1 while the load fits whichever one node is lost"),
    Metric("service_owner", "gauge", "1 for the node that owns the service", ("service", "node")),
    Metric("service_epoch", "gauge", "fencing number of the service", ("service",)),
    Metric("service_owned", "gauge", "1 while somebody serves it", ("service",)),
    Metric("service_state", "gauge", "1 for the state it is in: `owned`, `moving`, `unserved`",
           ("service", "state")),
    Metric("service_successors", "gauge", "nodes that could take it over now", ("service",)),
    Metric("node_role", "gauge", "1 for the role the node has; `witness` for one that lives and "
           "only votes", ("node", "role")),
    Metric("node_rank", "gauge", "0 for the primary slave, -1 for none", ("node",)),
    Metric("node_calls", "gauge", "call legs", ("node",)),
    Metric("node_capacity", "gauge", "call legs the node can carry", ("node",)),
    Metric("node_health", "gauge", "0 unusable to 100", ("node",)),
    Metric("node_sync_state", "gauge", "1 for the state of the node's worst copy of calls: "
           "`in-sync`, `syncing`, `suspended`, `none`", ("node", "state")),
    Metric("sensor_state", "gauge", "0 ok, 1 warn, 2 critical, -1 unknown or not applicable",
           ("node", "sensor")),
    Metric("node_sync_lag_seconds", "gauge", "lag of the node's worst copy", ("node",)),
    Metric("registrations", "gauge", "registrations this node knows: `own` made here, `copy` those "
           "of others", ("here",)),
    Metric("link_up", "gauge", "1 while beats pass both ways on the link", _LINK),
    Metric("link_rtt_seconds", "gauge", "round trip on the link", _LINK),
    Metric("link_loss_ratio", "gauge", "share of beats lost on the link", _LINK),
    Metric("link_received", "counter", "datagrams on an own link, by what became of them; see "
           "below", ("link", "outcome")),
    Metric("link_socket", "counter", "`sent`, `send_errors`, `receive_errors`, `opened` of an own "
           "link", ("link", "event")),
    Metric("peer_datagrams", "counter", "datagrams from the address of a peer; `readable` is `yes` "
           "or `no`; replays are left out", (*_LINK, "readable")),
    Metric("peer_unreadable", "gauge", "1 while all that comes from this address is unreadable "
           "(alarm `unreadable_peer`)", _LINK),
    Metric("takeover_outage_seconds", "histogram", "address outage of the takeovers kept in "
           "reports"),
    Metric("takeover_calls", "gauge", "call legs in the kept reports: `recovered`, `partial`, "
           "`lost`", ("verdict",)),
    Metric("certificate_ends_seconds", "gauge", "when the certificate in this file of the node "
           "ends, in seconds since 1970 (alarm `certificate`)", ("file",)),
    Metric("hook_events", "counter", "what became of events for a hook: `sent`, `retried`, "
           "`failed`, `dropped`", ("hook", "outcome")),
    Metric("dns_updates", "counter", "updates of a DNS name: `done`, `failed`",
           ("name", "outcome")),
    Metric("events", "counter", "what only counts up in the agent: decisions, replication's "
           "counters, hand-overs by health, movers, ESL logins, events lost on the way "
           "(`esl_events_dropped`), calls that no other node could recover (`calls_refused`)",
           ("event",)),
)  # fmt: skip


class Inside(NamedTuple):
    """What the agent knows beside its status."""

    view: View
    about: About
    reports: Sequence[Report]
    counters: Mapping[str, int]
    at_risk: int
    spec: ClusterSpec
    certificate_ends: Mapping[str, float]


class Outside(NamedTuple):
    """What was told outside of the cluster, by (hook or DNS name, outcome)."""

    hooks: Mapping[tuple[str, str], int]
    dns: Mapping[tuple[str, str], int]


class Sheet:
    """The registry of one answer, made from CATALOG."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        kinds: dict[str, Any] = {"gauge": Gauge, "counter": Counter, "histogram": Histogram}
        self._made: dict[str, Any] = {}
        for metric in CATALOG:
            more: dict[str, Any] = {}
            if metric.kind == "histogram":
                more["buckets"] = [ms / 1000 for ms in _OUTAGE_BUCKETS_MS]
            text = metric.text.replace("`", "")
            self._made[metric.name] = kinds[metric.kind](
                f"{PREFIX}_{metric.name}", text, metric.labels, registry=self.registry, **more
            )

    def put(self, name: str, value: float, *labels: str) -> None:
        """The value of a gauge, or what a counter has counted."""
        metric = self._made[name].labels(*labels) if labels else self._made[name]
        set_to = getattr(metric, "set", None)
        (set_to or metric.inc)(value)

    def observe(self, name: str, value: float) -> None:
        self._made[name].observe(value)


def render(status: Status, inside: Inside, outside: Outside) -> bytes:
    """The text format."""
    from prometheus_client import generate_latest

    sheet = Sheet()
    about = inside.about
    sheet.put("info", 1, about.cluster, about.node, about.version)
    sheet.put("view_age_seconds", max(0, now_us() - inside.view.at_us) / 1e6)
    sheet.put("calls_at_risk", inside.at_risk)
    sheet.put("capacity_fits", all(map(capacity.fits, capacity.cases(inside.view, inside.spec, 1))))
    _cluster(sheet, status)
    _nodes(sheet, status)
    _registrations(sheet, status)
    _datagrams(sheet, inside.view)
    _reports(sheet, inside.reports)
    for file, ends_s in inside.certificate_ends.items():
        sheet.put("certificate_ends_seconds", ends_s, file)
    for name, count in inside.counters.items():
        sheet.put("events", count, name)
    for labels, count in outside.hooks.items():
        sheet.put("hook_events", count, *labels)
    for labels, count in outside.dns.items():
        sheet.put("dns_updates", count, *labels)
    return generate_latest(sheet.registry)


def _cluster(sheet: Sheet, status: Status) -> None:
    sheet.put("quorate", status.quorum.ok)
    sheet.put("voters_reachable", status.quorum.reachable)
    sheet.put("alarms", len(status.alarms))
    sheet.put("orphans", status.orphans)
    names = [alarm.name for alarm in status.alarms]
    for name in sorted(set(names)):
        sheet.put("alarm", names.count(name), name)
    for service in status.services:
        sheet.put("service_epoch", service.epoch, service.name)
        sheet.put("service_owned", service.state == "owned", service.name)
        sheet.put("service_state", 1, service.name, service.state)
        sheet.put("service_successors", len(service.successors), service.name)
        if service.owner:
            sheet.put("service_owner", 1, service.name, service.owner)


def shown_role(node: Node) -> str:
    """For people a witness that lives is a witness; `status` calls it `maintenance`, because it
    takes nothing over."""
    return "witness" if node.witness and node.role == "maintenance" else node.role


def _nodes(sheet: Sheet, status: Status) -> None:
    for node in status.nodes:
        sheet.put("node_role", 1, node.id, shown_role(node))
        sheet.put("node_rank", -1 if node.rank is None else node.rank, node.id)
        sheet.put("node_calls", node.calls, node.id)
        sheet.put("node_capacity", node.capacity, node.id)
        sheet.put("node_health", node.health, node.id)
        sheet.put("node_sync_state", 1, node.id, node.sync.state)
        for sensor in node.sensors:
            state = SENSOR_STATES.get(sensor.state, -1)
            sheet.put("sensor_state", state, node.id, sensor.name)
        sheet.put("node_sync_lag_seconds", node.sync.lag_ms / 1000, node.id)
        for link in node.links:
            sheet.put("link_up", link.up, node.id, link.address)
            sheet.put("link_loss_ratio", link.loss, node.id, link.address)
            if link.rtt_ms is not None:
                sheet.put("link_rtt_seconds", link.rtt_ms / 1000, node.id, link.address)


def _registrations(sheet: Sheet, status: Status) -> None:
    if status.registrations is not None:
        sheet.put("registrations", status.registrations.own, "own")
        sheet.put("registrations", status.registrations.copies, "copy")


def _datagrams(sheet: Sheet, view: View) -> None:
    for link in view.link_tallies:
        for outcome, count in link.received.items():
            sheet.put("link_received", count, link.address, outcome)
        for event, count in link.socket.items():
            sheet.put("link_socket", count, link.address, event)
    for peer in view.peer_tallies:
        sheet.put("peer_datagrams", peer.readable, peer.node, peer.address, "yes")
        sheet.put("peer_datagrams", peer.unreadable, peer.node, peer.address, "no")
        sheet.put("peer_unreadable", bool(peer.unreadable_now), peer.node, peer.address)


def _reports(sheet: Sheet, reports: Sequence[Report]) -> None:
    for report in reports:
        if report.outage_ms is not None:
            sheet.observe("takeover_outage_seconds", max(0.0, report.outage_ms / 1000))
    for verdict in ("recovered", "partial", "lost"):
        total = sum(getattr(report.calls, verdict) for report in reports)
        sheet.put("takeover_calls", total, verdict)
