"""Voters change while the cluster serves: real hearts and agents, an address asked all the time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from haclusterd.config import load_cluster
from haclusterd.config.revisions import FILE_NAME
from haclusterd.keys import create
from tests.lab.heart_cluster import (
    ROOT,
    SERVICE_IPS,
    HeartCluster,
    HeartNode,
    Prober,
    last_match,
)
from tests.lab.heart_net import needs_root

pytestmark = [pytest.mark.lab, needs_root]

A, B = SERVICE_IPS[:2]
_WITH_AGENT = "import sys\nfrom haclusterd.heart.main import main\nsys.exit(main(sys.argv[3:]))\n"
_CLI = "import sys; from haclusterd.cli.main import main; sys.exit(main())"
GAP_MS_MAX = 90.0  # an upgrade of the heart under load of the whole machine; a takeover takes 150


class Growing(HeartCluster):
    """Four hosts; which of them are nodes the file says."""

    def __init__(self, tag: str, folder: Path) -> None:
        super().__init__(tag, 4, folder)
        self.heart_script.write_text(_WITH_AGENT)
        self.write(1, 1, 2, 3)

    def write(
        self, revision: int, *members: int, address: str = A, nics: int = 2, preset: str = "lan"
    ) -> None:
        """The next file, on every host at once: they share the folder."""
        nodes = "".join(
            f'[[node]]\nid = "n{n}"\nlinks = {[f"10.{k}0.0.{n}" for k in range(1, nics + 1)]}\n'
            for n in members
        )
        services = '[[service]]\nname = "s0"\n'
        services += f'addresses = ["{address}/24 dev svc0"]\npreferred = "n{members[0]}"\n'
        head = f'[cluster]\nname = "hearts"\nquorum = "majority"\nrevision = {revision}\n'
        self.config.write_text(f'{head}preset = "{preset}"\n{nodes}{services}')
        create(load_cluster(self.config))

    def ask(self, node: HeartNode, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["ip", "netns", "exec", node.namespace, sys.executable, "-c", _CLI,
                   "--socket", str(node.run_dir / "haclusterd.sock"), *words]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=30
        )

    def status(self, node: HeartNode) -> dict[str, Any]:
        found = self.ask(node, "status", "--json")
        return dict(json.loads(found.stdout)) if found.returncode == 0 else {}

    def await_revision(
        self, revision: int, *members: int, seconds: float = 40, away: int = 0
    ) -> None:
        """Each of them has it in force and sees all the others, but for `away` more."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            seen = [self.status(self.nodes[n - 1]) for n in members]
            if all(
                s
                and s["revision"]["active"] == revision
                and s["quorum"]["voters"] - away == s["quorum"]["reachable"] == len(members)
                for s in seen
            ):
                return
            time.sleep(0.3)
        logs = "\n".join(f"== {n.id}\n{n.said()[-2500:]}" for n in self.nodes)
        raise AssertionError(f"not at revision {revision}: {seen}\n{logs}")


def begin_at_n1(cluster: Growing) -> None:
    """On a busy machine another one may have been ready first."""
    end = time.monotonic() + 20
    while not (holders := cluster.holders(A)):
        assert time.monotonic() < end, "nobody serves"
        time.sleep(0.1)
    if holders != ["n1"]:
        answer = cluster.ask(cluster.nodes[0], "switchover", "s0", "--to", "n1")
        assert answer.returncode == 0, answer.stderr
        cluster.await_owner(A, "n1")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Growing]:
    running = Growing(f"vote{os.getpid() % 10000}", tmp_path)
    try:
        running.up()
        for node in running.nodes[:3]:
            node.start()
        running.await_revision(1, 1, 2, 3)
        begin_at_n1(running)
        yield running
    finally:
        running.down()


def gap_during(cluster: Growing, work: Callable[[], None]) -> float:
    """The longest silence of the address in ms while `work` is done."""
    prober, found, done = Prober(cluster, A), [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            gap_ms = prober.longest_gap_ms(1.0)
            print(f"(gap {gap_ms:.0f} ms, the prober itself stalled {prober.stalled_ms:.0f} ms)")
            found.append(max(0.0, gap_ms - prober.stalled_ms))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return max(found)


def await_lost(cluster: Growing, node: HeartNode, lost: str) -> None:
    end = time.monotonic() + 10
    while any(n["id"] == lost and n["role"] not in ("dead", "left")
              for n in cluster.status(node)["nodes"]):  # fmt: skip
        assert time.monotonic() < end, cluster.status(node)
        time.sleep(0.1)


def reload_everywhere(cluster: Growing, *numbers: int, how: Sequence[str] = ()) -> None:
    for n in numbers:
        answer = cluster.ask(cluster.nodes[n - 1], "reload", *how)
        assert answer.returncode == 0, answer.stderr


def test_a_node_is_added_and_another_removed_while_the_address_answers(cluster: Growing) -> None:
    """ML10: the voters change one at a time, and nobody restarts for it."""
    pids = [node.pid for node in cluster.nodes[:3]]
    time.sleep(4)  # until everybody has long been heard to read version 2 of the wire

    def add() -> None:
        cluster.write(2, 1, 2, 3, 4)
        cluster.nodes[3].start()
        reload_everywhere(cluster, 1, 2, 3)
        cluster.await_revision(2, 1, 2, 3, 4)

    added_ms = gap_during(cluster, add)
    assert cluster.holders(A) == ["n1"]
    assert all(node.pid != pid for node, pid in zip(cluster.nodes, pids, strict=False))

    def remove() -> None:
        cluster.write(3, 1, 3, 4)
        reload_everywhere(cluster, 1, 3, 4, 2)
        cluster.await_revision(3, 1, 3, 4)

    removed_ms = gap_during(cluster, remove)
    print(f"longest silence: adding {added_ms:.0f} ms, removing {removed_ms:.0f} ms")
    assert cluster.holders(A) == ["n1"]
    assert max(added_ms, removed_ms) < GAP_MS_MAX
    leaver = cluster.nodes[1]
    assert leaver.process is not None
    assert "leaves the cluster" in leaver.said()
    kept = json.loads((leaver.run_dir / FILE_NAME).read_text())
    assert kept["active"]["revision"] == 3
    assert leaver.start().wait(20) == 1
    assert "no node" in leaver.said() or "was removed" in leaver.said()
    # The new set is one that takes over: its owner dies, and of the three the others are two.
    cluster.nodes[0].stop()
    end = time.monotonic() + 20
    while cluster.holders(A) not in (["n3"], ["n4"]):
        assert time.monotonic() < end, cluster.holders(A)
        time.sleep(0.05)


def test_what_a_reload_refuses_it_refuses_with_all_reasons(cluster: Growing) -> None:
    time.sleep(4)
    cluster.write(3, 2, 3, 4)
    answer = cluster.ask(cluster.nodes[0], "reload")
    assert answer.returncode == 1
    for reason in ("set it to 2", "more than one node has changed", "haclusterctl switchover s0"):
        assert reason in answer.stderr, answer.stderr
    cluster.write(1, 1, 2, 3)
    assert "in force here already" in cluster.ask(cluster.nodes[0], "reload").stdout
    assert cluster.status(cluster.nodes[0])["revision"] == {
        "active": 1, "staged": None, "lacking": [],
    }  # fmt: skip


def test_a_node_removed_while_it_was_down_is_told_so_when_it_returns(cluster: Growing) -> None:
    """It is no peer any more, and its file says that it is; nobody hears it, nothing moves."""
    time.sleep(4)
    old = cluster.config.read_text()
    away = cluster.nodes[2]
    away.stop()
    cluster.write(2, 1, 2)
    reload_everywhere(cluster, 1, 2)
    cluster.await_revision(2, 1, 2)
    cluster.config.write_text(old)  # what still lies on the host that was away
    away.start()
    end = time.monotonic() + 20
    found: list[str] = []
    while not found:
        assert time.monotonic() < end, cluster.status(away)
        time.sleep(0.3)
        alarms = cluster.status(away).get("alarms", [])
        found = [str(a["text"]) for a in alarms if "in force elsewhere" in str(a["text"])]
    assert "revision 2 is in force elsewhere, n3 has 1" in found[0]
    assert "n3 is no longer part of the cluster" in found[0]
    assert cluster.holders(A) == ["n1"]
    assert cluster.status(cluster.nodes[0])["quorum"]["reachable"] == 2


def restart(cluster: Growing, *numbers: int) -> None:
    """One after the other, each until it says what it is."""
    for n in numbers:
        node = cluster.nodes[n - 1]
        node.stop()
        node.start()
        end = time.monotonic() + 20
        while not cluster.status(node):
            assert time.monotonic() < end, node.said()[-2500:]
            time.sleep(0.2)


def fence_of(node: HeartNode) -> str:
    command = ["ip", "netns", "exec", node.namespace, "nft", "list", "ruleset"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_f39_who_was_away_takes_a_set_up_with_another_address_and_one_nic_less(
    cluster: Growing,
) -> None:
    """And the removal of a node beside it does not keep anybody from starting."""
    time.sleep(4)
    away = cluster.nodes[2]
    away.stop()
    cluster.write(2, 1, 2, 3, 4)
    cluster.nodes[3].start()
    for node in cluster.nodes[:2]:
        await_lost(cluster, node, "n3")
    assert cluster.ask(cluster.nodes[0], "reload").returncode == 1, "two are heard of four"
    reload_everywhere(cluster, 1, 2, how=["--without-majority"])
    cluster.await_revision(2, 1, 2, 4, away=1)
    cluster.write(2, 1, 2, 3, 4, address=B, nics=1)
    restart(cluster, 4, 2, 1)
    cluster.await_revision(2, 1, 2, 4, away=1)
    away.start()
    cluster.await_revision(2, 1, 2, 3, 4)
    end = time.monotonic() + 10
    while B not in (table := fence_of(away)) or A in table:
        assert time.monotonic() < end, table
        time.sleep(0.2)
    assert "the fence is loaded again for the addresses" in away.said()
    cluster.write(3, 1, 2, 3, address=B, nics=1)
    reload_everywhere(cluster, 1, 2, 3, 4)
    cluster.await_revision(3, 1, 2, 3)
    cluster.write(3, 1, 2, 3, address=B, nics=2)
    restart(cluster, 3, 2, 1)
    cluster.await_revision(3, 1, 2, 3)
    end = time.monotonic() + 10
    while not cluster.answers(B):
        assert time.monotonic() < end, cluster.holders(B)
        time.sleep(0.2)


def test_a_heart_that_died_leaves_no_address_of_the_file_before(cluster: Growing) -> None:
    """The next file is installed, with another address, when the master's heart is killed; it is
    started before its slave's fence, or its own of before, could cover what is on its NIC."""
    cluster.write(1, 1, 2, 3, address=B)
    master = cluster.nodes[0]
    assert master.has(A)
    master.signal(signal.SIGKILL)
    assert master.process is not None
    master.process.wait()
    master.start()
    end = time.monotonic() + 20
    while "removed left-over service addresses" not in master.said():
        assert time.monotonic() < end, master.said()[-2500:]
        time.sleep(0.01)
    assert not master.has(A)
    assert A in last_match(master.said(), r"removed left-over service addresses: (.*)")


def test_f38_the_times_of_the_last_run_are_known_until_this_one_has_outlived_them(
    cluster: Growing,
) -> None:
    """Longer times and back again, by restarts; nodes with other times do not hear each other."""
    kept = cluster.nodes[2].run_dir / FILE_NAME
    cluster.write(1, 1, 2, 3, preset="wan")
    restart(cluster, 3)
    end = time.monotonic() + 20
    while "unreadable_peer" not in str(alarms := cluster.status(cluster.nodes[0])["alarms"]):
        assert time.monotonic() < end, alarms
        time.sleep(0.3)
    restart(cluster, 2, 1)
    cluster.await_revision(1, 1, 2, 3)
    assert 'preset = \\"wan\\"' in kept.read_text()
    cluster.write(1, 1, 2, 3)
    restart(cluster, 3)
    assert 'preset = \\"wan\\"' in kept.read_text()
    restart(cluster, 2, 1)
    cluster.await_revision(1, 1, 2, 3)
    end = time.monotonic() + 20
    while 'preset = \\"wan\\"' in kept.read_text() or not cluster.answers(A):
        assert time.monotonic() < end, kept.read_text()
        time.sleep(0.2)
