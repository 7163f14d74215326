"""agent.starting: what the start command is given of the daemon, and what not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_DAEMON = """
import asyncio, sys
from haclusterd.agent.starting import Starter

async def main():
    ended = asyncio.Event()
    starter = Starter(["sh", "-c", sys.argv[1]], ended.is_set, lambda text: ended.set())
    starter.exited()
    await asyncio.wait_for(ended.wait(), 5)
    await starter.stop()

asyncio.run(main())
"""


def test_the_start_command_gets_nothing_of_what_the_daemon_may_do(tmp_path: Path) -> None:
    """Or FreeSWITCH had CAP_NET_ADMIN for its whole life, and could tell systemd of our end."""
    told = tmp_path / "told"
    say = f"env > {told}; grep Cap /proc/self/status >> {told}"
    daemon = [sys.executable, "-c", _DAEMON, say]
    if not os.geteuid() and shutil.which("setpriv") is not None:
        daemon = ["setpriv", "--securebits=+noroot", "--inh-caps=-all,+net_admin,+kill",
                  "--ambient-caps=+net_admin,+kill", "--", *daemon]  # fmt: skip
    environment = {**os.environ, "NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "500000"}
    subprocess.run(daemon, check=True, timeout=15, env=environment)
    found = told.read_text()
    assert "NOTIFY_SOCKET" not in found
    assert "WATCHDOG" not in found
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("not root, or no setpriv: capabilities cannot be handed on here")
    sets = dict(re.findall(r"(Cap\w+):\s*([0-9a-f]+)", found))
    assert [int(sets[key], 16) for key in ("CapPrm", "CapEff", "CapAmb")] == [0, 0, 0]
