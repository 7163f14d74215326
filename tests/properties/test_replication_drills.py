"""Mutation drills of the rules about calls: without one of them a history goes wrong.

The simulator of ownership (`tests/sim/drills.py`) has no call records; these are the guards of S8
and S9. Each is taken away in turn and has to be noticed within a few seeded histories.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from haclusterd.core import replication
from haclusterd.core.cursor import Cursor
from haclusterd.core.replication import Item, ItemSet
from haclusterd.core.standby import ServiceCopies, StreamCopy
from tests.properties import test_replication as histories

HISTORIES = 60
Patch = pytest.MonkeyPatch


def graves_are_not_kept(patch: Patch) -> None:
    """A call that ended leaves a tombstone, or an older copy brings it back (S8)."""
    keep = ItemSet._prune

    def prune(self: ItemSet, now_ms: int) -> None:
        keep(self, now_ms)
        for uuid in list(self.graves):
            self._forget(self.items.pop(uuid))

    patch.setattr(ItemSet, "_prune", prune)


def the_last_word_wins(patch: Patch) -> None:
    """What comes late does not replace what is newer (S8)."""
    patch.setattr(replication, "rank", lambda item: (0,))

    def merge(self: ItemSet, item: Item, now_ms: int) -> bool:
        known = self.items.pop(item.uuid, None)
        if known is not None:
            self._forget(known)
        return take(self, item, now_ms)

    take = ItemSet.merge
    patch.setattr(ItemSet, "merge", merge)


def gaps_are_no_matter(patch: Patch) -> None:
    """A delta is applied only where the one before it was (S9)."""

    def delta(self: StreamCopy, message: replication.Delta, now_ms: int) -> None:
        at = self.staging or self
        for entry in message.entries[1:]:  # the first of each got lost
            if isinstance(entry, Item):
                at.items.merge(entry, now_ms)
        at.position += len(message.entries)
        self.saw_head(message.head, now_ms)

    patch.setattr(StreamCopy, "delta", delta)


def a_snapshot_is_acknowledged_before_it_is_whole(patch: Patch) -> None:
    """What is sent is not what is held (S9)."""

    def ack(self: Cursor, position: int) -> None:
        self.acked = self.log.head

    patch.setattr(Cursor, "ack", ack)


def copies_of_before_are_forgotten(patch: Patch) -> None:
    """Until a new owner has settled, what its predecessor had said counts (S9, 31)."""
    before = ServiceCopies.freeze

    def freeze(self: ServiceCopies, epoch: int, present: StreamCopy | None = None) -> None:
        before(self, epoch, present)
        for stream in [s for s, copy in self.copies.items() if copy is not present]:
            del self.copies[stream]

    patch.setattr(ServiceCopies, "freeze", freeze)


def _plain(drawn: Any) -> Callable[..., None]:
    """A property without hypothesis around it."""
    inner: Callable[..., None] = drawn.hypothesis.inner_test
    return inner


def inherited() -> None:
    """Takeovers that are cut anywhere, drawn as in the property of that name."""
    check = _plain(histories.test_takeover_cut_anywhere_loses_no_inherited_call)
    for number in range(HISTORIES):
        chance = random.Random(number)
        before, after = (
            [(chance.choice(histories.UUIDS), chance.random() < 0.3) for _ in range(8)]
            for _ in range(2)
        )
        check(before, after, chance.randrange(12), chance.random() < 0.5)


def long_histories() -> None:
    for number in range(HISTORIES):
        chance = random.Random(f"drill/{number}")
        histories.run(
            [
                (
                    chance.choice(histories.MOVES),
                    chance.randrange(2),
                    chance.choice(histories.UUIDS),
                )
                for _ in range(120)
            ]
        )


def merged_in_any_order() -> None:
    check = _plain(histories.test_merge_does_not_depend_on_order_or_repetition)
    for number in range(HISTORIES):
        chance = random.Random(number)
        items = [
            Item(chance.choice(histories.UUIDS), chance.randint(1, 3), 1, chance.randint(1, 4),
                 chance.random() < 0.5, b"b")
            for _ in range(20)
        ]  # fmt: skip
        check(items, chance)


DRILLS: dict[Callable[[Patch], None], Callable[[], None]] = {
    graves_are_not_kept: merged_in_any_order,
    the_last_word_wins: merged_in_any_order,
    gaps_are_no_matter: long_histories,
    a_snapshot_is_acknowledged_before_it_is_whole: long_histories,
    copies_of_before_are_forgotten: inherited,
}


@pytest.mark.parametrize("mutation", DRILLS)
def test_s8_s9_a_rule_that_is_taken_away_is_missed(
    mutation: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    with monkeypatch.context() as patch:
        mutation(patch)
        with pytest.raises(AssertionError):
            DRILLS[mutation]()


@pytest.mark.parametrize("history", [inherited, long_histories, merged_in_any_order])
def test_the_same_histories_are_clean_with_every_rule(history: Callable[[], None]) -> None:
    history()
