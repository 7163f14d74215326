"""One node of a laboratory: its processes, its API, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from haclusterd.lab import netns
from haclusterd.lab.clock import preferred
from haclusterd.lab.echo import ECHO_PORT
from haclusterd.lab.instrument import python_environment
from haclusterd.lab.netns import LabError
from haclusterd.lab.plan import NodePlan
from haclusterd.lab.switches import Switch
from haclusterd.lab.topology import Topology

_API_TIMEOUT_S = 5.0
_CTL = "from haclusterd.cli.main import main; raise SystemExit(main())"


class ApiRefused(LabError):
    """The daemon answered with a fault; the text is its own."""


class LabNode:
    """A node in its namespace: echo, FreeSWITCH (`switch` is None on a witness), haclusterd."""

    def __init__(
        self, topology: Topology, plan: NodePlan, config: Path, prefix: str | None
    ) -> None:
        self.plan = plan
        self.id = plan.id
        self.namespace = topology.namespace(plan.id)
        self.directory = topology.directory / plan.id
        self.run_dir = self.directory / "run"
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / "haclusterd.log"
        self.switch: Switch | None = None
        if topology.plan.freeswitch != "none" and not plan.witness:
            self.switch = Switch(topology.plan, self.directory, self.namespace, prefix)
        self._topology = topology
        self._config = config
        self._environment = python_environment()
        if not topology.plan.kernel_fence:
            folder = _refusing_nft(self.directory)
            self._environment["PATH"] = f"{folder}:{self._environment.get('PATH', os.defpath)}"
        self._children: list[subprocess.Popen[bytes]] = []
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Everything a node runs. FreeSWITCH need not be ready when this returns."""
        self.start_echo()
        if self.switch is not None:
            self.switch.start()
        self.start_haclusterd()

    def start_echo(self) -> None:
        pid_file = self.directory / "echo.pid"
        arguments = [str(ECHO_PORT), str(self.plan.number), str(pid_file)]
        self._spawn(["-m", "haclusterd.lab.echo", *arguments], self.directory / "echo.log")

    def start_haclusterd(self, config: Path | None = None) -> None:
        """`config`: another file (and other keys beside it) than the rest of the cluster has."""
        arguments = ["--config", str(config or self._config), "--node", self.id]
        arguments += ["--run-dir", str(self.run_dir)]
        self._daemon = self._spawn(["-m", "haclusterd", *arguments], self.log)

    @property
    def refused_to_start(self) -> bool:
        """Whether haclusterd ended with an error, as a wrong configuration makes it do."""
        return self._daemon is not None and (self._daemon.poll() or 0) > 0

    def api(self, method: str, timeout_s: float = _API_TIMEOUT_S, **params: Any) -> Any:
        """Ask the daemon. OSError if nobody answers, ApiRefused if it says no."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(self.run_dir / "haclusterd.sock"))
            connection.sendall(json.dumps({"method": method, "params": params}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline()
        if not line:
            raise ConnectionResetError(f"{self.id}: the daemon closed the connection")
        answer = json.loads(line)
        if not answer.get("ok"):
            raise ApiRefused(f"{self.id} {method}: {(answer.get('error') or {}).get('message')}")
        return answer.get("result")

    def status(self) -> dict[str, Any] | None:
        """`status --json`, None while nobody answers."""
        try:
            found: dict[str, Any] = self.api("status", 1.0)
        except (OSError, ApiRefused, ValueError):
            return None
        return found

    def ctl(self, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run `haclusterctl` as an operator on this node would."""
        socket_path = str(self.run_dir / "haclusterd.sock")
        with netns.inside(self.namespace):
            return subprocess.run(
                [sys.executable, "-c", _CTL, "--socket", socket_path, "--json", *words],
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
                env=python_environment(),
            )

    def pids(self) -> list[int]:
        """Every process in the node."""
        self.reap()
        return netns.pids_inside([self.namespace]).get(self.namespace, [])

    def haclusterd_pids(self) -> tuple[list[int], list[int]]:
        """(hearts, agents): the processes of haclusterd; an agent is the child of a heart."""
        ours = [pid for pid in self.pids() if str(self.run_dir) in _words(pid) or _is_agent(pid)]
        agents = [pid for pid in ours if _parent(pid) in ours]
        return [pid for pid in ours if pid not in agents], agents

    def send(self, pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def reap(self) -> None:
        for child in self._children:
            child.poll()

    def log_end(self, lines: int = 15) -> str:
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return "no log"
        return "\n".join(text.splitlines()[-lines:])

    def _spawn(self, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        with netns.inside(self.namespace), log.open("ab") as output:
            child = subprocess.Popen(
                [*preferred(self._topology.plan.nice), sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                cwd=self.directory,
                start_new_session=True,
            )
        self._children.append(child)
        return child


def _refusing_nft(directory: Path) -> Path:
    """A folder with an `nft` that says what it says on a kernel without egress hooks."""
    folder = directory / "no-nft"
    folder.mkdir()
    program = folder / "nft"
    refusal = "Error: Could not process rule: Operation not supported"
    program.write_text(f"#!/bin/sh\necho '{refusal}' >&2\nexit 1\n")
    program.chmod(0o755)
    return folder


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _is_agent(pid: int) -> bool:
    return any(word.startswith("haclusterd.agent") for word in _words(pid))


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
