"""A fault of ours between a recovery and its settling: without that nodes that start would wait for
ever for the service to be settled, and be no candidates."""

from __future__ import annotations

from pathlib import Path

import pytest

from haclusterd import lasting
from haclusterd.core.actions import Recover
from haclusterd.core.model import Identity
from haclusterd.core.records import CallRecord
from tests.fixtures.agent_parts import record, view
from tests.unit.sync_cluster import until
from tests.unit.test_agent_services import Bench

pytestmark = pytest.mark.timeout(20)


def failing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The snapshot fails by a bug the first time; what was tried."""
    monkeypatch.setattr(lasting, "AGAIN_S", 0.02)
    tried: list[str] = []
    snapshot = bench.switch.snapshot

    async def once() -> list[CallRecord]:
        tried.append("snapshot")
        if len(tried) == 1:
            raise KeyError("a bug")
        return await snapshot()

    monkeypatch.setattr(bench.switch, "snapshot", once)
    return tried


async def test_calls_are_read_again_after_a_start_of_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    tried = failing(bench, monkeypatch)
    bench.switch.calls_here = [record("u1")]
    bench.services.observe(view({"east": ("fs-a", 7)}))
    await until(lambda: bench.replication.settled == ["east"])
    assert len(tried) == 2
    assert bench.replication.appended == [record("u1")]
    await bench.services.stop()


async def test_a_takeover_is_settled_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.recoveries.SETTLE_S", 0.02)
    bench = Bench(tmp_path)
    tried = failing(bench, monkeypatch)
    bench.replication.known = [record("u1")]
    bench.switch.calls_here = [record("u1")]
    bench.services.recover(Recover(0, Identity(7, 0, 99), 1, "fs-b is silent", {}))
    await until(lambda: bench.replication.settled == ["east"])
    assert len(tried) == 2
    assert bench.work.recovering == {}
    await bench.services.stop()
