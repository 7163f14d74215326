"""Why something was decided, in plain words: the rule, what brought it about, what was known.

The recording is played again; at each decision the state just before it is shown as the core saw
it: who was heard when, whose silence counted, who had voted, who was first in line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from haclusterd.core import claimant, detector, standing
from haclusterd.core.actions import Decided
from haclusterd.core.inputs import (
    AddressesAdded,
    AddressesRemoved,
    AgentChanged,
    AlienAnswered,
    CarrierChanged,
    FenceClosed,
    FreeswitchExited,
    FreeswitchHung,
    Froze,
    Input,
    LocalReport,
    MaintenanceRequested,
    MarksOrdered,
    Overheard,
    PauseOrdered,
    Received,
    RecoveryEnded,
    Restored,
    StageRequested,
    StopRequested,
    SwitchoverRequested,
    Tick,
)
from haclusterd.core.model import NOBODY, Flag, Identity, State
from haclusterd.core.quorum import needed, voters
from haclusterd.core.state import NEVER, Node, holding_down, owns
from haclusterd.core.takeover import ROWS
from haclusterd.trace.file import Segment, Trace, TraceError
from haclusterd.trace.replay import play

COMINGS_AND_GOINGS = frozenset({"M1", "M2", "M3"})  # of links and peers: many, and rarely why

_RULES = {row.number: f"{row.state.name} -> {row.next.name}: {row.event.value}" for row in ROWS} | {
    "V1": "grant: the promised owner was silent for long enough, or released it, or nobody had it",
    "V5": "adopt: somebody won at a higher epoch without this node's vote",
    "V7": "release: counts because it names exactly what this node had promised",
    "M1": "link up: five beats in a row worked both ways",
    "M2": "link down: no beat worked both ways for longer than the limit",
    "M3": "peer alive: it was heard both ways",
    "M4": "peer dead: no link worked both ways for dead_ms",
    "M5": "FreeSWITCH gone: heart saw the process exit",
    "M7": "FreeSWITCH hung: it is killed only where another node can have its calls",
    "M9": "agent gone: what is owned is kept, nothing can be taken over",
    "M11": "maintenance: an operator took this node out of the line, or put it back",
    "M13": "conflict: another machine answers for an address that this node serves",
    "M17": "pause: nothing is claimed for silence, and no vote is given to who does",
    "M19": "pause over: it was resumed, or its time is",
    "M21": "marked dead: no echo and no grant at once, no vote after dead + lease, epochs leap",
    "M23": "mark cleared: the node stands by and supports the owners, or the mark was taken back",
    "M27": "relinquish: no slave is left, another master has room, and it was so for long enough",
    "M37": "wire version: the newest that everybody who was heard lately can open",
    "M31": "staged: an operator had this node reload its file; said only once it is on disk",
    "M33": "joined: a node was heard that has this node's set of voters in force",
    "M35": "decided: a majority of the present voters has staged it, or somebody has it in force",
    "M15": "freeze: this process stood still longer than a lease; nothing heard before counts",
}


class Explained(msgspec.Struct, frozen=True):
    """One decision. `trigger` is the input that brought it about, `facts` the state before it.

    `at` is the time of day, where whoever shows it knows that.
    """

    at_us: int
    row: str
    text: str
    service: str | None
    epoch: int
    rule: str
    trigger: str
    facts: tuple[str, ...]
    at: str = ""


def explain(
    trace: Trace, last: int, without: Collection[str] = COMINGS_AND_GOINGS
) -> list[Explained]:
    """The last `last` decisions of a recording, oldest first, rows in `without` left out.

    Raises TraceError for a recording that no core can have made.
    """
    found: list[Explained] = []
    for segment in reversed(trace.segments):
        if len(found) >= last:
            break
        try:
            found = [*_explain_segment(segment, without), *found]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            name = trace.header.node
            raise TraceError(f"the recording of {name} contradicts itself: {error!r}") from None
    return found[-last:] if last > 0 else []


def _explain_segment(segment: Segment, without: Collection[str]) -> Iterator[Explained]:
    """First find the steps that decided something: a copy of every state would cost too much."""
    steps = {
        n: [a for a in played.actions if isinstance(a, Decided) and a.row not in without]
        for n, played in enumerate(play(segment))
    }
    wanted = {n: decisions for n, decisions in steps.items() if decisions}
    if not wanted:
        return
    before = _copy(segment.node)
    for n, played in enumerate(play(segment)):
        for decision in wanted.get(n, ()):
            yield _explained(before, played.event, played.at_us, decision)
        if n + 1 in wanted:
            before = _copy(played.node)
        if n >= max(wanted):
            break


def _copy(node: Node) -> Node:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(node), type=Node)


def _explained(before: Node, event: Input, at_us: int, decision: Decided) -> Explained:
    k = decision.service if 0 <= decision.service < len(before.services) else -1
    judged = _judged(before, event, at_us)
    facts = [_quorum(judged, at_us), *_peers(judged, at_us)]
    if k >= 0:
        facts += _of_service(judged, k, at_us)
    return Explained(
        at_us=decision.at_us,
        row=decision.row,
        text=decision.text,
        service=before.spec.services[k].name if k >= 0 else None,
        epoch=decision.epoch,
        rule=_RULES.get(decision.row, "a rule that this version does not know"),
        trigger=told(before, event, k),
        facts=tuple(facts),
    )


def _judged(before: Node, event: Input, at_us: int) -> Node:
    """The state as the core itself looks at it in a Tick, before it claims anything."""
    node = _copy(before)
    if isinstance(event, Tick):
        detector.survey(node, at_us, [])
        claimant.mark_lost(node, at_us)
    standing.refresh(node, at_us)
    return node


# -- what came in --------------------------------------------------------------------------------


def told(node: Node, event: Input, k: int = -1) -> str:
    """An input in plain words; of a beat, what it says of service `k`."""
    match event:
        case Received():
            return _beat(node, event, k)
        case Tick():
            return "time went by, with nothing left unread"
        case Froze():
            return f"this process had stood still for {event.gap_us // 1000} ms"
        case Restored():
            return "heart started and read what it had promised before"
        case FreeswitchExited():
            return f"the kernel reported that FreeSWITCH {event.cause}"
        case FreeswitchHung():
            return f"the agent reported that FreeSWITCH (pid {event.pid}) answers no probe"
        case AgentChanged():
            return f"the agent is {'up' if event.up else 'gone'}"
        case LocalReport():
            return "the agent reported on FreeSWITCH and its copies"
        case StopRequested():
            return "a planned stop was asked for"
        case MaintenanceRequested():
            return f"an operator ordered maintenance {'on' if event.on else 'off'}"
        case PauseOrdered():
            return f"{event.by} {'paused' if event.left_us else 'resumed'} the cluster"
        case MarksOrdered():
            names = ", ".join(_id(node, m.node) for m in event.marks if m.node < len(node.peers))
            return f"the nodes marked dead are now: {names or 'none'}"
        case StageRequested():
            return f"revision {event.spec.revision} of the configuration was staged on the disk"
        case Overheard():
            return f"a beat that cannot be read here says revision {event.revision} is in force"
    return _of_a_service(node, event)


def _of_a_service(node: Node, event: Input) -> str:
    k = getattr(event, "service", -1)
    name = node.spec.services[k].name if 0 <= k < len(node.services) else f"service {k}"
    match event:
        case FenceClosed():
            return f"the fence of {name} is {'closed' if event.ok else 'not confirmed closed'}"
        case AddressesAdded():
            return f"the addresses of {name} are {'up' if event.ok else 'refused: ' + event.reason}"
        case AddressesRemoved():
            return f"the addresses of {name} are {'gone' if event.ok else 'still there'}"
        case CarrierChanged():
            return f"the NIC of {name} {'has' if event.up else 'lost its'} carrier"
        case SwitchoverRequested():
            return f"an operator ordered a switchover of {name}"
        case RecoveryEnded():
            return f"the agent ended the recovery of {name}: {event.reason or 'done'}"
        case AlienAnswered():
            return f"{event.mac} answered for {event.address}"
    return type(event).__name__


def _beat(node: Node, event: Received, k: int) -> str:
    beat = event.beat
    text = f"a beat of {_id(node, beat.sender)} on link {event.link + 1}"
    if not 0 <= k < len(beat.services):
        return text
    name, entry = node.spec.services[k].name, beat.services[k]
    for release in beat.releases:
        if release.service == k:
            return f"{text}: it released {name} of {_identity(node, release.identity)}"
    state = State(entry.state).name if entry.state in State._value2member_map_ else "?"
    return f"{text}: for {name} it is {state} and stands by {_identity(node, entry.promise)}"


# -- what was known ------------------------------------------------------------------------------


def _quorum(node: Node, at_us: int) -> str:
    spec = node.spec
    reach = 1 + sum(
        at_us - p.two_way_us <= spec.timing.two_way_us and not p.flags & Flag.STARTING
        for n, p in enumerate(node.peers)
        if n != spec.me and n not in node.left_out
    )
    held = ", in its start hold-down" if holding_down(node, at_us) else ""
    return f"{reach} of {voters(node)} voters in two-way reach, {needed(node)} needed{held}"


def _peers(node: Node, at_us: int) -> Iterator[str]:
    spec = node.spec
    for n, peer in enumerate(node.peers):
        if n == spec.me:
            continue
        if peer.two_way_us == NEVER:
            yield f"{_id(node, n)}: not heard since this node started or thawed"
            continue
        ago_ms = (at_us - peer.two_way_us) / 1000
        up = [str(i + 1) for i, line in enumerate(peer.links) if line.up]
        links = f"links up: {', '.join(up) or 'none'} of {spec.links}"
        words = [flag.name.lower() for flag in _NOTABLE if peer.flags & flag and flag.name]
        also = f"; {', '.join(words)}" if words else ""
        if peer.alive:
            yield f"{_id(node, n)}: heard both ways {ago_ms:.1f} ms ago; {links}{also}"
        else:
            limit_ms = spec.timing.dead_us // 1000
            yield f"{_id(node, n)}: dead, silent for {ago_ms:.1f} ms (limit {limit_ms} ms){also}"


_NOTABLE = (Flag.STARTING, Flag.MAINTENANCE, Flag.LEAVING, Flag.SYNCING)


def _of_service(node: Node, k: int, at_us: int) -> Iterator[str]:
    spec, service = node.spec, node.services[k]
    name = spec.services[k].name
    yield f"{name} here: {service.state.name}, standing by {_identity(node, service.promise)}"
    if service.promise.node not in (NOBODY.node, spec.me):
        silent_ms = (at_us - service.silence_us) / 1000
        yield f"its owner gave no sign of its right to {name} for {silent_ms:.1f} ms"
    if service.release is not None:
        to = service.release.to
        yield f"released by its owner to {_id(node, to) if to >= 0 else 'whoever is first'}"
    if service.claim is not None:
        granted = [_id(node, n) for n in range(len(spec.nodes)) if service.claim.granted >> n & 1]
        yield f"votes for the claim of epoch {service.claim.identity.epoch}: {', '.join(granted)}"
    if owns(service) and needed(node) > 1:
        yield f"the lease reached {(service.lease_until_us - at_us) / 1000:.1f} ms further"
    slaves = ", ".join(_id(node, n) for n in node.slaves) or "none"
    line = ", ".join(_id(node, n) for n in node.successors[k]) or "nobody"
    yield f"slaves in order: {slaves}; next in line for {name}: {line}"
    if not service.ready and spec.freeswitch:
        yield f"this node could not take {name}: {service.reason or 'not ready'}"


def _identity(node: Node, identity: Identity) -> str:
    if identity == NOBODY:
        return "nobody"
    return f"{_id(node, identity.node)} at epoch {identity.epoch}"


def _id(node: Node, n: int) -> str:
    return node.spec.nodes[n].id if 0 <= n < len(node.spec.nodes) else f"node {n}"
