"""The takeover table: for every state of a service and every event, what happens next.

Only the table lives here; `core.moves` carries it out. Row numbers are permanent (they appear in
logs, history and docs): a new row takes a free number, a removed one goes to `RETIRED`. The
matrix has no holes: what is not a row is named in `IGNORED`.
"""

from __future__ import annotations

import enum

import msgspec

from haclusterd.core.model import State


class Event(enum.Enum):
    """What can happen to one service on one node, as `core` itself concludes it."""

    FIRST_IN_LINE = "it is this node's turn to claim"
    GRANTED = "a majority granted the claim in time"
    CLAIM_VOID = "the claim found no majority in time"
    ADDRESSES_UP = "the addresses are on the NIC"
    ADDRESSES_FAILED = "the addresses could not be added"
    LEASE_LAPSED = "the lease ran out"
    FROZEN = "this process did not run for longer than the lease"
    FENCE_CLOSED = "the fence is confirmed closed"
    GIVEN_UP = "the service must or shall leave this node"
    RELEASED = "fence closed and addresses gone"
    SUPERSEDED = "another node owns it at a higher epoch"
    PROMISE_CONFLICT = "a voter stands by another claim of this or a later epoch"


class Row(msgspec.Struct, frozen=True):
    """One transition. `effects` are names of functions in `core.moves`, in order."""

    number: str
    state: State
    event: Event
    next: State
    effects: tuple[str, ...]
    text: str


_S, _E = State, Event
_STOP = ("close_fence", "remove_addresses")

ROWS: tuple[Row, ...] = (
    Row(
        "T101",
        _S.STANDBY,
        _E.FIRST_IN_LINE,
        _S.CLAIMING,
        ("claim", "persist"),
        "{me} claims {service} at epoch {epoch}: {cause}",
    ),
    Row(
        "T103",
        _S.STANDBY,
        _E.SUPERSEDED,
        _S.STANDBY,
        (*_STOP, "end_calls"),
        "{me} ends its calls of {service}: {owner} owns it at epoch {epoch}",
    ),
    Row(
        "T201",
        _S.CLAIMING,
        _E.GRANTED,
        _S.ACQUIRING,
        ("take", "open_fence", "add_addresses", "persist"),
        "{me} won {service} at epoch {epoch} with {votes} of {voters} votes",
    ),
    Row(
        "T203",
        _S.CLAIMING,
        _E.CLAIM_VOID,
        _S.STANDBY,
        ("drop_claim",),
        "{me} drops its claim to {service} at epoch {epoch}: {votes} of {voters} votes in time",
    ),
    Row(
        "T205",
        _S.CLAIMING,
        _E.SUPERSEDED,
        _S.STANDBY,
        ("drop_claim", *_STOP, "end_calls"),
        "{me} drops its claim to {service}: {owner} owns it at epoch {epoch}",
    ),
    Row(
        "T207",
        _S.CLAIMING,
        _E.FROZEN,
        _S.STANDBY,
        ("drop_claim",),
        "{me} drops its claim to {service}: it stood still for {gap_ms} ms",
    ),
    Row(
        "T209",
        _S.CLAIMING,
        _E.GIVEN_UP,
        _S.STANDBY,
        ("drop_claim", "publish_release"),
        "{me} drops its claim to {service}: {cause}",
    ),
    Row(
        "T301",
        _S.ACQUIRING,
        _E.ADDRESSES_UP,
        _S.OWNED,
        ("announce", "recover"),
        "{me} serves {service} at epoch {epoch}: addresses up and announced",
    ),
    Row(
        "T303",
        _S.ACQUIRING,
        _E.ADDRESSES_FAILED,
        _S.RELEASING,
        ("back_off", *_STOP),
        "{me} gives {service} up: {cause}",
    ),
    Row(
        "T305",
        _S.ACQUIRING,
        _E.LEASE_LAPSED,
        _S.LAPSED,
        ("close_fence",),
        "{me} fences {service}: no majority heard it for {lease_ms} ms",
    ),
    Row(
        "T307",
        _S.ACQUIRING,
        _E.FROZEN,
        _S.LAPSED,
        ("close_fence",),
        "{me} fences {service}: it stood still for {gap_ms} ms",
    ),
    Row(
        "T309",
        _S.ACQUIRING,
        _E.GIVEN_UP,
        _S.RELEASING,
        _STOP,
        "{me} gives {service} up: {cause}",
    ),
    Row(
        "T311",
        _S.ACQUIRING,
        _E.SUPERSEDED,
        _S.STANDBY,
        (*_STOP, "end_calls"),
        "{me} yields {service}: {owner} owns it at epoch {epoch}",
    ),
    Row(
        "T401",
        _S.OWNED,
        _E.LEASE_LAPSED,
        _S.LAPSED,
        ("drop_claim", "close_fence"),
        "{me} fences {service}: no majority heard it for {lease_ms} ms; calls stay",
    ),
    Row(
        "T403",
        _S.OWNED,
        _E.FROZEN,
        _S.LAPSED,
        ("drop_claim", "close_fence"),
        "{me} fences {service}: it stood still for {gap_ms} ms; calls stay",
    ),
    Row(
        "T405",
        _S.OWNED,
        _E.GIVEN_UP,
        _S.RELEASING,
        ("drop_claim", *_STOP),
        "{me} gives {service} up: {cause}",
    ),
    Row(
        "T407",
        _S.OWNED,
        _E.SUPERSEDED,
        _S.STANDBY,
        ("drop_claim", *_STOP, "end_calls"),
        "{me} yields {service}: {owner} owns it at epoch {epoch}",
    ),
    Row(
        "T409",
        _S.OWNED,
        _E.PROMISE_CONFLICT,
        _S.OWNED,
        ("claim", "persist"),
        "{me} renews its right to {service} at epoch {epoch}: {cause}",
    ),
    Row(
        "T411",
        _S.OWNED,
        _E.GRANTED,
        _S.OWNED,
        ("take", "persist"),
        "{me} keeps {service}, now at epoch {epoch}",
    ),
    Row(
        "T415",
        _S.OWNED,
        _E.ADDRESSES_FAILED,
        _S.RELEASING,
        ("back_off", "drop_claim", *_STOP),
        "{me} gives {service} up: {cause}",
    ),
    Row(
        "T501",
        _S.LAPSED,
        _E.FIRST_IN_LINE,
        _S.RECLAIMING,
        ("claim", "persist"),
        "{me} reclaims {service} at epoch {epoch}: {cause}",
    ),
    Row(
        "T503",
        _S.LAPSED,
        _E.FENCE_CLOSED,
        _S.LAPSED,
        (),
        "{me} stands fenced for {service}, its calls kept",
    ),
    Row(
        "T505",
        _S.LAPSED,
        _E.SUPERSEDED,
        _S.STANDBY,
        (*_STOP, "end_calls"),
        "{me} lost {service} while fenced: {owner} owns it at epoch {epoch}",
    ),
    Row(
        "T507",
        _S.LAPSED,
        _E.GIVEN_UP,
        _S.RELEASING,
        _STOP,
        "{me} gives {service} up while fenced: {cause}",
    ),
    Row(
        "T509",
        _S.LAPSED,
        _E.FROZEN,
        _S.LAPSED,
        ("close_fence",),
        "{me} stood still for {gap_ms} ms while fenced for {service}",
    ),
    Row(
        "T601",
        _S.RECLAIMING,
        _E.GRANTED,
        _S.ACQUIRING,
        ("take", "open_fence", "add_addresses", "persist"),
        "{me} has {service} back at epoch {epoch} with {votes} of {voters} votes",
    ),
    Row(
        "T603",
        _S.RECLAIMING,
        _E.CLAIM_VOID,
        _S.LAPSED,
        ("drop_claim",),
        "{me} did not get {service} back at epoch {epoch}: {votes} of {voters} votes in time",
    ),
    Row(
        "T605",
        _S.RECLAIMING,
        _E.SUPERSEDED,
        _S.STANDBY,
        ("drop_claim", *_STOP, "end_calls"),
        "{me} lost {service} while reclaiming: {owner} owns it at epoch {epoch}",
    ),
    Row(
        "T607",
        _S.RECLAIMING,
        _E.FROZEN,
        _S.LAPSED,
        ("drop_claim", "close_fence"),
        "{me} drops its reclaim of {service}: it stood still for {gap_ms} ms",
    ),
    Row(
        "T609",
        _S.RECLAIMING,
        _E.GIVEN_UP,
        _S.RELEASING,
        ("drop_claim", *_STOP),
        "{me} drops its reclaim of {service}: {cause}",
    ),
    Row(
        "T701",
        _S.RELEASING,
        _E.RELEASED,
        _S.STANDBY,
        ("publish_release",),
        "{me} released {service} of epoch {epoch} to {to}",
    ),
    Row(
        "T703",
        _S.RELEASING,
        _E.SUPERSEDED,
        _S.STANDBY,
        (*_STOP, "end_calls"),
        "{me} let {service} go: {owner} owns it at epoch {epoch}",
    ),
)

# Numbers of rows that are no more, for whoever reads an old log; no row may take one again.
# T413: an owner's own new claim found no majority in time, which could not happen.
RETIRED = ("T413",)

IGNORED: dict[State, frozenset[Event]] = {
    _S.STANDBY: frozenset(
        {
            _E.GRANTED,
            _E.CLAIM_VOID,
            _E.ADDRESSES_UP,
            _E.ADDRESSES_FAILED,
            _E.LEASE_LAPSED,
            _E.FROZEN,
            _E.FENCE_CLOSED,
            _E.GIVEN_UP,
            _E.RELEASED,
            _E.PROMISE_CONFLICT,
        }
    ),
    _S.CLAIMING: frozenset(
        {
            _E.FIRST_IN_LINE,
            _E.ADDRESSES_UP,
            _E.ADDRESSES_FAILED,
            _E.LEASE_LAPSED,
            _E.FENCE_CLOSED,
            _E.RELEASED,
            _E.PROMISE_CONFLICT,
        }
    ),
    _S.ACQUIRING: frozenset(
        {
            _E.FIRST_IN_LINE,
            _E.GRANTED,
            _E.CLAIM_VOID,
            _E.FENCE_CLOSED,
            _E.RELEASED,
            _E.PROMISE_CONFLICT,
        }
    ),
    # An owner's own new claim is never void before T401: the lease rests on a beat sent before it.
    _S.OWNED: frozenset(
        {_E.FIRST_IN_LINE, _E.CLAIM_VOID, _E.ADDRESSES_UP, _E.FENCE_CLOSED, _E.RELEASED}
    ),
    _S.LAPSED: frozenset(
        {
            _E.GRANTED,
            _E.CLAIM_VOID,
            _E.ADDRESSES_UP,
            _E.ADDRESSES_FAILED,
            _E.LEASE_LAPSED,
            _E.RELEASED,
            _E.PROMISE_CONFLICT,
        }
    ),
    _S.RELEASING: frozenset(
        {
            _E.FIRST_IN_LINE,
            _E.GRANTED,
            _E.CLAIM_VOID,
            _E.ADDRESSES_UP,
            _E.ADDRESSES_FAILED,
            _E.LEASE_LAPSED,
            _E.FROZEN,
            _E.FENCE_CLOSED,
            _E.GIVEN_UP,
            _E.PROMISE_CONFLICT,
        }
    ),
    _S.RECLAIMING: frozenset(
        {
            _E.FIRST_IN_LINE,
            _E.ADDRESSES_UP,
            _E.ADDRESSES_FAILED,
            _E.LEASE_LAPSED,
            _E.FENCE_CLOSED,
            _E.RELEASED,
            _E.PROMISE_CONFLICT,
        }
    ),
}

TABLE: dict[tuple[State, Event], Row] = {(row.state, row.event): row for row in ROWS}
