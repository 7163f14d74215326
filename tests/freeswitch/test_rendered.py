"""What `fs-conf render` writes makes a plain FreeSWITCH a node, as its operator would see it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from haclusterd.lab import freeswitch, netns
from haclusterd.lab.esl_blocking import BlockingEsl, EslRefused
from tests.freeswitch.rig import eventually

pytestmark = pytest.mark.freeswitch

PASSWORD = "of this node"
PROFILES = {
    "east": "203.0.113.10:5060",
    "east6": "[2001:db8::10]:5060",
    "east-trunk": "203.0.113.10:5080",
    "west": "203.0.113.11:5060",
}
GATEWAY = """<include>
  <gateway name="carrier">
    <param name="username" value="u"/>
    <param name="password" value="p"/>
    <param name="proxy" value="192.0.2.9"/>
  </gateway>
</include>
"""
CONFIG = """
[cluster]
name = "rendered"
[freeswitch]
core_db = "{folder}/db/core.db"
pid_file = "{folder}/run/freeswitch.pid"
[[node]]
id = "fs-a"
links = ["10.78.0.1"]
[[service]]
name = "east"
addresses = ["203.0.113.10/24 dev svc", "2001:db8::10/64 dev svc"]
profiles = ["east", "east6", "east-trunk"]
[[service]]
name = "west"
addresses = ["203.0.113.11/24 dev svc"]
profiles = ["west"]
"""


@dataclass
class Host:
    """One node's FreeSWITCH, with its configuration as it was rendered."""

    namespace: str
    folder: Path

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        config = str(self.folder / "etc" / "haclusterd.toml")
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace, sys.executable, "-m", "haclusterd.cli.main",
             *words, "--config", config],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def api(self, command: str) -> str:
        with BlockingEsl(8021, PASSWORD, namespace=self.namespace, timeout_s=5) as connection:
            return connection.api(command)

    def running(self) -> dict[str, str]:
        try:
            lines = self.api("sofia status").splitlines()
        except (OSError, EslRefused):
            return {}
        return {line.split()[0]: line for line in lines if "RUNNING" in line}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    if reason := netns.why_not():
        pytest.skip(reason)
    try:
        binary = freeswitch.find_binary()
    except netns.LabError as error:
        pytest.skip(str(error))
    namespace = f"{netns.own_name()}-rendered"
    netns.ip("netns", "add", namespace)
    try:
        lines = ["link set lo up", "link add svc type veth peer name to-svc", "link set svc up",
                 "link set to-svc up", "addr add 10.78.0.1/24 dev svc"]  # fmt: skip
        netns.ip(batch=lines, namespace=namespace)
        netns.sysctl(namespace, {"ipv4/ip_nonlocal_bind": 1, "ipv6/ip_nonlocal_bind": 1})
        made = Host(namespace, tmp_path)
        for name in ("etc", "db", "run", "log", "tmp"):
            (tmp_path / name).mkdir()
        (tmp_path / "etc" / "haclusterd.toml").write_text(CONFIG.format(folder=tmp_path))
        password = tmp_path / "etc" / "esl.password"
        password.write_text(f"{PASSWORD}\n")
        password.chmod(0o640)
        done = made.ctl("fs-conf", "render", "--output", str(tmp_path / "conf"))
        assert done.returncode == 0, done.stderr
        (tmp_path / "conf" / "gateways" / "east" / "carrier.xml").write_text(GATEWAY)
        places = {"-conf": "conf", "-db": "db", "-log": "log", "-run": "run", "-temp": "tmp"}
        words = [word for key, name in places.items() for word in (key, str(tmp_path / name))]
        with netns.inside(namespace):
            process = subprocess.Popen(
                ["sh", "-c", 'ulimit -c 0; exec "$@"', "sh", str(binary), "-nf", "-nc", "-nonat",
                 *words],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            yield made
        finally:
            process.kill()
            process.wait()
    finally:
        netns.kill_inside([namespace])
        netns.delete([namespace])


def test_a_rendered_freeswitch_is_a_node(host: Host) -> None:
    eventually(lambda: set(host.running()) == set(PROFILES), "all profiles", 30)
    for name, line in host.running().items():
        assert f"mod_sofia@{PROFILES[name]}" in line
    assert "carrier" in host.api("sofia status gateway")
    assert host.ctl("keys", "create").returncode == 0

    told = host.ctl("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(told.stdout)["checks"]}
    bad = {name for name, check in checks.items() if check["state"] in ("failed", "warning")}
    # What haclusterd itself and the host's clock are, is not FreeSWITCH's matter.
    assert bad <= {"daemon", "clock"}, told.stdout
    assert {f"profile {name}" for name in PROFILES} <= set(checks)
    assert checks["ESL"]["state"] == checks["core.db"]["state"] == "ok"

    log = (host.folder / "log" / "freeswitch.log").read_text()
    assert [line for line in log.splitlines() if "[ERR" in line or "[CRIT" in line] == []


def test_codecs_that_are_asked_for_are_there(host: Host) -> None:
    eventually(lambda: set(host.running()) == set(PROFILES), "all profiles", 30)
    wanted = host.api("global_getvar global_codec_prefs").split(",")
    known = host.api("show codecs as delim |").upper()
    spoken = {"PCMU": "G.711 ULAW", "PCMA": "G.711 ALAW"}
    for codec in wanted:
        assert spoken.get(codec, codec) in known
