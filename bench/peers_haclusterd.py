"""haclusterd as a system of the fail-over bench that also measures keepalived and others.

    PEERS_SYSTEM=bench/peers_haclusterd.py PEERS_RESULTS=DIR BENCH/bench.py outage \
        --systems haclusterd-lan --faults crash,service,freeze,pause --trials 10

Addresses only: the "FreeSWITCH" that is watched is the bench's echo process (`esl_port = 0`). The
daemons run with this checkout's `.venv` if there is one, else with the bench's own Python.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab import VIP  # type: ignore[import-not-found]
from systems.base import System  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parent.parent
_VENV_PYTHON = ROOT / ".venv" / "bin" / "python"
PYTHON = str(_VENV_PYTHON if _VENV_PYTHON.exists() else sys.executable)
_CREATE_KEYS = (
    "import sys; from haclusterd import keys; from haclusterd.config import load_cluster; "
    "keys.create(load_cluster(sys.argv[1]))"
)


class Haclusterd(System):  # type: ignore[misc]
    """Three nodes, both NICs carry heartbeats, the floating IP is one service."""

    name = "haclusterd-lan"
    preset = "lan"
    timeout = 8.0
    settle = 0.8
    phase = 1.0
    faults = ("crash", "service", "freeze", "pause", "kill")

    def start_all(self) -> None:
        """One configuration and one set of keys for all nodes, before the first one starts."""
        config = self._config_file
        config.write_text(self._config_text())
        environment = self._environment()
        command = [PYTHON, "-c", _CREATE_KEYS, str(config)]
        subprocess.run(command, check=True, env=environment)
        super().start_all()

    def start(self, node: Any) -> None:
        node.spawn(
            PYTHON, "-m", "haclusterd", "--config", str(self._config_file), "--node", node.name,
            "--run-dir", str(self._run_dir(node)), log="haclusterd.log", env=self._environment(),
        )  # fmt: skip

    def daemon_pids(self, node: Any) -> list[int]:
        modules = {"haclusterd", "haclusterd.agent"}
        return [pid for pid, words in node.pids() if modules & set(words)]

    def ready(self) -> bool:
        """Every daemon answers and sees every node as a master or a slave that could take over."""
        return all(self._sees_all_ready(node) for node in self.lab.nodes)

    def _sees_all_ready(self, node: Any) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self._run_dir(node) / "haclusterd.sock"))
                connection.sendall(b'{"method":"status","params":{}}\n')
                with connection.makefile("rb") as answers:
                    answer = json.loads(answers.readline())
        except (OSError, ValueError):
            return False
        nodes = (answer.get("result") or {}).get("nodes", [])
        return len(nodes) == len(self.lab.nodes) and all(
            entry["role"] in ("master", "slave") or entry["witness"] for entry in nodes
        )

    @property
    def _config_file(self) -> Path:
        return Path(self.lab.workdir) / "haclusterd.toml"

    @staticmethod
    def _run_dir(node: Any) -> Path:
        return Path(node.dir) / "haclusterd"

    @staticmethod
    def _environment() -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def _config_text(self) -> str:
        node_dir = Path(self.lab.workdir) / "{node}"
        lines = [
            "[cluster]",
            'name = "bench"',
            f'preset = "{self.preset}"',
            "[freeswitch]",
            "esl_port = 0",
            f'pid_file = "{node_dir}/echo.pid"',
            "[api]",
            'http = ""',
        ]
        for node in self.lab.nodes:
            links = f'["{node.hb_ip}", "{node.svc_ip}"]'
            lines += ["[[node]]", f'id = "{node.name}"', f"links = {links}"]
        first = self.lab.nodes[0].name
        lines += ["[[service]]", 'name = "floating"', f'addresses = ["{VIP}/24 dev svc"]',
                  f'preferred = "{first}"']  # fmt: skip
        return "\n".join(lines) + "\n"


class HaclusterdFast(Haclusterd):
    name = "haclusterd-fast"
    preset = "fast"


VARIANTS = [Haclusterd, HaclusterdFast]
