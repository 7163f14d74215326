"""`doctor`: each check finds its fault, names its fix, and needs neither daemon nor FreeSWITCH."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from haclusterd import config as configuration
from haclusterd import keys
from haclusterd.cli.checks import Check, HostProbe, host_checks
from haclusterd.cli.checks_freeswitch import (
    core_db_check,
    facts_checks,
    freeswitch_checks,
    process_checks,
)
from haclusterd.cli.checks_peers import peer_checks
from haclusterd.cli.checks_unit import SYSTEMD, unit_checks
from haclusterd.cli.doctor import examine
from haclusterd.cli.main import main
from haclusterd.config import Config
from haclusterd.freeswitch.esl import EslSettings
from haclusterd.freeswitch.esl_errors import EslError
from haclusterd.freeswitch.profiles import FreeswitchFacts, ProfileState
from haclusterd.heart.fallback import RuleFence

pytestmark = pytest.mark.timeout(20)

CONFIG = """
[cluster]
name = "voice1"
[freeswitch]
esl_port = 9
core_db = "core.db"
pid_file = "fs.pid"
[[node]]
id = "fs-a"
links = ["10.99.0.1", "10.98.0.1"]
[[node]]
id = "fs-b"
links = ["10.99.0.2", "10.98.0.2"]
[[node]]
id = "fs-c"
links = ["10.99.0.3", "10.98.0.3"]
[[service]]
name = "east"
addresses = ["203.0.113.10/24 dev eth0", "2001:db8::10/64 dev eth0"]
profiles = ["east"]
"""
ALL_CAPABILITIES = "Name:\thaclusterd\nCapEff:\t000001ffffffffff\n"


class FakeHost(HostProbe):
    """A fit host; tests break one thing at a time."""

    def __init__(self) -> None:
        self.files = {
            "/proc/sys/net/ipv4/ip_nonlocal_bind": "1",
            "/proc/sys/net/ipv6/ip_nonlocal_bind": "1",
            "/proc/self/status": ALL_CAPABILITIES,
            "/sys/class/net/eth0": "",
        }
        self.nft: str | None = "/usr/sbin/nft"
        self.nft_says = (0, "")
        self.unit_says = (0, "")
        self.local = ["127.0.0.1", "10.99.0.1", "10.98.0.1"]
        self.reach = "up"
        self.silent: set[str] = set()
        self.synchronised: bool | None = True

    def read(self, path: str) -> str:
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.files[path]

    def exists(self, path: str) -> bool:
        return path in self.files

    def command(self, name: str) -> str | None:
        return self.nft

    def run(self, words: list[str], stdin: str = "") -> tuple[int, str]:
        if words[1] == "show":
            return self.unit_says
        assert "--check" in words, "doctor looks and changes nothing"
        return self.nft_says

    def addresses(self) -> list[str]:
        return self.local

    def connect(self, own: str, peer: str, port: int) -> str:
        return "silent" if peer in self.silent else self.reach

    def clock_synchronised(self) -> bool | None:
        return self.synchronised


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    keys.create(configuration.load_cluster(path))
    (tmp_path / "esl.password").write_text("ClueCon")
    (tmp_path / "esl.password").chmod(0o600)
    return configuration.load(path, node="fs-a")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    monkeypatch.setattr("haclusterd.cli.checks.os.geteuid", lambda: 0)
    return FakeHost()


def found(config: Config, host: FakeHost, name: str, pid: int | None = None) -> Check:
    return next(check for check in host_checks(config, host, pid) if check.name == name)


@pytest.mark.parametrize(
    ("said", "state"),
    [("LoadState=loaded\nExecStop={ path=/bin/sh ; argv[]=sh -c haclusterctl hand-over }", "ok"),
     ("LoadState=loaded\nExecStop={ argv[]=freeswitch -stop }", "warning"),
     ("LoadState=not-found\n", "skipped")],
)  # fmt: skip
def test_a_unit_that_would_hang_up_every_call_is_told(
    host: FakeHost, said: str, state: str
) -> None:
    assert list(unit_checks(host)) == [], "no systemd"
    host.files[SYSTEMD] = ""
    host.unit_says = (0, said)
    (check,) = unit_checks(host)
    assert check.state == state
    assert bool(check.fix) == (state == "warning")


def test_a_fit_host_passes(config: Config, host: FakeHost) -> None:
    checks = list(host_checks(config, host, None))
    assert {check.state for check in checks} == {"ok"}
    assert all(not check.fix for check in checks)
    assert {c.name for c in checks} == {
        "keys", "certificates", "links", "service NICs", "nf_tables", "capabilities", "clock",
        "net.ipv4.ip_nonlocal_bind", "net.ipv6.ip_nonlocal_bind", "ESL password",
    }  # fmt: skip


def test_nonlocal_bind(config: Config, host: FakeHost) -> None:
    host.files["/proc/sys/net/ipv6/ip_nonlocal_bind"] = "0"
    check = found(config, host, "net.ipv6.ip_nonlocal_bind")
    assert check.state == "failed"
    assert "sysctl -w net.ipv6.ip_nonlocal_bind=1" in check.fix
    assert found(config, host, "net.ipv4.ip_nonlocal_bind").state == "ok"


def test_a_missing_fence_is_a_warning_with_its_price(config: Config, host: FakeHost) -> None:
    host.nft_says = (1, "Error: Could not process rule: Not supported")
    check = found(config, host, "nf_tables")
    assert check.state == "warning"
    assert f"{RuleFence.overlap_bound_ms} ms" in check.text
    host.nft_says = (137, "")  # killed, or it says nothing: no traceback of doctor's
    assert "nft ended with status 137" in found(config, host, "nf_tables").text
    host.nft = None
    assert found(config, host, "nf_tables").fix == "apt install nftables"


def test_capabilities_of_the_daemon_if_it_runs(config: Config, host: FakeHost) -> None:
    host.files["/proc/77/status"] = "CapEff:\t0000000000003000\n"
    check = found(config, host, "capabilities", 77)
    assert check.state == "warning"
    assert "pid 77" in check.text
    assert "CAP_SYS_NICE" in check.text
    host.files["/proc/77/status"] = "CapEff:\t0000000000000000\n"
    check = found(config, host, "capabilities", 77)
    assert check.state == "failed"
    assert "CAP_NET_ADMIN" in check.text


def test_links_and_peers(config: Config, host: FakeHost) -> None:
    host.local = ["10.99.0.1"]
    check = found(config, host, "links")
    assert (check.state, "10.98.0.1" in check.text) == ("failed", True)
    host.silent = {"10.98.0.2"}
    assert peer(config, host).state == "warning"
    host.silent = {"10.98.0.2", "10.99.0.2"}
    check = peer(config, host)
    assert check.state == "failed"
    assert "TCP 7801, UDP 7800" in check.fix
    host.silent, host.reach = set(), "refused"
    assert peer(config, host).fix == "start haclusterd on fs-b"


def peer(config: Config, host: FakeHost, *links: tuple[bool, str]) -> Check:
    """What doctor says of fs-b; `links`: (up, unreadable) as the daemon here has it, if it runs."""
    addresses = zip(("10.99.0.2", "10.98.0.2"), links, strict=False)
    shown = [{"address": a, "up": up, "unreadable": why} for a, (up, why) in addresses]
    status = {"nodes": [{"id": "fs-b", "links": shown}]} if links else None
    return next(c for c in peer_checks(config, host, status) if c.name == "peer fs-b")


def test_a_peer_answers_when_beats_pass_both_ways(config: Config, host: FakeHost) -> None:
    assert peer(config, host).state == "skipped", "a listening port is no proof"
    assert peer(config, host, (True, ""), (True, "")).state == "ok"
    check = peer(config, host, (True, ""), (False, ""))
    assert (check.state, "10.98.0.2" in check.text) == ("warning", True)
    check = peer(config, host, (False, ""), (False, ""))
    assert (check.state, "listens" in check.text) == ("failed", True)
    assert "UDP 7800" in check.fix
    host.reach = "refused"
    assert peer(config, host, (False, ""), (False, "")).fix == "start haclusterd on fs-b"


def test_a_peer_whose_beats_cannot_be_read_fails(config: Config, host: FakeHost) -> None:
    check = peer(config, host, (False, "bad mac"), (False, "bad mac"))
    assert check.state == "failed"
    assert "10.99.0.2 (bad mac)" in check.text
    assert "sha256sum" in check.fix


def test_files_nics_and_clock(config: Config, host: FakeHost) -> None:
    (config.key_file.parent / "fs-a.key").chmod(0o644)
    check = found(config, host, "keys")
    assert check.state == "failed"
    assert check.fix.startswith("chmod 600")
    assert config.freeswitch is not None
    config.freeswitch.esl_password_file.chmod(0o640)
    assert found(config, host, "ESL password").state == "ok", "its group is FreeSWITCH's"
    config.freeswitch.esl_password_file.chmod(0o644)
    assert found(config, host, "ESL password").fix.startswith("chmod 640")
    config.freeswitch.esl_password_file.unlink()
    assert found(config, host, "ESL password").state == "failed"
    del host.files["/sys/class/net/eth0"]
    assert "eth0 does not exist" in found(config, host, "service NICs").text
    host.synchronised = False
    assert found(config, host, "clock").state == "warning"


@pytest.mark.parametrize(
    ("days_left", "state", "says"),
    [(31, "ok", "the first to end is"), (29, "warning", "fs-a.crt ends in 28 days, on 20"),
     (0, "failed", "fs-a.crt ended on 20")],
)  # fmt: skip
def test_a_certificate_that_ends_is_named_with_its_file(
    config: Config,
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    days_left: int,
    state: str,
    says: str,
) -> None:
    for name in ("fs-a.crt", "fs-a.key"):
        (config.key_file.parent / name).unlink()
    monkeypatch.setattr("haclusterd.certificates.CERTIFICATE_DAYS", days_left + 1)  # one is past
    keys.create(configuration.load_cluster(config.path))
    check = found(config, host, "certificates")
    assert (check.state, says in check.text) == (state, True), check
    assert "keys rotate" in check.fix or state == "ok"
    assert found(config, host, "keys").state == "ok", "it is whole, and the rest is another check"


LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max core file size        {}                    unlimited            bytes
"""


def test_core_dumps_and_the_process(config: Config, host: FakeHost) -> None:
    assert config.freeswitch is not None
    section = config.freeswitch
    assert [c.state for c in process_checks(section, host)] == ["failed"]
    host.files[str(section.pid_file)] = "4711"
    host.files["/proc/4711/limits"] = LIMITS.format("0")
    assert [c.state for c in process_checks(section, host)] == ["ok", "ok"]
    host.files["/proc/4711/limits"] = LIMITS.format("unlimited")
    check = list(process_checks(section, host))[1]
    assert (check.state, check.fix) == ("warning", "set LimitCORE=0 in FreeSWITCH's unit")


@pytest.mark.parametrize(
    ("robust", "profile", "states"),
    [
        (True, ProfileState("east", "RUNNING (0)", True, True), ["ok", "ok"]),
        (False, ProfileState("east", "RUNNING (0)", True, True), ["failed", "ok"]),
        (None, ProfileState("east", "RUNNING (0)", None, None), ["skipped", "ok"]),
        (True, ProfileState("east", "RUNNING (0)", False, True), ["ok", "failed"]),
        (True, ProfileState("east", "RUNNING (0)", True, False), ["ok", "failed"]),
        (True, ProfileState("east", "RUNNING (0)", True, True, True), ["ok", "failed"]),
        (True, ProfileState("east", "", None, None), ["ok", "failed"]),
        (True, ProfileState("east", "FAILED", None, None), ["ok", "failed"]),
    ],
)
def test_freeswitchs_own_settings(
    robust: bool | None, profile: ProfileState, states: list[str]
) -> None:
    checks = list(facts_checks(FreeswitchFacts("v", "u", "n", robust, (profile,))))
    assert [check.state for check in checks] == states
    assert all(bool(check.fix) == (check.state == "failed") for check in checks)


async def test_it_logs_in_with_the_password_that_the_daemon_uses(
    config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line of the file: more lines may follow."""
    used: list[str] = []

    def connection(settings: EslSettings, **_: object) -> None:
        used.append(settings.password)
        raise EslError("none here")

    monkeypatch.setattr("haclusterd.cli.checks_freeswitch.EslConnection", connection)
    assert config.freeswitch is not None
    config.freeswitch.esl_password_file.write_text(" secret \n# of event_socket.conf.xml\n")
    await freeswitch_checks(config, host)
    assert used == ["secret"]
    config.freeswitch.esl_password_file.write_text("\nsecret\n")
    (check,) = [c for c in await freeswitch_checks(config, host) if c.name == "ESL"]
    assert (check.state, "first line is empty" in check.text) == ("failed", True)
    assert len(used) == 1


def test_core_db(tmp_path: Path) -> None:
    path = tmp_path / "core.db"
    check = core_db_check(path)
    assert check.state == "failed"
    assert "core_db in [freeswitch]" in check.fix
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other(x)")
    assert "has no table recovery" in core_db_check(path).text
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recovery(uuid, metadata)")
    assert core_db_check(path).state == "ok"
    path.write_text("this is no database at all, whatever its name says")
    assert core_db_check(path).state == "failed"


def test_everything_is_looked_at_with_daemon_and_freeswitch_down(
    config: Config, host: FakeHost
) -> None:
    checks = examine(config.path, "fs-a", config.path.parent / "none.sock", host)
    states = {check.name: check.state for check in checks}
    assert states["config"] == "ok"
    assert states["FreeSWITCH"] == "failed"
    assert states["ESL"] == "failed"
    assert states["core.db"] == "failed"
    assert states["daemon"] == "warning"
    assert all(check.fix for check in checks if check.state in ("failed", "warning"))


def test_the_exit_code_and_json(
    config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("haclusterd.cli.doctor.HostProbe", lambda: host)
    words = ["doctor", "--config", str(config.path), "--node", "fs-a"]
    assert main([*words, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is False
    assert set(printed["checks"][0]) == {"name", "state", "text", "fix"}
    config.path.write_text(CONFIG.partition("[freeswitch]")[0] + CONFIG[CONFIG.index("[[node]]") :])
    assert main(words) == 0
    assert "addresses only" in capsys.readouterr().out
    config.path.write_text("[cluster]\n")
    assert main(words) == 1
    assert "to do:" in capsys.readouterr().out


def test_the_real_probe_answers_on_this_host() -> None:
    probe = HostProbe()
    assert "127.0.0.1" in probe.addresses()
    assert "CapEff" in probe.read("/proc/self/status")
    assert probe.connect("127.0.0.1", "127.0.0.1", 9) == "refused"
    assert probe.run(["/nonexistent"])[0] == -1
    assert probe.clock_synchronised() in (True, False, None)
