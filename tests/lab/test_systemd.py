"""M8: haclusterd as the unit runs it, with this test in systemd's part.

An unprivileged user, the unit's capabilities and no others, a notify socket, a watchdog. The
daemon says that it is ready, feeds the watchdog also after an upgrade, owns its service behind a
kernel fence, and leaves in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from haclusterd.config import load_cluster
from haclusterd.keys import create
from tests.lab.heart_net import run

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "debian" / "haclusterd.service"
USER_ID = 64_999  # nobody has it
SERVICE_IP = "10.97.1.10"
WATCHDOG_S = 1.0
CONFIG = f"""
[cluster]
name = "unit"
[api]
http = ""
[[node]]
id = "n1"
links = ["10.97.0.1"]
[[service]]
name = "east"
addresses = ["{SERVICE_IP}/24 dev svc"]
"""

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is missing: util-linux"),
]


def unit(key: str) -> str:
    found = re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.M)
    assert len(found) == 1, key
    return str(found[0])


def capabilities() -> str:
    """As setpriv wants them: nothing but those of the unit."""
    ambient = unit("AmbientCapabilities")
    assert ambient == unit("CapabilityBoundingSet")
    return "-all," + ",".join(f"+{c.removeprefix('CAP_').lower()}" for c in ambient.split())


@dataclass
class Manager:
    """What systemd sees of the daemon: messages, each with the process that sent it."""

    folder: Path
    notify: socket.socket
    process: subprocess.Popen[bytes]
    heard: list[tuple[int, str]] = field(default_factory=list)

    def until(self, wanted: Callable[[int, str], bool], seconds: float, what: str) -> int:
        """The sender of the first new message that is `wanted`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.notify.settimeout(max(0.01, end - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                text, ancillary, _, _ = self.notify.recvmsg(4096, socket.CMSG_SPACE(12))
                pid: int = struct.unpack("iII", ancillary[0][2][:12])[0]
                self.heard.append((pid, text.decode()))
                if wanted(*self.heard[-1]):
                    return pid
        raise AssertionError(f"no {what}: {self.heard}\n{self.log()}")

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c",
                   "from haclusterd.cli.main import main; raise SystemExit(main())",
                   "--socket", str(self.folder / "run" / "haclusterd.sock"), *words]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"unit{os.getpid() % 10000}"
    run("ip", "netns", "add", name)
    try:
        for nic, address in (("hb", "10.97.0.1/24"), ("svc", "10.97.1.1/24")):
            peer = f"to-{nic}"
            run("ip", "-n", name, "link", "add", nic, "type", "veth", "peer", "name", peer)
            run("ip", "-n", name, "addr", "add", address, "dev", nic)
            run("ip", "-n", name, "link", "set", nic, "up")
            run("ip", "-n", name, "link", "set", peer, "arp", "off", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "del", name)


@pytest.fixture
def manager(namespace: str) -> Iterator[Manager]:
    """The daemon, started with the unit's rights in a folder that its user owns."""
    with tempfile.TemporaryDirectory(prefix="haclusterd-unit-") as name:
        folder = Path(name)
        for path in (folder, folder / "run", folder / "code", folder / "python"):
            path.mkdir(exist_ok=True)
            os.chown(path, USER_ID, USER_ID)
        (folder / "haclusterd.toml").write_text(CONFIG)
        create(load_cluster(folder / "haclusterd.toml"))
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        notify.bind(str(folder / "notify"))
        (folder / "notify").chmod(0o777)
        process = start(folder, namespace)
        try:
            yield Manager(folder, notify, process)
        finally:
            notify.close()
            for pid in run("ip", "netns", "pids", namespace).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            process.wait(10)


def start(folder: Path, namespace: str) -> subprocess.Popen[bytes]:
    """The user may not read where this runs from, so code and interpreter are mounted for it."""
    enter = (
        'mount --bind "$1" "$2/code" && mount --bind "$3" "$2/python" && shift 3 && '
        'export WATCHDOG_PID=$$ && exec "$@"'
    )
    rights = capabilities()
    python = f"{folder}/python/bin/python"
    command = [
        *("ip", "netns", "exec", namespace, "sh", "-c", enter, "sh"),
        *(str(ROOT), str(folder), sys.prefix),
        *("setpriv", f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups"),
        *(f"--inh-caps={rights}", f"--ambient-caps={rights}", f"--bounding-set={rights}"),
        *("--no-new-privs", python, "-m", "haclusterd", "--config", f"{folder}/haclusterd.toml"),
        *("--run-dir", f"{folder}/run"),
    ]
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": f"{folder}/code",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NOTIFY_SOCKET": f"{folder}/notify",
        "WATCHDOG_USEC": str(int(WATCHDOG_S * 1_000_000)),
    }
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd="/")


def holds(namespace: str) -> bool:
    return SERVICE_IP in run("ip", "-n", namespace, "addr", "show", "dev", "svc")


def fed(manager: Manager, pid: int, times: int) -> None:
    """The watchdog is fed by `pid`, in time."""
    for _ in range(times):
        manager.until(
            lambda who, text: who == pid and text == "WATCHDOG=1", WATCHDOG_S, f"WATCHDOG of {pid}"
        )


def status_of(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{key}:"))


def test_m8_the_unit_has_what_the_daemon_needs_and_it_tells_systemd(
    manager: Manager, namespace: str
) -> None:
    pid = manager.until(lambda _, text: text.startswith("READY=1"), 20, "READY")
    assert pid == manager.process.pid, "type notify: the process that was started"
    fed(manager, pid, 3)
    deadline = time.monotonic() + 10
    while not holds(namespace) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert holds(namespace), manager.log()

    # Nothing was refused to it, although it has no more than this.
    wanted = sum(1 << bit for bit in (5, 12, 13, 14, 23))
    assert int(status_of(pid, "CapEff"), 16) == int(status_of(pid, "CapBnd"), 16) == wanted
    assert status_of(pid, "Uid").split() == [str(USER_ID)] * 4
    assert os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
    assert status_of(pid, "VmLck") != "0 kB"
    assert "table netdev haclusterd_unit_n1" in run(
        "ip", "netns", "exec", namespace, "nft", "list", "tables"
    )
    told = manager.ctl("status", "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["alarms"] == []
    assert "refused" not in manager.log()

    # ExecReload. The successor is told to be the main process, and feeds the watchdog from then on.
    assert unit("ExecReload") == "haclusterctl upgrade"
    done = manager.ctl("upgrade")
    assert done.returncode == 0, done.stderr + manager.log()
    manager.until(lambda _, text: text.startswith("MAINPID="), 5, "MAINPID")
    successor = int(next(t for _, t in manager.heard if t.startswith("MAINPID=")).split("=")[1])
    assert successor != pid
    assert manager.process.wait(10) == 0
    fed(manager, successor, 3)
    assert holds(namespace)

    # ExecStop is a SIGTERM.
    os.kill(successor, signal.SIGTERM)
    manager.until(lambda who, text: who == successor and text == "STOPPING=1", 5, "STOPPING")
    end = time.monotonic() + float(unit("TimeoutStopSec"))
    while run("ip", "netns", "pids", namespace).split() and time.monotonic() < end:
        time.sleep(0.05)
    assert run("ip", "netns", "pids", namespace).split() == [], "all of it has ended"
    assert not holds(namespace)
