"""Replication under hypothesis: whatever is lost, delayed or restarted, copies converge (S8, S9).

The world: one origin, two standbys, a pipe per direction that delivers in order until it is cut
(what TCP does), cuts at any point, restarts of either side, reclaims, buffers small enough to
overflow. After every step: what an origin believes to be acknowledged is held (S9), and what was
buried is not alive there (S8). At the end the links are left alone and the copies must be equal.
"""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haclusterd.core.cursor import Cursor
from haclusterd.core.replication import (
    Ack,
    Advanced,
    Chunk,
    Delta,
    Item,
    ItemSet,
    Limits,
    Offer,
    Resume,
    SequencedLog,
    Settled,
    SnapshotBegin,
    SnapshotEnd,
    StreamId,
    rank,
)
from haclusterd.core.standby import ServiceCopies

LIMITS = Limits(buffer_entries=6, buffer_bytes=100_000, records=1000)
UUIDS = [f"call-{n}" for n in range(8)]


class Pipe:
    """The connection of the origin with one standby, and the standby's state."""

    def __init__(self) -> None:
        self.copies = ServiceCopies(LIMITS)
        self.down: deque[object] = deque()
        self.up: deque[object] = deque()
        self.cursor: Cursor | None = None


class World:
    """Runs the production pure code; `versions` is the oracle."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.incarnation = 0
        self.epoch = 1
        self.version = 0
        self.truth: dict[str, Item] = {}
        self.pipes = [Pipe(), Pipe()]
        self.begin_log()

    def begin_log(self) -> None:
        """The origin's agent (re)starts: it reads its calls anew, dead ones are simply gone."""
        self.incarnation += 1
        self.log = SequencedLog(StreamId("east", "a", self.incarnation, self.epoch), LIMITS)
        self.truth = {
            u: self._item(u, i.version, False) for u, i in self.truth.items() if not i.dead
        }
        for item in self.truth.values():
            self.log.append(item, self.now_ms)
        self.log.append(Settled(), self.now_ms)
        for pipe in self.pipes:
            self.cut(pipe)

    def _item(self, uuid: str, version: int, dead: bool) -> Item:
        return Item(uuid, self.epoch, self.incarnation, version, dead, b"x" * 40)

    def change(self, uuid: str, dead: bool) -> None:
        """A call starts, changes or ends."""
        self.version += 1
        item = self._item(uuid, self.version, dead)
        self.truth[uuid] = item
        assert self.log.append(item, self.now_ms) is not None

    def reclaim(self) -> None:
        """The owner lapsed and reclaimed: the same log at a higher epoch."""
        self.epoch += 1
        self.log.append(Advanced(self.epoch), self.now_ms)

    def cut(self, pipe: Pipe) -> None:
        """The connection is lost with all that is in it."""
        pipe.down.clear()
        pipe.up.clear()
        pipe.cursor = None
        for copy in pipe.copies.copies.values():
            copy.salvage()

    def connect(self, pipe: Pipe) -> None:
        """A new connection: the origin offers its stream."""
        if pipe.cursor is None:
            pipe.cursor = Cursor(self.log)
            pipe.down.append(Offer(self.log.stream, self.log.epoch, self.log.head))

    def send(self, pipe: Pipe) -> None:
        """The origin writes one more message."""
        if pipe.cursor is not None:
            message = pipe.cursor.next()
            if message is not None:
                pipe.down.append(message)

    def deliver_down(self, pipe: Pipe) -> None:
        """The standby reads one message."""
        if not pipe.down:
            return
        message = pipe.down.popleft()
        if isinstance(message, Offer):
            copy = pipe.copies.offer(message, self.now_ms)
            assert copy is not None
            pipe.up.append(Resume(message.stream, copy.position))
            return
        copy = pipe.copies.copies[self.log.stream]
        if isinstance(message, Delta):
            copy.delta(message, self.now_ms)
        elif isinstance(message, SnapshotBegin):
            copy.begin(message)
        elif isinstance(message, Chunk):
            copy.chunk(message, self.now_ms)
        else:
            assert isinstance(message, SnapshotEnd)
            assert copy.end(message, self.now_ms), "digest of a whole snapshot differs"
        if copy.staging is None:
            pipe.up.append(Ack(message.stream, copy.position))
            pipe.copies.supersede()

    def deliver_up(self, pipe: Pipe) -> None:
        """The origin reads one message."""
        if pipe.up and pipe.cursor is not None:
            message = pipe.up.popleft()
            if isinstance(message, Resume):
                pipe.cursor.resume(message.position)
            elif isinstance(message, Ack):
                pipe.cursor.ack(message.position)

    def check(self) -> None:
        """S9 and S8 for everything the origin believes to be acknowledged."""
        for pipe in self.pipes:
            if pipe.cursor is None:
                continue
            held = pipe.copies.union()
            for uuid, item in self.truth.items():
                if not pipe.cursor.log.holds(uuid, item.version, pipe.cursor.acked):
                    continue
                if item.dead:
                    assert uuid not in held or held[uuid].dead, "resurrected"
                else:
                    assert uuid in held, "acknowledged and lost"
                    assert rank(held[uuid]) >= rank(item)

    def converge(self) -> None:
        """No more faults: bounded rounds, then equal copies."""
        for pipe in self.pipes:
            self.connect(pipe)
        for _ in range(400):
            for pipe in self.pipes:
                self.send(pipe)
                self.deliver_down(pipe)
                self.deliver_up(pipe)
        live = {u: i for u, i in self.truth.items() if not i.dead}
        for pipe in self.pipes:
            assert pipe.cursor is not None
            assert pipe.cursor.acked == self.log.head
            held = {u: i for u, i in pipe.copies.union().items() if not i.dead}
            assert held == live
            assert len(pipe.copies.copies) == 1
            newest = pipe.copies.newest()
            assert newest is not None
            assert newest.epoch == self.epoch
            assert newest.items.digest() == self.log.items.digest()
            fresh = pipe.copies.freshness("a", self.epoch, 1000)
            assert fresh.state == "in-sync"


MOVES = (
    ["change"] * 6
    + ["bury"] * 2
    + ["send"] * 10
    + ["down"] * 10
    + ["up"] * 8
    + ["connect"] * 3
    + ["cut", "restart-origin", "restart-standby", "reclaim"]
)
Step = tuple[str, int, str]


def run(steps: list[Step]) -> None:
    """One history: checked after every step, and until it has converged."""
    world = World()
    for what, which, uuid in steps:
        world.now_ms += 7
        pipe = world.pipes[which]
        if what in ("change", "bury"):
            world.change(uuid, what == "bury")
        elif what == "send":
            world.send(pipe)
        elif what == "down":
            world.deliver_down(pipe)
        elif what == "up":
            world.deliver_up(pipe)
        elif what == "connect":
            world.connect(pipe)
        elif what == "cut":
            world.cut(pipe)
        elif what == "restart-origin":
            world.begin_log()
        elif what == "restart-standby":
            world.cut(pipe)
            pipe.copies = ServiceCopies(LIMITS)
        else:
            world.reclaim()
        world.check()
    world.converge()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(MOVES), st.integers(0, 1), st.sampled_from(UUIDS)), max_size=60
    )
)
def test_any_history_converges_and_keeps_what_was_acknowledged(steps: list[Step]) -> None:
    run(steps)


@pytest.mark.parametrize("seed", range(4))
def test_long_histories_converge(seed: int) -> None:
    """Long histories, which hypothesis rarely makes; the seed of a failure is in the message."""
    for number in range(40):
        chance = random.Random(f"{seed}/{number}")
        steps = [
            (chance.choice(MOVES), chance.randrange(2), chance.choice(UUIDS)) for _ in range(150)
        ]
        try:
            run(steps)
        except Exception as error:
            raise AssertionError(f"history {seed}/{number}: {error!r}") from error


ITEMS = st.builds(
    Item,
    st.sampled_from(UUIDS),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 4),
    st.booleans(),
    st.just(b"b"),
)


@given(st.lists(ITEMS, max_size=30), st.randoms(use_true_random=False))
def test_merge_does_not_depend_on_order_or_repetition(
    items: list[Item],
    chance: random.Random,
) -> None:
    one, other = ItemSet(), ItemSet()
    shuffled = items + items[: len(items) // 2]
    chance.shuffle(shuffled)
    for item in items:
        one.merge(item, 0)
    for item in shuffled:
        other.merge(item, 0)
    assert one.items == other.items
    assert one.digest() == other.digest()
    assert one.live == sum(not i.dead for i in one.items.values()) == other.live
    for uuid in one.items:
        assert rank(one.items[uuid]) == max(rank(i) for i in items if i.uuid == uuid)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(UUIDS), st.booleans()), max_size=40),
    st.lists(st.tuples(st.sampled_from(UUIDS), st.booleans()), max_size=40),
    st.integers(0, 40),
    st.booleans(),
)
def test_takeover_cut_anywhere_loses_no_inherited_call(
    before: list[tuple[str, bool]],
    after: list[tuple[str, bool]],
    cut: int,
    settle: bool,
) -> None:
    """b takes over a's service and dies after `cut` log entries: c still has every call (31)."""
    copies = ServiceCopies(LIMITS)
    first = SequencedLog(StreamId("east", "a", 5, 1), Limits(), settled=True)
    for version, (uuid, dead) in enumerate(before, 1):
        first.append(Item(uuid, 1, 5, version, dead, b""), 0)
    _ship(first, copies, first.head)
    inherited = {u for u, i in copies.union().items() if not i.dead}
    second = SequencedLog(StreamId("east", "b", 3, 2), Limits())
    verdicts: dict[str, bool] = {}
    for version, (uuid, dead) in enumerate(after, 1):
        second.append(Item(uuid, 2, 3, version, dead, b""), 0)
    if settle:
        for uuid in inherited - {u for u, _ in after}:
            second.append(Item(uuid, 2, 3, 1, True, b""), 0)  # lost: its verdict is a tombstone
        second.append(Settled(), 0)
    arrived = _ship(second, copies, cut)
    for entry in arrived:
        if isinstance(entry, Item):
            verdicts[entry.uuid] = entry.dead
    held = copies.union()
    for uuid in inherited:
        if uuid not in verdicts:
            assert not held[uuid].dead
    for uuid, dead in verdicts.items():
        assert held[uuid].dead is dead
    assert (len(copies.copies) == 1) is any(isinstance(e, Settled) for e in arrived)


def _ship(log: SequencedLog, copies: ServiceCopies, until: int) -> list[object]:
    """Replicate the first entries of a log, one at a time."""
    copy = copies.offer(Offer(log.stream, log.epoch, log.head), 0)
    assert copy is not None
    arrived: list[object] = []
    for position in range(min(until, log.head)):
        entries = log.since(position)
        assert entries is not None
        copy.delta(Delta(log.stream, position + 1, log.head, entries[:1]), 0)
        copies.supersede()
        arrived.append(entries[0])
    return arrived
