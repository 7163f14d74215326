"""One measured fault: calls up, fault, what the clients saw, verdict. DESIGN section 8, `Lab`."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from haclusterd.lab import netns
from haclusterd.lab.calls import CallVerdict, Moments, gaps, has_media, judge
from haclusterd.lab.clock import now_ns
from haclusterd.lab.faults import MOVING, Injection, Injector
from haclusterd.lab.frames import mac_bytes
from haclusterd.lab.holders import Span, holders_max, overlaps
from haclusterd.lab.laboratory import Laboratory, Observation
from haclusterd.lab.netns import LabError
from haclusterd.lab.plan import LabPlan

MOVED_S = 10.0  # a service that is not answered by then has not moved
FROZEN_S = 2.0  # how long faults that are undone last, after the move
WATCHED_S = 1.5  # how long is looked on after the last thing that was done
_CALM_S = 0.5
_MEDIA_S = 20.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunOrder:
    """What to do in one run. `calls` on each of the `victims`' services, and on all others too
    if `foreign_calls`; no `victims` means the owner of the first service."""

    fault: str
    calls: int = 0
    foreign_calls: int = 0
    victims: tuple[str, ...] = ()


@dataclass
class Outcome:
    """Everything known of one run; `as_json` is the contract's part of it."""

    order: RunOrder
    preset: str
    victims: dict[str, str]  # service -> node that had it
    owners: dict[str, str]  # service -> node that has it afterwards, empty if nobody
    outage_ms: float
    exit_visible_ms: float | None
    holders: int
    late_ms: float  # the prober's own worst lateness: a figure of this size means nothing
    verdicts: list[CallVerdict] = field(default_factory=list)
    foreign: list[CallVerdict] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    @property
    def moved(self) -> bool:
        return any(self.owners[name] != node for name, node in self.victims.items())

    @property
    def lost(self) -> list[CallVerdict]:
        return [verdict for verdict in self.verdicts if verdict.lost]

    @property
    def touched(self) -> list[CallVerdict]:
        return [verdict for verdict in self.foreign if verdict.touched]

    @property
    def good(self) -> bool:
        return not (self.lost or self.touched or self.holders > 1 or self.complaints)

    def as_json(self) -> dict[str, Any]:
        firsts = [v.first_reinvite_ms for v in self.verdicts if v.first_reinvite_ms is not None]
        total, lost = len(self.verdicts), len(self.lost)
        return {
            "fault": self.order.fault,
            "preset": self.preset,
            "address_outage_ms": round(self.outage_ms, 1),
            "exit_visible_ms": _rounded(self.exit_visible_ms),
            "first_reinvite_ms": _rounded(min(firsts, default=None)),
            "media_gap_ms": gaps(self.verdicts),
            "calls": {
                "total": total,
                "recovered": total - lost,
                "lost": lost,
                "foreign_touched": len(self.touched),
            },
            "holders_max": self.holders,
            "report": self.report,
        }


@contextmanager
def ready_cluster(plan: LabPlan, prefix: str | None, say: Say) -> Iterator[Laboratory]:
    """A laboratory whose cluster has formed."""
    began = time.monotonic()
    with Laboratory(plan, prefix) as lab:
        lab.wait_formed()
        say(f"{len(plan.nodes)} nodes form a cluster after {time.monotonic() - began:.1f} s")
        yield lab


def measure(lab: Laboratory, order: RunOrder, say: Say) -> Outcome:
    """Calls up, fault(s), and everything a client saw of it."""
    victims = _victims(lab, order)
    wanted = {
        service.name: order.calls if service.name in victims else order.foreign_calls
        for service in lab.plan.services
    }
    if any(wanted.values()):
        lab.start_calls(wanted)
        lab.wait_replicated()
        say(f"{sum(wanted.values())} calls talk and are replicated")
    lab.arm()
    # A fault falls on any phase of a heartbeat.
    time.sleep(_CALM_S + random.uniform(0, 0.1))
    lab.arm()
    injections = inject(lab, order.fault, victims)
    say(f"{order.fault} of {', '.join(sorted(set(victims.values())))}")
    outcome = watch(lab, order, victims, injections, say)
    return outcome


def inject(lab: Laboratory, fault: str, victims: dict[str, str]) -> list[Injection]:
    """Everything prepared first, then one fault after the other without a pause."""
    injectors = [
        Injector(lab.topology, lab.nodes[node], fault, service)
        for service, node in {node: (s, node) for s, node in victims.items()}.values()
    ]
    return [injector.fire() for injector in injectors]


def watch(
    lab: Laboratory,
    order: RunOrder,
    victims: dict[str, str],
    injections: list[Injection],
    say: Say,
) -> Outcome:
    """From the fault to the end of all calls."""
    complaints = [i.complaint for i in injections if i.complaint]
    try:
        _await_move(lab, order, victims, complaints)
        if any(injection.fault != "freeswitch" for injection in injections):
            time.sleep(FROZEN_S)
    finally:
        for injection in injections:
            injection.heal()
    time.sleep(WATCHED_S)
    _await_media(lab, victims)
    before_end = lab.observe()
    probed = lab.probe.ask("report")
    owners = {service.name: lab.holder(service.ip) for service in lab.plan.services}
    moments = Moments(min(i.at_ns for i in injections), now_ns())
    if lab.callers:
        lab.end_calls()
    after = lab.observe()
    verdicts = judge(after.calls, before_end.streams, moments)
    mine = {lab.plan.service(name).ip for name in victims}
    spans = _spans(after)
    complaints += _overlap_texts(lab, spans, moments.fault_ns)
    if after.dropped or before_end.dropped:
        complaints.append("the observer missed frames: nothing can be said about holders")
    visible = [i.exit_visible_ms for i in injections if i.exit_visible_ms is not None]
    return Outcome(
        order=order,
        preset=lab.plan.preset,
        victims=victims,
        owners=owners,
        outage_ms=max(probed[ip]["longest_ms"] for ip in mine),
        exit_visible_ms=max(visible, default=None),
        holders=holders_max(spans),
        late_ms=max(record["late_ms"] for record in probed.values()),
        verdicts=[v for v in verdicts if v.service_ip in mine],
        foreign=[v for v in verdicts if v.service_ip not in mine],
        report=_report(lab, victims, owners),
        complaints=complaints,
    )


def _victims(lab: Laboratory, order: RunOrder) -> dict[str, str]:
    """{service: node} of what is going to be lost."""
    owned = {service.name: lab.holder(service.ip) for service in lab.plan.services}
    nodes = order.victims or (owned[lab.plan.services[0].name],)
    victims = {name: node for name, node in owned.items() if node in nodes}
    if not victims:
        raise LabError(f"{', '.join(nodes)} serves nothing, so nothing can be measured")
    return victims


def _await_move(
    lab: Laboratory, order: RunOrder, victims: dict[str, str], complaints: list[str]
) -> None:
    """Until every lost service is answered by another node; a complaint if one is not."""
    if order.fault not in MOVING:
        return

    def still() -> list[str]:
        held = {name: lab.holder(lab.plan.service(name).ip) for name in victims}
        return [name for name, node in victims.items() if held[name] in ("", node)]

    try:
        netns.wait_for(lambda: not still(), MOVED_S, "takeover")
    except LabError:
        complaints.append(f"{', '.join(still())} did not move to another node in {MOVED_S:g} s")


def _await_media(lab: Laboratory, victims: dict[str, str]) -> None:
    """Until every call that is still there has media again, or no more can be hoped for."""
    if not lab.callers:
        return

    def silent() -> bool:
        seen = lab.observe()
        return any(
            not has_media(call, seen.streams, seen.at_ns)
            for call in seen.calls.values()
            if not any(m.what == "BYE" for m in call.messages)
        )

    end = time.monotonic() + _MEDIA_S
    while silent() and time.monotonic() < end:
        time.sleep(0.2)


def _spans(seen: Observation) -> list[Span]:
    return [
        Span(ipaddress.ip_address(s.address).packed, mac_bytes(s.mac), s.first_ns, s.last_ns,
             s.frames)
        for s in seen.spans
    ]  # fmt: skip


def _overlap_texts(lab: Laboratory, spans: list[Span], fault_ns: int) -> list[str]:
    names = {mac_bytes(node.mac): node.id for node in lab.plan.nodes}
    return [
        f"{names.get(intruder.mac, intruder.mac.hex(':'))} speaks for "
        f"{ipaddress.ip_address(span.address)} from {(intruder.first_ns - fault_ns) / 1e6:.1f} to "
        f"{(intruder.last_ns - fault_ns) / 1e6:.1f} ms, while "
        f"{names.get(span.mac, span.mac.hex(':'))} does from {(span.first_ns - fault_ns) / 1e6:.1f}"
        f" to {(span.last_ns - fault_ns) / 1e6:.1f} ms"
        for span, intruder in overlaps(spans)[:10]
    ]


def _report(lab: Laboratory, victims: dict[str, str], owners: dict[str, str]) -> dict[str, Any]:
    """The new owner's own report, empty if nothing moved or it has none."""
    for name, node in victims.items():
        if owners[name] not in ("", node):
            done = lab.nodes[owners[name]].ctl("report", "last", timeout_s=15)
            if done.returncode == 0:
                found: dict[str, Any] = json.loads(done.stdout)
                return found
    return {}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def order_for(order: RunOrder, **changes: Any) -> RunOrder:
    return dataclasses.replace(order, **changes)
