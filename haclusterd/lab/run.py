"""Measured faults: calls up, fault, what the clients saw, verdict. DESIGN section 8, `Lab`.

`measure` does one fault on fresh calls. Several faults on the same calls are a row of `endure`,
one phase each, and one `conclude`.
"""

from __future__ import annotations

import ipaddress
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from haclusterd.lab import netns
from haclusterd.lab.calls import MEDIA_ALIVE_MS, badly_ended, has_media, judge
from haclusterd.lab.clock import now_ns
from haclusterd.lab.ending import end_calls, living_twice, still_there
from haclusterd.lab.faults import MOVING, STUN_MS, Injection, Injector, spread_ms, strike
from haclusterd.lab.frames import mac_bytes
from haclusterd.lab.holders import Span, holders_max
from haclusterd.lab.laboratory import Laboratory, Observation
from haclusterd.lab.netns import LabError
from haclusterd.lab.outcome import Outcome
from haclusterd.lab.overlap import judge_overlap, told
from haclusterd.lab.plan import LabPlan

MOVED_S = 10.0  # a service that is not answered by then has not moved
FROZEN_S = 2.0  # how long a fault that can be undone goes on after the move
WATCHED_S = 1.5  # how long is looked on after the last thing that was done
_CALM_S = 0.5
_STEADY_S = 5.0
_MEDIA_S = 20.0
_LAST_FRAMES_S = 0.1  # the observer gets frames in blocks
_OVERLAPS_MAX = 10

Say = Callable[[str], None]
Live = Callable[[Laboratory, list[Injection]], None]


@dataclass
class Phase:
    """One fault and the time until the cluster was calm again, as recorded."""

    fault: str
    victims: dict[str, str]
    owners: dict[str, str]
    injections: list[Injection]
    thawed_ns: int  # when the frozen were let go on, 0 if none were
    overlap_bound_ms: int  # that `status` admitted to before the fault
    until_ns: int
    seen: Observation
    probed: dict[str, Any]
    report: dict[str, Any]
    complaints: list[str]

    @property
    def fault_ns(self) -> int:
        return min(injection.at_ns for injection in self.injections)

    @property
    def spread_ms(self) -> float:
        """How far apart the faults of several victims were, at most."""
        return spread_ms(self.injections)


@contextmanager
def ready_cluster(plan: LabPlan, prefix: str | None, say: Say) -> Iterator[Laboratory]:
    """A laboratory whose cluster has formed."""
    began = time.monotonic()
    with Laboratory(plan, prefix) as lab:
        lab.wait_formed()
        say(f"{len(plan.nodes)} nodes form a cluster after {time.monotonic() - began:.1f} s")
        yield lab


def measure(
    lab: Laboratory,
    fault: str,
    say: Say,
    *,
    victims: tuple[str, ...] = (),
    calls: int = 0,
    foreign_calls: int = 0,
    stun_ms: float = STUN_MS,
) -> Outcome:
    """`calls` on each service of the victims, `foreign_calls` on every other one, then the fault.

    Without `victims` it hits the owner of the first service.
    """
    lost = owned_by(lab, victims)
    bring_calls(
        lab,
        {s.name: calls if s.name in lost else foreign_calls for s in lab.plan.services},
        say,
    )
    phase = endure(lab, fault, say, victims=victims, stun_ms=stun_ms)
    return conclude(lab, [phase])[0]


def bring_calls(lab: Laboratory, per_service: dict[str, int], say: Say, tag: str = "1") -> None:
    """Calls that talk and are replicated."""
    wanted = sum(per_service.values())
    if wanted:
        lab.start_calls(per_service, tag)
        lab.wait_replicated()
        say(f"{wanted} calls talk and are replicated")


def endure(
    lab: Laboratory,
    fault: str,
    say: Say,
    *,
    victims: tuple[str, ...] = (),
    live: Live | None = None,
    stun_ms: float = STUN_MS,
) -> Phase:
    """The fault on all victims at one instant, until the cluster is calm again."""
    lost = owned_by(lab, victims)
    by_node = {node: service for service, node in lost.items()}
    injectors = [
        Injector(lab.topology, lab.nodes[node], fault, service)
        for node, service in sorted(by_node.items())
    ]
    bound_ms = 0 if lab.plan.kernel_fence else lab.overlap_bound_ms()
    lab.arm()
    # The fault falls on any phase of a heartbeat.
    time.sleep(_CALM_S + random.uniform(0, 0.1))
    lab.arm()
    say(f"{fault} of {', '.join(sorted(by_node))} ({', '.join(sorted(lost))})")
    injections = strike(injectors, stun_ms)
    for injection in injections:
        injection.complete()
    complaints = [i.complaint for i in injections if i.complaint]
    try:
        if fault in MOVING:
            complaints += _await_move(lab, lost, injections, live)
        if fault not in ("freeswitch", "node"):
            # A second holder must have the time to stay for longer than is admitted.
            time.sleep(max(FROZEN_S, bound_ms / 1000 if fault == "freeze-node" else 0))
    finally:
        # Elsewhere the watchdog has run on, and nothing waits for a thaw.
        thawed_ns = now_ns() if fault == "freeze-node" else 0
        for injection in injections:
            injection.heal()
    _await_media(lab, injections, live)
    time.sleep(WATCHED_S)
    seen = lab.observe()
    owners = {service.name: lab.holder(service.ip) for service in lab.plan.services}
    return Phase(
        fault, lost, owners, injections, thawed_ns, bound_ms, seen.at_ns, seen,
        lab.probe.ask("report"), _report(lab, lost, owners), complaints,
    )  # fmt: skip


def conclude(lab: Laboratory, phases: list[Phase]) -> list[Outcome]:
    """End all calls and judge; what goes wrong with their ends is a complaint of the last phase."""
    complaints: list[str] = []
    by_switch: set[str] = set()
    ending_ns = now_ns()
    if lab.callers:
        complaints += living_twice(lab)
        ending_ns = now_ns()
        by_switch, failed = end_calls(lab)
        complaints += failed + still_there(lab)
        time.sleep(_LAST_FRAMES_S)
    after = lab.observe()
    outcomes = [_outcome(lab, phase, after) for phase in phases]
    for call_id, reason in badly_ended(after.calls, ending_ns, by_switch).items():
        complaints.append(f"call {call_id}: {reason}")
    outcomes[-1].complaints += complaints
    return outcomes


def owned_by(lab: Laboratory, nodes: tuple[str, ...]) -> dict[str, str]:
    """{service: node} of what these nodes serve; of the first service's owner if there are none."""
    with suppress(LabError):  # what is not answered by then is owned by nobody
        netns.wait_for(
            lambda: all(lab.holder(service.ip) for service in lab.plan.services),
            _STEADY_S, "every service to be answered steadily",
        )  # fmt: skip
    owned = {service.name: lab.holder(service.ip) for service in lab.plan.services}
    chosen = nodes or (owned[lab.plan.services[0].name],)
    found = {name: node for name, node in owned.items() if node and node in chosen}
    if not found:
        raise LabError(f"{', '.join(chosen)} serves nothing, so nothing can be measured: {owned}")
    return found


def _outcome(lab: Laboratory, phase: Phase, after: Observation) -> Outcome:
    verdicts = judge(after.calls, phase.seen.streams, phase.fault_ns, phase.until_ns)
    mine = {lab.plan.service(name).ip for name in phase.victims}
    spans = _spans(phase.seen)
    overlap = judge_overlap(spans, phase.fault_ns, phase.thawed_ns, phase.overlap_bound_ms)
    names = {mac_bytes(node.mac): node.id for node in lab.plan.nodes}
    beyond = overlap.beyond[:_OVERLAPS_MAX]
    complaints = phase.complaints + [told(pair, names, phase.fault_ns) for pair in beyond]
    if phase.seen.dropped:
        complaints.append("the observer missed frames: nothing can be said about holders")
    visible = [i.exit_visible_ms for i in phase.injections if i.exit_visible_ms is not None]
    held = [i.held_ms for i in phase.injections if i.held_ms is not None]
    return Outcome(
        fault=phase.fault,
        preset=lab.plan.preset,
        victims=phase.victims,
        owners=phase.owners,
        outage_ms=max(phase.probed[ip]["longest_ms"] for ip in mine),
        exit_visible_ms=max(visible, default=None),
        stun_ms=max(held, default=None),
        spread_ms=phase.spread_ms if len(phase.injections) > 1 else None,
        holders=holders_max(spans),
        overlap=overlap,
        overlap_bound_ms=phase.overlap_bound_ms,
        late_ms=max(record["late_ms"] for record in phase.probed.values()),
        verdicts=[v for v in verdicts if v.service_ip in mine],
        foreign=[v for v in verdicts if v.service_ip not in mine],
        report=phase.report,
        complaints=complaints,
    )


def _await_move(
    lab: Laboratory, victims: dict[str, str], injections: list[Injection], live: Live | None
) -> list[str]:
    """Until every lost service is answered by another node; a complaint if one is not."""

    def still() -> list[str]:
        if live is not None:
            live(lab, injections)
        held = {name: lab.holder(lab.plan.service(name).ip) for name in victims}
        return [name for name, node in victims.items() if held[name] in ("", node)]

    try:
        netns.wait_for(lambda: not still(), MOVED_S, "takeover")
    except LabError:
        return [f"{', '.join(still())} did not move to another node in {MOVED_S:g} s"]
    return []


def _await_media(lab: Laboratory, injections: list[Injection], live: Live | None) -> None:
    """Until every call that is still there has media again, or no more can be hoped for."""
    if not lab.callers:
        return

    def silent() -> bool:
        if live is not None:
            live(lab, injections)
        seen = lab.observe()
        return any(
            not has_media(call, seen.streams, seen.at_ns)
            for call in seen.calls.values()
            if not any(m.what == "BYE" for m in call.messages)
        )

    # Before that every call still counts as heard, by what came before the fault.
    sure_ns = max(injection.done_ns for injection in injections) + MEDIA_ALIVE_MS * 1e6
    end = time.monotonic() + _MEDIA_S
    while (silent() or now_ns() < sure_ns) and time.monotonic() < end:
        time.sleep(0.1)


def _spans(seen: Observation) -> list[Span]:
    return [
        Span(
            ipaddress.ip_address(span.address).packed,
            mac_bytes(span.mac),
            span.first_ns,
            span.last_ns,
            span.frames,
        )
        for span in seen.spans
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
