"""Hooks of a real cluster: a lost node is told once, by one of those that are left."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from haclusterd.lab import laboratory, netns
from haclusterd.lab.laboratory import Laboratory, settle
from haclusterd.lab.plan import LabPlan, config_text

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(120),
]


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Where the hooks of all nodes write what they are told."""
    folder = tmp_path / "told"
    folder.mkdir()
    return folder


@pytest.fixture
def lab(told: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laboratory]:
    script = told.parent / "hook.sh"
    script.write_text(f'#!/bin/sh\ncat >> "{told}/$1.$2"\n')
    script.chmod(0o755)

    def with_hooks(plan: LabPlan, root: Path) -> str:
        text = config_text(plan, root)
        for name, every in (("one", "false"), ("each", "true")):
            text += f'[[hook]]\nname = "{name}"\nexec = ["{script}", "{name}", "{{node}}"]\n'
            text += f"every_node = {every}\n"
        return text

    monkeypatch.setattr(laboratory, "config_text", with_hooks)
    with Laboratory(LabPlan(masters=1, slaves=3)) as made:
        made.wait_formed()
        settle(2.0)
        yield made


def messages(told: Path, hook: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(told.glob(f"{hook}.*"))
        for line in path.read_text().splitlines()
    ]


def test_a_lost_master_is_told_once_and_everywhere_where_that_is_wanted(
    lab: Laboratory, told: Path
) -> None:
    for path in told.iterdir():
        path.unlink()  # what the start had to tell
    lost = lab.nodes["fs-a"]
    lost.send(lost.pids(), signal.SIGKILL)
    lab.topology.cut("fs-a")

    def done() -> bool:
        return {"takeover", "primary_slave"} <= {m["event"] for m in messages(told, "one")}

    netns.wait_for(done, 15.0, "the takeover to be told")
    settle(7.0)  # longer than the second and the third in line would wait
    found = messages(told, "one")
    by_event = {
        event: [m for m in found if m["event"] == event]
        for event in ("service_owned", "takeover", "primary_slave")
    }
    assert {event: len(some) for event, some in by_event.items()} == {
        "service_owned": 1, "takeover": 1, "primary_slave": 1
    }, found  # fmt: skip
    owned, report = by_event["service_owned"][0], by_event["takeover"][0]
    assert (owned["from"], owned["to"], owned["teller"]) == ("fs-a", "fs-b", "fs-b")
    assert report["teller"] == "fs-b"
    assert report["report"]["outage_ms"] > 0
    dead = [m for m in found if m["event"] == "node_role" and m["node"] == "fs-a"]
    assert [(m["to"], m["teller"]) for m in dead] == [("dead", "fs-b")]
    # What else is told, of lags for one, may come from the second in line on a busy machine.
    assert not any(m.get("late") for some in by_event.values() for m in some)
    each = [m["teller"] for m in messages(told, "each") if m["event"] == "service_owned"]
    assert sorted(each) == ["fs-b", "fs-c", "fs-d"]
    assert lab.nodes["fs-c"].api("status")["alarms"] == []
