"""What of the others' beats makes heart tell its agent at once, and what waits for a look."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from haclusterd.core.inputs import Received
from haclusterd.core.model import NOBODY, Beat, ServiceEntry, State
from haclusterd.wire import Wire
from tests.unit.test_heart_loop import NODES, RING, SPEC, World


@pytest.mark.parametrize(
    ("state", "calls", "news"),
    [(State.STANDBY, 3, False), (State.OWNED, 3, True), (State.STANDBY, 4, False)],
)
def test_that_another_node_serves_now_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, state: State, calls: int, news: bool
) -> None:
    """It is decided there and seen here: `status` named nobody for up to a second."""
    world, peer = World(), Wire(msgspec.structs.replace(SPEC, me=1), RING, 9)
    kept, waiting = world.loop.node.peers[1], list[bytes]()

    def feed(event: Any, _now: int) -> None:
        assert isinstance(event, Received)
        kept.services = event.beat.services

    monkeypatch.setattr(world.loop, "feed", feed)
    monkeypatch.setattr(
        world.executor.links, "receive_on",
        lambda _link, _most: [(0, data, NODES[1].links[0]) for data in waiting],
    )  # fmt: skip
    for seq, (said, counted) in enumerate([(State.STANDBY, 3), (state, calls)], start=1):
        entry = ServiceEntry(NOBODY, 0, said, True, counted)
        beat = Beat(1, 0, 9, seq, seq, False, SPEC.config_hash, 0, 0, 100, 0, counted,
                    (None, None, None), (entry,), ())  # fmt: skip
        waiting[:] = [peer.seal(beat)]
        world.loop.decided = False
        assert world.loop._receive(0)
    assert kept.services[0].calls == calls
    assert world.loop.decided == news
