"""A takeover in the laboratory, watched in a browser on a node that has no part in it."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from haclusterd.lab import netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from tests.web.browser import DESKTOP, Browser, obstacle

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
_REASON = obstacle() or netns.why_not()
pytestmark = [
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.timeout(180),
]


class Door:
    """A port of this host that leads to the HTTP interface in a node's namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with netns.inside(self._namespace):
                inner = socket.socket()
            try:
                inner.connect(("127.0.0.1", 7802))
            except OSError:
                client.close()
                continue
            for one, other in ((client, inner), (inner, client)):
                threading.Thread(target=_carry, args=(one, other), daemon=True).start()


def _carry(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    for end in (one, other):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    with Laboratory(LabPlan(masters=2, slaves=2)) as made:
        made.wait_formed()
        made.start_calls({service.name: 3 for service in made.plan.services})
        made.wait_replicated()
        yield made


def test_a_lost_node_is_seen_within_a_second_and_its_timeline_drawn(
    lab: Laboratory, request: pytest.FixtureRequest
) -> None:
    """Seen from fs-b: fs-a is lost, fs-c takes over, and only fs-c knows the timeline."""
    service = lab.plan.services[0].name
    lost = lab.nodes["fs-a"]
    with closing(Door(lab.nodes["fs-b"].namespace)) as door, Browser() as browser:
        browser.size(DESKTOP)
        browser.go(door.url)
        tile = f'.tiles [data-key="{service}"]'
        browser.wait(lambda: "fs-a" in browser.text(tile), "the page to show the owner")
        browser.wait(lambda: "1st in line" in browser.text('[data-key="fs-c"]'), "the slave")
        pids = lost.pids()
        began = time.monotonic()
        lost.send(pids, signal.SIGKILL)
        lab.topology.cut("fs-a")
        browser.wait(lambda: "fs-c" in browser.text(f"{tile} .word"), "the new owner", 5.0)
        seen_s = time.monotonic() - began
        browser.wait(lambda: "dead" in browser.text('[data-key="fs-a"]'), "the lost node", 5.0)
        assert seen_s < 0.15 + 1.0, "found dead after 150 ms, and seen within a second"
        browser.wait(lambda: browser.run("document.querySelectorAll('svg.picture').length"),
                     "the timeline, told by fs-c", 8.0)  # fmt: skip
        browser.wait(lambda: "3 of 3" in browser.text(".reports"), "the calls", 10.0)
        label = browser.run("document.querySelector('svg.picture').getAttribute('aria-label')")
        for step in ("last heartbeat", "claimed", "address up", "recovered"):
            assert step in label
        assert "came from fs-a" in browser.text(tile)
        assert browser.complaints() == []
        if request.config.getoption("--rewrite"):
            browser.size((1200, 1010))
            time.sleep(2.5)
            browser.picture(PICTURES / "takeover.png")
