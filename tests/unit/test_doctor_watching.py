"""`doctor` reads sensors once and looks at movers; nothing is moved."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from haclusterd.cli.checks import Check
from haclusterd.cli.checks_watching import watching_checks
from haclusterd.config.watching import Sensor
from tests.unit.test_agent_sensors import config_of
from tests.unit.test_movers import Cloud
from tests.unit.test_sensor_readings import SENSOR

pytestmark = pytest.mark.timeout(30)


def checked(folder: Path, *sensors: Sensor) -> list[Check]:
    return asyncio.run(watching_checks(config_of(folder, *sensors)))


@pytest.mark.parametrize(
    ("script", "state"), [("exit 0", "ok"), ("exit 1", "warning"), ("exit 2", "warning"),
                          ("exit 3", "skipped")],
)  # fmt: skip
def test_a_sensor_is_read_once(tmp_path: Path, script: str, state: str) -> None:
    """An ill host is a warning: it is a node all the same."""
    sensor = replace(SENSOR, name="x", kind="exec", exec=("/bin/sh", "-c", f"echo so; {script}"))
    (check,) = checked(tmp_path, sensor)
    assert (check.name, check.state, check.text) == ("sensor x", state, "so")
    assert bool(check.fix) == (state != "ok")


def test_what_needs_the_daemon_is_left_to_it(tmp_path: Path) -> None:
    sensors = [
        SENSOR,
        replace(SENSOR, name="y", kind="gateway"),
        replace(SENSOR, name="z", kind="options", target="self"),
        replace(SENSOR, name="other", kind="load", nodes=("fs-b",)),
    ]
    checks = checked(tmp_path, *sensors)
    assert [(c.state, "haclusterctl status" in c.text) for c in checks] == [("skipped", True)] * 3


def doctor(cloud: Cloud, **changes: tuple[str, ...]) -> list[Check]:
    config = cloud.config()
    mover = replace(config.movers[0], **changes)  # type: ignore[arg-type]
    return asyncio.run(watching_checks(replace(config, movers=(mover,))))


def test_a_mover_is_only_asked(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    cloud.script("dry", "echo 'may assign'")
    checks = doctor(cloud, mover_dry_run=(str(tmp_path / "dry"),))
    assert [(c.name, c.state, c.text) for c in checks] == [
        ("mover east dry-run", "ok", "may assign"),
        ("mover east check", "ok", "exit status 1"),
    ]
    assert cloud.log == ["dry-run 0", "check 0"]
    assert cloud.at == ""


def test_a_dry_run_that_fails_names_what_it_said(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    cloud.script("dry", "echo 'UnauthorizedOperation'; exit 254")
    dry, _ = doctor(cloud, mover_dry_run=(str(tmp_path / "dry"),))
    assert (dry.state, dry.text) == ("failed", "exit status 254: UnauthorizedOperation")
    assert "docs/movers.md" in dry.fix


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("/nonexistent/x", "not there"),
        ("/etc/passwd", "not executable"),
        ("no-such-program", "not on the PATH"),
    ],
)
def test_commands_that_cannot_be_run(tmp_path: Path, word: str, reason: str) -> None:
    (check,) = doctor(Cloud(tmp_path), mover_add=(word,))
    assert check.state == "failed"
    assert "mover_add" in check.text
    assert reason in check.text
