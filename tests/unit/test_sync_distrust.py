"""A peer whose certificate is not accepted is named, with the files to look at."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from haclusterd.agent.syncing import distrust
from tests.unit.sync_cluster import Cluster, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in list(made.running):
        await made.kill(node)


@pytest.mark.parametrize("peer", ["a", "b"])
async def test_a_peer_whose_certificate_has_ended_is_named(cluster: Cluster, peer: str) -> None:
    """Whichever side dials; and no more once it has a new one."""
    authority = cluster.authority
    authority.valid = -datetime.timedelta(minutes=1)
    ended = cluster.config(peer)
    authority.valid = datetime.timedelta(days=2)
    other = "b" if peer == "a" else "a"
    one = await cluster.start(other)
    await cluster.start(peer, config=ended)
    await until(lambda: peer in one.mesh.distrusted())
    text = one.mesh.distrusted()[peer]
    assert "has expired" in text
    assert f"{peer}.crt" in text
    assert str(authority.folder / "ca.crt") in text
    (alarm,) = distrust(one.mesh.distrusted())
    assert alarm.name == "certificate"
    assert f"no copies are exchanged with {peer}" in alarm.text
    await cluster.kill(peer)
    (authority.folder / f"{peer}.crt").unlink()
    await cluster.start(peer)
    await until(lambda: one.mesh.distrusted() == {} and peer in one.mesh.sessions)
