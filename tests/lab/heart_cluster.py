"""Real hearts in network namespaces, each with a stand-in agent; for the heart's own tests.

Three NICs a node: `hb0`, `hb1` for heartbeats, `svc0` for the service; three bridges in a
namespace of their own, where a client lives as well. The stand-in agent says that all is well and
writes what it is told to a file.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from haclusterd.config import load_cluster
from haclusterd.keys import create
from tests.lab.heart_net import inside, run

ROOT = Path(__file__).parents[2]
SERVICE_IPS = ("10.30.0.100", "10.30.0.101")

_AGENT = """
import select, socket, sys, time
import msgspec
from haclusterd.core.actions import *
from haclusterd.core.inputs import *
from haclusterd.core.view import View
fd = int(sys.argv[sys.argv.index("--heart-fd") + 1])
log = open(sys.argv[1], "a", buffering=1)
services = int(sys.argv[2])
s = socket.socket(fileno=fd)
decoder = msgspec.msgpack.Decoder(ToAgent)
next_report = 0
while True:
    if time.monotonic() >= next_report:
        next_report = time.monotonic() + 0.5
        words = tuple(ServiceReport(True, "", 0) for _ in range(services))
        s.send(msgspec.msgpack.encode(LocalReport(True, 0, 100, 0, 0, False, words)))
    if select.select([s], [], [], 0.1)[0]:
        packet = s.recv(65536)
        if not packet:
            break
        message = decoder.decode(packet)
        if isinstance(message, Published):
            message = msgspec.msgpack.decode(message.view, type=View)
            log.write("view " + msgspec.json.encode(message).decode() + "\\n")
        else:
            log.write(type(message).__name__ + " " + msgspec.json.encode(message).decode() + "\\n")
"""

_HEART = """
import sys
from haclusterd.heart.main import main
log, services, *options = sys.argv[1:]
agent = [sys.executable, {agent!r}, log, services]
sys.exit(main(options, agent, [sys.executable, sys.argv[0], log, services]))
"""


class HeartNode:
    """One node: its namespace, its heart, what its agent was told."""

    def __init__(self, cluster: HeartCluster, number: int) -> None:
        self.cluster, self.number = cluster, number
        self.id = f"n{number}"
        self.namespace = f"{cluster.tag}{number}"
        self.run_dir = cluster.folder / self.id
        self.agent_log = cluster.folder / f"{self.id}.agent"
        self.heart_log = cluster.folder / f"{self.id}.heart"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        options = ["--config", str(self.cluster.config), "--node", self.id,
                   "--run-dir", str(self.run_dir)]  # fmt: skip
        command = ["ip", "netns", "exec", self.namespace, sys.executable,
                   str(self.cluster.heart_script), str(self.agent_log),
                   str(len(SERVICE_IPS)), *options, *more]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.heart_log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, env=environment)
        return self.process

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        return int((self.run_dir / f"{self.id}.pid").read_text())

    def stop(self) -> None:
        if self.process is not None:
            for pid in {self.process.pid, self._pid_or_zero()} - {0}:
                try:
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.wait(10)

    def _pid_or_zero(self) -> int:
        try:
            return self.pid
        except (OSError, ValueError):
            return 0

    def said(self) -> str:
        return self.heart_log.read_text() if self.heart_log.exists() else ""

    def told(self, kind: str) -> list[dict[str, object]]:
        """What the agent was told, by name of the message; "view" for cluster views."""
        found = []
        lines = self.agent_log.read_text().splitlines() if self.agent_log.exists() else []
        for line in lines:
            name, _, content = line.partition(" ")
            if name == kind:
                try:
                    found.append(msgspec.json.decode(content))
                except msgspec.DecodeError:
                    continue  # still being written
        return found

    def has(self, address: str) -> bool:
        return f" {address}/" in run("ip", "-n", self.namespace, "addr", "show")


class HeartCluster:
    """`size` nodes; services 0 and 1 are preferred on nodes 1 and 2."""

    def __init__(self, tag: str, size: int, folder: Path, timing: str = "") -> None:
        self.tag, self.folder = tag, folder
        self.switch = f"{tag}s"
        self.config = folder / "haclusterd.toml"
        self.heart_script = folder / "heart.py"
        agent = folder / "agent.py"
        agent.write_text(_AGENT)
        self.heart_script.write_text(_HEART.format(agent=str(agent)))
        self.nodes = [HeartNode(self, number) for number in range(1, size + 1)]
        self.config.write_text(self._toml(size, timing))
        create(load_cluster(self.config))

    def _toml(self, size: int, timing: str) -> str:
        nodes = "".join(
            f'[[node]]\nid = "n{n}"\nlinks = ["10.10.0.{n}", "10.20.0.{n}"]\n'
            for n in range(1, size + 1)
        )
        services = "".join(
            f'[[service]]\nname = "s{k}"\naddresses = ["{ip}/24 dev svc0", '
            f'"fd00:30::10{k}/64 dev svc0"]\npreferred = "n{min(k + 1, size)}"\n'
            for k, ip in enumerate(SERVICE_IPS)
        )
        return f'[cluster]\nname = "hearts"\n{timing}{nodes}{services}'

    def up(self) -> None:
        namespaces = [self.switch, *(n.namespace for n in self.nodes)]
        for name in namespaces:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        for bridge in ("br0", "br1", "br2"):
            run("ip", "-n", self.switch, "link", "add", bridge, "type", "bridge")
            run("ip", "-n", self.switch, "link", "set", bridge, "up")
        run("ip", "-n", self.switch, "addr", "add", "10.30.0.250/24", "dev", "br2")
        for node in self.nodes:
            for index, (nic, net) in enumerate((("hb0", 10), ("hb1", 20), ("svc0", 30))):
                port = f"{nic}n{node.number}"
                run("ip", "-n", node.namespace, "link", "add", nic, "type", "veth",
                    "peer", "name", port, "netns", self.switch)  # fmt: skip
                run("ip", "-n", self.switch, "link", "set", port, "master", f"br{index}", "up")
                run("ip", "-n", node.namespace, "addr", "add", f"10.{net}.0.{node.number}/24",
                    "dev", nic)  # fmt: skip
                run("ip", "-n", node.namespace, "link", "set", nic, "up")

    def down(self) -> None:
        for node in self.nodes:
            node.stop()
        for name in [self.switch, *(n.namespace for n in self.nodes)]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def holders(self, address: str) -> list[str]:
        return [n.id for n in self.nodes if n.has(address)]

    def await_owner(self, address: str, owner: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while self.holders(address) != [owner]:
            if time.monotonic() > end:
                logs = "\n".join(f"== {n.id}\n{n.said()[-3000:]}" for n in self.nodes)
                raise AssertionError(f"{address} on {self.holders(address)}, not {owner}\n{logs}")
            time.sleep(0.02)

    def answers(self, address: str) -> bool:
        ping = ["ip", "netns", "exec", self.switch, "ping", "-qc1", "-W1", address]
        return subprocess.run(ping, capture_output=True, check=False).returncode == 0


@contextmanager
def hearts(tag: str, size: int, folder: Path, timing: str = "") -> Iterator[HeartCluster]:
    """A running cluster; everything is gone afterwards."""
    cluster = HeartCluster(tag, size, folder, timing)
    try:
        cluster.up()
        for node in cluster.nodes:
            node.start()
        yield cluster
    finally:
        cluster.down()


class Prober:
    """Asks a service address every millisecond by ARP-free means: an ICMP echo of our own."""

    def __init__(self, cluster: HeartCluster, address: str) -> None:
        with inside(cluster.switch):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.setblocking(False)
        self._address = address
        self.stalled_ms = 0.0  # how long the prober itself did not run, at worst

    def longest_gap_ms(self, seconds: float) -> float:
        """The longest time between two answers in the next `seconds`."""
        start = last = turned = time.monotonic()
        longest, number = 0.0, 0
        self.stalled_ms = 0.0
        while (now := time.monotonic()) < start + seconds:
            self.stalled_ms = max(self.stalled_ms, (now - turned) * 1000)
            turned = now
            number = (number + 1) & 0xFFFF
            echo = bytearray(b"\x08\0\0\0" + b"HA" + number.to_bytes(2, "big"))
            total = sum(int.from_bytes(echo[i : i + 2], "big") for i in range(0, 8, 2))
            total = (total >> 16) + (total & 0xFFFF)
            echo[2:4] = (0xFFFF - total).to_bytes(2, "big")
            with suppress(OSError):
                self._socket.sendto(echo, (self._address, 0))
            time.sleep(0.001)
            while True:
                try:
                    packet, source = self._socket.recvfrom(200)
                except BlockingIOError:
                    break
                if source[0] == self._address and packet[20] == 0:
                    now = time.monotonic()
                    longest, last = max(longest, now - last), now
        return max(longest, time.monotonic() - last) * 1000


def last_match(text: str, pattern: str) -> str:
    """The last line of `text` in which `pattern` is found, or ""."""
    return next((line for line in reversed(text.splitlines()) if re.search(pattern, line)), "")
