"""The agent that conducts `keys rotate` dies: who goes on, or back, and when."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from haclusterd import rotation
from haclusterd.agent import rotation as module
from haclusterd.agent.rotation_words import TELL, Task
from haclusterd.rotation import KNOWN
from tests.unit.test_rotation import Cluster, cluster, refused

__all__ = ["cluster"]  # the fixture
pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("dies_at", [3, 5, 7])
async def test_25_a_conductor_that_starts_anew_goes_on_or_back_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, dies_at: int, back: bool
) -> None:
    """Its agent dies and says no farewell; the others do not take it for somebody else."""
    monkeypatch.setattr(module, "CONDUCTED_S", 30.0)
    cluster.dies_at = dies_at
    died = asyncio.create_task(cluster["b"].rotate("anna"))
    while cluster.asked < dies_at:
        await asyncio.sleep(0.001)
    cluster.away = {"fs-a", "fs-c"}
    died.cancel()
    await asyncio.gather(died, return_exceptions=True)
    cluster.away, cluster.dies_at = set(), -1
    cluster.hosts["fs-b"].start()
    cluster.check()
    error = await refused(cluster["a"].rotate("carl"))
    assert "fs-b is rotating the keys just now" in str(error)
    if back and dies_at == 7:
        error = await refused(cluster["b"].abort("ben"))
        assert "gave the old keys up already: only `haclusterctl keys rotate`" in str(error)
        back = False
    if back:
        said = await cluster["b"].abort("ben")
        assert "3 nodes use the old keys" in said
        assert cluster.rings() == {(1,)}
    else:
        said = await cluster["b"].rotate("ben")
        assert "3 nodes have new keys" in said
        assert "went on with what anna on fs-b had begun" in said
        assert cluster.rings() == {(2,)}
    assert {host.rotation.under_way for host in cluster.hosts.values()} == {""}
    await cluster["a"].rotate("carl")  # and the other may again


async def test_25_what_a_conductor_asked_for_is_finished_though_it_dies(cluster: Cluster) -> None:
    """Half of a step would leave the disk ahead of what this node says of itself."""
    host = cluster.hosts["fs-c"]
    real, going = host.rotation._write, asyncio.Event()

    async def slow(kept: rotation.Kept, phase: int) -> str:
        going.set()
        await asyncio.sleep(0.05)
        return await real(kept, phase)

    host.rotation._write = slow  # type: ignore[method-assign]
    kept = rotation.begin(cluster.hosts["fs-b"].config, "anna")
    task = Task("fs-b/1", KNOWN, kept.id, "anna", "fs-b", kept.issued["fs-c"])
    asked = asyncio.ensure_future(host.methods[module.METHOD]("fs-b", msgspec.json.encode(task)))
    await going.wait()
    asked.cancel()  # the connection of the conductor is lost
    await asyncio.gather(asked, return_exceptions=True)
    told = await host.rotation._take(Task("", TELL))
    assert (told.id, told.phase) == (kept.id, KNOWN)
    assert host.ring == [1, 2]
