"""The ranking: pure, total, stable, the same on every node (EG16, EG20, EG23, EG25)."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from haclusterd.core.model import (
    NOBODY,
    AddressSpec,
    ClusterSpec,
    Flag,
    LastResort,
    NodeSpec,
    ServiceEntry,
    ServiceSpec,
    State,
    Timing,
)
from haclusterd.core.ranking import (
    ABSENT,
    IMPAIRED_HEALTH,
    TAKEN,
    Facts,
    rank,
    service_order,
    why,
)

LAN = Timing(25_000, 100_000, 40_000, 150_000, 10_000, 60_000, 15_000, 2_000_000)
HOLDING = (State.ACQUIRING, State.OWNED, State.RELEASING)

entries = st.builds(
    ServiceEntry,
    st.just(NOBODY),
    st.just(-1),
    st.sampled_from([int(s) for s in State]),
    st.booleans(),
    st.integers(0, 400),
)
ready_entry = ServiceEntry(NOBODY, -1, State.STANDBY, True, 0)


@st.composite
def views(draw: st.DrawFn) -> tuple[ClusterSpec, tuple[Facts, ...], frozenset[int]]:
    nodes, services = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    spec = ClusterSpec(
        "c",
        0,
        tuple(
            NodeSpec(
                f"n{i}", ("10.0.0.1",), draw(st.integers(0, 3)), draw(st.integers(0, 2000)),
                draw(st.booleans()) and draw(st.booleans()),
            )
            for i in range(nodes)
        ),
        tuple(
            ServiceSpec(f"s{k}", (AddressSpec("203.0.113.1", 24, "e"),), (), -1,
                        draw(st.integers(0, 3)))
            for k in range(services)
        ),
        LAN,
        last_resort=draw(st.sampled_from(LastResort)),
    )  # fmt: skip
    facts = tuple(
        Facts(
            draw(st.booleans()) or draw(st.booleans()),
            draw(st.sampled_from([0, 0, 8, int(Flag.STARTING), int(Flag.MAINTENANCE)])),
            draw(st.integers(0, 100)),
            draw(st.integers(0, 10)),
            draw(st.integers(0, 900)),
            tuple(draw(entries) for _ in range(services)),
        )
        for _ in range(nodes)
    )
    lost = frozenset(draw(st.sets(st.integers(0, services - 1))))
    return spec, facts, lost


View = tuple[ClusterSpec, tuple[Facts, ...], frozenset[int]]


@given(views(), st.integers(0, 6))
def test_same_view_same_ranking_whoever_looks(view: View, me: int) -> None:
    """EG16: no node's own position, nor the identity of objects, has a part in it."""
    spec, facts, lost = view
    elsewhere = msgspec.structs.replace(spec, me=me % len(spec.nodes))
    copied = msgspec.msgpack.decode(msgspec.msgpack.encode(facts), type=tuple[Facts, ...])
    assert rank(spec, facts, lost) == rank(elsewhere, copied, frozenset(sorted(lost)))


@given(views())
def test_total_order_of_candidates_only(view: View) -> None:
    spec, facts, lost = view
    ranking = rank(spec, facts, lost)
    for line in (ranking.slaves, *ranking.successors):
        assert len(set(line)) == len(line)
        for n in line:
            assert facts[n].alive
            assert not facts[n].flags & ABSENT
            assert not spec.nodes[n].witness
    for n in ranking.slaves:
        assert not any(e.state in TAKEN for e in facts[n].services)
    for k, line in enumerate(ranking.successors):
        for n in line:
            entry = facts[n].services[k]
            assert entry.ready or entry.state in (State.LAPSED, State.RECLAIMING)
            assert entry.state not in HOLDING


@given(views())
def test_lapsed_owner_ranks_before_every_slave(view: View) -> None:
    """DESIGN 2.4."""
    spec, facts, lost = view
    for k, line in enumerate(rank(spec, facts, lost).successors):
        lapsed = [facts[n].services[k].state in (State.LAPSED, State.RECLAIMING) for n in line]
        assert lapsed == sorted(lapsed, reverse=True)


@given(views())
def test_order_of_two_slaves_does_not_hang_on_a_third(view: View) -> None:
    """EG20: whoever leaves, the others keep their order."""
    spec, facts, lost = view
    slaves = rank(spec, facts, lost).slaves
    if not slaves:
        return
    leaver = slaves[len(slaves) // 2]
    left = list(facts)
    left[leaver] = msgspec.structs.replace(facts[leaver], alive=False)
    assert rank(spec, tuple(left), lost).slaves == tuple(n for n in slaves if n != leaver)


@given(views(), st.integers(0, 6), st.integers(0, 9))
def test_stable_under_irrelevant_changes(view: View, who: int, noise: int) -> None:
    """EG20: health within its step of ten, and what the dead last said, reorder nobody."""
    spec, facts, lost = view
    n = who % len(facts)
    other = list(facts)
    calm = min(facts[n].health // 10 * 10 + noise, 100)
    other[n] = msgspec.structs.replace(facts[n], health=calm if facts[n].alive else noise)
    assert rank(spec, facts, lost) == rank(spec, tuple(other), lost)


@given(views())
def test_an_impaired_slave_comes_after_all_others(view: View) -> None:
    """MS4: whatever its priority; and it stays a candidate, for the others may go, too (ML9)."""
    spec, facts, lost = view
    slaves = rank(spec, facts, lost).slaves
    impaired = [facts[n].health < IMPAIRED_HEALTH for n in slaves]
    assert impaired == sorted(impaired)
    alike = tuple(msgspec.structs.replace(f, health=100) for f in facts)
    assert set(slaves) == set(rank(spec, alike, lost).slaves)


@given(views(), st.integers(0, 9))
def test_what_all_have_lost_reorders_nobody(view: View, health: int) -> None:
    """ML9: a fault of all nodes alike is no reason for another order."""
    spec, facts, lost = view
    well = tuple(msgspec.structs.replace(f, health=100) for f in facts)
    ill = tuple(msgspec.structs.replace(f, health=health) for f in facts)
    assert rank(spec, well, lost) == rank(spec, ill, lost)


@given(st.integers(1, 5), st.integers(1, 5), st.permutations(range(5)))
def test_kth_slave_takes_kth_service(slaves: int, services: int, priorities: list[int]) -> None:
    """EG23, EG25: services by priority, then name; each slave takes one, then none is left."""
    spec = ClusterSpec(
        "c",
        0,
        tuple(NodeSpec(f"n{i}", ("a",), priorities[i]) for i in range(slaves)),
        tuple(ServiceSpec(f"s{k}", (), (), -1, k % 2) for k in range(services)),
        LAN,
        last_resort=LastResort.NONE,
    )
    facts = tuple(Facts(True, 0, 100, 0, 0, (ready_entry,) * services) for _ in range(slaves))
    ranking = rank(spec, facts, frozenset(range(services)))
    assert ranking.slaves == tuple(sorted(range(slaves), key=lambda n: -priorities[n]))
    for place, k in enumerate(service_order(spec)):
        taker = ranking.slaves[place : place + 1]
        assert ranking.successors[k][:1] == taker


@given(views())
def test_last_resort_respects_capacity(view: View) -> None:
    """S6, M18: a node that serves already takes no more calls than it has room for."""
    spec, facts, lost = view
    ranking = rank(spec, facts, lost)
    for k, line in enumerate(ranking.successors):
        calls = max(f.services[k].calls for f in facts)
        for n in line:
            lapsed = facts[n].services[k].state in (State.LAPSED, State.RECLAIMING)
            if n in ranking.slaves or lapsed:
                continue
            if any(e.state in TAKEN for e in facts[n].services):
                assert spec.last_resort is LastResort.MASTERS
                assert facts[n].calls + calls <= spec.nodes[n].capacity


@given(views())
def test_a_slave_too_small_for_the_calls_goes_last(view: View) -> None:
    """S6, M18: only where nobody else is left, for then it can have some of the calls."""
    spec, facts, _ = view
    for k, line in enumerate(rank(spec, facts, frozenset()).successors):
        calls = max((f.services[k].calls for f in facts if f.services), default=0)
        small = [
            facts[n].calls + calls > spec.nodes[n].capacity for n in line if not lapsed(facts, n, k)
        ]
        assert small == sorted(small)


@given(views())
def test_no_slave_is_first_twice_while_another_is_free(view: View) -> None:
    """EG25: no double takeover, and nobody idle while a lost service could be served."""
    spec, facts, lost = view
    ranking = rank(spec, facts, lost)
    first = {k: ranking.successors[k][0] for k in lost if ranking.successors[k]}
    fresh = {k: n for k, n in first.items() if n in ranking.slaves and not lapsed(facts, n, k)}
    order = [k for k in service_order(spec) if k in fresh]
    for place, k in enumerate(order):
        if fresh[k] in [first[before] for before in order[:place]]:
            free = [n for n in ranking.successors[k] if n in ranking.slaves]
            assert set(free) <= set(first.values())


def lapsed(facts: tuple[Facts, ...], n: int, k: int) -> bool:
    return facts[n].services[k].state in (State.LAPSED, State.RECLAIMING)


@given(views())
def test_why_has_a_line_for_every_node(view: View) -> None:
    """E4."""
    spec, facts, _ = view
    lines = why(spec, facts)
    assert [line.partition(":")[0] for line in lines] == [node.id for node in spec.nodes]
