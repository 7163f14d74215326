"""All daemons are renewed in the same second, and the owner is lost in that second."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from haclusterd.lab import netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import bring_calls, ready_cluster

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(240),
]
CALLS = 20
UPGRADED_S = 20.0
MOVED_S = 30.0


def hearts(lab: Laboratory) -> dict[str, set[int]]:
    return {name: set(node.haclusterd_pids()[0]) for name, node in lab.nodes.items()}


def renew_all(lab: Laboratory) -> None:
    """Order it everywhere at once; back when every node runs another heart, and no other."""
    before = hearts(lab)

    def order(node: Any) -> None:
        node.ctl("upgrade")

    orders = [threading.Thread(target=order, args=(node,)) for node in lab.nodes.values()]
    for one in orders:
        one.start()

    def renewed() -> bool:
        now = hearts(lab)
        return all(now[name] and not now[name] & before[name] for name in before)

    lab.wait(renewed, UPGRADED_S, "all hearts to be new ones")


@pytest.mark.parametrize("later_s", [0.0, 1.0])
def test_e1_an_owner_lost_while_all_are_renewed_loses_no_call(later_s: float) -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        bring_calls(lab, {"east1": CALLS}, print)
        lab.wait_replicated()
        lab.arm()
        renew_all(lab)
        time.sleep(later_s)
        lab.topology.cut("fs-a")
        lab.nodes["fs-a"].send(lab.nodes["fs-a"].pids(), signal.SIGKILL)
        ip = lab.plan.service("east1").ip
        lab.wait(lambda: lab.holder(ip) not in ("", "fs-a"), MOVED_S, "the takeover")
        heir = lab.nodes[lab.holder(ip)]

        def done() -> bool:
            found: Any = heir.status() and heir.api("report", which="last")
            return bool(found) and found["done"] and found["from"] == "fs-a"

        lab.wait(done, MOVED_S, "its report")
        calls = heir.api("report", which="last")["calls"]
        assert calls["replicated"] >= CALLS, calls
        assert (calls["lost"], calls["recovered"]) == (0, calls["replicated"]), calls
        rows = [row["text"] for row in heir.api("history") if row["row"] == "A10"]
        assert rows
        assert "from the agent before" in rows[-1]
