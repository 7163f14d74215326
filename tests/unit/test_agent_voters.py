"""agent.voters: a reload is judged, written, and only then told to heart."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent.operators import OperatorError
from haclusterd.agent.voters import Voters
from haclusterd.config import config_hash, load_cluster, revisions
from haclusterd.config.revisions import FILE_NAME, Content, begin, keep, read
from haclusterd.core.actions import Answered
from haclusterd.core.inputs import FromAgent, StageRequested
from haclusterd.core.view import RevisionView, StagedView, View
from tests.fixtures.agent_parts import view
from tests.unit.test_config_revisions import toml


class Bench:
    """An agent's part beside a heart that agrees; `order` tells what came first."""

    def __init__(self, folder: Path, file: str = "") -> None:
        self.file, self.state = folder / "haclusterd.toml", folder / "state"
        self.file.write_text(file or toml(2))
        self.order: list[str] = []
        self.asked: list[StageRequested] = []
        self.answer = Answered(0, True, "a has staged revision 3")
        self.seen: View = msgspec.structs.replace(view({}), revision=RevisionView(2, known=2))
        self.problems: dict[str, str] = {}
        begun = begin(self.file, node="a", run_dir=self.state)
        self.voters = Voters(begun, lambda: self.seen, self._ask, self.problems)

    async def _ask(self, make: Callable[[int], FromAgent]) -> Answered:
        request = make(1)
        assert isinstance(request, StageRequested)
        kept = read(self.state)
        staged = kept.staged.revision if kept and kept.staged else 0
        self.order.append(f"heart asked, {staged} on disk")
        self.asked.append(request)
        return self.answer

    def sees(self, **changes: object) -> None:
        said = msgspec.structs.replace(self.seen.revision, **changes)
        self.seen = msgspec.structs.replace(self.seen, revision=said)

    async def refused(self, text: str) -> str:
        self.file.write_text(text)
        with pytest.raises(OperatorError) as caught:
            await self.voters.reload()
        assert self.asked == []
        return str(caught.value)


def full(_folder: Path, _content: Content) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_ml10_it_is_on_disk_before_heart_says_it(bench: Bench) -> None:
    await bench.voters.started()
    bench.file.write_text(toml(3, "abcd"))
    assert await bench.voters.reload() == "a has staged revision 3; all nodes have it"
    assert bench.order == ["heart asked, 3 on disk"]
    (asked,) = bench.asked
    assert ([n.id for n in asked.spec.nodes], asked.spec.me) == (["a", "b", "c", "d"], 0)
    kept = read(bench.state)
    assert kept is not None
    assert kept.active.revision == 2
    assert kept.staged == keep(load_cluster(bench.file))


async def test_f38_what_the_last_run_granted_is_known_until_this_one_has_outlived_it(
    tmp_path: Path,
) -> None:
    """wan became lan, and haclusterd is restarted twice at once."""
    folder, slow = tmp_path / "state", toml(2, more='preset = "wan"\n')
    await Bench(tmp_path, slow).voters.started()
    kept = read(folder)
    assert kept is not None
    short = Bench(tmp_path)
    writing = asyncio.ensure_future(short.voters.started())
    await asyncio.sleep(0.05)
    text = await short.refused(toml(3, "abcd"))
    assert "restarted with shorter times" in text
    await short.voters.stop()
    await asyncio.wait_for(writing, 2)
    assert read(folder) == kept, "the next start holds down for the longer time, too"
    wait_s: list[float] = []

    def timeout(seconds: float) -> asyncio.Timeout:
        wait_s.append(seconds)
        return asyncio.Timeout(0)

    last = Bench(tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asyncio, "timeout", timeout)
        await last.voters.started()
    last.file.write_text(toml(3, "abcd"))
    assert "a has staged" in await last.voters.reload()
    assert wait_s == [5.4]
    after = read(folder)
    assert after is not None
    assert 'preset = "wan"' not in after.active.toml


async def test_who_still_lacks_it_is_named(bench: Bench) -> None:
    bench.file.write_text(toml(3, "abcd"))
    hashed = config_hash(load_cluster(bench.file))
    others = (StagedView("b", True, 2, 3, hashed), StagedView("c", True, 2, 0, 0))
    bench.sees(others=others)
    assert (await bench.voters.reload()).endswith("; still to be reloaded: c")


async def test_a_node_that_goes_agrees_as_well(bench: Bench) -> None:
    bench.file.write_text(toml(3, "bc"))
    await bench.voters.reload()
    assert bench.asked[0].spec.me == -1


async def test_all_reasons_come_at_once_and_nothing_is_written(bench: Bench) -> None:
    bench.seen = msgspec.structs.replace(bench.seen, quorate=False)
    bench.sees(plain=True)
    text = await bench.refused(toml(4, "cde") + "[sync]\nport = 7999\n")
    for reason in ("set it to 3", "more than one node", "[sync]", "no majority", "upgrade it"):
        assert reason in text
    assert not (bench.state / FILE_NAME).exists()


async def test_right_after_a_start_reload_says_try_again(bench: Bench) -> None:
    bench.sees(early=True)
    text = await bench.refused(toml(3, "abcd"))
    assert "try again in a few seconds" in text
    assert "upgrade" not in text


async def test_a_file_with_errors_is_refused_with_all_of_them(bench: Bench) -> None:
    text = await bench.refused(toml(3, "abcd") + "[sync]\nport = 0\n[heartbeat]\nport = 99999\n")
    assert "sync.port" in text
    assert "heartbeat.port" in text


async def test_a_node_that_serves_is_not_removed(bench: Bench) -> None:
    said = bench.seen.revision
    bench.seen = msgspec.structs.replace(view({"east": ("fs-a", 3)}), revision=said)
    assert "fs-a, which would go, serves east" in await bench.refused(toml(3, "abcd"))


async def test_two_files_of_one_revision_are_noticed(bench: Bench) -> None:
    bench.sees(others=(StagedView("b", True, 2, 3, 77), StagedView("c", False, 2, 3, 78)))
    text = await bench.refused(toml(3, "abcd"))
    assert "b has staged another file as revision 3" in text
    assert "c has staged" not in text
    bench.sees(others=(), staged=3, staged_hash=9)
    text = await bench.refused(toml(3, "abcd"))
    assert "this node has staged another file" in text
    assert f"`staged.toml` in {bench.state / FILE_NAME}" in text


async def test_what_is_in_force_elsewhere_is_followed_whatever_lies_between(bench: Bench) -> None:
    bench.file.write_text(toml(6, "abcdef"))
    bench.sees(known=6, known_hash=config_hash(load_cluster(bench.file)))
    await bench.voters.reload()
    assert bench.asked[0].spec.revision == 6


async def test_hearts_refusal_is_the_answer(bench: Bench) -> None:
    bench.answer = Answered(0, False, "one reason; another")
    bench.file.write_text(toml(3, "abcd"))
    with pytest.raises(OperatorError, match="one reason\nanother"):
        await bench.voters.reload()


async def test_ml10_what_heart_refused_is_not_agreed_to_by_the_next_start(bench: Bench) -> None:
    await bench.voters.started()
    bench.answer = Answered(0, False, "revision 3 is in force elsewhere")
    bench.file.write_text(toml(3, "abcd"))
    with pytest.raises(OperatorError, match="in force elsewhere"):
        await bench.voters.reload()
    assert bench.order == ["heart asked, 3 on disk"]
    kept = read(bench.state)
    assert kept is not None
    assert kept.staged is None
    assert begin(bench.file, node="a", run_dir=bench.state).staged is None
    bench.answer = Answered(0, True, "a has staged revision 3")
    await bench.voters.reload()
    first = keep(load_cluster(bench.file))
    bench.answer = Answered(0, False, "a has staged another file")
    bench.file.write_text(toml(3, "abce"))
    with pytest.raises(OperatorError, match="another file"):
        await bench.voters.reload()
    kept = read(bench.state)
    assert kept is not None
    assert kept.staged == first, "what heart had agreed to stays"


async def test_ml10_what_heart_did_not_answer_is_told_as_staged_by_the_next_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(make: Callable[[int], FromAgent]) -> Answered:
        raise OperatorError("heart did not answer within 2 s")

    bench.file.write_text(toml(3, "abcd"))
    with monkeypatch.context() as patch:
        patch.setattr(bench.voters, "_ask", silent)
        with pytest.raises(OperatorError, match="the next start stages it") as caught:
            await bench.voters.reload()
    assert caught.value.code == "partly"
    bench.answer = Answered(0, False, "revision 3 is in force elsewhere")
    with pytest.raises(OperatorError, match="in force elsewhere"):
        await bench.voters.reload()
    kept = read(bench.state)
    assert kept is not None
    assert kept.staged is None, "refused when it was ordered again"


async def test_the_same_file_again_changes_nothing(bench: Bench) -> None:
    assert await bench.voters.reload() == "revision 2 is in force here already"
    assert bench.asked == []


async def test_what_cannot_be_written_is_not_staged(bench: Bench) -> None:
    bench.state.write_text("a file where the folder should be")
    assert "the set of nodes cannot be kept" in await bench.refused(toml(3, "abcd"))
    assert "revision" in bench.problems
    bench.state.unlink()
    await bench.voters.started()
    assert bench.problems == {}


async def test_what_is_known_to_be_in_force_is_kept(bench: Bench) -> None:
    await bench.voters.in_force(2)
    assert not (bench.state / FILE_NAME).exists()
    await bench.voters.started()
    first = read(bench.state)
    assert first is not None
    assert not first.proven, "a first start at a later revision"
    await bench.voters.in_force(2)
    known = read(bench.state)
    assert known is not None
    assert known.proven
    bench.file.write_text(toml(3, "bc"))
    await bench.voters.reload()
    await bench.voters.in_force(3)
    left = read(bench.state)
    assert left is not None
    assert (left.active.revision, left.staged) == (3, None)


async def test_a_damaged_file_is_replaced(bench: Bench) -> None:
    bench.state.mkdir()
    (bench.state / FILE_NAME).write_text("{")
    await bench.voters.started()
    assert read(bench.state) is not None


async def test_an_agent_that_was_replaced_stages_nothing(bench: Bench) -> None:
    await bench.voters.started()
    other = Bench(bench.state.parent)
    other.file.write_text(toml(3, "abcd"))
    await other.voters.reload()
    await other.voters.in_force(3)
    assert "has been taken up meanwhile" in await bench.refused(toml(3, "abce"))


async def test_ml10_an_alarm_of_the_hosts_files_lasts_as_long_as_its_cause(bench: Bench) -> None:
    await bench.voters.started()
    await bench.voters._look()
    assert bench.problems == {}
    bench.file.write_text(toml(1))
    await bench.voters._look()
    assert "install the newest file" in bench.problems["host"]
    bench.file.write_text(toml(2, more="# the newest\n"))
    await bench.voters._look()
    assert bench.problems == {}


async def test_ml10_a_damaged_or_lost_file_is_written_again_as_it_was(bench: Bench) -> None:
    """With what was agreed to: the next process would not know of it."""
    bench.file.write_text(toml(3, "abcd"))
    await bench.voters.reload()
    path, before = bench.state / FILE_NAME, read(bench.state)
    assert before is not None
    assert before.staged is not None
    path.write_text("{")
    await bench.voters._look()
    assert read(bench.state) == before
    path.unlink()
    await bench.voters._look()
    assert read(bench.state) == before
    assert bench.problems == {}


async def test_what_could_not_be_written_is_tried_again(bench: Bench) -> None:
    await bench.voters.started()
    kept = bench.state / FILE_NAME
    kept.unlink()
    kept.mkdir()
    await bench.voters._look()
    assert "make the folder writable" in bench.problems["revision"]
    kept.rmdir()
    await bench.voters._look()
    assert bench.problems == {}
    assert read(bench.state) is not None


async def test_what_a_start_could_not_write_is_written_by_a_later_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full. By the file of the run before, the next start would hold down too short,
    and an agent that is started anew would not know its heart's."""
    await Bench(tmp_path).voters.started()
    bench = Bench(tmp_path, toml(2, more='preset = "wan"\n'))

    with monkeypatch.context() as patched:
        patched.setattr(revisions, "write", full)
        await bench.voters.started()
        await bench.voters.in_force(2)
        await bench.voters._look()
        assert "No space left" in bench.problems["revision"]
    await bench.voters._look()
    assert bench.problems == {}
    kept = read(bench.state)
    assert kept is not None
    assert 'preset = "wan"' in kept.active.toml
    assert bench.voters._owed == ()


async def test_a_reload_that_could_not_be_written_is_not_written_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator was told that it failed."""
    await bench.voters.started()
    before = read(bench.state)

    with monkeypatch.context() as patched:
        patched.setattr(revisions, "write", full)
        assert "No space left" in await bench.refused(toml(3, "abcd"))
    await bench.voters._look()
    assert read(bench.state) == before


async def test_the_alarm_of_a_start_with_a_damaged_file_goes_with_the_damage(
    tmp_path: Path,
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / FILE_NAME).write_text("{")
    bench = Bench(tmp_path)
    watching = asyncio.get_running_loop().create_task(bench.voters.watch())
    await bench.voters.started()
    for _ in range(100):
        await asyncio.sleep(0.01)
        if bench.voters._seen is not None:
            break
    watching.cancel()
    assert bench.problems == {}
    assert read(tmp_path / "state") is not None


async def test_ml10_the_hosts_file_is_taken_up_once_it_is_in_force_whatever_was_agreed_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A node was down between its word for revision 3 and the others' revision 4, whose file is
    installed before its start. Heart keeps to its word, so that the file alone changes nothing."""
    first = Bench(tmp_path)
    first.file.write_text(toml(3, "abcd"))
    await first.voters.reload()
    bench = Bench(tmp_path, toml(4, "abcde"))
    agreed = config_hash(load_cluster(bench.file, toml(3, "abcd")))
    bench.sees(staged=3, staged_hash=agreed)
    await bench.voters._follow()
    assert bench.asked == [], "a file is no word of others"
    in_force = config_hash(load_cluster(bench.file))
    bench.sees(known=4, known_hash=in_force + 1)
    await bench.voters._follow()
    assert bench.asked == [], "another one"
    bench.sees(known=4, known_hash=in_force)
    bench.answer = Answered(0, False, "not now")
    for _ in range(2):
        await bench.voters._follow()
    assert [r.message for r in caplog.records if "not now" in r.message] == [
        f"{bench.file} is not taken up yet: not now"
    ], "said once"
    bench.answer = Answered(0, True, "a has staged revision 4")
    bench.order.clear()
    bench.asked.clear()
    await bench.voters._follow()
    assert bench.order == ["heart asked, 4 on disk"]
    assert (bench.asked[0].spec.revision, bench.asked[0].spec.config_hash) == (4, in_force)
    bench.sees(staged=4, staged_hash=in_force)
    await bench.voters._follow()
    assert len(bench.asked) == 1
