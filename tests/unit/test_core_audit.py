"""Comparing a copy with its origin, and mending it: by content, in slices (MS17)."""

from __future__ import annotations

from haclusterd.core import audit
from haclusterd.core.replication import (
    BUCKETS,
    Item,
    ItemSet,
    Limits,
    SequencedLog,
    StreamId,
    bucket,
)

EVERYWHERE = range(BUCKETS)


def item(uuid: str, version: int = 1, dead: bool = False, blob: bytes = b"x") -> Item:
    return Item(uuid, 1, 10, version, dead, blob)


def holding(*items: Item) -> ItemSet:
    made = ItemSet()
    for one in items:
        assert made.merge(one, 0)
    return made


def walked(items: ItemSet, at_once: int = 1) -> list[int]:
    walk = audit.Walk(items)
    while walk.step(at_once):
        pass
    walk.close()
    return walk.marks


def test_equal_copies_have_equal_marks_in_whatever_slices() -> None:
    calls = [item(f"call-{n}") for n in range(20)]
    here, there = holding(*calls), holding(*reversed(calls), item("over", dead=True))
    assert walked(here) == walked(there, at_once=7)
    assert audit.compared(walked(here), walked(there), ()) == []


def test_a_silent_difference_is_in_its_bucket_alone() -> None:
    here, there = holding(item("a"), item("b")), holding(item("a"), item("b"))
    there.items["b"] = item("b", blob=b"damaged")
    found = audit.compared(walked(here), walked(there), ())
    assert found == [bucket("b")]
    assert audit.compared(walked(here), walked(there), {bucket("b")}) == []


def test_a_walk_knows_what_changed_beside_it_and_then_watches_no_more() -> None:
    items = holding(item("a"), item("b"))
    walk = audit.Walk(items)
    assert walk.step(1)
    items.merge(item("c"), 0)
    del items.items["b"]  # gone before the walk came to it
    while walk.step(1):
        pass
    assert walk.touched == {bucket("c")}
    walk.close()
    items.merge(item("d"), 0)
    assert items.watchers == []
    assert bucket("d") not in walk.touched - {bucket("c")}


def test_what_was_logged_since_is_left_to_the_next_walk() -> None:
    log = SequencedLog(StreamId("fs-a", "east", 1, 1), Limits())
    assert log.append(item("a"), 0) == 1
    assert log.append(item("b"), 0) == 2
    assert audit.changed_since(log, 1) == {bucket("b")}


def test_what_is_lacking_is_named_and_mended() -> None:
    origin = holding(item("same"), item("differs", blob=b"right"), item("missing"), item("back"))
    copy = holding(item("same"), item("differs", blob=b"wrong"), item("phantom"),
                   item("back", version=2, dead=True), item("newer", version=5))  # fmt: skip
    wanted, phantoms = audit.lacking(copy, audit.names(origin, EVERYWHERE), EVERYWHERE)
    assert sorted(wanted) == ["back", "differs", "missing"]
    assert sorted(phantoms) == ["newer", "phantom"]
    assert audit.lacking(copy, audit.names(origin, ()), ()) == ([], [])
    found = [origin.items[uuid] for uuid in ("differs", "missing", "back")] + [item("newer")]
    changed = audit.mend(copy, found, ["phantom", "nobody"])
    assert sorted(changed) == ["differs", "missing", "phantom"]
    assert copy.items["back"].dead, "a tombstone that is newer stays"
    assert copy.items["newer"].version == 5
    assert copy.live == 4
    assert copy.bytes == sum(len(one.blob) for one in copy.items.values())
