"""Values of the API: what `haclusterctl` and HTTP clients get (DESIGN section 8, contract).

Field names are the contract's JSON keys. Times at which something happened are wall clock text
(ISO 8601, UTC, ms) for people and `at_us` (CLOCK_BOOTTIME) for machines.
"""

from __future__ import annotations

from typing import Any

import msgspec

from haclusterd.agent.schema_upkeep import Drain

REQUEST_BYTES_MAX = 64 * 1024
RESPONSE_BYTES_MAX = 32 * 1024 * 1024

# Why a request was not done: the exit code of haclusterctl follows from it.
REFUSED, USAGE, PARTLY = "refused", "usage", "partly"


class Request(msgspec.Struct, frozen=True):
    """One line from a client. `method` is a command of DESIGN section 8."""

    method: str
    params: dict[str, Any] = {}


class Fault(msgspec.Struct, frozen=True):
    """`code` is refused, usage or partly; `message` names the reason and the next step."""

    code: str
    message: str


class Response(msgspec.Struct, frozen=True):
    """One line to a client: exactly one of `result` and `error` is meant."""

    ok: bool
    result: Any = None
    error: Fault | None = None


class Quorum(msgspec.Struct, frozen=True):
    policy: str
    voters: int
    reachable: int
    ok: bool


class Link(msgspec.Struct, frozen=True, omit_defaults=True):
    """`loss` is a share, 0.0 to 1.0; `rtt_ms` is null while nothing was measured.

    `up`: beats are heard both ways. `unreadable`: why nothing that comes from this address can be
    read (an outcome, see docs/metrics.md); absent where that is not so.
    """

    address: str
    up: bool
    rtt_ms: float | None
    loss: float
    unreadable: str = ""


class Sync(msgspec.Struct, frozen=True):
    """`state` in in-sync, syncing, suspended, none; `lag_ms` of the worst stream."""

    state: str
    lag_ms: int


class SensorState(msgspec.Struct, frozen=True):
    """`state` in ok, warn, critical, unknown (it cannot be told), idle (it does not apply now);
    `takes` is what it takes from the health; `since` is empty before the first change."""

    name: str
    kind: str
    state: str
    text: str
    takes: int
    required: bool
    since: str


class Node(msgspec.Struct, frozen=True):
    """`rank` is 0 for the primary slave and null for a node that could not take over now."""

    id: str
    role: str
    services: list[str]
    rank: int | None
    health: int
    links: list[Link]
    calls: int
    capacity: int
    sync: Sync
    version: str
    witness: bool = False  # it votes only
    sensors: list[SensorState] = []


class Progress(msgspec.Struct, frozen=True):
    """How far a recovery under way is, in call legs."""

    replicated: int
    injected: int
    answered: int


class Service(msgspec.Struct, frozen=True, omit_defaults=True):
    """`owner` is null while nobody serves it; `state` in owned, moving, unserved. `recovering` is
    there while this node recovers its calls. `closed`: why it takes no new calls. `stale` (HTTP):
    the answering node is being filled, or its heart says nothing."""

    name: str
    owner: str | None
    epoch: int
    state: str
    addresses: list[str]
    successors: list[str]
    recovering: Progress | None = None
    stale: bool = False
    closed: str = ""


class Alarm(msgspec.Struct, frozen=True):
    name: str
    text: str


class Registered(msgspec.Struct, frozen=True):
    """How many registrations the answering node knows: made here, copies of others'.

    `refused`: registrations that are not replicated, counted since the agent started.
    """

    own: int
    copies: int
    refused: int


class Paused(msgspec.Struct, frozen=True):
    """Nothing moves by itself; `left_s` is null where only `resume` ends it."""

    by: str
    left_s: int | None


class Marked(msgspec.Struct, frozen=True):
    """A node that somebody verified to be dead: it has no vote."""

    node: str
    by: str


class Revision(msgspec.Struct, frozen=True):
    """The set of nodes in force here, and the one that is staged (null: none); `lacking`: nodes on
    which `haclusterctl reload` is still to be run."""

    active: int
    staged: int | None
    lacking: list[str]


class Status(msgspec.Struct, frozen=True):
    """`status --json`. `quorum.voters` are those that count: not who is silent and marked dead.

    `registrations` is null where this node keeps none.
    """

    cluster: str
    node: str
    quorum: Quorum
    rank_hash: str
    nodes: list[Node]
    services: list[Service]
    alarms: list[Alarm]
    paused: Paused | None = None
    marked_dead: list[Marked] = []
    registrations: Registered | None = None
    revision: Revision = Revision(1, None, [])
    orphans: int = 0  # recovered legs here that no phone has answered for yet
    stale: bool = False  # this node is being filled: what it says of others may be old
    drains: list[Drain] = []


class Rank(msgspec.Struct, frozen=True, omit_defaults=True):
    """`rank --json`: slaves in order, who would take what, and a line per node that says why."""

    rank_hash: str
    slaves: list[str]
    successors: dict[str, list[str]]
    why: list[str]
    not_ready: dict[str, str]  # this node: service -> why it could not take it over
    stale: bool = False
    health: list[str] = []  # what takes from whose health, and what this node does about it


class Decision(msgspec.Struct, frozen=True):
    """One sentence of history. `row` is the number in the takeover table, or A.. of the agent."""

    at: str
    at_us: int
    row: str
    text: str
    service: str | None = None
    epoch: int | None = None


class Verdict(msgspec.Struct, frozen=True):
    """`verdict` in recovered, partial, lost; `gap_ms` null where this node cannot tell."""

    uuid: str
    verdict: str
    reason: str
    gap_ms: int | None


class Calls(msgspec.Struct, frozen=True):
    replicated: int
    recovered: int
    partial: int
    lost: int
    verdicts: list[Verdict]


class Moment(msgspec.Struct, frozen=True):
    """`at_ms` counts from the fault as the new owner can date it.

    address_up: the addresses are on the NIC. announced: the agent hears of it, right after the
    announcement. first_reinvite: FreeSWITCH made the first channel, and sends, by its own stamp
    (1 ms coarse); missing where no event told. first_answer: the first phone had answered when it
    was asked.
    """

    at_ms: float
    event: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`report --json`: one change of owner, as the new owner lived it.

    `from_` is null at a cold start. `outage_ms` is null while the address is not up. `unasked`:
    living nodes that had not told which calls they know when this was closed; they are asked on.
    `copy`: state of this node's copy of the calls when it took over, as in `sync`; where it was not
    in-sync, more calls may be lost than anybody can count. Empty where there was none to have.
    `progress` is null once it is `done`. `newer`: where a newer one is, if another node has it.
    """

    number: int
    at: str
    service: str
    from_: str | None = msgspec.field(name="from")
    to: str
    epoch: int
    cause: str
    timeline: list[Moment]
    outage_ms: float | None
    calls: Calls
    done: bool = True
    unasked: list[str] = []
    copy: str = ""
    progress: Progress | None = None
    newer: str = ""


class Overload(msgspec.Struct, frozen=True):
    """A node that would carry more call legs than it can."""

    node: str
    calls: int
    capacity: int


class CapacityCase(msgspec.Struct, frozen=True):
    """What would become of the services if the nodes in `lost` were lost at once."""

    lost: list[str]
    moves: dict[str, str]  # service -> new owner
    unserved: list[str]
    overloaded: list[Overload]
    majority: bool


class Capacity(msgspec.Struct, frozen=True):
    """`capacity --json`: of `cases` sets of `fail` nodes, `misfits` holds the first that do not
    fit; `bad` counts them all."""

    fail: int
    cases: int
    bad: int
    fits: bool
    misfits: list[CapacityCase]


class BestNode(msgspec.Struct, frozen=True):
    """A node for new calls. `load_class` is 0 for an idle one to 9; `impaired`: poor health."""

    node: str
    services: list[str]
    addresses: list[str]
    calls: int
    capacity: int
    load_class: int
    impaired: bool


class Overview(msgspec.Struct, frozen=True):
    """All that the status page draws. `build` changes with the page itself, so that an open one
    knows when it is of yesterday; reports come without the verdicts of single calls."""

    at: str
    build: str
    status: Status
    reports: list[Report]
    history: list[Decision]


class Call(msgspec.Struct, frozen=True):
    """One replicated call leg. `here` is own (this node carries it), copy (it stands by), or
    ringing (unanswered here, so that nobody can take it over). `why` it is at risk."""

    uuid: str
    service: str
    here: str
    direction: str
    partner: str | None
    answered: str | None
    version: int
    at_risk: bool
    why: list[str] = []


class CallList(msgspec.Struct, frozen=True, omit_defaults=True):
    """`total` counts all that match; `calls` holds at most `limit` of them.

    `stale`: this node is being filled, so that calls or registrations of others may be missing
    or old.
    """

    total: int
    at_risk: int
    calls: list[Call]
    stale: bool = False


class Registration(msgspec.Struct, frozen=True):
    """One phone of one user. `node` is where it is registered, null while its service is unowned.

    `here`: own (it registered at the answering node) or copy. `expires` is wall clock text,
    `expires_s` the seconds until then. `replicated`: another node that could take over has it.
    """

    user: str
    contact: str
    node: str | None
    service: str
    profile: str
    here: str
    expires: str
    expires_s: int
    replicated: bool
    user_agent: str
    network: str


class RegistrationList(msgspec.Struct, frozen=True, omit_defaults=True):
    """`total` counts all; `registrations` holds at most `limit` of them. `stale` as in calls."""

    total: int
    at_risk: int
    registrations: list[Registration]
    stale: bool = False


class About(msgspec.Struct, frozen=True):
    """The daemon that answers. `started` changes with every restart of the agent."""

    version: str
    node: str
    cluster: str
    pid: int
    heart_pid: int
    started: str
    config: str
    config_hash: str
    run_dir: str


class TraceContent(msgspec.Struct, frozen=True):
    """A recording as the bytes of its file; base64 in JSON."""

    content: bytes


class Done(msgspec.Struct, frozen=True):
    """An operator's command was carried out."""

    text: str
