"""What 1,000 replicated calls cost in memory: heart and agent together, on master and slave."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from pathlib import Path

import pytest

from haclusterd.freeswitch import metadata
from haclusterd.lab import netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.node import LabNode
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import ready_cluster

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(120),
]

CALLS = 1000
PSS_MIB_MAX = 110
TONE = (Path(__file__).parents[1] / "fixtures/freeswitch/recovery_metadata_tone.xml").read_text()
TONE_UUID = TONE.split("<uuid>")[1].split("</uuid>")[0]


def test_a_thousand_replicated_calls_fit() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        track(lab, CALLS)
        lab.wait(lambda: copies(lab) == [CALLS] * 3, 30, "every node to know every call")
        pss = {node.id: pss_mib(node) for node in lab.nodes.values()}
        print(pss)
        before = version(lab)
        track(lab, CALLS)  # a change of each: the log holds both versions
        lab.wait(lambda: version(lab) >= before + CALLS, 30, "every node to know the changes")
        again = {node.id: pss_mib(node) for node in lab.nodes.values()}
        print(again)
    assert max(*pss.values(), *again.values()) <= PSS_MIB_MAX


def track(lab: Laboratory, count: int) -> None:
    """Rows of `count` calls, as the owner's FreeSWITCH writes them; again is a change of each."""
    owner = lab.nodes["fs-a"]
    assert owner.switch is not None
    with owner.switch.esl() as esl:
        core_uuid = esl.api("global_getvar core_uuid").strip()
    profile = lab.plan.services[0].profile
    with contextlib.closing(sqlite3.connect(owner.switch.core_db)) as db, db:
        for number in range(count):
            name = str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))
            own = metadata.set_variable(TONE, "of_this_call_alone", os.urandom(256).hex())
            text = own.replace(TONE_UUID, name)
            db.execute("DELETE FROM recovery WHERE uuid = ?", (name,))
            db.execute(
                "INSERT INTO recovery VALUES (?, 'sofia', ?, 'fs-a', ?, ?)",
                (core_uuid, profile, name, text),
            )


def copies(lab: Laboratory) -> list[int]:
    return [int(node.api("calls", limit=0)["total"]) for node in lab.nodes.values()]


def version(lab: Laboratory) -> int:
    """How far the slave that is furthest behind is in the owner's log."""
    words = lab.nodes["fs-a"].api("sync")["peers"]
    rows = [row for peer in words for row in peer["outgoing"] if row["service"] == "east1"]
    return min(int(row["acked"]) for row in rows)


def pss_mib(node: LabNode) -> float:
    """Proportional set size of heart and agent, as the kernel shares it out."""
    total_kib = 0
    for pid in [pid for pids in node.haclusterd_pids() for pid in pids]:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total_kib += int(line.split()[1])
    return round(total_kib / 1024, 1)
