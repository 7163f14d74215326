"""core.dialect: which version of the wire a node seals."""

from __future__ import annotations

import msgspec

from haclusterd.core import actions as act
from haclusterd.core.model import NodeSpec
from tests.unit.core_bench import Bench, kinds, spec_of
from tests.unit.test_core_reconfigure import READS_2, THREE, at_revision_2, stage

TWO_NEXT = msgspec.structs.replace(
    spec_of(), nodes=(*spec_of().nodes, NodeSpec("n3", ("10.1.0.4", "10.2.0.4"))), revision=2,
    config_hash=2,
)  # fmt: skip


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


def test_who_agreed_to_a_set_before_its_start_says_so_at_once() -> None:
    """All read version 2 then; and only in it can be said what is staged."""
    bench = Bench()
    assert stage(bench, TWO_NEXT, kept=True).ok
    assert spoken(bench.pass_ms(30)) == [2]
    assert kinds(bench.asked, act.SendBeat)[-1].beats[0].staged == 2
    assert spoken(bench.hear(1, flags=0)) == [1], "an older version was installed meanwhile"
    assert spoken(bench.pass_ms(2_900)) == []


def test_a_later_set_cannot_be_said_in_version_1() -> None:
    bench = at_revision_2().after_hold_down()
    assert bench.node.dialect == 2
    assert spoken(bench.hear(1, flags=0)) == []
    handed_over = Bench(THREE)  # by a heart that knew version 1 only
    assert spoken(handed_over.pass_ms(30)) == [2]
