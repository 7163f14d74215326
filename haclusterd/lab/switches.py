"""The FreeSWITCH of a node, whichever it is: real, emulated, or just a process to watch.

All three have one layout (`DIRECTORY/db/core.db`, `DIRECTORY/run/freeswitch.pid`) and are started
by one script, the same that `freeswitch.start_command` names: it does nothing while the process
runs, and returns at once otherwise.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from haclusterd.lab import netns
from haclusterd.lab.clock import preferred
from haclusterd.lab.emulator.config import EmulatorConfig, EslConfig, ProfileConfig
from haclusterd.lab.esl_blocking import BlockingEsl, EslRefused
from haclusterd.lab.freeswitch import FreeswitchInstance, FreeswitchOptions, ServiceProfile
from haclusterd.lab.instrument import python_environment
from haclusterd.lab.netns import LabError
from haclusterd.lab.plan import ESL_PASSWORD, ESL_PORT, SIP_PORT, LabPlan

EXTENSION = "9197"  # answers and plays a tone for ever, in fs_conf/test and in the emulator
_READY_S = 30.0

_SCRIPT = """#!/bin/sh
# Starts the FreeSWITCH of this node unless it runs.
pid=$(cat {pid_file} 2>/dev/null) && [ -n "$pid" ] &&
    tr '\\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF {mark} && exit 0
rm -f {pid_file}
setsid {command} >>{log} 2>&1 </dev/null &
"""


class Switch:
    """What a laboratory node runs as FreeSWITCH. `kind` as in `LabPlan.freeswitch`."""

    def __init__(
        self, plan: LabPlan, node_dir: Path, namespace: str, prefix: str | None = None
    ) -> None:
        self.kind = plan.freeswitch
        self.namespace = namespace
        self.directory = node_dir / "freeswitch"
        self.pid_file = self.directory / "run" / "freeswitch.pid"
        self.core_db = self.directory / "db" / "core.db"
        self.script = node_dir / "start-freeswitch"
        self.log = node_dir / "freeswitch.log"
        self._plan = plan
        self._profiles = [(service.profile, service.ip) for service in plan.services]
        for name in ("db", "run"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._write_script(self._command(node_dir.name, prefix))

    def start(self) -> None:
        """Run the start script inside the namespace; `wait_ready` tells when it serves."""
        with netns.inside(self.namespace):
            done = subprocess.run([self.script], capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"{self.script}: {done.stderr.strip()}")

    def wait_ready(self) -> None:
        netns.wait_for(self._is_ready, _READY_S, f"FreeSWITCH of {self.namespace} ({self.log})")

    @property
    def pid(self) -> int | None:
        """The running process, None if there is none."""
        with suppress(OSError, ValueError):
            pid = int(self.pid_file.read_text())
            if Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def log_end(self, chars: int = 600) -> str:
        """The last words that it wrote to its output."""
        try:
            return self.log.read_text(errors="replace")[-chars:]
        except OSError:
            return "no log"

    def esl(self, timeout_s: float = 5.0) -> BlockingEsl:
        return BlockingEsl(ESL_PORT, ESL_PASSWORD, namespace=self.namespace, timeout_s=timeout_s)

    def recovery_rows(self) -> list[tuple[str, ...]]:
        """Table `recovery` of core.db, all columns but `runtime_uuid`, by uuid."""
        with closing(sqlite3.connect(self.core_db, timeout=5)) as connection:
            found: list[tuple[str, ...]] = connection.execute(
                "SELECT technology, profile_name, hostname, uuid, metadata FROM recovery"
                " ORDER BY uuid"
            ).fetchall()
        return found

    def _is_ready(self) -> bool:
        if self.pid is None:
            return False
        if self.kind == "process":
            return True
        try:
            with self.esl(1.0) as connection:
                status = connection.api("sofia status")
        except (OSError, EslRefused):
            return False
        up = {line.split()[0] for line in status.splitlines() if "RUNNING" in line}
        return all(name in up for name, _ in self._profiles)

    def _command(self, node_id: str, prefix: str | None) -> Sequence[str]:
        if self.kind == "real":
            services = [ServiceProfile(name, address) for name, address in self._profiles]
            first_port, last_port = self._plan.rtp_ports
            options = FreeswitchOptions(
                switchname=node_id,
                bridge_target=self._plan.bridge_target,
                profile_params=self._plan.profile_params,
                rtp_start_port=first_port,
                rtp_end_port=last_port,
            )
            real = FreeswitchInstance(
                prefix, self.directory, self.namespace, services, options=options
            )
            real.prepare()
            return [word for word in real.start_command if word != "-ncwait"] + ["-nc", "-nf"]
        if self.kind == "emulator":
            return [sys.executable, "-m", "haclusterd.lab.emulator", "--config",
                    str(self._write_emulator(node_id))]  # fmt: skip
        sleeper = "import sys,os,time;open(sys.argv[1],'w').write(str(os.getpid()));time.sleep(1e9)"
        return [sys.executable, "-S", "-c", sleeper, str(self.pid_file)]

    def _write_emulator(self, node_id: str) -> Path:
        config = EmulatorConfig(
            run_dir=str(self.directory),
            profiles=[
                ProfileConfig(
                    name=name,
                    ip=address,
                    sip_port=SIP_PORT,
                    standby=True,
                    blind_reg=True,
                    expires_late_margin_s=2,
                    ireg_seconds=1,
                )
                for name, address in self._profiles
            ],
            core_db="db/core.db",
            pid_file="run/freeswitch.pid",
            switchname=node_id,
            esl=EslConfig(port=ESL_PORT, password=ESL_PASSWORD),
            extensions={EXTENSION: "tone"},
            media_pps=self._plan.media_pps,
        )
        path = self.directory / "emulator.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(config)))
        return path

    def _write_script(self, command: Sequence[str]) -> None:
        environment = [f"{key}={value}" for key, value in python_environment().items()]
        text = _SCRIPT.format(
            pid_file=shlex.quote(str(self.pid_file)),
            mark=shlex.quote(str(self.directory)),
            command=shlex.join([*preferred(self._plan.nice), "env", "-i", *environment, *command]),
            log=shlex.quote(str(self.log)),
        )
        self.script.write_text(text)
        os.chmod(self.script, stat.S_IRWXU)
