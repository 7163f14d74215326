"""Marks of dead nodes over a restart of the host: the agent forgets them and says so (ML18)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from haclusterd.agent import orders as module
from haclusterd.agent import orders_file
from haclusterd.core.agreed import AgreedWord, MarkWord
from haclusterd.core.inputs import Marked, MarksOrdered
from haclusterd.core.view import MarkView
from tests.unit.orders_bench import HOUR_US, Bench, bench_in, seen

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return bench_in(tmp_path / "state", monkeypatch)


async def marked(bench: Bench) -> list[MarkWord]:
    """fs-b by anna, then fs-c by ben; nobody else is left."""
    bench.view = seen(("fs-b", "fs-c"))
    await bench.orders.mark_dead("fs-b", "anna")
    await bench.orders.mark_dead("fs-c", "ben")
    return list(bench.orders.word().marks)


async def test_ml18_a_mark_ends_with_the_boot_of_the_host_it_was_given_on(bench: Bench) -> None:
    await bench.orders.pause(HOUR_US, "carl")
    marks = await marked(bench)
    same = bench.starts_again()
    assert list(same.orders.word().marks) == marks
    assert not same.orders.lost
    again = bench.host_restarts()
    assert again.sent[-1] == MarksOrdered(-1, ())
    assert again.orders.word().marks == ()
    assert again.orders.word().pause.by == "carl on fs-a"
    assert again.orders.lost == (
        "marked dead before this host restarted, and not any more: fs-b (verified by anna), fs-c "
        "(verified by ben): look again; what is still dead: `haclusterctl node mark-dead ID "
        "--verified-by NAME`"
    )
    assert '"dead": true' in again.kept()
    again.orders.observe(again.view)
    await again.orders.stop()
    assert '"dead": true' not in again.kept()
    assert again.orders.lost
    once_more = again.starts_again()
    assert (once_more.orders.word().marks, once_more.orders.lost) == ((), "")


async def test_ml18_what_is_ordered_after_the_restart_is_newer(bench: Bench) -> None:
    marks = await marked(bench)
    again = bench.host_restarts()
    again.orders.observe(again.view)
    await again.orders.stop()
    again = again.starts_again()
    await again.orders.mark_dead("fs-b", "dora")
    assert again.orders.word().marks[0].version > max(mark.version for mark in marks)


async def test_ml18_who_still_has_a_forgotten_mark_brings_it_back(bench: Bench) -> None:
    marks = await marked(bench)
    again = bench.host_restarts()
    await again.orders.heard(AgreedWord(marks=(marks[0],)))
    assert again.sent[-1] == MarksOrdered(-1, (Marked(1, marks[0].version, "anna"),))
    assert again.kept().count('"dead": true') == 1
    again.orders.observe(again.view)
    assert "fs-b" not in again.orders.lost
    assert "fs-c (verified by ben)" in again.orders.lost
    await again.orders.heard(AgreedWord(marks=(MarkWord("fs-c", 2**20, "dora", False),)))
    again.orders.observe(again.view)
    await again.orders.stop()
    assert not again.orders.lost, "somebody has looked since"


async def test_ml18_the_alarm_of_forgotten_marks_ends(bench: Bench) -> None:
    """For a node that is marked again, and for one that is heard; a pause is no answer to it."""
    await marked(bench)
    again = bench.host_restarts()
    await again.orders.pause(HOUR_US, "carl")
    again.orders.observe(again.view)
    assert "fs-b" in again.orders.lost
    assert "fs-c" in again.orders.lost
    await again.orders.mark_dead("fs-b", "dora")
    again.orders.observe(again.view)
    assert "fs-b" not in again.orders.lost
    again.view = seen(("fs-b",))
    again.orders.observe(again.view)
    await again.orders.stop()
    assert not again.orders.lost


async def test_ml18_a_host_whose_boot_has_no_name_counts_as_restarted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in (module, orders_file):
        monkeypatch.setattr(one, "boot_id", lambda: "")
    await marked(bench)
    assert bench.starts_again().orders.word().marks == ()


async def test_ml18_a_clearing_that_could_not_be_kept_is_kept_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the next start in this boot marks a node dead that serves; the log says it once."""
    now = [10 * module.RETRY_US]
    monkeypatch.setattr(module, "now_us", lambda: now[0])
    bench.view = seen(("fs-c",))
    await bench.orders.mark_dead("fs-c", "ben")
    (mark,) = bench.orders.word().marks
    away = bench.folder.with_name("away")
    bench.folder.rename(away)
    bench.folder.write_text("in the way")
    bench.view = seen(marks=(MarkView("fs-c", mark.version, "ben", True),))
    for _ in range(3):
        bench.orders.observe(bench.view)
        await bench.orders.stop()
        now[0] += 2 * module.RETRY_US
    assert bench.orders.problem
    assert len(caplog.records) == 1
    bench.orders.observe(bench.view)
    await bench.orders.stop()
    bench.folder.unlink()
    away.rename(bench.folder)
    bench.orders.observe(bench.view)
    await bench.orders.stop()
    assert '"dead": true' in bench.kept(), "at most one attempt a second"
    now[0] += 2 * module.RETRY_US
    bench.orders.observe(bench.view)
    await bench.orders.stop()
    assert '"dead": false' in bench.kept()
    assert not bench.orders.problem
    assert MarksOrdered(-1, ()) in bench.starts_again().sent
    before, now[0] = bench.kept(), now[0] + 2 * module.RETRY_US
    bench.orders.observe(bench.view)
    await bench.orders.stop()
    assert bench.kept() == before, "and then not any more"


async def test_ml18_what_another_said_and_could_not_be_kept_is_kept_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_US", -1)
    bench.folder.write_text("in the way")
    await bench.orders.heard(AgreedWord(marks=(MarkWord("fs-c", 2**20, "dora", False),)))
    bench.folder.unlink()
    bench.orders.observe(bench.view)
    await bench.orders.stop()
    assert '"by": "dora"' in bench.kept()


async def test_ml18_a_forgotten_mark_ends_for_all_when_its_node_is_back(bench: Bench) -> None:
    """Who comes later with the old word, of the same version, hears a newer one."""
    bench.view = seen(("fs-c",))
    await bench.orders.mark_dead("fs-c", "ben")
    stale = bench.orders.word()
    again = bench.host_restarts()
    again.view = seen()
    again.orders.observe(again.view)
    await again.orders.stop()
    (mark,) = again.orders.word().marks
    assert (mark.dead, mark.by, again.orders.lost) == (False, "the cluster", "")
    assert mark.version > stale.marks[0].version
    assert ("fs-b", "orders") in again.asked
    assert '"dead": false' in again.kept()
    again.sent.clear()
    await again.orders.heard(stale)
    assert again.sent == []
    assert again.orders.word().marks == (mark,)


@pytest.mark.parametrize("role", ["starting", "failed", "left", "dead"])
async def test_ml18_a_forgotten_mark_does_not_end_before_its_node_is_back(
    bench: Bench, role: str
) -> None:
    """In its hold-down an owner may still count without it: that one's mark is not to be ended."""
    bench.view = seen(("fs-c",))
    await bench.orders.mark_dead("fs-c", "ben")
    again = bench.host_restarts()
    *others, last = seen().nodes
    last = msgspec.structs.replace(last, role=role)
    again.view = msgspec.structs.replace(seen(), nodes=(*others, last))
    again.orders.observe(again.view)
    await again.orders.stop()
    assert again.orders.word().marks == ()
    assert "fs-c" in again.orders.lost
