"""The demonstration: two takeovers with live calls, told as they happen.

Two masters with calls, one slave. First one master's FreeSWITCH dies, and the node comes back as a
slave; then a whole node dies, and the one that came back takes over.
"""

from __future__ import annotations

from collections.abc import Collection

from haclusterd.lab.calls import CallVerdict, has_media
from haclusterd.lab.faults import Injection
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.outcome import Outcome
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import (
    Phase,
    Say,
    bring_calls,
    conclude,
    endure,
    owned_by,
    ready_cluster,
)

_SLAVE_AGAIN_S = 60.0
_HEADS = ("fault", "service", "moved", "address silent", "calls up", "others touched",
          "media gap p50 / max", "holders")  # fmt: skip
_COLUMNS = "{:<12}{:<9}{:<16}{:>15}{:>10}{:>16}{:>22}{:>9}"


def demo(calls: int, prefix: str | None, say: Say) -> bool:
    """Whether every call survived and only the calls of the dead masters moved."""
    plan = LabPlan(masters=2, slaves=1, freeswitch="real" if prefix else "emulator")
    say(f"Bringing up 2 masters and 1 slave, 2 heartbeat NICs, FreeSWITCH: {plan.freeswitch}.")
    with ready_cluster(plan, prefix, say) as lab:
        bring_calls(lab, {service.name: calls for service in plan.services}, say)
        first, second = plan.nodes[0].id, plan.nodes[1].id
        say(f"\n1. kill -9 of FreeSWITCH on {first}.")
        phases = [_told(lab, "freeswitch", first, say)]
        say(f"   Waiting until {first} is a slave in sync again.")
        lab.wait(lambda: is_slave(lab, first), _SLAVE_AGAIN_S, f"{first} to be a slave again")
        lab.wait_replicated()
        say(f"   {first} is a slave again.")
        say(f"\n2. The whole node {second} is lost: everything killed, all cables cut.")
        phases.append(_told(lab, "node", second, say))
        outcomes = conclude(lab, phases)
    return _summary(outcomes, say)


def is_slave(lab: Laboratory, node_id: str) -> bool:
    """Whether the others count this node as a slave that could take over now, in sync."""
    for node in lab.nodes.values():
        status = node.status() if node.id != node_id else None
        if status is not None:
            found = next(entry for entry in status["nodes"] if entry["id"] == node_id)
            return found["role"] == "slave" and found["sync"]["state"] in ("in-sync", "none")
    return False


class LiveTimeline:
    """Says each thing once, when it is first seen; times count from the fault.

    `lost` are the addresses that it is about.
    """

    def __init__(self, say: Say, lost: Collection[str]) -> None:
        self._say = say
        self._lost = set(lost)
        self._told: set[str] = set()

    def __call__(self, lab: Laboratory, injections: list[Injection]) -> None:
        fault_ns = min(injection.at_ns for injection in injections)
        for injection in injections:
            if injection.visible_ns:
                self._once("exit", injection.visible_ns[0] - fault_ns, "the exit is visible")
        self._addresses(lab, fault_ns, {injection.node for injection in injections})
        self._calls(lab, fault_ns)

    def _addresses(self, lab: Laboratory, fault_ns: int, victims: set[str]) -> None:
        names = {str(node.number): node.id for node in lab.plan.nodes}
        found = sorted(
            (at_ns, address, number)
            for address, record in lab.probe.ask("report").items()
            if address in self._lost
            for number, at_ns in record["first_ns"].items()
            if names.get(number) not in victims and at_ns > fault_ns
        )
        for at_ns, address, number in found:
            text = f"{address} answers from {names.get(number, number)}"
            self._once(f"{address}{number}", at_ns - fault_ns, text)

    def _calls(self, lab: Laboratory, fault_ns: int) -> None:
        seen = lab.observe()
        moved = {}
        for call_id, call in seen.calls.items():
            at_ns = [m.at_ns for m in call.messages if m.what == "INVITE" and m.sent_by_service]
            if at_ns and at_ns[-1] > fault_ns:
                moved[call_id] = at_ns[-1]
        if not moved:
            return
        self._once("first", min(moved.values()) - fault_ns, "first re-INVITE to a caller")
        back = sum(has_media(seen.calls[i], seen.streams, seen.at_ns) for i in moved)
        self._once(
            f"calls {len(moved)} {back}", max(moved.values()) - fault_ns,
            f"{len(moved)} calls re-INVITEd, {back} have media",
        )  # fmt: skip

    def _once(self, key: str, after_ns: int, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._say(f"   {after_ns / 1e6:8.1f} ms  {text}")


def _told(lab: Laboratory, fault: str, node: str, say: Say) -> Phase:
    lost = [lab.plan.service(name) for name in owned_by(lab, (node,))]
    addresses = [address for service in lost for address in (service.ip, service.ip6)]
    phase = endure(lab, fault, say, victims=(node,), live=LiveTimeline(say, addresses))
    say("   What the new owner reports, by its own clock:")
    for moment in phase.report.get("timeline", []):
        say(f"   {moment['at_ms']:8.1f} ms  {moment['event']}")
    return phase


def _summary(outcomes: list[Outcome], say: Say) -> bool:
    say("\nEvery call, over both takeovers:")
    by_call: dict[str, list[CallVerdict]] = {}
    for outcome in outcomes:
        for verdict in outcome.verdicts + outcome.foreign:
            by_call.setdefault(verdict.call_id, []).append(verdict)
    for call_id, verdicts in sorted(by_call.items(), key=lambda item: _call_order(item[0])):
        says = "; ".join(_one(verdict) for verdict in verdicts)
        say(f"  {call_id:<22} {says}")
    say("\n" + _COLUMNS.format(*_HEADS))
    for outcome in outcomes:
        say(_row(outcome))
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    for problem in problems:
        say(f"FAILED: {problem}")
    if not problems:
        say("Every call survived; only the calls of the lost masters moved.")
    return not problems


def _row(outcome: Outcome) -> str:
    total, gap = len(outcome.verdicts), outcome.as_json()["media_gap_ms"]
    return _COLUMNS.format(
        outcome.fault,
        ", ".join(outcome.victims),
        ", ".join(f"{node} -> {outcome.owners[name]}" for name, node in outcome.victims.items()),
        f"{outcome.outage_ms:.1f} ms",
        f"{total - len(outcome.lost)}/{total}",
        len(outcome.touched),
        f"{gap['p50']} / {gap['max']} ms",
        outcome.holders,
    )


def _one(verdict: CallVerdict) -> str:
    if verdict.lost:
        return f"LOST ({verdict.lost})"
    if verdict.reinvites:
        return f"moved, {verdict.gap_ms:.0f} ms without sound"
    return "untouched"


def _call_order(call_id: str) -> tuple[str, int]:
    number, _, rest = call_id.partition(".")
    return rest, int(number) if number.isdigit() else 0
