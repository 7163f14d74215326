"""The takeover table: complete, unambiguous, and every row does what it says (M3, EG24)."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from haclusterd.core import moves
from haclusterd.core.actions import Action, CloseFence, Decided, KillFreeswitch, Recover, RenewFence
from haclusterd.core.model import Identity, State
from haclusterd.core.state import Claim, owns
from haclusterd.core.takeover import IGNORED, RETIRED, ROWS, TABLE, Event, Row
from tests.unit.core_bench import Bench, kinds

FIELDS = {
    "me", "service", "epoch", "cause", "votes", "voters", "owner", "to", "gap_ms", "lease_ms",
}  # fmt: skip


def test_every_state_and_event_is_a_row_or_ignored_by_name() -> None:
    for state in State:
        for event in Event:
            named = event in IGNORED.get(state, frozenset())
            assert ((state, event) in TABLE) != named, f"{state.name} x {event.name}"


def test_row_numbers_are_unique_and_go_by_state() -> None:
    assert [n for n, count in Counter(row.number for row in ROWS).items() if count > 1] == []
    assert len(TABLE) == len(ROWS)
    assert not {row.number for row in ROWS} & set(RETIRED)
    assert len({(row.number[:2], row.state) for row in ROWS}) == len(State)


def test_every_effect_exists_and_none_is_idle() -> None:
    used = {effect for row in ROWS for effect in row.effects}
    assert used == set(moves._EFFECTS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
def test_text_names_this_node_and_the_service(row: Row) -> None:
    fields = set(re.findall(r"{(\w+)}", row.text))
    assert {"me", "service"} <= fields <= FIELDS


def in_state(state: State) -> Bench:
    """A bench whose service stands in `state` as if it had come there by itself."""
    bench = Bench().after_hold_down()
    bench.obeys = False
    service = bench.service
    if state is not State.STANDBY:
        service.identity = service.promise = Identity(4, 0, 9)
        service.highest = service.owned_epoch = 4
        service.addresses = service.holding = True
    if state in (State.CLAIMING, State.RECLAIMING):
        service.promise = Identity(5, 0, 10)
        service.highest = 5
        service.claim = Claim(service.promise, bench.now_us, 0b011)
    service.state = state
    bench.forget()
    return bench


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
def test_row_moves_the_service_and_says_so(row: Row) -> None:
    bench = in_state(row.state)
    if row.event is Event.GRANTED and bench.service.claim is None:
        bench.service.claim = Claim(Identity(5, 0, 10), bench.now_us, 0b011)
    out: list[Action] = []
    happened = moves.happen(
        bench.node, 0, row.event, bench.now_us, out, cause="why not", gap_us=120_000, owner=2
    )
    assert happened
    service = bench.service
    assert service.state is row.next
    said = kinds(out, Decided)
    assert [what.row for what in said] == [row.number]
    assert re.search(r"[{}]|None", said[0].text) is None
    assert said[0].text.startswith("n0 ")
    # Whoever leaves the states of a lease closes the fence in the same step; nobody else opens it.
    if owns_state(row.state) and not owns(service):
        assert kinds(out, CloseFence)
        assert not kinds(out, RenewFence)
    if owns(service) and not owns_state(row.state):
        assert kinds(out, RenewFence)
        assert service.claim is None
    if service.state not in (State.CLAIMING, State.RECLAIMING, State.OWNED):
        assert service.claim is None


def owns_state(state: State) -> bool:
    return state in (State.ACQUIRING, State.OWNED)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.event is Event.SUPERSEDED], ids=lambda row: row.number
)
def test_superseded_ends_the_calls_that_are_held(row: Row) -> None:
    bench = in_state(row.state)
    bench.service.holding = True
    out: list[Action] = []
    moves.happen(bench.node, 0, row.event, bench.now_us, out, owner=1)
    assert len(kinds(out, KillFreeswitch)) == 1
    assert not bench.service.holding


@pytest.mark.parametrize("state", State)
def test_ignored_events_change_nothing(state: State) -> None:
    bench = in_state(state)
    for event in IGNORED[state]:
        out: list[Action] = []
        assert not moves.happen(bench.node, 0, event, bench.now_us, out)
        assert (out, bench.service.state) == ([], state)


def test_only_serving_anew_recovers_calls() -> None:
    """A reclaiming owner still has its calls: T301 recovers only where none are held (2.4)."""
    for holding in (True, False):
        bench = in_state(State.ACQUIRING)
        bench.service.holding = holding
        out: list[Action] = []
        moves.happen(bench.node, 0, Event.ADDRESSES_UP, bench.now_us, out)
        assert len(kinds(out, Recover)) == (0 if holding else 1)
