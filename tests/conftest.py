"""What all tests share: where the lab may run, said once in the header and in each skip."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import pytest
from hypothesis import settings

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


def _side(item: pytest.Item) -> int:
    """Tests of one side run one after another; the sides of 0 and 1 run beside each other."""
    if item.get_closest_marker("lab") or "lab" in item.path.parts:
        return 2
    return 1 if {"sim", "scenarios", "properties"}.intersection(item.path.parts) else 0


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two workers: what waits for real time on one, what only computes on the other, the lab last.

    The lab measures milliseconds, so it has the machine for itself (but for a neighbour's end).
    """
    items.sort(key=_side)
    for item in items:
        if (side := _side(item)) != 1:
            item.add_marker(pytest.mark.xdist_group(("clock", "", "lab")[side]))
    lab_items = [item for item in items if item.get_closest_marker("lab")]
    if lab_items and (obstacle := lab_obstacle()):
        for item in lab_items:
            item.add_marker(pytest.mark.skip(reason=obstacle))
