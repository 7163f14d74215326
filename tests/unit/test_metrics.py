"""/metrics: what the links met is there by link and outcome, and the document names it all."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent import metrics, metrics_reference, schema, status
from haclusterd.core.view import AlarmView, LinkTally, PeerTally, View
from haclusterd.wire import Outcome
from tests.fixtures.agent_parts import spec, view

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
ROLES = ("master", "slave", "starting", "syncing", "maintenance", "failed", "dead", "left")
ABOUT = schema.About("0.1.0", "fs-a", "voice1", 1, 2, "now", "c.toml", "ff", "/run")


def seen() -> View:
    return view(
        {"east": ("fs-a", 7)},
        link_tallies=(LinkTally("10.1.0.1", {"ok": 5, "bad_mac": 3}, {"send_errors": 2}),),
        peer_tallies=(PeerTally("fs-b", "10.1.0.1", 0, 3, "bad mac"),),
        alarms=(AlarmView("unserved", "nobody serves west"), AlarmView("unserved", "x")),
    )


def text_of(word: View) -> str:
    registered = schema.Registered(3, 4, 0)
    sensor = schema.SensorState("disk", "disk", "critical", "97 % used", 60, False, "")
    none = schema.Sync("none", 0)
    shown = status.status(word, none, {}, registrations=registered, sensors=[sensor])
    inside = metrics.Inside(word, ABOUT, [], {"decisions": 1}, 0, spec(), {"ca.crt": 2.1e9})
    outside = metrics.Outside({("pager", "failed"): 2}, {("sip.example.org", "done"): 4})
    return metrics.render(shown, inside, outside).decode()


def test_refused_datagrams_by_link_and_outcome() -> None:
    text = text_of(seen())
    for line in (
        'haclusterd_link_received_total{link="10.1.0.1",outcome="bad_mac"} 3.0',
        'haclusterd_link_socket_total{event="send_errors",link="10.1.0.1"} 2.0',
        'haclusterd_peer_datagrams_total{address="10.1.0.1",node="fs-b",readable="no"} 3.0',
        'haclusterd_peer_unreadable{address="10.1.0.1",node="fs-b"} 1.0',
    ):
        assert line in text


def test_what_was_told_and_what_stands() -> None:
    text = text_of(seen())
    for line in (
        'haclusterd_info{cluster="voice1",node="fs-a",version="0.1.0"} 1.0',
        'haclusterd_alarm{name="unserved"} 2.0',
        'haclusterd_hook_events_total{hook="pager",outcome="failed"} 2.0',
        'haclusterd_dns_updates_total{name="sip.example.org",outcome="done"} 4.0',
        'haclusterd_service_successors{service="east"} 2.0',
        "haclusterd_capacity_fits 1.0",
        'haclusterd_sensor_state{node="fs-a",sensor="disk"} 2.0',
    ):
        assert line in text


def test_the_document_is_current(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--rewrite"):
        DOCUMENT.write_text(metrics_reference.render())
    assert DOCUMENT.read_text() == metrics_reference.render()


def test_the_document_names_what_is_there_and_nothing_else() -> None:
    found = set(re.findall(r"^# HELP (haclusterd_\w+?)(?:_total)? ", text_of(seen()), re.M))
    found = {name.removesuffix("_created") for name in found}
    assert {f"haclusterd_{metric.name}" for metric in metrics.CATALOG} == found
    outcomes = {outcome.name.lower() for outcome in Outcome} | {"alien_source"}
    assert set(metrics_reference.OUTCOMES) == outcomes


def test_every_metric_has_a_value_here() -> None:
    """What is in the catalog and never set would be a promise only."""
    text = text_of(seen())
    for metric in metrics.CATALOG:
        assert re.search(rf"^haclusterd_{metric.name}(_total|_count)?[ {{]", text, re.M), metric


def test_status_says_which_link_is_unreadable() -> None:
    nodes = {n.id: n for n in status.status(seen(), schema.Sync("none", 0), {}).nodes}
    assert [link.unreadable for link in nodes["fs-b"].links] == ["bad mac", ""]
    assert [link.unreadable for link in nodes["fs-c"].links] == ["", ""]


@pytest.mark.parametrize(
    ("role", "witness", "shown"),
    [*((role, False, role) for role in ROLES), ("maintenance", True, "witness"),
     ("dead", True, "dead"), ("left", True, "left"), ("starting", True, "starting")],
)  # fmt: skip
def test_every_role_is_there(role: str, witness: bool, shown: str) -> None:
    now = seen()
    node = msgspec.structs.replace(now.nodes[1], role=role, witness=witness)
    text = text_of(msgspec.structs.replace(now, nodes=(now.nodes[0], node, *now.nodes[2:])))
    assert f'haclusterd_node_role{{node="fs-b",role="{shown}"}} 1.0' in text


@pytest.mark.parametrize("state", ["owned", "moving", "unserved"])
def test_every_state_of_a_service_is_there(state: str) -> None:
    now = seen()
    service = msgspec.structs.replace(now.services[0], state=state)
    text = text_of(msgspec.structs.replace(now, services=(service, *now.services[1:])))
    assert f'haclusterd_service_state{{service="east",state="{state}"}} 1.0' in text
    assert 'haclusterd_node_sync_state{node="fs-a",state="none"} 1.0' in text
