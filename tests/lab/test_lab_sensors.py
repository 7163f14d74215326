"""Sensors and movers of real clusters: an ill master, a fault of all, a provider in a script."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from haclusterd.lab import laboratory, netns
from haclusterd.lab.laboratory import Laboratory, settle
from haclusterd.lab.node import ApiRefused
from haclusterd.lab.plan import LabPlan, config_text

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]
SENSORS = """
[health]
hand_over = true
after_s = 3
every_s = 60
[[sensor]]
name = "told"
kind = "exec"
exec = ["{folder}/check", "{{node}}"]
interval_ms = 500
timeout_ms = 500
fails = 2
passes = 2
[[sensor]]
name = "storage"
kind = "exec"
exec = ["{folder}/check", "storage"]
interval_ms = 500
timeout_ms = 500
fails = 2
passes = 2
weight = 10
required = true
[[sensor]]
name = "self"
kind = "options"
target = "self"
interval_ms = 500
timeout_ms = 500
[[sensor]]
name = "others"
kind = "options"
target = "peers"
interval_ms = 500
timeout_ms = 500
"""
MOVER = """mover = "exec"
mover_add = ["{folder}/move", "{{node}}"]
mover_check = ["{folder}/look", "{{node}}"]
mover_dry_run = ["/bin/true"]
mover_deadline_ms = 2000
mover_check_ms = 1000
"""


class Outside:
    """What the scripts look at: a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script("check", 'read status < "$0.$1" 2>/dev/null || exit 0; exit $status')
        self.script("move", 'sleep 0.2; [ ! -e "$0.$1" ] || exit 1; echo "$1" > "$0.at"')
        self.script("look", f'[ "$(cat {folder}/move.at)" = "$1" ]')

    def script(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def tell(self, name: str, status: int) -> None:
        (self.folder / f"check.{name}").write_text(f"{status}\n")

    @property
    def at(self) -> str:
        path = self.folder / "move.at"
        return path.read_text().strip() if path.exists() else ""


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path)


def made(
    monkeypatch: pytest.MonkeyPatch, more: Callable[[str], str], **plan: Any
) -> Iterator[Laboratory]:
    monkeypatch.setattr(laboratory, "config_text", lambda p, root: more(config_text(p, root)))
    with Laboratory(LabPlan(masters=1, slaves=2, **plan)) as lab:
        lab.wait_formed()
        settle(2.0)
        yield lab


@pytest.fixture
def watched(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laboratory]:
    more = SENSORS.format(folder=outside.folder)
    yield from made(monkeypatch, lambda text: text + more)


@pytest.fixture
def moved(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laboratory]:
    keys = MOVER.format(folder=outside.folder)
    yield from made(monkeypatch, lambda text: text.replace('preferred = "', f'{keys}preferred = "'))


def owner(lab: Laboratory, asked: str = "fs-b") -> str:
    status = lab.nodes[asked].status()
    return "" if status is None else str(status["services"][0]["owner"] or "")


def sensors(lab: Laboratory, node: str, asked: str = "fs-c") -> dict[str, str]:
    status = lab.nodes[asked].status() or {"nodes": []}
    found: list[dict[str, Any]] = next(
        (n["sensors"] for n in status["nodes"] if n["id"] == node), []
    )
    return {one["name"]: one["state"] for one in found}


def done(lab: Laboratory, node: str) -> dict[str, Any]:
    """Its last report, once that is finished."""
    try:
        found: dict[str, Any] = lab.nodes[node].api("report")
    except ApiRefused:
        return {}
    return found if found["done"] else {}


def are(lab: Laboratory, node: str, wanted: dict[str, str]) -> bool:
    return wanted.items() <= sensors(lab, node).items()


def test_an_ill_master_hands_over_its_calls_and_is_told_why(
    watched: Laboratory, outside: Outside
) -> None:
    """MS4, MS10: by a switchover, so that no call is lost."""

    def reasons() -> list[str]:
        why = json.loads(watched.nodes["fs-c"].ctl("rank", "--why").stdout)
        return list(why["health"])

    watched.start_calls({"east1": 5})
    watched.wait_replicated()
    well = {"told": "ok", "storage": "ok", "self": "ok", "others": "idle"}
    netns.wait_for(partial(are, watched, "fs-a", well), 15.0, "the master's sensors to be well")
    netns.wait_for(lambda: sensors(watched, "fs-b")["others"] == "ok", 15.0, "fs-b to be answered")
    outside.tell("fs-a", 2)
    netns.wait_for(lambda: owner(watched) == "fs-b", 20.0, "the hand-over")
    netns.wait_for(lambda: bool(done(watched, "fs-b")), 15.0, "the report")
    report = done(watched, "fs-b")
    assert report["calls"]["lost"] == 0, report
    assert report["calls"]["recovered"] == report["calls"]["replicated"] > 0
    said = [one["text"] for one in watched.nodes["fs-a"].api("history")]
    assert any("fs-a hands east1 over to fs-b: health 40 by told" in text for text in said)
    alarms = [a["text"] for a in (watched.nodes["fs-a"].status() or {})["alarms"]]
    assert any("told on fs-a is critical" in text for text in alarms)
    netns.wait_for(
        lambda: watched.nodes["fs-c"].api("rank")["slaves"] == ["fs-c", "fs-a"],
        20.0, "fs-a to be a slave, and the last one: it is impaired",
    )  # fmt: skip
    netns.wait_for(  # heart says how well it is, and its agent why
        lambda: any(line.startswith("fs-a: health 40: told critical -60") for line in reasons()),
        10.0, "fs-c to know why",
    )  # fmt: skip


def test_a_fault_of_all_nodes_moves_nothing_and_the_next_loss_is_served(
    watched: Laboratory, outside: Outside
) -> None:
    """ML9, MS11: nobody is a candidate for a while, and then the first in line is, after all."""
    for name in ("fs-a", "fs-b", "fs-c", "storage"):
        outside.tell(name, 2)
    bad = {"told": "critical", "storage": "critical"}
    for node in ("fs-a", "fs-b", "fs-c"):
        netns.wait_for(partial(are, watched, node, bad), 15.0, f"{node} to be ill")
    epoch = (watched.nodes["fs-b"].status() or {})["services"][0]["epoch"]
    settle(8.0)
    status = watched.nodes["fs-b"].status() or {}
    assert (status["services"][0]["owner"], status["services"][0]["epoch"]) == ("fs-a", epoch)
    lost = watched.nodes["fs-a"]
    lost.send(lost.pids(), signal.SIGKILL)
    watched.topology.cut("fs-a")
    netns.wait_for(lambda: owner(watched) in ("fs-b", "fs-c"), 20.0, "an ill slave")


def test_a_command_fetches_the_packets_and_the_next_in_line_does_better(
    moved: Laboratory, outside: Outside
) -> None:
    """E19: where the command fails within its deadline, the service goes on to who can."""
    netns.wait_for(lambda: outside.at == "fs-a", 15.0, "the first owner's packets")
    (outside.folder / "move.fs-b").write_text("")  # fs-b may not
    lost = moved.nodes["fs-a"]
    lost.send(lost.pids(), signal.SIGKILL)
    moved.topology.cut("fs-a")
    netns.wait_for(lambda: outside.at == "fs-c", 30.0, "the packets at who can")
    netns.wait_for(lambda: owner(moved, "fs-c") == "fs-c", 5.0, "the same owner")
    said = [one["text"] for one in moved.nodes["fs-b"].api("history")]
    assert any("mover_add: exit status 1" in text for text in said)
    (outside.folder / "move.at").write_text("fs-b\n")  # a late call of fs-b at the provider
    netns.wait_for(lambda: outside.at == "fs-c", 15.0, "the packets fetched back")
    assert (moved.nodes["fs-c"].status() or {})["alarms"] == [] or owner(moved, "fs-c") == "fs-c"
