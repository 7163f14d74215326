"""One haclusterd per node and host: the lock, and who may not start where."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from haclusterd.config import Config, load
from haclusterd.heart.errors import HeartError
from haclusterd.heart.lock import NodeLock, refuse_on_the_wrong_host
from tests.unit.config_example import GOOD


def config_in(folder: Path) -> Config:
    path = folder / "haclusterd.toml"
    path.write_text(GOOD)
    return load(path, node="fs-a", run_dir=folder)


def test_a_full_disk_costs_the_pid_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = config_in(tmp_path)
    monkeypatch.setattr(os, "pwrite", full)
    lock = NodeLock(config)
    with pytest.raises(HeartError, match="runs already"):
        NodeLock(config)
    lock.release()


def test_a_node_does_not_start_on_the_host_of_another(tmp_path: Path) -> None:
    """It would take that node's addresses and rows for left-overs of its own."""
    config = config_in(tmp_path)
    mine, other = config.node, next(n for n in config.nodes if n.id != config.node.id)
    with pytest.raises(HeartError, match=f"--node {other.id}"):
        refuse_on_the_wrong_host(config, {other.links[1], "192.0.2.1"})
    refuse_on_the_wrong_host(config, {mine.links[1], other.links[0]})
    refuse_on_the_wrong_host(config, {"192.0.2.1"})  # the NICs are not up yet
