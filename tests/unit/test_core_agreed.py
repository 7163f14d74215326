"""Orders for the whole cluster: copies come to agree, whoever hears of what in whatever order."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from haclusterd.core.agreed import (
    NAME_MAX,
    NODES_MAX,
    WALL_S_MAX,
    Agreed,
    AgreedWord,
    DrainWord,
    MarkWord,
    PauseWord,
)
from haclusterd.core.inputs import Marked, MarksOrdered, PauseOrdered
from haclusterd.core.model import FOR_GOOD_US
from tests.unit.core_bench import spec_of

HOUR_US = 3_600_000_000


def copies() -> list[Agreed]:
    return [Agreed(msgspec.structs.replace(spec_of(), me=n)) for n in range(3)]


def test_ml10_the_newer_word_wins_in_every_order() -> None:
    words = []
    a, b, c = copies()
    a.order_pause(HOUR_US, "anna", 0)
    words.append(a.word(0))
    b.merge(a.word(0), 0)
    b.order_pause(0, "ben", 0)
    b.order_mark("n2", "ben", dead=True)
    words.append(b.word(0))
    c.order_mark("n2", "carl", dead=True)  # at the same time, knowing of nothing
    words.append(c.word(0))
    ends = set()
    for order in itertools.permutations(words):
        (copy, *_) = copies()
        for word in (*order, *order):
            copy.merge(word, 0)
        ends.add(copy.word(0))
    assert len(ends) == 1
    (end,) = ends
    assert (end.pause.by, end.pause.left_us) == ("ben", 0)
    assert [mark.by for mark in end.marks] == ["ben"]


def test_a_pause_counts_down_by_every_clock_and_ends_with_the_first() -> None:
    a, b, _ = copies()
    a.order_pause(HOUR_US, "anna", 1_000)
    assert b.merge(a.word(1_000), 77_000_000_000)
    assert b.left_us(77_000_000_000 + HOUR_US // 2) == HOUR_US // 2
    assert not b.merge(a.word(HOUR_US // 2), 77_000_000_000)
    assert b.merge(a.word(1_000 + HOUR_US), 77_000_000_000)
    assert b.left_us(77_000_000_000) == 0
    assert not a.merge(AgreedWord(PauseWord(256, "anna", HOUR_US)), 10 * HOUR_US)
    assert a.left_us(10 * HOUR_US) == 0


def test_a_pause_without_an_end_has_none() -> None:
    a, b, _ = copies()
    a.order_pause(FOR_GOOD_US, "anna", 5)
    b.merge(a.word(FOR_GOOD_US // 2), 5)
    assert b.left_us(FOR_GOOD_US // 2) == FOR_GOOD_US
    b.order_pause(0, "ben", 5)
    assert b.left_us(5) == 0


@pytest.mark.parametrize("pauses", [1, 3])
def test_ml10_of_two_orders_apart_the_one_given_last_wins(pauses: int) -> None:
    """However often the node that was lost had paused and resumed before."""
    lost, here, _ = copies()
    for i in range(pauses):
        lost.order_pause(FOR_GOOD_US, f"anna {i}", 0, 1_000 + i)
    here.order_pause(0, "ben", 0, 2_000)
    assert not here.merge(lost.word(0), 0)
    assert lost.merge(here.word(0), 0)
    assert lost.left_us(0) == here.left_us(0) == 0


def test_ml10_a_wall_clock_behind_or_gone_mad_is_no_hindrance_to_who_knows() -> None:
    a, b, c = copies()
    a.order_pause(FOR_GOOD_US, "anna", 0, 10**30)
    assert a.word(0).pause.version == WALL_S_MAX * NODES_MAX
    assert b.merge(a.word(0), 0)
    b.order_pause(0, "ben", 0, 5)
    for copy in (a, c):
        assert copy.merge(b.word(0), 0)
    assert a.left_us(0) == 0


def test_heart_is_told_versions_and_only_the_dead() -> None:
    a, *_ = copies()
    a.order_mark("n1", "anna", dead=True)
    a.order_mark("n2", "anna", dead=True)
    a.order_mark("n1", "anna", dead=False)
    assert a.marks_input(4) == MarksOrdered(4, (Marked(2, 512, "anna"),))
    assert a.mark_of("n1") is None
    a.order_pause(HOUR_US, "ben", 0)
    assert a.pause_input(-1, HOUR_US // 4) == PauseOrdered(-1, 1024, HOUR_US * 3 // 4, "ben")


@pytest.mark.parametrize(
    "word",
    [
        AgreedWord(PauseWord(2**60, "x", 5)),
        AgreedWord(PauseWord(-1, "x", 5)),
        AgreedWord(PauseWord(300, "x" * (NAME_MAX + 1), 5)),
        AgreedWord(PauseWord(300, "x", -5)),
        AgreedWord(marks=(MarkWord("n9", 300, "x", True),)),
        AgreedWord(marks=(MarkWord("n1", 2**60, "x", True),)),
        AgreedWord(drains=(DrainWord("node:n9", 300, "x", 5),)),
        AgreedWord(drains=(DrainWord("n1", 300, "x", 5),)),
        AgreedWord(drains=(DrainWord("node:n1", 2**60, "x", 5),)),
        AgreedWord(drains=(DrainWord("node:n1", 300, "x", -5),)),
        AgreedWord(drains=(DrainWord("node:n1", 300, "x", 5, -5),)),
    ],
)
def test_s13_odd_words_change_nothing(word: AgreedWord) -> None:
    a, *_ = copies()
    before = a.word(0)
    assert not a.merge(word, 0)
    assert a.word(0) == before


# another boot of the host -----------------------------------------------------------------------


def test_ml18_a_host_that_restarts_forgets_who_was_marked_and_nothing_else() -> None:
    a, *_ = copies()
    a.order_mark("n1", "anna", dead=True)
    a.order_mark("n2", "anna", dead=True)
    a.order_mark("n1", "the cluster", dead=False)
    a.order_pause(HOUR_US, "ben", 0)
    a.order_drain("node:n1", HOUR_US, "ben", 0)
    before = a.word(0)
    forgotten = a.forget_dead()
    assert [(m.node, m.by) for m in forgotten] == [("n2", "anna")]
    after = a.word(0)
    assert (after.pause, after.drains) == (before.pause, before.drains)
    assert after.marks == before.marks[:1], "the end of a mark"
    assert a.marks_input(-1) == MarksOrdered(-1, ())
    assert a.unsaid([*before.marks]) == forgotten
    assert a.forget_dead() == []


def test_ml18_a_forgotten_mark_is_back_when_another_says_so() -> None:
    a, b, _ = copies()
    a.order_mark("n2", "anna", dead=True, wall_s=1_000)
    b.merge(a.word(0), 0)
    told = a.marks_input(-1)
    a.forget_dead()
    assert not b.merge(a.word(0), 0), "to have forgotten is no order"
    assert a.merge(b.word(0), 0)
    assert a.marks_input(-1) == told


@pytest.mark.parametrize("restarts", [1, 2])
def test_ml18_what_is_ordered_later_is_newer_than_what_was_forgotten(restarts: int) -> None:
    """Though the wall clock is behind by now, and the agent read its file again since."""
    a, b, _ = copies()
    a.order_mark("n2", "anna", dead=True, wall_s=2_000)
    b.merge(a.word(0), 0)
    a.forget_dead()
    for _ in range(restarts):
        kept = a.word(0)
        (a, *_) = copies()
        a.merge(kept, 0)
    a.order_mark("n2", "ben", dead=False, wall_s=5)
    assert b.merge(a.word(0), 0)
    assert b.mark_of("n2") is None


@pytest.mark.parametrize("above", [-5, 2**60])
def test_s13_an_odd_version_in_another_word_is_not_passed(above: int) -> None:
    a, *_ = copies()
    a.merge(AgreedWord(above=above), 0)
    a.order_pause(0, "anna", 0)
    assert a.word(0).pause.version == NODES_MAX


# drains -----------------------------------------------------------------------------------------


def test_b7_a_drain_counts_down_everywhere_and_ends_with_the_first() -> None:
    a, b, c = copies()
    a.order_drain("node:n1", HOUR_US, "anna", 1_000, HOUR_US // 3)
    assert b.merge(a.word(1_000), 77_000_000_000)
    assert not b.merge(a.word(1_000), 78_000_000_000)
    (drain,) = b.drains(77_000_000_000 + HOUR_US // 4)
    assert (drain.left_us, drain.move_us) == (HOUR_US * 3 // 4, HOUR_US // 12)
    (drain,) = b.drains(77_000_000_000 + HOUR_US // 2)
    assert drain.move_us == 0
    assert b.drain_of("node:n2", 0) is None
    assert c.merge(a.word(1_000 + HOUR_US), 5)  # who hears of it only when it is over
    assert c.drains(5) == []
    assert b.merge(c.word(5), 77_000_000_000)
    assert b.drains(77_000_000_000) == []
    assert not b.merge(c.word(5), 77_000_000_000)


def test_b7_a_drain_without_an_end_has_none_until_it_is_taken_back() -> None:
    a, b, _ = copies()
    a.order_drain("service:s0", FOR_GOOD_US, "anna", 5)
    b.merge(a.word(FOR_GOOD_US // 2), 5)
    assert b.drains(FOR_GOOD_US // 2) == [DrainWord("service:s0", 256, "anna", FOR_GOOD_US)]
    a.order_pause(HOUR_US, "ben", 5)
    b.order_drain("service:s0", 0, "carl", 6)
    assert a.merge(b.word(6), 6)
    assert a.drains(6) == []
    assert a.left_us(6) == HOUR_US - 1
    a.order_mark("n2", "ben", dead=True)
    assert [d.version for d in a.word(6).drains] == [513]
    assert a.mark_of("n2").version == 768  # type: ignore[union-attr]


def test_a_mark_is_known_by_its_order() -> None:
    agreed = Agreed(spec_of())
    agreed.order_mark("n1", "ann", True)
    (mark,) = agreed.word(0).marks
    assert agreed.is_marked("n1", mark.version)
    assert not agreed.is_marked("n1", mark.version + 1)
    agreed.order_mark("n1", "ann", False)
    assert not agreed.is_marked("n1", mark.version)


def test_what_runs_is_timed() -> None:
    agreed = Agreed(spec_of())
    assert not agreed.is_timed(0)
    agreed.order_pause(FOR_GOOD_US, "ann", 0)
    assert not agreed.is_timed(0)
    agreed.order_drain("node:n1", 1_000, "ann", 0)
    assert agreed.is_timed(0)
    assert not agreed.is_timed(1_000)
