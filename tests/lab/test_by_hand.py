"""docs/by-hand.md does what it says: its blocks run as they stand, and print what it shows.

A guide that nobody follows rots within weeks. Here it is followed to the letter by one shell that
stops at the first command that fails; the lines shown below a block have to come, in that order,
numbers aside.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from haclusterd.lab import netns
from tests.freeswitch.obstacle import obstacle

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "by-hand.md"
FOLDER = Path("/tmp/voice")
HOSTS = ("switch", "client", "fs-a", "fs-b", "fs-c")
_BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.M | re.S)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def blocks(kind: str) -> list[str]:
    return [text for found, text in _BLOCK.findall(GUIDE.read_text()) if found == kind]


def pattern_of(line: str) -> re.Pattern[str]:
    """What a shown line has to look like: its words in order on one line, whatever the numbers."""
    words = (_NUMBER.sub("[0-9.]+", re.escape(word).replace(r"\.", ".")) for word in line.split())
    return re.compile(r"\s.*?".join(words))


def missing(shown: list[str], printed: str) -> list[str]:
    """Lines of the guide that were not printed, each looked for behind the one before."""
    lines, at, lost = printed.splitlines(), 0, []
    for wanted in shown:
        pattern = pattern_of(wanted)
        found = next((n for n in range(at, len(lines)) if pattern.search(lines[n])), -1)
        if found < 0:
            lost.append(wanted)
        else:
            at = found
    return lost


@contextmanager
def alone() -> Iterator[None]:
    """The guide's names are fixed: one walk at a time, and none of somebody's own."""
    spaces = [f"voice-{host}" for host in HOSTS]
    with open("/tmp/.haclusterd-by-hand.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if FOLDER.exists() or any((netns.NETNS_DIR / name).exists() for name in spaces):
            pytest.skip(f"{FOLDER} or its namespaces are there: somebody follows the guide")
        try:
            yield
        finally:
            there = [name for name in spaces if (netns.NETNS_DIR / name).exists()]
            netns.kill_inside(there)
            netns.delete(there)
            shutil.rmtree(FOLDER, ignore_errors=True)


def walk(freeswitch: str) -> None:
    if not (ROOT / ".venv" / ".ready").exists():
        pytest.skip("no .venv: make venv")
    if shutil.which("sipp") is None:
        pytest.skip("no sipp: apt-get install sip-tester")
    script = "set -euo pipefail\n" + "\n".join(blocks("sh"))
    environment = {**os.environ, "FREESWITCH_PREFIX": freeswitch}
    with alone():
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=environment, text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        logs = "".join(
            f"--- {path}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted(FOLDER.glob("*/haclusterd.log"))
        )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{logs}"
    shown = [line for block in blocks("text") for line in block.splitlines()]
    assert missing(shown, done.stdout) == [], done.stdout


@pytest.mark.lab
@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_guide_can_be_followed_with_the_emulator() -> None:
    walk("")


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.freeswitch
@pytest.mark.timeout(600)
def test_the_guide_can_be_followed_with_a_real_freeswitch() -> None:
    if why := obstacle():
        pytest.skip(why)
    walk(os.environ.get("FREESWITCH_PREFIX", "/usr"))


def test_every_block_is_valid_shell() -> None:
    for block in blocks("sh"):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_a_line_that_is_not_printed_is_missed() -> None:
    printed = "cause: fs-c silent on 2/2 links for 151 ms; at 12:00\ncalls: 9 replicated, 9 lost"
    assert (
        missing(["cause: fs-c silent on 2/2 links for 160 ms", "calls: 1 replicated"], printed)
        == []
    )
    assert missing(["calls: 1 replicated", "cause: fs-c"], printed) == ["cause: fs-c"]
    assert missing(["fs-b dead"], "fs-b  alive\nfs-c  dead") == ["fs-b dead"]
