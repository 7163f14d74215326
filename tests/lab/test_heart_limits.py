"""haclusterd as it is started on a host that lacks something: real processes, nothing replaced.

Each case either refuses (status 1, the reason and its fix on stderr) or runs, says the same, and
its heartbeats reach the peer. Afterwards nothing of it is left on the host.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from haclusterd.config import load_cluster
from haclusterd.keys import create
from tests.lab.heart_net import inside, needs_root, run, two_hosts

pytestmark = [pytest.mark.lab, needs_root]

ROOT = Path(__file__).parents[2]
SERVICE = "10.9.0.50"
CONFIG = """
[cluster]
name = "limits"
quorum = "availability"
{more}
[[node]]
id = "n1"
links = ["10.9.0.1", "{second}"]
[[node]]
id = "n2"
links = ["10.9.0.2", "10.8.0.2"]
[[service]]
name = "east"
addresses = ["10.9.0.50/24 dev {nic}", "fd00:9::50/64 dev {nic}"]
preferred = "n1"
"""


@dataclass
class Host:
    """The host under test: namespace `name`, its peer's ear, files in `folder`."""

    name: str
    folder: Path
    ear: socket.socket

    def write(self, *, more: str = "", second: str = "10.8.0.1", nic: str = "eth0") -> None:
        config = self.folder / "haclusterd.toml"
        new = not config.exists()
        config.write_text(CONFIG.format(more=more, second=second, nic=nic))
        if new:
            create(load_cluster(config))

    def owned_by(self, user: str) -> None:
        account = pwd.getpwnam(user)
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid)

    def start(self, *prefix: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "haclusterd"]
        command += ["--config", str(self.folder / "haclusterd.toml"), "--node", "n1"]
        command += ["--run-dir", str(self.folder / "run")]
        with (self.folder / "stderr").open("w") as stderr:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *prefix, *command],
                stderr=stderr, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            )  # fmt: skip

    def said(self) -> str:
        return (self.folder / "stderr").read_text()

    def beats(self, seconds: float) -> int:
        """Heartbeats that the peer hears meanwhile."""
        self.ear.setblocking(False)
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            try:
                self.ear.recv(2000)
                count += 1
            except BlockingIOError:
                time.sleep(0.01)
        return count

    def serves(self) -> bool:
        return f" {SERVICE}/" in run("ip", "-n", self.name, "addr")

    def left_behind(self) -> list[str]:
        """What haclusterd put on this host and did not take away."""
        shown = {
            "table": run("ip", "netns", "exec", self.name, "nft", "list", "tables"),
            "rule": run("ip", "-n", self.name, "rule") + run("ip", "-n", self.name, "-6", "rule"),
            "address": run("ip", "-n", self.name, "addr"),
        }
        signs = {"table": "haclusterd", "rule": "prohibit", "address": r"::50/|\.50/"}
        found = [f"{what}: {text}" for what, text in shown.items() if re.search(signs[what], text)]
        found += [str(path) for path in (self.folder / "run").glob("*.sock")]
        found += [str(path) for path in (self.folder / "run").glob("*.pid")]
        return found + run("ip", "netns", "pids", self.name).split()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    # Not below pytest's own folder, which only root may enter.
    folder = Path("/run") / f"heartl{os.getpid()}"
    folder.mkdir()
    try:
        with two_hosts(f"heartl{os.getpid() % 10000}") as (left, right):
            run("ip", "-n", left, "link", "add", "hb1", "type", "veth",
                "peer", "name", "hb1", "netns", right)  # fmt: skip
            for number, name in enumerate((left, right), 1):
                run("ip", "-n", name, "addr", "add", f"10.8.0.{number}/24", "dev", "hb1")
                run("ip", "-n", name, "link", "set", "hb1", "up")
            with inside(right):
                ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                ear.bind(("10.9.0.2", 7800))
            host = Host(left, folder, ear)
            host.write()
            yield host
            for pid in run("ip", "netns", "pids", left).split():
                os.kill(int(pid), signal.SIGKILL)
    finally:
        shutil.rmtree(folder)


def without(*capabilities: str) -> tuple[str, ...]:
    return ("setpriv", f"--bounding-set={','.join('-' + name for name in capabilities)}")


# It may read everything, so that it can use a Python and a work tree which are root's.
NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups",
          "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")  # fmt: skip


def as_nobody(host: Host) -> None:
    host.owned_by("nobody")


def locked_folder(host: Host) -> None:
    (host.folder / "run").mkdir(mode=0o555)


def file_in_the_way(host: Host) -> None:
    (host.folder / "run").touch()


def fast(host: Host) -> None:
    host.write(more='preset = "fast"')


def taken(*addresses: str) -> Callable[[Host], None]:
    def take(host: Host) -> None:
        with inside(host.name):
            for address in addresses:
                busy = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                busy.bind((address, 7800))
                _busy.append(busy)

    return take


_busy: list[socket.socket] = []


def nothing(host: Host) -> None:
    return


@pytest.mark.parametrize(
    ("prefix", "prepare", "reasons"),
    [
        pytest.param(NOBODY, as_nobody, ["CAP_NET_ADMIN"], id="plain user"),
        pytest.param(NOBODY, locked_folder, ["n1.pid", "--run-dir"], id="folder not writable"),
        pytest.param((), file_in_the_way, ["run", "--run-dir"], id="a file as run-dir"),
        pytest.param(without("net_admin"), nothing, ["CAP_NET_ADMIN"], id="no CAP_NET_ADMIN"),
        pytest.param(
            without("sys_nice"), fast, ["fast", "CAP_SYS_NICE"], id="fast, no CAP_SYS_NICE"
        ),
        pytest.param((), taken("10.9.0.1", "10.8.0.1"), ["7800", "ss -lunp"], id="ports taken"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(
    host: Host, prefix: tuple[str, ...], prepare: Callable[[Host], None], reasons: list[str]
) -> None:
    prepare(host)
    assert host.start(*prefix).wait(15) == 1
    said = host.said()
    print(said)
    assert "Traceback" not in said
    for reason in reasons:
        assert reason in said
    assert host.left_behind() == []


def second_link_elsewhere(host: Host) -> None:
    host.write(second="10.7.0.1")


def other_nic(host: Host) -> None:
    host.write(nic="eth7")


@pytest.mark.parametrize(
    ("prefix", "prepare", "reasons", "serves"),
    [
        pytest.param((), nothing, [], True, id="nothing lacks, run-dir is made"),
        pytest.param(without("net_raw"), nothing, ["CAP_NET_RAW"], True, id="no CAP_NET_RAW"),
        pytest.param(without("sys_nice"), nothing, ["CAP_SYS_NICE"], True, id="no CAP_SYS_NICE"),
        pytest.param(
            ("prlimit", "--memlock=65536", *without("ipc_lock")),
            nothing, ["CAP_IPC_LOCK"], True, id="no CAP_IPC_LOCK",
        ),
        pytest.param((), taken("10.8.0.1"), ["7800", "ss -lunp"], True, id="a port taken"),
        pytest.param(
            (), second_link_elsewhere, ["10.7.0.1", "give this host the address"], True,
            id="a link address of another host",
        ),
        pytest.param((), other_nic, ["eth7: no such NIC"], False, id="no service NIC"),
    ],
)  # fmt: skip
def test_what_can_go_on_does_and_says_what_lacks(
    host: Host, prefix: tuple[str, ...], prepare: Callable[[Host], None], reasons: list[str],
    serves: bool,
) -> None:  # fmt: skip
    prepare(host)
    process = host.start(*prefix)
    for _try in range(100):
        if host.beats(0.1):
            break
    assert process.poll() is None, host.said()
    assert host.beats(1.5) > 20
    end = time.monotonic() + (10 if serves else 0)
    while not host.serves() and time.monotonic() < end:
        time.sleep(0.1)  # a busy machine takes its time to start the agent
    assert host.serves() is serves
    process.terminate()
    code = process.wait(15)
    said = host.said()
    print(said)
    assert code == 0
    assert "Traceback" not in said
    for reason in reasons:
        assert reason in said
    assert host.left_behind() == []
