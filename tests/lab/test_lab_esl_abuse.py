"""Floods and hostile values at one FreeSWITCH: beats go on, nothing moves, every call survives."""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.request
from typing import Any

import pytest

from haclusterd.lab import netns
from haclusterd.lab.faults import Injector, strike
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.node import LabNode
from haclusterd.lab.plan import ESL_PASSWORD, ESL_PORT, LabPlan
from haclusterd.lab.run import bring_calls, ready_cluster

_REASON = netns.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]
EVENTS = 20_000
AHEAD = 100  # of what the emulator has answered
CALLS = 5
SOON_S = 20.0
# What the agent subscribes to, so that all of it reaches the agent. A flood of SHUTDOWN would be
# believed: who may log in to FreeSWITCH may also shut it down.
NAMES = (b"MODULE_LOAD", b"RELOADXML", b"CHANNEL_CREATE", b"CHANNEL_HANGUP", b"CHANNEL_BRIDGE")


def flood(node: LabNode, answered: list[int]) -> None:
    """20,000 events, some of 0.9 MB, with line breaks, bytes that are not UTF-8, half an end."""
    with netns.inside(node.namespace):
        esl = socket.create_connection(("127.0.0.1", ESL_PORT), 10)
    drain = threading.Thread(target=_drain, args=(esl, answered), daemon=True)
    esl.sendall(f"auth {ESL_PASSWORD}\n\n".encode())
    drain.start()
    for n in range(EVENTS):
        while n - answered[0] > AHEAD and drain.is_alive():
            time.sleep(0.001)  # or the emulator, one thread, has no time for its probes
        head = b"sendevent %s\nvariable_recovered: true\nn: %d\n" % (NAMES[n % len(NAMES)], n)
        head += b"Unique-ID: x%0AEvent-Name: SHUTDOWN\nv: \xff\xfe%0D%0A%0D%0Aapi hupall\n"
        body = b"x" * 900_000 if n % 4000 == 0 else b"Event-Name: SHUTDOWN\n\n"
        esl.sendall(head + b"content-length: %d\n\n" % len(body) + body)
    esl.sendall(b"sendevent CHANNEL_HANGUP\nUnique-ID: ")
    esl.shutdown(socket.SHUT_WR)
    drain.join(60)
    esl.close()


def _drain(esl: socket.socket, answered: list[int]) -> None:
    esl.settimeout(60)
    rest = b""
    while more := esl.recv(65536):
        answered[0] += (rest + more).count(b"Reply-Text: +OK")
        rest = (rest + more)[-14:]


def metrics(node: LabNode) -> dict[str, float]:
    """Events counted by the agent."""
    with netns.inside(node.namespace):
        answer = urllib.request.urlopen("http://127.0.0.1:7802/metrics", timeout=5)
    lines = re.findall(
        r'^haclusterd_events_total\{event="(\w+)"\} (\S+)', answer.read().decode(), re.M
    )
    return {name: float(count) for name, count in lines}


def seen(lab: Laboratory, watcher: str) -> dict[str, Any]:
    status = lab.nodes[watcher].status()
    assert status is not None
    return status


def test_a_flood_moves_nothing_and_loses_nothing() -> None:
    answered = [0]
    with ready_cluster(LabPlan(masters=1, slaves=2), None, print) as lab:
        service = lab.plan.services[0].name
        bring_calls(lab, {service: CALLS}, print)
        a = lab.nodes["fs-a"]
        before, epoch = metrics(a), seen(lab, "fs-c")["services"][0]["epoch"]
        worker = threading.Thread(target=flood, args=(a, answered), daemon=True)
        began = time.monotonic()
        worker.start()
        roles, up = set(), []
        while worker.is_alive():
            status = seen(lab, "fs-c")
            (node,) = [n for n in status["nodes"] if n["id"] == "fs-a"]
            roles.add(node["role"])
            up.append(all(link["up"] for link in node["links"]))
            time.sleep(0.05)
        print(f"flood of {EVENTS} events: {time.monotonic() - began:.1f} s, {len(up)} looks")
        assert answered[0] >= EVENTS, "FreeSWITCH took it all"
        assert roles == {"master"}, "the heart of a flooded node beats on"
        assert all(up)
        assert seen(lab, "fs-c")["services"][0]["epoch"] == epoch
        after = metrics(a)
        lost = after["esl_events_dropped"] - before["esl_events_dropped"]
        print("dropped", lost, "new logins", after["esl_logins"] - before["esl_logins"])
        assert after["calls_refused"] == 0
        lab.wait(lambda: a.api("status")["alarms"] == [], SOON_S, "the end of all alarms")
        assert a.switch is not None
        assert len(a.switch.recovery_rows()) == CALLS
        rows = a.switch.recovery_rows()

        (injection,) = strike([Injector(lab.topology, a, "node")])
        injection.complete()
        lab.wait(
            lambda: seen(lab, "fs-c")["services"][0]["owner"] in ("fs-b", "fs-c"),
            SOON_S, "a new owner",
        )  # fmt: skip
        taker = lab.nodes[seen(lab, "fs-c")["services"][0]["owner"]]
        lab.wait(lambda: bool(taker.api("report", which="last")), SOON_S, "its report")
        assert taker.switch is not None
        uuids = {row[3] for row in rows}
        lab.wait(
            lambda: {row[3] for row in taker.switch.recovery_rows()} == uuids,
            SOON_S, "all calls, and nothing but them",
        )  # fmt: skip
