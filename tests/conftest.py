"""What all tests share: where the lab may run, said once in the header and in each skip."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# A busy machine is no reason for a property to fail; pytest's own timeout is the bound.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "unhurried")


@functools.cache
def lab_obstacle() -> str:
    """Why lab tests cannot run here, or nothing: asks the kernel by making a namespace."""
    if os.geteuid() != 0:
        return "not root: network namespaces need it"
    tools = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if tools:
        return f"missing: {', '.join(tools)} (scripts/prepare lab installs them)"
    name = f"hatry{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    if made.returncode != 0:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    return ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write transcripts and tables anew")


def pytest_report_header() -> str:
    obstacle = lab_obstacle()
    return f"lab tests: skipped, {obstacle}" if obstacle else "lab tests: run (namespaces allowed)"


def _side(folders: Sequence[str]) -> int:
    """1: only computes. 2: the lab, which measures milliseconds. 0: the rest, in real time."""
    if {"sim", "scenarios", "properties"}.intersection(folders):
        return 1
    return 2 if {"lab", "web"}.intersection(folders) else 0


class _Sides(LoadScopeScheduling):  # type: ignore[misc]
    """Two workers: the tests in real time one after another on one, what computes on the other,
    and then the lab on the first that is free: it has the machine for itself, but for an end."""

    def _split_scope(self, nodeid: str) -> str:
        side = _side(nodeid.partition("::")[0].split("/"))
        return nodeid if side == 1 else ("real time", "", "lab")[side]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _Sides:
    return _Sides(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _side(item.path.parts))
    lab_items = [item for item in items if item.get_closest_marker("lab")]
    if lab_items and (obstacle := lab_obstacle()):
        for item in lab_items:
            item.add_marker(pytest.mark.skip(reason=obstacle))
