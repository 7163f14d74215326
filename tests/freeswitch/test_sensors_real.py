"""Sensors that ask a real FreeSWITCH: its gateways, its events, its SIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from haclusterd.lab import freeswitch, laboratory, netns
from haclusterd.lab.freeswitch import ServiceProfile
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan, config_text
from haclusterd.lab.run import ready_cluster
from tests.freeswitch.obstacle import obstacle

_REASON = obstacle()
pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]
PLAN = LabPlan(masters=1, slaves=2, freeswitch="real")
# Nobody is there: it does not register, and is pinged in vain.
GATEWAY = """<include>
  <gateway name="carrier">
    <param name="username" value="u"/>
    <param name="password" value="p"/>
    <param name="proxy" value="10.9.0.200:5999"/>
    <param name="register" value="false"/>
    <param name="ping" value="5"/>
    <param name="ping-max" value="1"/>
    <param name="ping-min" value="1"/>
  </gateway>
</include>
"""
SENSORS = """
[[sensor]]
name = "carrier"
kind = "gateway"
gateway = "carrier"
interval_ms = 500
timeout_ms = 500
fails = 2
passes = 2
[[sensor]]
name = "told"
kind = "event"
event = "CUSTOM sofia::gateway_state"
raise_if = ["Gateway=carrier", "Ping-Status=DOWN"]
clear_after_s = 600
[[sensor]]
name = "self"
kind = "options"
target = "self"
interval_ms = 500
timeout_ms = 500
"""


def sensors(lab: Laboratory, node: str) -> dict[str, tuple[str, str]]:
    status: dict[str, Any] = lab.nodes[node].status() or {"nodes": []}
    found: list[dict[str, Any]] = next(
        (n["sensors"] for n in status["nodes"] if n["id"] == node), []
    )
    return {one["name"]: (one["state"], one["text"]) for one in found}


def test_gateways_events_and_options_of_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """B29, MS10."""
    write = freeswitch.write_conf

    def with_gateway(
        target: Path, services: Sequence[ServiceProfile], variables: dict[str, str]
    ) -> None:
        write(target, services, variables)
        for service in services:
            (target / "gateways" / service.name / "carrier.xml").write_text(GATEWAY)

    monkeypatch.setattr(freeswitch, "write_conf", with_gateway)
    monkeypatch.setattr(
        laboratory, "config_text", lambda plan, root: config_text(plan, root) + SENSORS
    )
    with ready_cluster(PLAN, None, lambda text: None) as lab:

        def state(node: str, name: str) -> str:
            return sensors(lab, node).get(name, ("", ""))[0]

        netns.wait_for(lambda: state("fs-a", "self") == "ok", 30.0, "an answer to OPTIONS")
        assert state("fs-b", "carrier") == "idle", sensors(lab, "fs-b")
        netns.wait_for(lambda: state("fs-a", "carrier") == "critical", 60.0, "the gateway to fail")
        assert "gateway carrier is DOWN" in sensors(lab, "fs-a")["carrier"][1]
        netns.wait_for(lambda: state("fs-a", "told") == "critical", 30.0, "its event")
        assert state("fs-b", "told") == "ok"
