"""Could this node take each service over now, and if not why: the content of LocalReport.

Pure: `judge` gets everything as values. Reasons are sentences for people that name the next step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from haclusterd.agent.pid import Process
from haclusterd.core.inputs import LocalReport, ServiceReport
from haclusterd.core.model import ClusterSpec
from haclusterd.core.standby import Freshness

LOAD_CLASSES = 10
NO_COPY_WAIT_S = 3.0
NO_COPY = Freshness("none", 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Facts:
    """What `judge` looks at.

    `owners` holds (owner, epoch) by service, owner empty while nobody has it; `orphaned_s` how
    long that has been so. `profiles` holds why a service's SIP profiles cannot serve (empty: they
    can), and no entry while that is not known. `lacking`: what its owner's FreeSWITCH has and this
    one has not. `watched`: ESL is in use (`esl_port` not 0).
    """

    freeswitch: bool
    watched: bool
    process: Process | None
    esl_up: bool
    problem: str
    health_state: str = "up"
    calls: int = 0
    own_calls: Mapping[str, int] = field(default_factory=dict)
    owners: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    orphaned_s: Mapping[str, float] = field(default_factory=dict)
    freshness: Mapping[str, Freshness] = field(default_factory=dict)
    profiles: Mapping[str, str] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)
    busy: Mapping[str, str] = field(default_factory=dict)
    replicating: str = ""  # why replication does not run, empty if it does
    ailing: int = 0  # what its sensors take from this node's health
    unfit: str = ""  # by a sensor without which it shall take nothing over
    forced: Collection[str] = ()  # services that an operator wants here whatever the copy lacks


def judge(spec: ClusterSpec, facts: Facts) -> LocalReport:
    """This node's word for heart."""
    me = spec.nodes[spec.me]
    up = _is_up(facts)
    reasons = [_reason(spec, facts, k) for k in range(len(spec.services))]
    services = tuple(
        ServiceReport(not reason, reason, _calls_of(spec, facts, k))
        for k, reason in enumerate(reasons)
    )
    syncing = up and any(reason.startswith(_SYNCING) for reason in reasons)
    load = min(LOAD_CLASSES, facts.calls * LOAD_CLASSES // me.capacity)
    process = facts.process or Process(0, 0)
    return LocalReport(
        freeswitch_up=up,
        pid=process.pid,
        health=max(0, _health(facts) - facts.ailing),
        load=load,
        calls=facts.calls,
        syncing=syncing,
        services=services,
        pid_start=process.start,
    )


_SYNCING = "its copy"


def _is_up(facts: Facts) -> bool:
    """A lost ESL connection is not a dead FreeSWITCH (FREESWITCH.md 12): the process counts."""
    if not facts.freeswitch:
        return True
    return facts.process is not None or facts.esl_up


def _health(facts: Facts) -> int:
    if not facts.freeswitch:
        return 100
    if not _is_up(facts) or facts.health_state == "hung":
        return 0
    if not facts.watched:
        return 100
    if not facts.esl_up:
        return 40
    return 70 if facts.problem or facts.replicating else 100


def _calls_of(spec: ClusterSpec, facts: Facts, k: int) -> int:
    name = spec.services[k].name
    if name in facts.own_calls:
        return facts.own_calls[name]
    return facts.freshness.get(name, NO_COPY).have


def _reason(spec: ClusterSpec, facts: Facts, k: int) -> str:
    """Why this node could not take service `k` over now; empty if it could."""
    name = spec.services[k].name
    if spec.nodes[spec.me].witness:
        return "a witness only votes"
    owner = facts.owners.get(name, ("", 0))[0]
    if facts.unfit and owner != spec.nodes[spec.me].id and not _is_abandoned(facts, name):
        return facts.unfit
    if not facts.freeswitch:
        return ""
    if not _is_up(facts):
        return "FreeSWITCH does not run here: start it"
    if facts.health_state == "hung":
        return "FreeSWITCH hangs here: it answers no status probe"
    if owner == spec.nodes[spec.me].id or not facts.watched or not spec.services[k].profiles:
        return ""
    if not facts.esl_up or facts.problem:
        return facts.problem or "ESL is not logged in yet"
    if name not in facts.profiles:
        return "its SIP profiles were not looked at yet"
    busy = facts.busy.get(name, "")
    lacking = "" if _is_abandoned(facts, name) else facts.lacking.get(name, "")
    return (
        facts.profiles[name] or lacking or (f"busy: {busy}" if busy else "") or _copy(facts, name)
    )


def _is_abandoned(facts: Facts, name: str) -> bool:
    """Nobody who was readier has taken the orphan: a poor takeover is better than none. An
    operator who forces it says the same."""
    if name in facts.forced:
        return True
    owner, _ = facts.owners.get(name, ("", 0))
    return not owner and facts.orphaned_s.get(name, 0.0) > NO_COPY_WAIT_S


def _copy(facts: Facts, name: str) -> str:
    """Is this node's copy of the calls good enough?

    A service that nobody has owned yet has no calls. When nobody that held a copy has taken an
    orphaned service for a while, an empty takeover is better than none.
    """
    owner, epoch = facts.owners.get(name, ("", 0))
    fresh = facts.freshness.get(name, NO_COPY)
    if fresh.state == "in-sync" or (epoch == 0 and not owner):
        return ""
    if _is_abandoned(facts, name):
        return ""
    if facts.replicating:
        return facts.replicating
    if fresh.state == "none":
        return f"{_SYNCING} of the calls has not come yet from {owner or 'the others'}"
    return (
        f"{_SYNCING} of the calls is {fresh.state}: {fresh.have} of {fresh.want}, "
        f"{fresh.lag_ms} ms behind"
    )


def profile_reasons(
    services: Sequence[tuple[str, Sequence[str]]], problems: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """By service: the first problem of its SIP profiles, or an empty text."""
    return {
        name: next((p for profile in profiles for p in problems.get(profile, ())), "")
        for name, profiles in services
    }
