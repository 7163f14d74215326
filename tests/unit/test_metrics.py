"""/metrics: what the links met is there by link and outcome, and the document names it all."""

from __future__ import annotations

import re
from pathlib import Path

from haclusterd.agent import metrics, schema, status
from haclusterd.core.view import LinkTally, PeerTally, View
from haclusterd.wire import Outcome
from tests.fixtures.agent_parts import view

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def seen() -> View:
    return view(
        {"east": ("fs-a", 7)},
        link_tallies=(LinkTally("10.1.0.1", {"ok": 5, "bad_mac": 3}, {"send_errors": 2}),),
        peer_tallies=(PeerTally("fs-b", "10.1.0.1", 0, 3, "bad mac"),),
    )


def text_of(word: View) -> str:
    shown = status.status(word, schema.Sync("none", 0), {})
    return metrics.render(shown, word, [], {"decisions": 1}, 0).decode()


def test_refused_datagrams_by_link_and_outcome() -> None:
    text = text_of(seen())
    for line in (
        'haclusterd_link_received_total{link="10.1.0.1",outcome="bad_mac"} 3.0',
        'haclusterd_link_socket_total{event="send_errors",link="10.1.0.1"} 2.0',
        'haclusterd_peer_datagrams_total{address="10.1.0.1",node="fs-b",readable="no"} 3.0',
        'haclusterd_peer_unreadable{address="10.1.0.1",node="fs-b"} 1.0',
    ):
        assert line in text


def test_the_document_names_what_is_there_and_nothing_else() -> None:
    found = set(re.findall(r"^# HELP (haclusterd_\w+?)(?:_total)? ", text_of(seen()), re.M))
    found = {name.removesuffix("_created") for name in found}
    document = DOCUMENT.read_text()
    assert set(re.findall(r"^\| `(haclusterd_\w+)` ", document, re.M)) == found
    outcomes = {outcome.name.lower() for outcome in Outcome} | {"alien_source"}
    assert set(re.findall(r"^\| `([a-z_]+)` ", document, re.M)) - found == outcomes


def test_status_says_which_link_is_unreadable() -> None:
    nodes = {n.id: n for n in status.status(seen(), schema.Sync("none", 0), {}).nodes}
    assert [link.unreadable for link in nodes["fs-b"].links] == ["bad mac", ""]
    assert [link.unreadable for link in nodes["fs-c"].links] == ["", ""]
