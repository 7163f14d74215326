"""B14: `ha_cluster` in a real fs_cli, with the tab key, also after FreeSWITCH was restarted."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from haclusterd.lab import freeswitch, netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import ESL_PASSWORD, LabPlan
from haclusterd.lab.run import ready_cluster
from tests.freeswitch.obstacle import obstacle

_REASON = obstacle()
pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

PLAN = LabPlan(masters=1, slaves=2, freeswitch="real")
AGAIN_S = 30.0
KEYS_S = 5.0
LAST = "ha_cluster switchover east1 --to "


def program() -> Path:
    return freeswitch.find_binary().with_name("fs_cli")


def said(lab: Laboratory, node: str, command: str) -> str:
    """What `fs_cli -x` prints on a node, without the line about the alias."""
    with netns.inside(lab.nodes[node].namespace):
        done = subprocess.run(
            [program(), "-p", ESL_PASSWORD, "-x", command],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
    lines = (line for line in done.stdout.splitlines() if not line.startswith("Expand Alias"))
    return "\n".join(lines)


class Terminal:
    """An fs_cli at its prompt."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor

    def type(self, keys: str, expected: str) -> str:
        """What appears on the screen after these keys, until `expected` is there."""
        os.write(self._fd, keys.encode())
        seen, end = "", time.monotonic() + KEYS_S
        while expected not in seen and time.monotonic() < end:
            if select.select([self._fd], [], [], 0.1)[0]:
                seen += os.read(self._fd, 65536).decode(errors="replace")
                seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][0-9A-B]?", "", seen)
        assert expected in seen, f"after {keys!r}: {seen!r}"
        return seen


@contextmanager
def terminal(lab: Laboratory, node: str) -> Iterator[Terminal]:
    words = ["ip", "netns", "exec", lab.nodes[node].namespace, str(program()), "-p", ESL_PASSWORD]
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execvp(words[0], words)
    try:
        shown = Terminal(descriptor)
        shown.type("", "freeswitch@")
        yield shown
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(descriptor)


def shows(lab: Laboratory, node: str, command: str, pattern: str) -> None:
    """On a busy machine an owner may be fenced for a moment: then nobody is shown."""
    lab.wait(lambda: bool(re.search(pattern, said(lab, node, command))), KEYS_S, pattern)


def offered(lab: Laboratory, node: str, typed: str) -> set[str]:
    answer = said(lab, node, f"console_complete {typed}")
    return set(re.findall(r"\[\s*(\S+)\]", answer))


def test_b14_ha_cluster_in_fs_cli() -> None:
    with ready_cluster(PLAN, None, print) as lab:
        shows(lab, "fs-b", "ha_cluster status", r"east1 +fs-a")
        shows(lab, "fs-b", "ha_cluster rank --why", r"primary +fs-b")
        assert "there is no service north" in said(lab, "fs-b", "ha_cluster switchover north")
        assert "invalid choice: 'nonsense'" in said(lab, "fs-b", "ha_cluster nonsense")
        assert offered(lab, "fs-b", "ha_clu") == {"ha_cluster"}
        assert offered(lab, "fs-b", "ha_cluster ") >= {"status", "rank", "history", "switchover"}
        assert offered(lab, "fs-b", "ha_cluster switchover ") == {"east1"}
        assert offered(lab, "fs-b", "ha_cluster switchover east1 --to ") == {"fs-a", "fs-b", "fs-c"}

        with terminal(lab, "fs-c") as prompt:
            prompt.type("ha_clu\t", "ha_cluster")
            prompt.type(" hist\t", "history")
            prompt.type("\n", "fs-c grants east1 to fs-a")
            prompt.type("ha_cluster swi\t", "switchover")
            prompt.type(" ea\t", "east1")
            prompt.type(" --to fs-b\n", "east1 moved from fs-a to fs-b at epoch 2")
        shows(lab, "fs-c", "ha_cluster status", r"east1 +fs-b")


def test_b14_a_restarted_freeswitch_is_given_the_command_again_and_once() -> None:
    with ready_cluster(PLAN, None, print) as lab:
        switch = lab.nodes["fs-c"].switch
        assert switch is not None
        before = switch.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        lab.wait(lambda: switch.pid not in (None, before), AGAIN_S, "FreeSWITCH to be started")
        lab.wait(lambda: "fs-a" in said(lab, "fs-c", "ha_cluster status"), AGAIN_S, "the command")
        whole = {"fs-a", "fs-b", "fs-c"}
        lab.wait(lambda: offered(lab, "fs-c", LAST) == whole, AGAIN_S, "all of the completion")
        # A lost connection alone: everything is there still, and must not be there twice. What is
        # taken away of it, the line that is made last, tells when it was made anew.
        said(lab, "fs-c", f"complete del {LAST}fs-c")
        lab.wait(lambda: offered(lab, "fs-c", LAST) == {"fs-a", "fs-b"}, AGAIN_S, "it to be gone")
        said(lab, "fs-c", "reload mod_event_socket")
        lab.wait(lambda: offered(lab, "fs-c", LAST) == whole, AGAIN_S, "it again")
        answer = said(lab, "fs-c", "console_complete ha_cluster sw")
        assert re.findall(r"\[\s*(\S+)\]", answer) == ["switchover"]
