"""Nodes of two versions side by side: one after another upgraded, one taken back, with calls up.

The older one is the last that reads version 1 of the wire only, taken from this repository's own
history. It is another program in everything: heart, agent, what they keep and tell each other.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

import haclusterd
from haclusterd.lab import netns
from haclusterd.lab.faults import Injector, strike
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.node import LabNode
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import bring_calls, ready_cluster
from tests.lab.test_lab_combined import successors, talking
from tests.lab.test_lab_policies import one_holder, owner

ROOT = Path(haclusterd.__file__).parent.parent
NEWER_FILE = "haclusterd/core/dialect.py"  # came with version 2 of the wire
OLDER = "0.0.9"
CALLS = 10
SOON_S = 40.0
OUTAGE_MS_MAX = 1000.0  # a busy machine; in place it is some ms, a switchover 20


def git(*words: str) -> bytes:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, check=True, timeout=60
    ).stdout


def older_commit() -> tuple[str, str]:
    """The commit, and why there is none."""
    try:
        if git("rev-parse", "--is-shallow-repository").strip() == b"true":
            return "", "a shallow clone has no older version: git fetch --unshallow"
        added = git("log", "--diff-filter=A", "--format=%H", "--", NEWER_FILE).split()
        if not added:
            return "", f"the history does not say when {NEWER_FILE} came"
        return git("rev-parse", f"{added[-1].decode()}^").decode().strip(), ""
    except FileNotFoundError:
        return "", "git is missing"
    except subprocess.SubprocessError:
        return "", "no history here (no clone of git, or one that begins later)"


COMMIT, _NONE = older_commit()
_REASON = netns.why_not() or _NONE
pytestmark = [
    pytest.mark.long,
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(300),
]


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Where the older package is."""
    folder = tmp_path / "older"
    folder.mkdir()
    files = git("archive", COMMIT, "haclusterd")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=files, check=True, timeout=60)
    about = folder / "haclusterd" / "__init__.py"
    text = about.read_text()
    assert '__version__ = "' in text
    about.write_text(f'{text.partition("__version__")[0]}__version__ = "{OLDER}"\n')
    return folder


def install(node: LabNode, package: Path) -> None:
    """As apt does it: the files are replaced, what runs goes on."""
    link, new = node.directory / "package", node.directory / "package.new"
    new.symlink_to(package)
    new.rename(link)


@pytest.fixture
def old_nodes(older: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every node of a laboratory begins with the older package."""
    real = LabNode.start_haclusterd

    def start(self: LabNode, config: Path | None = None) -> None:
        if not (self.directory / "package").is_symlink():
            install(self, older)
        self._environment["PYTHONPATH"] = str(self.directory / "package")
        real(self, config)

    monkeypatch.setattr(LabNode, "start_haclusterd", start)
    return older


def versions(lab: Laboratory, seen_from: str) -> dict[str, str]:
    status = lab.nodes[seen_from].status() or {"nodes": []}
    return {node["id"]: node["version"] for node in status["nodes"]}


def alarms(lab: Laboratory) -> set[str]:
    return {
        f"{name}: {alarm['name']}: {alarm['text']}"
        for name, node in lab.nodes.items()
        for alarm in (node.status() or {"alarms": []})["alarms"]
    }


def all_in_order(lab: Laboratory) -> None:
    """All do their part for all, copies are in sync, all calls are up, nobody complains."""
    lab.wait(lambda: not lab.unformed(), SOON_S, "all to do their part", lab.unformed)
    lab.wait(lambda: not alarms(lab), SOON_S, "no alarm", lambda: sorted(alarms(lab)))
    lab.wait(lambda: talking(lab) == CALLS, SOON_S, "all calls to talk")
    lab.wait_replicated(SOON_S)


def renew(lab: Laboratory, name: str, package: Path, version: str) -> None:
    """`apt install` and `systemctl reload`, and what docs/upgrade.md says to wait for."""
    lab.wait(lambda: owner(lab, "east1"), SOON_S, "somebody to answer steadily")
    before = owner(lab, "east1")
    install(lab.nodes[name], package)
    done = lab.nodes[name].ctl("upgrade")
    assert done.returncode == 0, done.stderr
    all_in_order(lab)
    assert {serving(lab, seen) for seen in lab.nodes} == {before}, "nothing moves"
    said = {seen: versions(lab, seen)[name] for seen in lab.nodes}
    lab.wait(
        lambda: {versions(lab, seen)[name] for seen in lab.nodes} == {version}, SOON_S,
        f"all to know that {name} is {version}: {said}",
    )  # fmt: skip


def serving(lab: Laboratory, seen_from: str) -> str:
    (service,) = lab.nodes[seen_from].api("status", timeout_s=SOON_S)["services"]
    return str(service["owner"])


def move(lab: Laboratory, to: str) -> dict[str, Any]:
    done = lab.nodes[to].ctl("switchover", "east1", "--to", to)
    assert done.returncode == 0, done.stderr
    lab.wait(lambda: owner(lab, "east1") == to, SOON_S, f"{to} to answer")
    return recovered(lab, to)


def recovered(lab: Laboratory, by: str) -> dict[str, Any]:
    all_in_order(lab)
    report: dict[str, Any] = lab.nodes[by].api("report", which="last")
    assert report["calls"]["recovered"] == CALLS, report
    return report


def dies(lab: Laboratory, name: str, heir: str) -> dict[str, Any]:
    """The owner's FreeSWITCH is killed where only `heir` may take over."""
    (third,) = set(lab.nodes) - {name, heir}
    assert lab.nodes[heir].ctl("maintenance", "on", third).returncode == 0
    lab.wait(lambda: successors(lab, name) == [heir], SOON_S, f"{heir} to be the only one")
    for injection in strike([Injector(lab.topology, lab.nodes[name], "freeswitch")]):
        injection.complete()
    lab.wait(lambda: owner(lab, "east1") == heir, SOON_S, f"{heir} to answer")
    assert lab.nodes[name].ctl("maintenance", "off", third).returncode == 0
    return recovered(lab, heir)


def test_43_two_versions_take_calls_over_from_each_other(old_nodes: Path) -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        all_in_order(lab)
        lab.wait(
            lambda: set(versions(lab, "fs-a").values()) == {OLDER}, SOON_S, "the older version"
        )
        lab.arm()
        renew(lab, "fs-b", ROOT, haclusterd.__version__)
        print("old to new:", move(lab, "fs-b")["outage_ms"])
        renew(lab, "fs-c", ROOT, haclusterd.__version__)
        print("new to old, whose FreeSWITCH died:", dies(lab, "fs-b", heir="fs-a")["outage_ms"])
        renew(lab, "fs-a", ROOT, haclusterd.__version__)
        print("all are new:", versions(lab, "fs-a"))
        renew(lab, "fs-a", old_nodes, OLDER)  # the owner goes back
        renew(lab, "fs-c", old_nodes, OLDER)
        print("old to new again:", move(lab, "fs-b")["outage_ms"])
        asked = lab.probe.ask("report").values()
        longest_ms = max(one["longest_ms"] - one["late_ms"] for one in asked)
        print(f"longest silence of the address {longest_ms:.1f} ms")
        assert longest_ms < OUTAGE_MS_MAX
        one_holder(lab)
