"""The flight recorder on real daemons: what was foretold, what happened, and why."""

from __future__ import annotations

import json
from pathlib import Path
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


def asked(node: LabNode, *words: str, code: int = 0) -> Any:
    """A command on a node, its JSON."""
    done = node.ctl(*words)
    assert done.returncode == code, (words, done.stdout[-2000:], done.stderr)
    return json.loads(done.stdout)


def owner_of(lab: Laboratory, service: str, seen_from: LabNode) -> str | None:
    status = seen_from.status() or {"services": []}
    return next((s["owner"] for s in status["services"] if s["name"] == service), None)


def test_foretold_recorded_replayed_explained(tmp_path: Path) -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        service = lab.plan.services[0].name
        watcher = lab.nodes["fs-c"]
        foretold = asked(watcher, "simulate", "--fail", "fs-a")["services"][0]
        assert (foretold["was"], foretold["outcome"]) == ("fs-a", "moved")
        assert owner_of(lab, service, watcher) == "fs-a", "asking changed nothing"

        (injection,) = strike([Injector(lab.topology, lab.nodes["fs-a"], "node")])
        injection.complete()
        lab.wait(lambda: owner_of(lab, service, watcher) not in (None, "fs-a"), 10, "a new owner")
        owner = owner_of(lab, service, watcher)
        assert owner == foretold["owner"]
        taker = lab.nodes[str(owner)]

        explained = asked(taker, "explain", "20")
        (claim,) = [e for e in explained if e["row"] == "T101" and e["service"] == service]
        assert "fs-a silent" in claim["text"]
        assert any(fact.startswith("fs-a: dead, silent for") for fact in claim["facts"])
        assert any(e["row"] == "T301" and e["service"] == service for e in explained)

        file = tmp_path / "taker.trace"
        asked(taker, "trace", "save", str(file))
        replayed = asked(taker, "replay", str(file))
        assert replayed["difference"] is None
        assert replayed["steps"] == replayed["steps_recorded"] > 100
        texts = [d["text"] for d in replayed["decided"]]
        assert claim["text"] in texts

        lab.wait(lambda: saved_itself(taker), 15, "the recording that is saved by itself")
        mine = [s for s in asked(taker, "trace", "list") if s["reason"] == "owner"][-1]
        assert asked(taker, "replay", mine["path"])["difference"] is None


def saved_itself(node: LabNode) -> bool:
    return any(s["reason"] == "owner" for s in asked(node, "trace", "list"))
