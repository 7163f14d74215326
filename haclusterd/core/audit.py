"""Does a copy hold what its origin holds? Pure: hashes of what is really there, and the mending.

The digests of `ItemSet` are kept up change by change, and say nothing of what happened to a row
afterwards: a damaged blob, a lost entry. A `Walk` looks at every live item itself. It takes its
time, in slices, while the set changes; buckets that changed since it began are left to the next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from hashlib import blake2b

from haclusterd.core.replication import BUCKETS, Item, ItemSet, SequencedLog, bucket, rank

_MASK = (1 << 64) - 1
DIFFERING_MAX = 64  # buckets; a copy that is wrong in more of them is replaced as a whole


def content(item: Item) -> int:
    """64 bits of all that an item says."""
    key = f"{item.uuid}/{item.epoch}/{item.incarnation}/{item.version}/{item.dead}/"
    hashed = blake2b(key.encode(), digest_size=8)
    hashed.update(item.blob)
    return int.from_bytes(hashed.digest(), "big")


class Walk:
    """Content per bucket of a set's live items. Watches the set until `close`."""

    def __init__(self, items: ItemSet) -> None:
        self.items = items
        self.marks = [0] * BUCKETS
        self.touched: set[int] = set()  # buckets that changed since the walk began
        self._uuids = iter(list(items.items))
        items.watchers.append(self.touched)

    def step(self, count: int) -> bool:
        """Look at the next few items; False when all were looked at."""
        for uuid in self._uuids:
            item = self.items.items.get(uuid)
            if item is not None and not item.dead:
                at = bucket(uuid)
                self.marks[at] = (self.marks[at] + content(item)) & _MASK
            count -= 1
            if count <= 0:
                return True
        return False

    def close(self) -> None:
        """Stop watching."""
        self.items.watchers[:] = [w for w in self.items.watchers if w is not self.touched]


def changed_since(log: SequencedLog, position: int) -> set[int]:
    """Buckets of calls that were logged after `position`."""
    return {bucket(uuid) for uuid, number in log.sequence.items() if number > position}


def compared(mine: list[int], theirs: list[int], without: Collection[int]) -> list[int]:
    """Buckets that differ, of those that can be compared."""
    pairs = enumerate(zip(mine, theirs, strict=True))
    return [at for at, (a, b) in pairs if a != b and at not in without]


def names(items: ItemSet, buckets: Collection[int]) -> dict[str, int]:
    """Content by uuid of the live items in these buckets."""
    return {
        uuid: content(item)
        for uuid, item in items.items.items()
        if not item.dead and bucket(uuid) in buckets
    }


def lacking(
    items: ItemSet, theirs: dict[str, int], buckets: Collection[int]
) -> tuple[list[str], list[str]]:
    """(uuids that are missing or differ here, live ones that the origin does not have)."""
    wanted = [
        uuid
        for uuid, mark in theirs.items()
        if bucket(uuid) in buckets
        and ((known := items.items.get(uuid)) is None or known.dead or content(known) != mark)
    ]
    phantoms = [
        uuid
        for uuid, item in items.items.items()
        if not item.dead and uuid not in theirs and bucket(uuid) in buckets
    ]
    return wanted, phantoms


def mend(items: ItemSet, found: Iterable[Item], gone: Iterable[str]) -> list[str]:
    """Put the origin's items in place, whatever is there, and take away what it does not have.

    What has become newer meanwhile stays. The uuids that changed.
    """
    changed = []
    for item in found:
        known = items.items.get(item.uuid)
        if known is None or rank(known) <= rank(item):
            items.items[item.uuid] = item
            items.graves.pop(item.uuid, None)
            changed.append(item.uuid)
    for uuid in gone:
        if items.items.pop(uuid, None) is not None:
            changed.append(uuid)
    items.recount()
    return changed
