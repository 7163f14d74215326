"""The agent says that certificates end, and that they have ended, until they are replaced."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

import pytest

from haclusterd import certificates, keys
from haclusterd.agent import expiring
from haclusterd.agent.expiring import Expiring
from haclusterd.config import Config, load
from tests.unit.config_example import GOOD


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "c.toml"
    path.write_text(GOOD.replace("/etc/haclusterd", str(tmp_path)))
    return load(path, node="fs-a")


async def seen(one: Expiring, texts: int) -> list[str]:
    for _ in range(200):
        if one.ends() and len(one.alarms()) == texts:
            break
        await asyncio.sleep(0.01)
    assert {alarm.name for alarm in one.alarms()} <= {"certificate"}
    return [alarm.text for alarm in one.alarms()]


async def test_alarms_until_they_are_replaced(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiring, "LOOK_S", 0.01)
    with monkeypatch.context() as short:
        short.setattr(certificates, "CERTIFICATE_DAYS", 11)
        keys.create(config)
    one = Expiring(config)
    one.start()
    try:
        texts = await seen(one, 2)
        assert [Path(text.split()[0]).name for text in texts] == ["fs-a.crt", "ca.crt"]
        assert "ends in 9 days" in texts[0]
        assert "keys rotate" in texts[0]
        assert one.ends()["ca.crt"] == pytest.approx(time.time() + 10 * 86400, abs=60)
        for file in config.key_file.parent.glob("*.[ck]*"):
            if file.suffix in (".crt", ".key"):
                file.unlink()
        await asyncio.sleep(0.05)
        assert len(one.alarms()) == 2, "files that are being replaced are no news"
        keys.create(config)
        assert await seen(one, 0) == []
    finally:
        await one.stop()


async def test_a_node_alone_has_none(config: Config) -> None:
    keys.create(config)
    one = Expiring(dataclasses.replace(config, nodes=config.nodes[:1]))
    one.start()
    await asyncio.sleep(0.05)
    assert (one.alarms(), one.ends()) == ([], {})
    await one.stop()
