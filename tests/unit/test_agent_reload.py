"""What `reload` refuses before anything is staged: revisions that lead nowhere."""

from __future__ import annotations

from pathlib import Path

from haclusterd.config.revisions import FILE_NAME
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
