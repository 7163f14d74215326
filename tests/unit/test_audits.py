"""Audits: what the documentation names is there, and what is there is documented and tested.

Each list below is compared with the code's own; who adds a path, a metric or an event is told by a
failing test to say here what it has to answer.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from haclusterd.agent import http_events, metrics, page, schema, status
from haclusterd.agent.clock import now_us
from haclusterd.agent.commands import Commands
from haclusterd.agent.routes import FEED, Routes
from haclusterd.config import reference
from haclusterd.config.notices import EVENTS
from haclusterd.core.view import AlarmView, LinkTally, PeerTally, View
from tests.fixtures.agent_parts import spec, view
from tests.fixtures.agent_source import FakeSource

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

# Path -> type of the answer, code for the master of east, code before heart's first word.
PATHS = {
    "/": ("text/html", 200, 200),
    "/status": ("application/json", 200, 503),
    "/history": ("application/json", 200, 200),
    "/metrics": ("text/plain; version=0.0.4", 200, 503),
    "/live": ("text/plain", 200, 200),
    "/ready": ("text/plain", 200, 503),
    "/master": ("text/plain", 200, 503),
    "/slave": ("text/plain", 503, 503),
    "/primary-slave": ("text/plain", 503, 503),
    "/best-node": ("application/json", 200, 503),
    http_events.POLL: ("application/json", 200, 200),
    "/page.json": ("application/json", 200, 503),
    "/services/east": ("application/json", 200, 503),
    "/services/west": ("application/json", 503, 503),
}


STREAMS = {FEED, http_events.STREAM}


def served() -> set[str]:
    routes = Routes(FakeSource())
    return {*routes._table, *page.files(), *STREAMS, http_events.POLL, "/services/NAME"}


def test_every_path_that_is_served_is_expected_and_documented() -> None:
    assets = {path for path in page.files() if path != "/"}
    asked = {p if not p.startswith("/services/") else "/services/NAME" for p in PATHS}
    # Streams are read by tests/unit/test_agent_http.py and test_http_events.py.
    assert asked | assets | STREAMS == served()
    named = set(re.findall(r"`(/[\w./-]*)`", (DOCS / "http.md").read_text().split("\n\n## ")[0]))
    assert named <= served()
    assert served() - assets <= named


def test_the_document_says_which_paths_have_no_answer_at_the_start() -> None:
    """Those of a role have another reason for 503 as well; the rest says "at the start"."""
    for line in (DOCS / "http.md").read_text().splitlines():
        for path in re.findall(r"`(/[\w./-]*)`", line) if line.startswith("| `/") else ():
            before = PATHS.get(path.replace("NAME", "east"), ("", 0, 503))[2]
            otherwise = line.rsplit(" | ", 1)[1]
            # Paths with parameters have a 503 of their own: too many ask.
            assert (before == 503) == ("503" in otherwise) or "400" in otherwise, line


@pytest.mark.parametrize("path", PATHS)
def test_every_path_answers_as_documented(path: str) -> None:
    kind, code, before = PATHS[path]
    source = FakeSource()
    answer = Routes(source).answer(path)
    assert answer.type.startswith(kind)
    assert answer.status == code
    assert answer.body
    source.now = None
    assert Routes(source).answer(path).status == before


# Metric -> a line that it has to have for `world()`; None: tested by its own test below.
VALUES: dict[str, str | None] = {
    "info": '{cluster="voice1",node="fs-a",version="0.1.0"} 1.0',
    "view_age_seconds": None,
    "quorate": " 0.0",
    "voters_reachable": " 2.0",
    "alarms": " 3.0",
    "alarm": '{name="unserved"} 2.0',
    "calls_at_risk": " 7.0",
    "orphans": " 4.0",
    "capacity_fits": " 1.0",
    "service_owner": '{node="fs-a",service="east"} 1.0',
    "service_epoch": '{service="east"} 9.0',
    "service_state": '{service="west",state="unserved"} 1.0',
    "service_owned": '{service="west"} 0.0',
    "service_successors": '{service="east"} 2.0',
    "node_role": '{node="fs-b",role="slave"} 1.0',
    "node_rank": '{node="fs-c"} 1.0',
    "node_calls": '{node="fs-b"} 3.0',
    "node_capacity": '{node="fs-b"} 1000.0',
    "node_health": '{node="fs-b"} 100.0',
    "sensor_state": '{node="fs-a",sensor="nfs"} 2.0',
    "node_sync_state": '{node="fs-a",state="in-sync"} 1.0',
    "node_sync_lag_seconds": '{node="fs-a"} 0.25',
    "registrations": '{here="copy"} 6.0',
    "link_up": '{address="10.2.0.1",node="fs-c"} 0.0',
    "link_rtt_seconds": '{address="10.1.0.1",node="fs-b"} 0.0004',
    "link_loss_ratio": '{address="10.2.0.1",node="fs-b"} 0.01',
    "link_received": '_total{link="10.1.0.1",outcome="replay"} 11.0',
    "link_socket": '_total{event="sent",link="10.1.0.1"} 12.0',
    "peer_datagrams": '_total{address="10.1.0.1",node="fs-b",readable="yes"} 13.0',
    "peer_unreadable": '{address="10.1.0.1",node="fs-b"} 1.0',
    "takeover_outage_seconds": "_sum 0.154",
    "takeover_calls": '{verdict="partial"} 2.0',
    "certificate_ends_seconds": '{file="ca.crt"} 18.0',
    "hook_events": '_total{hook="pager",outcome="retried"} 15.0',
    "dns_updates": '_total{name="sip.example.org",outcome="failed"} 16.0',
    "events": '_total{event="calls_refused"} 17.0',
}


def world() -> View:
    alarms = (AlarmView("unserved", "a"), AlarmView("unserved", "b"), AlarmView("paused", "c"))
    return view(
        {"east": ("fs-a", 9)}, quorate=False, reachable=2, alarms=alarms,
        at_us=now_us() - 2_000_000,
        link_tallies=(LinkTally("10.1.0.1", {"replay": 11}, {"sent": 12}),),
        peer_tallies=(PeerTally("fs-b", "10.1.0.1", 13, 14, "bad mac"),),
    )  # fmt: skip


def metrics_text() -> str:
    word = world()
    sync = schema.Sync("in-sync", 250)
    nfs = schema.SensorState("nfs", "mount", "critical", "/srv hangs", 60, True, "")
    known = schema.Registered(5, 6, 0)
    shown = status.status(word, sync, {}, [], known, {}, 4, sensors=[nfs])
    calls = schema.Calls(replicated=5, recovered=2, partial=2, lost=1, verdicts=[])
    report = schema.Report(
        number=1, at="2026-11-22T17:58:01.120Z", service="east", from_="fs-b", to="fs-a", epoch=9,
        cause="", timeline=[], outage_ms=154.0, calls=calls,
    )  # fmt: skip
    about = schema.About("0.1.0", "fs-a", "voice1", 1, 2, "now", "c.toml", "ff", "/run")
    inside = metrics.Inside(word, about, [report], {"calls_refused": 17}, 7, spec(), {"ca.crt": 18})
    told = {("pager", "retried"): 15}
    outside = metrics.Outside(told, {("sip.example.org", "failed"): 16})
    return metrics.render(shown, inside, outside).decode()


def test_every_metric_is_expected_here() -> None:
    assert set(VALUES) == {metric.name for metric in metrics.CATALOG}


@pytest.mark.parametrize("name", [name for name, line in VALUES.items() if line is not None])
def test_every_metric_has_the_value_of_what_it_measures(name: str) -> None:
    lines = metrics_text().splitlines()
    assert f"{metrics.PREFIX}_{name}{VALUES[name]}" in lines, [
        line for line in lines if line.startswith(f"{metrics.PREFIX}_{name}")
    ]


def test_the_age_of_the_view_is_in_seconds() -> None:
    found = re.search(r"^haclusterd_view_age_seconds (\S+)$", metrics_text(), re.M)
    assert found is not None
    assert 2.0 <= float(found[1]) < 60.0


def test_hooks_md_names_every_event_and_no_other() -> None:
    table = (DOCS / "hooks.md").read_text().partition("## What is told")[2].partition("```")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(EVENTS)


def words_of(*folders: str) -> set[str]:
    """Every string literal in the Python files there."""
    return {
        node.value
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_method_of_the_socket_is_asked_by_the_command_line_and_by_a_test() -> None:
    methods = set(Commands(FakeSource()).table)
    assert methods - words_of("haclusterd/cli", "haclusterd/lab") == set()
    asked = words_of("tests/unit", "tests/lab", "tests/freeswitch", "tests/web")
    assert methods - asked == set()


def toml_blocks() -> Iterator[tuple[str, str]]:
    for path in sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "contrib" / "README.md"]):
        for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", path.read_text(),
                                                  re.M | re.S)):  # fmt: skip
            yield f"{path.relative_to(ROOT)}:{number}", block


def keys_in(document: dict[str, Any]) -> Iterator[str]:
    for section, content in document.items():
        for table in content if isinstance(content, list) else [content]:
            yield from (f"{section}.{key}" for key in table)


@pytest.mark.parametrize("block", [pytest.param(b, id=name) for name, b in toml_blocks()])
def test_every_example_of_the_file_has_keys_that_exist(block: str) -> None:
    known = {f"{key.section}.{key.name}" for key in reference.asked()}
    assert set(keys_in(tomllib.loads(block))) - known == set()


def test_every_key_in_running_text_exists() -> None:
    """`[section] key` in the documents: such mentions outlive the keys they mean."""
    known = {f"{key.section}.{key.name}" for key in reference.asked()}
    for path in sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "contrib" / "README.md"]):
        for section, key in re.findall(r"`\[\[?(\w+)\]\]? (\w+)(?: = [^`]*)?`", path.read_text()):
            assert f"{section}.{key}" in known, f"{path.name}: [{section}] {key}"
