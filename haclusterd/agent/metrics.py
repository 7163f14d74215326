"""Prometheus metrics from what the API knows, gathered when they are asked for: docs/metrics.md.

A registry of our own, and the library only once somebody asks: it costs a few MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from haclusterd.agent.schema import Report, Status
from haclusterd.core.view import View

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Gauge

_OUTAGE_BUCKETS_MS = (5, 10, 20, 50, 100, 150, 200, 300, 500, 1000, 3000, 10_000)


def render(
    status: Status, view: View, reports: list[Report], counters: Mapping[str, int], at_risk: int
) -> bytes:
    """The text format. `counters` become `haclusterd_events_total{event=...}`."""
    from prometheus_client import CollectorRegistry, Counter, generate_latest

    registry = CollectorRegistry()
    _cluster(registry, status, at_risk)
    _nodes(registry, status)
    _datagrams(registry, view)
    _reports(registry, reports)
    events = Counter("haclusterd_events", "since the agent started", ("event",), registry=registry)
    for name, count in counters.items():
        events.labels(name).inc(count)
    return generate_latest(registry)


def _gauge(
    registry: CollectorRegistry, name: str, text: str, labels: tuple[str, ...] = ()
) -> Gauge:
    from prometheus_client import Gauge

    return Gauge(f"haclusterd_{name}", text, labels, registry=registry)


def _cluster(registry: CollectorRegistry, status: Status, at_risk: int) -> None:
    _gauge(registry, "quorate", "1 while this node reaches a majority").set(status.quorum.ok)
    reachable = "voters heard both ways, this one included"
    _gauge(registry, "voters_reachable", reachable).set(status.quorum.reachable)
    _gauge(registry, "alarms", "alarms that stand").set(len(status.alarms))
    _gauge(registry, "calls_at_risk", "own calls no standby has acknowledged").set(at_risk)
    text = "recovered legs here that no phone has answered for yet"
    _gauge(registry, "orphans", text).set(status.orphans)
    owner = _gauge(
        registry, "service_owner", "1 for the node that owns the service", ("service", "node")
    )
    epoch = _gauge(registry, "service_epoch", "fencing number of the service", ("service",))
    owned = _gauge(registry, "service_owned", "1 while somebody serves it", ("service",))
    for service in status.services:
        epoch.labels(service.name).set(service.epoch)
        owned.labels(service.name).set(service.state == "owned")
        if service.owner:
            owner.labels(service.name, service.owner).set(1)


def _nodes(registry: CollectorRegistry, status: Status) -> None:
    role = _gauge(registry, "node_role", "1 for the role the node has", ("node", "role"))
    rank = _gauge(registry, "node_rank", "0 primary slave, -1 none", ("node",))
    calls = _gauge(registry, "node_calls", "call legs", ("node",))
    health = _gauge(registry, "node_health", "0 unusable to 100", ("node",))
    lag = _gauge(registry, "node_sync_lag_seconds", "lag of the node's worst copy", ("node",))
    up = _gauge(registry, "link_up", "1 while the link works both ways", ("node", "address"))
    rtt = _gauge(registry, "link_rtt_seconds", "round trip on the link", ("node", "address"))
    for node in status.nodes:
        role.labels(node.id, node.role).set(1)
        rank.labels(node.id).set(-1 if node.rank is None else node.rank)
        calls.labels(node.id).set(node.calls)
        health.labels(node.id).set(node.health)
        lag.labels(node.id).set(node.sync.lag_ms / 1000)
        for link in node.links:
            up.labels(node.id, link.address).set(link.up)
            if link.rtt_ms is not None:
                rtt.labels(node.id, link.address).set(link.rtt_ms / 1000)


def _datagrams(registry: CollectorRegistry, view: View) -> None:
    from prometheus_client import Counter

    text = "datagrams on an own link since heart started, by what became of them"
    received = Counter("haclusterd_link_received", text, ("link", "outcome"), registry=registry)
    text = "what the socket of an own link met since heart started"
    socket = Counter("haclusterd_link_socket", text, ("link", "event"), registry=registry)
    for link in view.link_tallies:
        for outcome, count in link.received.items():
            received.labels(link.address, outcome).inc(count)
        for event, count in link.socket.items():
            socket.labels(link.address, event).inc(count)
    text = "datagrams from the address of a peer since heart started, replays left out"
    came = Counter("haclusterd_peer_datagrams", text, ("node", "address", "readable"),
                   registry=registry)  # fmt: skip
    text = "1 while all that comes from this address of a peer is unreadable"
    unreadable = _gauge(registry, "peer_unreadable", text, ("node", "address"))
    for peer in view.peer_tallies:
        came.labels(peer.node, peer.address, "yes").inc(peer.readable)
        came.labels(peer.node, peer.address, "no").inc(peer.unreadable)
        unreadable.labels(peer.node, peer.address).set(bool(peer.unreadable_now))


def _reports(registry: CollectorRegistry, reports: list[Report]) -> None:
    from prometheus_client import Histogram

    outage = Histogram(
        "haclusterd_takeover_outage_seconds",
        "address outage of takeovers kept in reports",
        buckets=[ms / 1000 for ms in _OUTAGE_BUCKETS_MS],
        registry=registry,
    )
    for report in reports:
        if report.outage_ms is not None:
            outage.observe(max(0.0, report.outage_ms / 1000))
    verdicts = _gauge(registry, "takeover_calls", "call legs in the kept reports", ("verdict",))
    verdicts.labels("recovered").set(sum(r.calls.recovered for r in reports))
    verdicts.labels("partial").set(sum(r.calls.partial for r in reports))
    verdicts.labels("lost").set(sum(r.calls.lost for r in reports))
