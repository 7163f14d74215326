"""Orders for the whole cluster in the agent: on disk first (ML10), then heart, then the others."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent import giving
from haclusterd.agent import orders as module
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.orders_file import FILE_NAME, OrdersFileError, read
from haclusterd.core.actions import Answered
from haclusterd.core.agreed import Agreed, AgreedWord, PauseWord
from haclusterd.core.inputs import (
    FromAgent,
    MaintenanceRequested,
    Marked,
    MarksOrdered,
    PauseOrdered,
)
from haclusterd.core.model import FOR_GOOD_US
from haclusterd.core.view import MarkView
from tests.fixtures.agent_parts import spec
from tests.unit.orders_bench import HOUR_US, Bench, bench_in, refused, seen
from tests.unit.sync_cluster import until

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return bench_in(tmp_path / "state", monkeypatch)


async def test_ml10_a_pause_is_on_disk_before_anybody_hears_of_it(bench: Bench) -> None:
    text = await bench.orders.pause(HOUR_US, "anna")
    assert text == "the cluster is paused for 1h"
    assert all("anna on fs-a" in content for content in bench.disk)
    assert bench.asked == [("fs-b", "orders"), ("fs-c", "orders")]
    (told,) = bench.sent
    assert isinstance(told, PauseOrdered)
    assert (told.by, 0 < told.left_us <= HOUR_US) == ("anna on fs-a", True)


async def test_ml10_what_cannot_be_kept_is_not_done(bench: Bench) -> None:
    bench.folder.write_text("in the way")
    error = await refused(bench.orders.pause(FOR_GOOD_US, "anna"))
    assert "not done" in str(error)
    assert FILE_NAME in str(error)
    assert bench.orders.problem
    assert bench.sent == [] == bench.asked
    bench.view = seen(("fs-c",))
    assert "not done" in str(await refused(bench.orders.mark_dead("fs-c", "anna")))
    assert "not done" in str(await refused(bench.orders.drain("service:east", HOUR_US, "anna")))
    word = bench.orders.word()
    assert (word.pause.version, word.marks, word.drains) == (0, (), ()), "nobody else hears of it"
    with pytest.raises(OperatorError):
        await bench.orders.keep_maintenance(True, FOR_GOOD_US)


async def test_ml6_who_lives_and_was_not_told_makes_it_partly(bench: Bench) -> None:
    bench.away = {"fs-c"}
    error = await refused(bench.orders.pause(FOR_GOOD_US, "anna"))
    assert error.code == "partly"
    assert "fs-c could not be told" in str(error)
    bench.view = seen(("fs-c",))
    text = await bench.orders.resume("ben")
    assert text == "the cluster is resumed; fs-c will hear of it when back"


async def test_ml10_a_pause_that_a_lost_node_may_keep_can_be_resumed_before_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is not paused" in str(await refused(bench.orders.resume("ben")))
    lost = Agreed(spec())
    lost.order_pause(FOR_GOOD_US, "anna", 0, 1_000)
    monkeypatch.setattr(giving, "wall_s", lambda: 2_000)
    bench.view, bench.away = seen(("fs-c",)), {"fs-c"}
    assert "fs-c will hear of it" in await bench.orders.resume("ben")
    await bench.orders.heard(lost.word(0))
    assert bench.orders.word().pause.left_us == 0


async def test_ml10_a_restarted_agent_tells_heart_first(bench: Bench) -> None:
    await bench.orders.keep_maintenance(True, HOUR_US)
    await bench.orders.pause(FOR_GOOD_US, "anna")
    bench.view = seen(("fs-c",))
    await bench.orders.mark_dead("fs-c", "ben")
    again = bench.starts_again()
    pause, marks, maintenance = again.sent
    assert isinstance(pause, PauseOrdered)
    assert (pause.request, pause.left_us, pause.by) == (-1, FOR_GOOD_US, "anna on fs-a")
    assert isinstance(marks, MarksOrdered)
    assert [(m.node, m.by) for m in marks.marks] == [(2, "ben")]
    assert isinstance(maintenance, MaintenanceRequested)
    assert (maintenance.request, maintenance.on) == (-1, True)
    assert 0 < maintenance.left_us <= HOUR_US


async def test_maintenance_that_is_over_is_not_restored(bench: Bench) -> None:
    await bench.orders.keep_maintenance(True, 1_000)
    await asyncio.sleep(0.01)
    again = bench.starts_again()
    assert [type(m) for m in again.sent] == [PauseOrdered, MarksOrdered]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe"])
async def test_a_damaged_file_is_an_alarm_and_no_end(bench: Bench, content: bytes) -> None:
    bench.folder.mkdir()
    (bench.folder / FILE_NAME).write_bytes(content)
    bench.orders.load()
    assert "order again" in bench.orders.lost
    assert bench.sent == []
    other = Agreed(spec())
    other.order_pause(FOR_GOOD_US, "anna", 0, 1_000)
    await bench.orders.heard(other.word(0))
    aside = bench.folder / f"{FILE_NAME}.damaged"
    assert aside.read_bytes() == content, "what a peer says is not written over it"
    assert str(aside) in bench.orders.lost, "until somebody orders again"
    await bench.orders.resume("anna")
    assert not bench.orders.lost


async def test_times_stand_still_over_a_restart_of_the_host(bench: Bench) -> None:
    await bench.orders.pause(HOUR_US, "anna")
    path = bench.folder / FILE_NAME
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "boot_id": "another"}))
    found = read(path, "voice1", 10**15)
    assert found is not None
    assert found.agreed.pause.left_us == kept["agreed"]["pause"]["left_us"]
    path.write_text(json.dumps(kept))
    found = read(path, "voice1", kept["at_us"] + 2 * HOUR_US)
    assert found is not None
    assert found.agreed.pause.left_us == 0
    with pytest.raises(OrdersFileError, match="not of this cluster"):
        read(path, "other", 0)


async def test_ml18_marked_only_when_nobody_hears_it(bench: Bench) -> None:
    assert "fs-a hears fs-c" in str(await refused(bench.orders.mark_dead("fs-c", "ben")))
    bench.view = seen(("fs-c",))
    bench.hears = b"yes"
    assert "fs-b hears fs-c" in str(await refused(bench.orders.mark_dead("fs-c", "ben")))
    bench.away = {"fs-b"}
    assert "could not be asked" in str(await refused(bench.orders.mark_dead("fs-c", "ben")))
    assert "no node fs-x" in str(await refused(bench.orders.mark_dead("fs-x", "ben")))
    assert "is alive" in str(await refused(bench.orders.mark_dead("fs-a", "ben")))
    assert "must be named" in str(await refused(bench.orders.mark_dead("fs-c", " ")))
    assert "too long" in str(await refused(bench.orders.mark_dead("fs-c", "b" * 65)))
    assert bench.sent == []


async def test_ml18_a_mark_goes_everywhere_but_to_the_dead(bench: Bench) -> None:
    bench.view = seen(("fs-c",))
    text = await bench.orders.mark_dead("fs-c", "ben")
    assert text == "fs-c is marked dead, verified by ben"
    assert bench.sent == [MarksOrdered(5, (Marked(2, 256, "ben"),))]
    assert bench.asked == [("fs-b", "hears"), ("fs-b", "orders")]
    assert '"verified' not in bench.kept()
    assert '"ben"' in bench.kept()


async def test_ml18_hearts_refusal_takes_the_mark_back_from_the_disk(bench: Bench) -> None:
    bench.view = seen(("fs-c",))
    bench.heart = Answered(0, False, "fs-c is heard by fs-a")
    assert str(await refused(bench.orders.mark_dead("fs-c", "ben"))) == bench.heart.text
    assert bench.orders.word().marks[0].dead is False
    assert bench.sent[-1] == MarksOrdered(-1, ()), "heart may have heard of it by another way"
    assert "is not marked dead" in str(await refused(bench.orders.unmark("fs-c", "ben")))


async def test_ml18_a_mark_is_taken_back_by_hand_only_from_who_is_away(bench: Bench) -> None:
    """Of who lives it goes where its vote is in hand; before that two majorities may be apart."""
    bench.view = seen(("fs-c",))
    await bench.orders.mark_dead("fs-c", "ben")
    bench.hears = b"yes"
    assert "fs-b hears fs-c: its mark" in str(await refused(bench.orders.unmark("fs-c", "ben")))
    bench.view = seen()
    assert "fs-a hears fs-c: its mark" in str(await refused(bench.orders.unmark("fs-c", "ben")))
    assert bench.orders.word().marks[0].dead
    bench.view, bench.hears = seen(("fs-c",)), b"no"
    assert await bench.orders.unmark("fs-c", "ben") == "fs-c is not marked dead any more"
    assert bench.sent[-1] == MarksOrdered(5, ())


async def test_ml18_what_heart_has_cleared_is_cleared_for_all(bench: Bench) -> None:
    bench.view = seen(("fs-c",))
    await bench.orders.mark_dead("fs-c", "ben")
    bench.asked.clear()
    bench.orders.observe(seen(marks=(MarkView("fs-c", 99, "ben", True),)))  # of an older order
    assert bench.orders.word().marks[0].dead
    bench.orders.observe(seen(marks=(MarkView("fs-c", 256, "ben", True),)))
    await bench.orders.stop()
    assert bench.orders.word().marks[0].dead is False
    assert bench.sent[-1] == MarksOrdered(-1, ())
    assert ("fs-b", "orders") in bench.asked
    assert '"dead": false' in bench.kept()


async def test_ml18_two_that_come_back_one_after_the_other_are_both_cleared_for_all(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second while the first is still being told: it may wait, but not be forgotten."""
    bench.view = seen(("fs-b", "fs-c"))
    for node in ("fs-b", "fs-c"):
        await bench.orders.mark_dead(node, "ben")
    both = seen(marks=[MarkView(m.node, m.version, "ben", True) for m in bench.orders.word().marks])
    gate = asyncio.Event()

    async def slow(node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        await gate.wait()
        return b"{}"

    monkeypatch.setattr(bench, "request", slow)
    bench.orders.observe(msgspec.structs.replace(both, marks=both.marks[:1]))
    await until(lambda: '"fs-b"' in bench.kept() and bench.kept().count('"dead": true') == 1)
    await asyncio.sleep(0.05)
    bench.orders.observe(both)
    gate.set()
    await bench.orders.stop()
    bench.orders.observe(both)
    await bench.orders.stop()
    assert bench.sent[-1] == MarksOrdered(-1, ())
    assert '"dead": true' not in bench.kept()


async def test_ml10_an_order_that_heart_did_not_answer_is_not_told_as_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on the disk, and goes on to the other nodes."""

    async def silent(make: Callable[[int], FromAgent]) -> Answered:
        raise OperatorError("heart did not answer within 2 s; see its log (journalctl)")

    monkeypatch.setattr(bench.orders, "_ask", silent)
    error = await refused(bench.orders.pause(HOUR_US, "anna"))
    assert "anna on fs-a" in bench.kept()
    assert error.code == "partly"
    assert str(error).startswith("the cluster is paused for 1h: that is on the disk here")


async def test_ml10_heart_hears_of_it_though_the_connection_ends_in_mid_write(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    monkeypatch.setattr(module, "write", lambda path, kept: held.wait(5))
    word = AgreedWord(PauseWord(300, "carl on fs-b", HOUR_US))
    serving = asyncio.ensure_future(bench.methods["orders"]("fs-b", msgspec.json.encode(word)))
    await asyncio.sleep(0.05)
    serving.cancel()  # as `rpc` does when the peer is lost
    held.set()
    await asyncio.gather(serving, return_exceptions=True)
    await bench.orders.heard(word)  # another node says it again: it is known already
    assert [type(m) for m in bench.sent] == [PauseOrdered, MarksOrdered]


async def test_what_another_agent_knows_is_kept_and_obeyed(bench: Bench) -> None:
    word = AgreedWord(PauseWord(300, "carl on fs-b", HOUR_US))
    answer = await bench.methods["orders"]("fs-b", msgspec.json.encode(word))
    assert msgspec.json.decode(answer, type=AgreedWord).pause.by == "carl on fs-b"
    assert "carl on fs-b" in bench.kept()
    assert isinstance(bench.sent[0], PauseOrdered)
    before = list(bench.sent)
    await bench.orders.heard(word)
    assert bench.sent == before
    assert await bench.methods["hears"]("fs-b", b"fs-c") == b"yes"
    bench.view = seen(("fs-c",))
    assert await bench.methods["hears"]("fs-b", b"fs-c") == b"no"
    assert await bench.methods["hears"]("fs-b", b"nobody") == b"yes"
    with pytest.raises(ValueError, match="truncated"):
        await bench.methods["orders"]("fs-b", b"{")


async def test_what_is_left_is_kept_again_now_and_then(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.orders.pause(HOUR_US, "anna")
    before = bench.kept()
    bench.orders.observe(bench.view)
    await bench.orders.stop()
    assert bench.kept() == before
    monkeypatch.setattr(module, "KEEP_AGAIN_US", -1)
    bench.orders.observe(bench.view)
    await bench.orders.stop()
    assert bench.kept() != before
