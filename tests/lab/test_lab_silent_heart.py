"""A heart that stands still, seen by load balancers and operators on its own node."""

from __future__ import annotations

import http.client
import json
import shutil
import signal

import pytest

from haclusterd.lab import netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import ready_cluster
from tests.lab.test_lab_policies import alarms, moves_to, owner

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

SOON_S = 20.0


def asked(lab: Laboratory, node: str, path: str) -> tuple[int, str]:
    with netns.inside(lab.nodes[node].namespace):
        asking = http.client.HTTPConnection("127.0.0.1", 7802, timeout=5)
        asking.connect()
    asking.request("GET", path)
    answer = asking.getresponse()
    body = answer.read().decode()
    asking.close()
    return answer.status, body


@pytest.mark.skipif(not shutil.which("nft"), reason="nft is missing: apt-get install nftables")
def test_only_the_new_owner_says_that_it_serves() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2, freeswitch="none"), None, print) as lab:
        assert asked(lab, "fs-a", "/services/east1")[0] == 200
        hearts = lab.nodes["fs-a"].haclusterd_pids()[0]
        lab.nodes["fs-a"].send(hearts, signal.SIGSTOP)
        try:
            lab.wait(lambda: owner(lab, "east1") not in ("", "fs-a"), SOON_S, "a takeover")
            lab.wait(lambda: "heart_silent" in alarms(lab, "fs-a"), SOON_S, "the alarm")
            for path in ("/master", "/ready", "/best-node"):
                code, body = asked(lab, "fs-a", path)
                assert (path, code) == (path, 503)
                assert "heart has said nothing for" in body
            code, body = asked(lab, "fs-a", "/services/east1")
            assert (code, json.loads(body)["stale"]) == (503, True)
            now = owner(lab, "east1")
            assert asked(lab, now, "/services/east1")[0] == 200
        finally:
            lab.nodes["fs-a"].send(hearts, signal.SIGCONT)
        lab.wait(lambda: not alarms(lab, "fs-a"), SOON_S, "fs-a to be well")
        moves_to(lab, "east1", now)
