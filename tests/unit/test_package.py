"""What the package brings fits together: version, unit, drop-in, example, README."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from haclusterd import __version__
from haclusterd.cli.main import command_line, main
from haclusterd.config import load_cluster

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "debian" / "haclusterd.service"
DROP_IN = ROOT / "fs_conf" / "systemd" / "freeswitch.service.d" / "haclusterd.conf"
EXPOSURE_MAX = 3.0

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing: systemd"
)


def test_the_changelog_of_the_package_has_this_version() -> None:
    first = (ROOT / "debian" / "changelog").read_text().splitlines()[0]
    assert first.startswith(f"haclusterd ({__version__}) ")


def test_the_example_is_right_and_is_the_readmes(capsys: pytest.CaptureFixture[str]) -> None:
    example = ROOT / "docs" / "example.toml"
    assert main(["config", "check", "--config", str(example)]) == 0
    (shown,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert shown == example.read_text()
    section = load_cluster(example).freeswitch
    assert section is not None
    folder = section.core_db.parent
    assert f"ReadWritePaths=-{folder.parent}\n" in UNIT.read_text()
    assert f"'cd {folder} && {{ [ -e {section.core_db.name} ]" in DROP_IN.read_text()


@needs_systemd
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    commands = {"Start=haclusterd\n": "Start=/bin/true\n", "=haclusterctl ": "=/bin/true "}
    text = UNIT.read_text()
    for found, put in commands.items():
        assert found in text
        text = text.replace(found, put)
    (tmp_path / UNIT.name).write_text(text)
    switch = tmp_path / "freeswitch.service"
    switch.write_text("[Service]\nType=forking\nExecStart=/bin/true\n")
    (tmp_path / f"{switch.name}.d").mkdir()
    shutil.copy(DROP_IN, tmp_path / f"{switch.name}.d")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name), str(switch)],
        capture_output=True, text=True, check=False, env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_unit_is_not_exposed(tmp_path: Path) -> None:
    words = ["systemd-analyze", "security", "--offline=true", "--json=short", "--no-pager"]
    done = subprocess.run([*words, str(UNIT)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout), done.stderr
    plain = subprocess.run(
        [word for word in words if "json" not in word] + [str(UNIT)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (score,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", plain.stdout)
    assert float(score) <= EXPOSURE_MAX


def calls_of(group: str) -> set[str]:
    """The system calls of a group like @process, with those of the groups in it."""
    words = ["systemd-analyze", "syscall-filter", group]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found: set[str] = set()
    for line in listed.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            found |= calls_of(word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found


@needs_systemd
def test_the_unit_allows_what_a_trace_of_the_daemon_showed() -> None:
    """Those of its calls (strace, heart and agent through takeovers) that are not everybody's."""
    allowed = calls_of("@default")
    for line in re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.M):
        named: set[str] = set()
        for word in line.removeprefix("~").split():
            named |= calls_of(word) if word.startswith("@") else {word}
        allowed = allowed - named if line.startswith("~") else allowed | named
    used = {"mlockall", "sched_setscheduler", "madvise", "pidfd_open", "pidfd_send_signal", "kill",
            "fchmod", "flock", "fdatasync", "sendmsg", "recvmsg", "setsid", "prctl", "capset",
            "pwrite64", "ftruncate", "rename", "link", "unlink", "getrandom", "clone"}  # fmt: skip
    assert used <= allowed
    assert not allowed & {"mount", "ptrace", "setuid", "chown", "bpf", "init_module"}


def test_a_stop_of_freeswitch_is_bounded_whatever_haclusterd_does() -> None:
    """DESIGN 2.7: hand-over's own bound < the hard one < systemd's patience with the unit."""
    text = DROP_IN.read_text()
    stops = re.findall(r"^ExecStop=(.*)$", text, re.M)
    assert stops[0] == "", "commands of the unit itself come later, or calls are hung up first"
    words = stops[1].split()
    assert words[0] == "-sh", "a failure is no reason not to stop"
    hard = float(words[words.index("timeout") + 3])
    (command,) = re.findall(r"haclusterctl ([^']*)'", stops[1])
    own = command_line().parse_args(command.split())
    (patience,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.M)
    assert own.command == "hand-over"
    assert own.within < hard < float(patience)
    assert "LimitCORE=0\n" in text
