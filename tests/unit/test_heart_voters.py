"""heart.voters: what a predecessor hands over, in the numbers of the next set of voters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from haclusterd.config import cluster_spec, load
from haclusterd.config.revisions import Start
from haclusterd.core.actions import EndCalls, Recover
from haclusterd.core.inputs import Tick
from haclusterd.core.model import NOBODY, Identity
from haclusterd.core.node import step
from haclusterd.core.state import listens_until_us, start
from haclusterd.heart.upgrade import HandOver, pack_wire
from haclusterd.heart.voters import Voters
from haclusterd.replay import Incarnation
from haclusterd.wire import ClusterKey, KeyRing, Wire
from tests.unit.test_config_revisions import toml

RING = KeyRing((ClusterKey(1, bytes(32)),))
MINE = Identity(7, 2, 99)


def taken_over(
    folder: Path, ids: str, revision: int, *told: Recover | EndCalls
) -> tuple[Recover | EndCalls, ...]:
    """By node c of the next set: what node c of `abc` (revision 1) has told its agent."""
    file = folder / "haclusterd.toml"
    file.write_text(toml(1))
    before = cluster_spec(load(file, node="c"))
    node = start(before, 1_000_000, 5)
    node.services[0].recovering = MINE
    wire = pack_wire(Wire(before, RING, 5).export_state())
    state = HandOver(node, wire, (), (), 1_000_000, (0, 0), 0, told)
    file.write_text(toml(revision, ids))
    voters = Voters(Start(load(file, node="c")))
    adopted, _wire, orders, _held = voters.taken_over(state, RING, 1_000_000)
    for order in orders:
        if isinstance(order, Recover):
            assert order.identity == adopted.services[0].recovering, "RecoveryEnded has to match"
    return orders


@pytest.mark.parametrize(
    ("ids", "revision", "me", "lost"),
    [("abc", 1, 2, 0), ("abcd", 2, 2, 0), ("bc", 2, 1, -1), ("cab", 2, 0, 1)],
)
def test_an_order_to_the_agent_is_told_anew_in_the_numbers_of_the_next_set(
    tmp_path: Path, ids: str, revision: int, me: int, lost: int
) -> None:
    """The new agent counts by the new set: an old number names another node there, or none."""
    order = Recover(0, MINE, 0, "a silent on 1/1 links", {"dead": 3})
    (told,) = taken_over(tmp_path, ids, revision, order)
    assert told == Recover(0, Identity(7, me, 99), lost, order.cause, order.times)


def test_the_end_of_calls_names_the_new_owner_or_somebody_who_is_gone(tmp_path: Path) -> None:
    orders = taken_over(tmp_path, "bc", 2, EndCalls(0, Identity(8, 1, 5)))
    assert orders == (EndCalls(0, Identity(8, 0, 5)),)
    orders = taken_over(tmp_path, "bc", 2, EndCalls(0, Identity(8, 0, 5)))
    assert orders == (EndCalls(0, Identity(8, -1, 5)),)


def test_a_set_with_other_services_is_taken_up_by_name(tmp_path: Path) -> None:
    """They were changed, by restarts, while this node was away; it held east, which has moved."""
    file = tmp_path / "haclusterd.toml"
    east = toml(1)
    file.write_text(east)
    before = cluster_spec(load(file, node="c"))
    node = start(before, 1_000_000, 5)
    node.services[0].promise = MINE
    wire = pack_wire(Wire(before, RING, 5).export_state())
    told = (EndCalls(0, MINE),)
    state = HandOver(node, wire, (0,), (), 1_000_000, (0, 0), 0, told)
    head, found, block = toml(2, "abcd").partition("[[service]]")
    assert found
    north = block.replace('"east"', '"north"').replace("203.0.113.", "203.0.113.1")
    file.write_text(f"{head}[[service]]{north}\n[[service]]{block}")
    voters = Voters(Start(load(file, node="c")))
    adopted, _wire, orders, held = voters.taken_over(state, RING, 2_000_000)
    assert [s.name for s in adopted.spec.services] == ["north", "east"]
    assert [s.promise for s in adopted.services] == [NOBODY, MINE]
    assert orders == (EndCalls(1, MINE),)
    assert held == (1,)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_nic_that_came_or_went_meanwhile_is_taken_up_with_the_set(
    tmp_path: Path, before: int, after: int
) -> None:
    """By restarts of the others, while this node was away."""
    file = tmp_path / "haclusterd.toml"

    def links(text: str, nics: int) -> str:
        return re.sub(r'"10\.1\.0\.(\d+)"', r'"10.1.0.\1", "10.2.0.\1"', text) if nics > 1 else text

    file.write_text(links(toml(1), before))
    old = cluster_spec(load(file, node="c"))
    node = start(old, 1_000_000, 5)
    wire = Wire(old, RING, 5)
    wire._sealed = [17] * before
    peer = wire._peers[0]
    peer.current_number, peer.current = 4711, Incarnation(before)
    peer.current.windows[0].add(3)
    state = HandOver(node, pack_wire(wire.export_state()), (), (), 1_000_000, (0, 0), 0, ())
    file.write_text(links(toml(2, "abcd"), after))
    voters = Voters(Start(load(file, node="c")))
    adopted, taken, _orders, _held = voters.taken_over(state, RING, 1_000_000)
    assert [len(p.links) for p in adopted.peers] == [after] * 4
    assert taken._sealed == [17, -1][:after] if before < after else [17]
    windows = taken._peers[0].current
    assert windows is not None
    assert [w.newest for w in windows.windows] == [3, -1][:after]
    step(adopted, Tick(), 2_000_000)


def test_a_start_holds_down_for_as_long_as_the_last_run_did(tmp_path: Path) -> None:
    """F38: by the file of before a lease lasted for longer."""
    file = tmp_path / "haclusterd.toml"
    file.write_text(toml(1))
    begun = Start(load(file, node="c"), hold_down_us=2_700_000)
    node = Voters(begun).node(1_000_000, 5)
    assert listens_until_us(node) == 3_700_000
    assert listens_until_us(Voters(Start(load(file, node="c"))).node(1_000_000, 5)) == 1_250_000


def test_what_was_held_of_a_service_that_is_gone_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "haclusterd.toml"
    file.write_text(toml(1))
    before = cluster_spec(load(file, node="c"))
    node = start(before, 1_000_000, 5)
    wire = pack_wire(Wire(before, RING, 5).export_state())
    state = HandOver(node, wire, (0,), (), 1_000_000, (0, 0), 0, (EndCalls(0, MINE),))
    file.write_text(toml(2, "abcd").replace('"east"', '"north"'))
    voters = Voters(Start(load(file, node="c")))
    adopted, _wire, orders, held = voters.taken_over(state, RING, 2_000_000)
    assert (orders, held) == ((), ())
    assert adopted.services[0].silence_us == 2_000_000
