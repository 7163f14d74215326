"""core.dialect: which version of the wire a node seals."""

from __future__ import annotations

from haclusterd.core import actions as act
from tests.unit.core_bench import Bench, kinds
from tests.unit.test_core_reconfigure import READS_2, THREE, at_revision_2


def spoken(actions: list[act.Action]) -> list[int]:
    return [a.version for a in kinds(actions, act.Speak)]


def test_version_1_until_nobody_was_heard_for_long_who_needs_it() -> None:
    bench = Bench().after_hold_down()
    bench.hear(1, flags=0)
    assert spoken(bench.pass_ms(2_900)) == []
    bench.hear(1, flags=READS_2)
    assert spoken(bench.pass_ms(200)) == [2]
    assert bench.rows.count("M37") == 1


def test_version_1_again_at_the_first_word_of_who_needs_it() -> None:
    bench = Bench().after_hold_down()
    assert spoken(bench.pass_ms(4_000)) == [2]
    assert spoken(bench.hear(1, flags=READS_2)) == []
    assert spoken(bench.hear(1, flags=0, two_way=False)) == [1], "a deaf one is not two-way"
    assert spoken(bench.hear(1, flags=0)) == []


def test_a_later_set_cannot_be_said_in_version_1() -> None:
    bench = at_revision_2().after_hold_down()
    assert bench.node.dialect == 2
    assert spoken(bench.hear(1, flags=0)) == []
    handed_over = Bench(THREE)  # by a heart that knew version 1 only
    assert spoken(handed_over.pass_ms(30)) == [2]
