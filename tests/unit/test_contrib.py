"""What is shipped for monitoring: no metric that is not there, rules that promtool takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from haclusterd.agent.metrics import CATALOG, PREFIX

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "contrib" / "prometheus"
RULES = PROMETHEUS / "haclusterd.rules.yml"
DASHBOARD = ROOT / "contrib" / "grafana" / "haclusterd.json"
_SUFFIX = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
SERIES = {f"{PREFIX}_{m.name}{suffix}": m for m in CATALOG for suffix in _SUFFIX[m.kind]}
_ABSENT = "" if shutil.which("promtool") else (
    "no promtool: apt-get install prometheus (scripts/prepare web)"
)  # fmt: skip
needs_promtool = pytest.mark.skipif(bool(_ABSENT), reason=_ABSENT)


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def expressions() -> Iterator[str]:
    """Every query of the dashboard, the cluster's name filled in."""
    found = dashboard()
    for panel in found["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (one["expr"] for one in found["annotations"]["list"])


@pytest.mark.parametrize("path", [RULES, DASHBOARD, PROMETHEUS / "haclusterd.test.yml"])
def test_every_metric_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(rf"\b{PREFIX}_\w+", path.read_text()))
    assert len(named) >= 5
    assert named - set(SERIES) == set()


@pytest.mark.parametrize("path", [RULES, DASHBOARD])
def test_every_label_that_is_selected_exists(path: Path) -> None:
    text = path.read_text().replace('\\"', '"')
    for name, selector in re.findall(rf"\b({PREFIX}_\w+)\{{([^}}]*)\}}", text):
        labels = set(re.findall(r"(\w+)\s*[=!]", selector))
        assert labels <= {"job", *SERIES[name].labels}, name


def test_every_metric_of_use_is_watched() -> None:
    """A metric that neither a rule nor the dashboard shows was left out on purpose: here."""
    text = RULES.read_text() + DASHBOARD.read_text()
    unused = {m.name for m in CATALOG if f"{PREFIX}_{m.name}" not in text}
    assert unused == {
        "voters_reachable",
        "node_health",
        "service_state",
        "node_sync_state",
        "link_socket",
        "peer_datagrams",
        "events",
    }


def test_every_alert_says_what_to_do() -> None:
    alerts = re.split(r"- alert: ", RULES.read_text())[1:]
    assert len(alerts) >= 15
    for alert in alerts:
        assert all(f"{key}: " in alert for key in ("severity", "summary", "action")), alert
    commands = set(re.findall(r"haclusterctl ([a-z-]+)", RULES.read_text()))
    from haclusterd.cli.main import main

    for command in sorted(commands):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0, command


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"])
               for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert not own & cells
        assert at["x"] + at["w"] <= 24
        cells |= own


def promtool(*words: str) -> str:
    done = subprocess.run(
        ["promtool", *words], capture_output=True, text=True, check=False, cwd=PROMETHEUS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_takes_the_rules() -> None:
    count = len(re.findall(r"- alert: ", RULES.read_text()))
    assert f"{count} rules found" in promtool("check", "rules", str(RULES))


@needs_promtool
def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", "haclusterd.test.yml")


@needs_promtool
def test_promtool_takes_the_queries_of_the_dashboard() -> None:
    lines = ["groups:", "- name: dashboard", "  rules:"]
    for number, text in enumerate(expressions()):
        filled = text.replace("$job", "voice1")
        lines += [f"  - record: q{number}", f"    expr: {json.dumps(filled)}"]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        assert f"{len(lines) // 2 - 1} rules found" in promtool("check", "rules", file.name)
