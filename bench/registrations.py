"""How fast registrations come to a node: `python -m bench.registrations`. Root, like the lab.

Phones register at the emulators of a laboratory by SIP, so that nothing of the way is left out.
Two figures: a node whose agent is new gets all of them (MS18), and a node that was cut off while
all of them changed has them after it is back (MS17). Meanwhile the heartbeats of all nodes are
watched: what was decided, and the longest silence of a service address.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from haclusterd.lab import netns
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.node import ApiRefused
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import ready_cluster

GOAL_PER_S = 5000
EAST = "registrations:east1"
_WINDOW = 8  # the emulator answers its health probe between them
_POLL_S = 0.002
_PATIENCE_S = 120.0


class Phones:
    """Many phones behind one socket."""

    def __init__(self, lab: Laboratory, count: int) -> None:
        with netns.inside(lab.topology.client):
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.bind((lab.plan.client_ip, 0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.settimeout(0.5)
        self.here = f"{lab.plan.client_ip}:{self.socket.getsockname()[1]}"
        self.users = [str(100_000 + n) for n in range(count)]
        self._round = 0

    def register(self, server: str, expires_s: int) -> float:
        """All of them; the seconds it took."""
        self._round += 1
        began = time.monotonic()
        left = {f"c-{user}": user for user in self.users}
        while left:
            if time.monotonic() - began > _PATIENCE_S:
                raise netns.LabError(f"{len(left)} phones are not registered")
            part = list(left.values())[:_WINDOW]
            for user in part:
                self.socket.sendto(self._request(user, expires_s), (server, 5060))
            waiting = len(part)
            with suppress(TimeoutError):
                while waiting:
                    found = re.search(rb"(?i)\r\ncall-id: (\S+)", self.socket.recv(65535))
                    if found is not None:
                        waiting -= left.pop(found[1].decode(), None) is not None
        return time.monotonic() - began

    def _request(self, user: str, expires_s: int) -> bytes:
        branch = f"z9hG4bK-{user}-{self._round}-{time.monotonic_ns()}"
        return (
            "REGISTER sip:lab.test SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {self.here};branch={branch};rport\r\n"
            f"From: <sip:{user}@lab.test>;tag=1\r\nTo: <sip:{user}@lab.test>\r\n"
            f"Call-ID: c-{user}\r\nCSeq: {self._round} REGISTER\r\n"
            f"Contact: <sip:{user}@{self.here}>\r\nExpires: {expires_s}\r\n"
            "User-Agent: bench\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
        ).encode()


def measure(count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Both figures with `count` phones."""
    with ready_cluster(LabPlan(masters=2, slaves=1), None, say) as lab:
        time.sleep(2)
        phones = Phones(lab, count)
        first = lab.plan.services[0]
        took_s = phones.register(first.ip, 3600)
        say(f"{count} phones registered in {took_s:.1f} s")
        for node in ("fs-b", "fs-c"):
            _until(lambda node=node: _held(lab, node)[:2] == ("in-sync", count), node)
        said = {node: max(at_us for at_us, _ in _history(lab, node)) for node in lab.nodes}
        lab.arm()
        result = {"phones": count, "goal_per_s": GOAL_PER_S}
        result["new_agent"] = _new_agent(lab, count)
        result["after_outage"] = _after_outage(lab, phones, count)
        probed = lab.probe.ask("report")
        result["decisions"] = {
            node: [
                d["text"] for d in lab.nodes[node].api("history", count=200) if d["at_us"] > last
            ]
            for node, last in said.items()
        }
        result["address"] = probed
        return result


def _new_agent(lab: Laboratory, count: int) -> dict[str, float]:
    """The agent of the slave is killed; the next one has nothing and gets a snapshot."""
    node = lab.nodes["fs-c"]
    _hearts, agents = node.haclusterd_pids()
    before = node.api("about")["pid"]
    node.send(agents, signal.SIGKILL)
    _until(lambda: _pid(lab, "fs-c") not in (0, before), "the next agent")
    began = first = time.monotonic()
    while True:
        state, have, _ = _held(lab, "fs-c")
        now = time.monotonic()
        if not have:
            first = now
        if state == "in-sync" and have == count:
            break
        if now - began > _PATIENCE_S:
            raise netns.LabError(f"fs-c has {have} of {count}")
        time.sleep(_POLL_S)
    tables_s = _until(lambda: _rows(lab, "fs-c") == count, "the table of fs-c")
    return {"seconds": now - first, "per_s": count / max(now - first, _POLL_S),
            "tables_after_s": tables_s}  # fmt: skip


def _after_outage(lab: Laboratory, phones: Phones, count: int) -> dict[str, float]:
    """The slave is cut off, every registration is refreshed, the slave comes back."""
    before = _held(lab, "fs-c")[2]
    lab.topology.cut("fs-c")
    time.sleep(2)
    phones.register(lab.plan.services[0].ip, 7200)
    wanted = before + count
    _until(lambda: _head(lab) >= wanted, "the changes at fs-a")
    lab.topology.plug("fs-c")
    began = first = time.monotonic()
    while True:
        state, have, position = _held(lab, "fs-c")
        now = time.monotonic()
        if position == before:
            first = now
        if position >= wanted and state == "in-sync" and have == count:
            break
        if now - began > _PATIENCE_S:
            raise netns.LabError(f"fs-c is at {position} of {wanted}")
        time.sleep(_POLL_S)
    return {"back_in_sync_after_s": now - began, "seconds": now - first,
            "per_s": count / max(now - first, _POLL_S)}  # fmt: skip


def _held(lab: Laboratory, node: str) -> tuple[str, int, int]:
    """(state, registrations, position) of a node's copy."""
    with suppress(OSError, ApiRefused):
        for row in lab.nodes[node].api("sync", 2.0)["incoming"]:
            if row["service"] == EAST:
                return row["state"], row["have"], row["position"]
    return "none", 0, -1


def _head(lab: Laboratory) -> int:
    rows = [o for p in lab.nodes["fs-a"].api("sync")["peers"] for o in p["outgoing"]]
    return max((o["head"] for o in rows if o["service"] == EAST), default=0)


def _pid(lab: Laboratory, node: str) -> int:
    with suppress(OSError, ApiRefused):
        return int(lab.nodes[node].api("about", 1.0)["pid"])
    return 0


def _rows(lab: Laboratory, node: str) -> int:
    switch = lab.nodes[node].switch
    if switch is None:
        return 0
    with switch.esl() as esl:
        status = esl.api("sofia status profile profile1")
    return int(status.partition("REGISTRATIONS")[2].split()[0])


def _history(lab: Laboratory, node: str) -> list[tuple[int, str]]:
    return [(d["at_us"], d["text"]) for d in lab.nodes[node].api("history", count=500)]


def _until(condition: Callable[[], bool], what: str) -> float:
    began = time.monotonic()
    netns.wait_for(condition, _PATIENCE_S, what)
    return time.monotonic() - began


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if it could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.registrations", description=__doc__)
    parser.add_argument("--phones", type=int, default=5000)
    parser.add_argument("--json", type=Path, help="write all of it there")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.phones <= 50_000:
        parser.error("--phones 1..50000")
    try:
        result = measure(arguments.phones, lambda text: print(text, file=sys.stderr))
    except netns.LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    text = json.dumps(result, indent=1)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
