"""Hooks: programs on this host, delivery, retries, bounds."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from haclusterd.agent import child, hooks
from haclusterd.agent.hooks import Deliveries
from tests.fixtures.hooks import HOOK, MESSAGE, through

pytestmark = pytest.mark.timeout(60)


def script(folder: Path, text: str) -> str:
    path = folder / "hook.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


async def test_a_program_gets_its_words_the_event_and_json(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = f'{{ echo "$1|$HACLUSTERD_EVENT|$HACLUSTERD_SERVICE"; cat; }} > {out}'
    hook = dataclasses.replace(HOOK, exec=(script(tmp_path, text), "a b; rm -rf x"))
    done = await through(hook, MESSAGE)
    first, rest = out.read_text().split("\n", 1)
    assert first == "a b; rm -rf x|service_owned|east"
    assert json.loads(rest) == MESSAGE
    assert done.counts["pager", "sent"] == 1
    assert done.problems == {}


async def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hook = dataclasses.replace(
        HOOK, exec=(script(tmp_path, f"sleep 60 & echo $! > {pid}; wait"),),
        timeout_ms=300, retries=0,
    )  # fmt: skip
    began = time.monotonic()
    done = await through(hook, MESSAGE)
    assert time.monotonic() - began < 5
    assert "did not end within 0.3 s" in done.problems["pager"]
    await asyncio.sleep(0.1)
    stat = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


async def test_failures_are_tried_again_and_then_said(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    hook = dataclasses.replace(
        HOOK, exec=(script(tmp_path, f"echo x >> {tries}; echo no pager here >&2; exit 3"),)
    )
    done = await through(hook, MESSAGE)
    assert tries.read_text().count("x") == 3
    assert done.problems["pager"] == "status 3: no pager here"
    assert done.counts == {("pager", "sent"): 0, ("pager", "retried"): 2, ("pager", "failed"): 1,
                           ("pager", "dropped"): 0}  # fmt: skip
    hook = dataclasses.replace(HOOK, exec=("/does/not/exist",), retries=0)
    assert "No such file" in (await through(hook, MESSAGE)).problems["pager"]


async def test_a_program_that_reads_nothing_is_no_problem() -> None:
    large = MESSAGE | {"report": "x" * 500_000}
    assert (await through(dataclasses.replace(HOOK, exec=("true",)), large)).problems == {}


async def test_the_queue_is_bounded_and_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "QUEUE_MAX", 3)
    deliveries = Deliveries([dataclasses.replace(HOOK, exec=("true",))], lambda: None)
    for number in range(10):  # nobody works on it yet
        deliveries.give(MESSAGE | {"id": str(number)}, True)
    assert deliveries.counts["pager", "dropped"] == 7
    assert [m["id"] for m in deliveries._lines[0].waiting] == ["7", "8", "9"]


async def test_a_hook_gets_what_it_asked_for_and_only_from_the_teller() -> None:
    line = dataclasses.replace(HOOK, exec=("true",), events=("takeover",))
    deliveries = Deliveries([line, dataclasses.replace(HOOK, exec=("true",), every_node=True)],
                            lambda: None)  # fmt: skip
    deliveries.give(MESSAGE, True)
    deliveries.give(MESSAGE | {"event": "takeover"}, False)
    deliveries.give(MESSAGE | {"event": "takeover"}, True)
    waiting = [[m["event"] for m in line.waiting] for line in deliveries._lines]
    assert waiting == [["takeover"], ["service_owned", "takeover", "takeover"]]


async def test_an_agent_that_stops_leaves_no_program_behind(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hook = dataclasses.replace(HOOK, exec=(script(tmp_path, f"echo $$ > {pid}; exec sleep 60"),))
    deliveries = Deliveries([hook], lambda: None)
    deliveries.start()
    deliveries.give(MESSAGE, True)
    while not pid.exists() or not pid.read_text().strip():
        await asyncio.sleep(0.01)
    began = time.monotonic()
    await deliveries.stop()
    assert time.monotonic() - began < 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_a_program_gets_nothing_of_what_the_daemon_may_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "5000000")
    ended = await child.run(["sh", "-c", "env >&2; exit 1"], b"", 5.0, {"HACLUSTERD_EVENT": "x"})
    assert "HACLUSTERD_EVENT=x" in ended.said or len(ended.said) > 300
    assert "NOTIFY_SOCKET" not in ended.said
    assert "WATCHDOG" not in ended.said
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("not root, or no setpriv: capabilities cannot be handed on here")
    code = (
        "import asyncio; from haclusterd.agent import child;"
        "say = ['sh', '-c', 'grep Cap /proc/self/status >&2; exit 1'];"
        "print(asyncio.run(child.run(say, b'', 5.0, {})).said)"
    )
    daemon = ["setpriv", "--securebits=+noroot", "--inh-caps=-all,+net_admin,+kill",
              "--ambient-caps=+net_admin,+kill", "--", sys.executable, "-c", code]  # fmt: skip
    said = subprocess.run(daemon, capture_output=True, text=True, check=True).stdout
    sets = dict(re.findall(r"(Cap\w+):\s*([0-9a-f]+)", said))
    assert {key: int(sets[key], 16) for key in ("CapPrm", "CapEff", "CapAmb")} == {
        "CapPrm": 0, "CapEff": 0, "CapAmb": 0
    }  # fmt: skip


async def test_what_cannot_be_started_is_said() -> None:
    ended = await child.run(["x\0y"], b"", 1.0, {})
    assert ended.status is None
    assert "null byte" in ended.said
