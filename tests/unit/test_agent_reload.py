"""What `reload` refuses before anything is staged: revisions that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import msgspec

from haclusterd.config import config_hash, load_cluster
from haclusterd.config.revisions import FILE_NAME
from haclusterd.core.view import StagedView
from tests.unit.test_agent_voters import Bench
from tests.unit.test_config_revisions import toml


async def test_a_file_in_which_no_node_has_changed_is_refused(tmp_path: Path) -> None:
    """It would be staged for good: the file that was meant is another of the same revision."""
    bench = Bench(tmp_path)
    text = await bench.refused(toml(3, "abc"))
    assert text == (
        "no node has changed, and a revision adds or removes one: set cluster.revision back to 2"
    )
    assert not (bench.state / FILE_NAME).exists()


async def test_the_next_change_waits_until_this_one_is_in_force(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.sees(staged=3, staged_hash=9)
    assert (await bench.refused(toml(4, "abcd"))).startswith(
        "revision 3 is staged here and not in force yet: try again when it is"
    )


async def test_a_set_that_would_have_no_majority_is_refused(tmp_path: Path) -> None:
    """Of three nodes one is down: two of the four that the next set has are no majority."""
    bench = Bench(tmp_path)
    bench.sees(others=(StagedView("b", True, 2, 0, 0), StagedView("c", False, 2, 0, 0)))
    text = await bench.refused(toml(3, "abcd"))
    assert text.startswith(
        "revision 3 would leave nobody a majority: it takes 3 of its 4 nodes, and of those in "
        "force 2 are heard (a, b). Start c first, or remove c first and alone. Where d runs "
        "already, or it has to be: `haclusterctl reload --without-majority`"
    )
    assert not (bench.state / FILE_NAME).exists()
    bench.sees(others=(StagedView("b", True, 2, 3, 7), StagedView("c", False, 2, 0, 0)))
    text = await bench.refused(toml(3, "abcd"))
    assert "Start c first. Where d runs" in text, "b has agreed: no other revision can come before"
    bench.sees(others=(StagedView("b", True, 2, 0, 0), StagedView("c", False, 2, 0, 0)))
    assert (await bench.voters.reload(without_majority=True)).startswith("a has staged revision 3")


async def test_who_has_said_that_it_stops_is_not_counted_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    nodes = tuple(msgspec.structs.replace(n, id=n.id[-1]) for n in bench.seen.nodes)
    bench.file.write_text(toml(3, "abcd"))
    bench.seen = msgspec.structs.replace(bench.seen, nodes=nodes)
    leaving = msgspec.structs.replace(nodes[2], role="left")
    gone = msgspec.structs.replace(bench.seen, nodes=(*nodes[:2], leaving))
    bench.seen, before = gone, bench.seen
    assert "Start c first" in await bench.refused(toml(3, "abcd"))
    bench.seen = before
    assert "a has staged revision 3" in await bench.voters.reload()


async def test_who_is_down_may_be_removed(tmp_path: Path) -> None:
    """Two of the two that are left are heard; without one of these it would be one."""
    bench = Bench(tmp_path, toml(2, "abcd"))
    bench.sees(others=tuple(StagedView(n, n != "c", 2, 0, 0) for n in "bcd"))
    bench.file.write_text(toml(3, "abd"))
    assert (await bench.voters.reload()).startswith("a has staged revision 3")
    (tmp_path / "other").mkdir()
    other = Bench(tmp_path / "other", toml(2, "abcd"))
    other.sees(others=tuple(StagedView(n, n == "b", 2, 0, 0) for n in "bcd"))
    text = await other.refused(toml(3, "acd"))
    assert "it takes 2 of its 3 nodes, and of those in force 1 are heard (a)" in text
    assert "Start c or d first, or remove c first and alone. If it has to be: `haclu" in text


async def test_what_was_staged_is_staged_again_whoever_is_down_by_now(tmp_path: Path) -> None:
    """It has this node's word; and what is in force elsewhere has to be followed."""
    bench = Bench(tmp_path)
    bench.file.write_text(toml(3, "abcd"))
    hashed = config_hash(load_cluster(bench.file))
    down = (StagedView("b", False, 2, 0, 0), StagedView("c", False, 2, 0, 0))
    bench.sees(others=down, staged=3, staged_hash=hashed)
    assert "a has staged revision 3" in await bench.voters.reload()
    bench.sees(staged=0, staged_hash=0, known=3, known_hash=hashed)
    assert "a has staged revision 3" in await bench.voters.reload()


async def test_the_old_file_put_back_takes_no_word_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.sees(staged=3, staged_hash=9)
    text = await bench.refused(toml(2))
    assert "revision 2 is in force here, but this node has agreed to revision 3" in text
    assert "staged.toml" in text
    bench.sees(staged=0, staged_hash=0)
    bench.file.write_text(toml(2))
    assert await bench.voters.reload() == "revision 2 is in force here already"
