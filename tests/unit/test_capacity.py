"""MS12, MS3, MS7: does the load fit when nodes are lost, and where should the next call go?"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from haclusterd.agent import capacity
from haclusterd.agent.capacity import best_nodes, cases, fits
from haclusterd.agent.schema import Overload
from haclusterd.core.model import ClusterSpec, LastResort, Quorum
from haclusterd.core.view import View
from tests.fixtures.agent_parts import spec, view
from tests.web.large import Large
from tests.web.large import view as large

BOTH = {"east": ("fs-a", 7), "west": ("fs-b", 3)}


def loaded(calls: tuple[int, int, int], owners: Any = BOTH, **changed: Any) -> View:
    word = view(owners)
    nodes = tuple(
        msgspec.structs.replace(node, calls=count, capacity=100, **changed)
        for node, count in zip(word.nodes, calls, strict=True)
    )
    return msgspec.structs.replace(word, nodes=nodes)


def changed(**values: Any) -> ClusterSpec:
    return msgspec.structs.replace(spec(), **values)


def bad(word: View, fail: int = 1, cluster: ClusterSpec | None = None) -> list[Any]:
    return [case for case in cases(word, cluster or spec(), fail) if not fits(case)]


def test_a_slave_takes_what_one_master_carries() -> None:
    first, *_ = cases(loaded((90, 90, 0)), spec(), 1)
    assert (first.lost, first.moves) == (["fs-a"], {"east": "fs-c"})
    assert bad(loaded((90, 90, 0))) == []


def test_a_slave_that_is_too_small_is_said_with_numbers() -> None:
    (case,) = bad(loaded((130, 20, 0)))
    assert case.overloaded == [Overload("fs-c", 130, 100)]
    assert capacity.sentence([case]) == "without fs-a fs-c would carry 130 of 100 call legs"


def test_the_last_resort_is_the_master_with_room() -> None:
    """Two of three are more than a majority allows; with `availability` the third one goes on."""
    every = bad(loaded((40, 40, 0)), 2)
    assert [case.majority for case in every] == [False] * 3
    assert "no majority" in capacity.sentence(every)
    alone = changed(quorum=Quorum.AVAILABILITY)
    masters = list(cases(loaded((40, 40, 0)), alone, 2))
    assert masters[0].moves == {"east": "fs-c", "west": "fs-c"}
    assert fits(masters[0])
    (full,) = [c for c in cases(loaded((70, 70, 0)), alone, 2) if c.lost == ["fs-a", "fs-b"]]
    assert (full.moves, full.unserved) == ({"east": "fs-c"}, ["west"])
    none = changed(quorum=Quorum.AVAILABILITY, last_resort=LastResort.NONE)
    (kept,) = [c for c in cases(loaded((10, 10, 0)), none, 2) if c.lost == ["fs-a", "fs-b"]]
    assert kept.unserved == ["west"]


def test_nobody_ready_is_nobody_to_serve() -> None:
    word = loaded((10, 10, 0), ready=(False, False))
    assert [case.unserved for case in bad(word)] == [["east"], ["west"]]


def test_a_large_cluster_is_gone_through_in_full() -> None:
    word, cluster = large(quiet=True), Large(quiet=True).spec
    assert sum(1 for _ in cases(word, cluster, 1)) == 20
    assert sum(1 for _ in cases(word, cluster, 2)) == 190
    assert [c for c in cases(word, cluster, 1) if c.unserved] == []
    full = msgspec.structs.replace(
        word, nodes=tuple(msgspec.structs.replace(n, calls=990) for n in word.nodes)
    )
    assert bad(full, 1, cluster)


def test_the_next_call_goes_to_the_least_loaded_class() -> None:
    assert [n.node for n in best_nodes(loaded((55, 21, 0)))] == ["fs-b", "fs-a"]
    same = best_nodes(loaded((29, 21, 0)))
    assert [n.node for n in same] == ["fs-a", "fs-b"], "one class: the id decides, everywhere alike"
    assert same[0].addresses == ["203.0.113.10"]
    full = best_nodes(loaded((100, 21, 0)))
    assert [n.node for n in full] == ["fs-b"], "a full node takes none"
    assert best_nodes(loaded((100, 100, 0))) == []


def test_an_impaired_node_comes_last() -> None:
    word = loaded((0, 80, 0))
    sick = msgspec.structs.replace(word.nodes[0], health=20)
    word = msgspec.structs.replace(word, nodes=(sick, *word.nodes[1:]))
    assert [(n.node, n.impaired) for n in best_nodes(word)] == [("fs-b", False), ("fs-a", True)]


@pytest.mark.parametrize("fail", [1, 2, 3])
def test_more_losses_than_nodes_are_no_error(fail: int) -> None:
    word = view({"east": ("fs-a", 7)})
    dead = tuple(msgspec.structs.replace(n, role="dead") for n in word.nodes[1:])
    word = msgspec.structs.replace(word, nodes=(word.nodes[0], *dead))
    (case,) = cases(word, spec(), fail)
    assert (case.lost, case.majority) == (["fs-a"], False)
