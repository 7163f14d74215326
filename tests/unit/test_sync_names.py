"""Node ids that are no host names: replication asks no resolver what it thinks of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from haclusterd.config.reading import NAME
from tests.unit import sync_cluster
from tests.unit.sync_cluster import Cluster, until

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize("node", ["b..c", "b.", "b_c", "B" * 63])
async def test_every_id_that_a_configuration_may_have_can_be_dialled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    """With two dots in a row the task that dials ended unheard, at the first attempt."""
    assert NAME.fullmatch(node)
    first = "A"
    monkeypatch.setattr(sync_cluster, "NODES", [first, node])
    cluster = Cluster(tmp_path)
    dialling, listening = await cluster.start(first), await cluster.start(node)
    try:
        await until(lambda: node in dialling.mesh.sessions and first in listening.mesh.sessions)
    finally:
        await cluster.kill(first)
        await cluster.kill(node)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("transport.Dialler.run", "replication with b failed"),
        ("replicator.Replicator._judge_for_ever", "judging copies failed"),
    ],
)
async def test_a_part_that_ends_by_a_bug_is_a_line_of_the_log(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    part: str,
    said: str,
) -> None:
    async def fail(_self: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(f"haclusterd.sync.{part}", fail)
    cluster = Cluster(tmp_path)
    await cluster.start("a")
    try:
        await until(lambda: said in caplog.text)
    finally:
        await cluster.kill("a")
