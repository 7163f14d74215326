"""A slave that lacks what the owner's FreeSWITCH has is no candidate, and says why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from haclusterd.lab import netns
from haclusterd.lab.faults import Injector, strike
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.node import LabNode
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import ready_cluster

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]
SOON_S = 20.0


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    """fs-a owns the service; fs-b, then fs-c, would take it."""
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as running:
        yield running


def successors(node: LabNode) -> list[str]:
    status = node.status() or {"services": [{"successors": []}]}
    return list(status["services"][0]["successors"])


def alarms(node: LabNode, name: str) -> list[str]:
    status = node.status() or {"alarms": []}
    return [alarm["text"] for alarm in status["alarms"] if alarm["name"] == name]


def api(lab: Laboratory, node: str, command: str) -> str:
    switch = lab.nodes[node].switch
    assert switch is not None
    with switch.esl() as esl:
        return esl.api(command)


def ctl(node: LabNode, *words: str) -> Any:
    return json.loads(node.ctl("--json", *words).stdout)


def owner(node: LabNode) -> str | None:
    status = node.status() or {"services": [{"owner": None}]}
    found: str | None = status["services"][0]["owner"]
    return found


def test_ms26_ms27_lacking_a_module(lab: Laboratory) -> None:
    a, b, c = (lab.nodes[name] for name in ("fs-a", "fs-b", "fs-c"))
    lab.wait(lambda: successors(a) == ["fs-b", "fs-c"], SOON_S, "both slaves in line")
    assert "+OK" in api(lab, "fs-b", "unload mod_hash")
    lab.wait(lambda: successors(a) == successors(c) == ["fs-c"], SOON_S, "fs-b out of line")
    lab.wait(lambda: bool(alarms(a, "lacking")), SOON_S, "the reason on another node")
    for text in (*alarms(a, "lacking"), *ctl(b, "rank", "--why")["not_ready"].values()):
        assert "lacks module mod_hash, which fs-a has" in text
    config = ("--config", str(lab.directory / "haclusterd.toml"), "--node", "fs-b")
    assert "mod_hash" in b.ctl("rank", "--why").stdout
    assert "alarm lacking" in [check["name"] for check in ctl(b, "doctor", *config)["checks"]]
    assert any("no candidate" in entry["text"] for entry in ctl(b, "history"))

    assert "+OK" in api(lab, "fs-b", "load mod_hash")
    lab.wait(lambda: successors(a) == ["fs-b", "fs-c"], SOON_S, "fs-b in line again")
    lab.wait(lambda: not alarms(a, "lacking"), SOON_S, "the end of the alarm")

    api(lab, "fs-b", "unload mod_hash")
    lab.wait(lambda: successors(a) == successors(c) == ["fs-c"], SOON_S, "fs-b out of line")
    (injection,) = strike([Injector(lab.topology, a, "node")])
    injection.complete()
    lab.wait(lambda: owner(c) == "fs-c", SOON_S, "fs-c as the new owner, not the primary slave")


def test_ms26_rather_poorly_than_not_at_all(lab: Laboratory) -> None:
    a, b = lab.nodes["fs-a"], lab.nodes["fs-b"]
    for name in ("fs-b", "fs-c"):
        api(lab, name, "unload mod_hash")
    lab.wait(lambda: successors(a) == successors(b) == [], SOON_S, "nobody in line")
    (injection,) = strike([Injector(lab.topology, a, "node")])
    injection.complete()
    lab.wait(lambda: owner(b) in ("fs-b", "fs-c"), SOON_S, "somebody to take the orphan")
