"""`keys rotate`: a step that does not get to its end is repeated, or ends (scen. 25)."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest

from haclusterd import rotation
from haclusterd.agent.rotation_words import TELL, Task
from haclusterd.config import Config
from haclusterd.core.actions import Answered
from haclusterd.rotation import DONE, KNOWN, USED
from tests.unit.test_rotation import Cluster, cluster, refused

__all__ = ["cluster"]

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("back", [False, True], ids=["on", "back"])
@pytest.mark.parametrize("phase", [KNOWN, USED, DONE])
async def test_25_a_step_that_heart_did_not_take_is_not_taken_for_done(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, phase: int, back: bool
) -> None:
    """It is on the disk already. To go on from there would make the node deaf and mute."""
    host = cluster.hosts["fs-c"]
    real = host.rotation._write

    async def write(kept: rotation.Kept, to: int) -> str:
        host.answer = Answered(0, to != phase, "heart is busy")
        return await real(kept, to)

    monkeypatch.setattr(host.rotation, "_write", write)
    assert "fs-c: heart is busy" in str(await refused(cluster["a"].rotate("anna")))
    monkeypatch.setattr(host.rotation, "_write", real)
    host.answer = Answered(0, True, "")
    cluster.check()
    if back and phase == USED:
        assert "old keys, as before" in await cluster["a"].abort("ben")
    else:
        assert "3 nodes have new keys" in await cluster["a"].rotate("ben")
    assert len(cluster.rings()) == 1
    cluster.check()
    assert host.wire_ring() == host.ring
    assert {h.rotation.under_way for h in cluster.hosts.values()} == {""}


async def test_25_a_step_ends_though_the_connection_is_lost(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of one would be on the disk and known to nobody: the next rotation mixed the keys."""
    host = cluster.hosts["fs-c"]
    kept = rotation.begin(cluster.hosts["fs-a"].config, "anna")
    task = Task("fs-a/1", KNOWN, kept.id, "anna", "fs-a", kept.issued["fs-c"])
    gate = threading.Event()
    enter = rotation.enter

    def slow(config: Config, one: rotation.Kept, phase: int) -> rotation.Kept:
        gate.wait(5)
        return enter(config, one, phase)

    monkeypatch.setattr(rotation, "enter", slow)
    serving = asyncio.ensure_future(host.methods["keys"]("fs-a", msgspec.json.encode(task)))
    await asyncio.sleep(0.05)
    serving.cancel()
    gate.set()
    await asyncio.gather(serving, return_exceptions=True)
    told = await host.rotation._take(Task("", TELL))
    assert (told.phase, told.ring, host.wire_ring()) == (KNOWN, [1, 2], [1, 2])


def test_25_a_file_that_is_damaged_in_a_rotation_is_written_again(cluster: Cluster) -> None:
    """And does not keep the agent from starting, for ever."""
    config = cluster.hosts["fs-a"].config
    rotation.enter(config, rotation.begin(config, "anna"), KNOWN)
    config.key_file.write_bytes(b"\xff\x00 torn")
    kept = rotation.settle(config)
    assert kept is not None
    assert kept.phase == KNOWN
    assert cluster.hosts["fs-a"].ring == [1, 2]
