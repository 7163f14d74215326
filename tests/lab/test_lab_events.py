"""Events with real daemons: the agent that is followed is killed; nothing is lost in silence."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from haclusterd.cli.client import Client, NotReachable
from haclusterd.lab import netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.node import LabNode
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import bring_calls, ready_cluster

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(240),
]
WITHIN_S = 30.0
Seen = list[dict[str, Any]]


class Follower(threading.Thread):
    """Follows one node until it goes away; `looked`: was it there when asked right after?"""

    def __init__(self, node: LabNode, after: str = "begin") -> None:
        super().__init__(daemon=True)
        self._node, self._after = node, after
        self.seen: Seen = []
        self.looked: list[bool] = []
        self.start()

    def run(self) -> None:
        client = Client(self._node.run_dir / "haclusterd.sock")
        try:
            for event in client.events(after=self._after):
                self.seen.append(event)
                if event["kind"] == "call" and event["origin"] == self._node.id:
                    self.looked.append(self._shows(event))
        except NotReachable:
            return

    def _shows(self, event: dict[str, Any]) -> bool:
        """MS25: what the event tells of can be asked for at once, at its origin."""
        calls = {c["uuid"] for c in self._node.api("calls", 10.0, limit=1000)["calls"]}
        return (event["uuid"] in calls) is (event["state"] == "live")


def last_ids(seen: Seen) -> str:
    """What a client remembers: the last id of each origin."""
    real = [event for event in seen if event["kind"] != "keepalive"]
    return ",".join({event["origin"]: event["id"] for event in real}.values())


def holes(seen: Seen) -> list[str]:
    """Numbers that are missing, or come twice or in another order, without a gap record."""
    last: dict[tuple[str, int], int] = {}
    found = []
    for event in (e for e in seen if e["kind"] != "keepalive"):
        run = (event["origin"], event["run"])
        if event["kind"] == "gap":
            last[run] = event["sequence"]
            continue
        if event["sequence"] != last.get(run, 0) + 1:
            found.append(f"{event['id']} after {last.get(run, 0)}")
        last[run] = event["sequence"]
    return found


def gaps(seen: Seen) -> list[tuple[str, int]]:
    return [(e["origin"], e["from"]) for e in seen if e["kind"] == "gap"]


def has(follower: Follower, lab: Laboratory, text: str) -> None:
    lab.wait(
        lambda: any(text in e.get("text", "") for e in follower.seen), WITHIN_S,
        f"an event with {text!r}", lambda: [str(e) for e in follower.seen[-3:]],
    )  # fmt: skip


def test_ms24_the_agent_that_is_followed_is_killed_in_mid_stream() -> None:
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        at_a = Follower(lab.nodes["fs-a"])
        bring_calls(lab, {"east1": 6}, print)
        lab.wait(lambda: len(at_a.looked) >= 6, WITHIN_S, "an event for each call")
        assert all(at_a.looked), "MS25"
        assert holes(at_a.seen) == []
        origins = {e["origin"] for e in at_a.seen}
        assert origins == {"fs-a", "fs-b", "fs-c"}
        assert all(e.get("forwarded", False) is (e["origin"] != "fs-a") for e in at_a.seen)

        lab.nodes["fs-a"].send(lab.nodes["fs-a"].haclusterd_pids()[1], signal.SIGKILL)
        at_a.join(WITHIN_S)
        at_b = Follower(lab.nodes["fs-b"], last_ids(at_a.seen))
        lab.nodes["fs-c"].ctl("maintenance", "on", "fs-c")  # a decision while fs-a's agent is away
        has(at_b, lab, "maintenance")
        has(at_b, lab, "goes on replicating")  # fs-a's next agent
        whole = [*at_a.seen, *at_b.seen]
        assert holes(whole) == []
        assert {origin for origin, _ in gaps(whole)} == {"fs-a"}, "what went down with it"

        # A planned renewal is no gap: the next agent goes on where the last one ended.
        before = len(at_b.seen)
        lab.nodes["fs-a"].ctl("upgrade")
        lab.wait(
            lambda: sum("goes on replicating" in e.get("text", "") for e in at_b.seen) >= 2,
            WITHIN_S, "fs-a's next agent",
        )  # fmt: skip
        time.sleep(1)
        then = list(at_b.seen)
        assert holes([*at_a.seen, *then]) == []
        assert gaps(then[before:]) == []
        # And at the renewed node itself.
        again = Follower(lab.nodes["fs-a"], last_ids([*at_a.seen, *then]))
        lab.nodes["fs-c"].ctl("maintenance", "off", "fs-c")
        has(again, lab, "maintenance")
        assert holes([*at_a.seen, *then, *again.seen]) == []
