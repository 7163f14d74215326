"""The prober: asks every service address every millisecond, from the client's namespace.

`python -m haclusterd.lab.probe` with a JSON object on stdin (`Settings`), then commands, one line
each, an answer of one line each:

    arm      start a new record
    state    per address: the node that answered last, how long ago, its answers in a row
    report   per address: gaps between answers since `arm`, who answered first when
    ask on   also ask ARP and neighbour discovery for every address every few ms; `ask off` ends it

A gap is the time between two answers received; what has not been answered yet counts as one.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

import msgspec

from haclusterd.lab.clock import be_punctual, now_ns
from haclusterd.lab.frames import arp_question, mac_bytes, neighbour_question

GAP_NS = 5_000_000  # shorter ones are not listed, only counted into the longest
GAPS_MAX = 1000


class Target(msgspec.Struct):
    """One address asked; `interval_us` between two questions."""

    address: str
    interval_us: int = 1000


class Settings(msgspec.Struct):
    """What to ask, and who asks. Empty `ask_mac`: no ARP or neighbour questions."""

    targets: list[Target]
    port: int
    nic: str
    ask_mac: str
    ask_ip: str
    ask_ip6: str
    ask_interval_ms: int = 4


class Record:
    """What was heard from one address."""

    def __init__(self, target: Target, port: int) -> None:
        self.target = target
        family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        # connect(): answers from another address than the one asked are not answers.
        self.socket.connect((target.address, port))
        self.gap_ns = GAP_NS + target.interval_us * 1000
        self.next_ns = now_ns()
        self.last_ns = 0
        self.node = 0
        self.in_a_row = 0
        self.arm()

    def arm(self) -> None:
        self.asked = self.answers = self.late_ns = self.longest_ns = 0
        self.since_ns = now_ns()
        self.gaps: list[tuple[int, int, int, int]] = []
        self.first: dict[int, int] = {}

    def ask(self, at_ns: int) -> None:
        self.late_ns = max(self.late_ns, at_ns - self.next_ns)
        # No route, no neighbour, refused by an earlier answer: all of them are silence.
        with suppress(OSError):
            self.socket.send(struct.pack("=Qq", self.asked, at_ns))
        self.asked += 1
        step_ns = self.target.interval_us * 1000
        self.next_ns += step_ns
        if at_ns > self.next_ns:
            self.next_ns = at_ns + step_ns

    def hear(self) -> None:
        with suppress(OSError):
            while True:
                answer = self.socket.recv(2048)
                self._heard(answer[-1], now_ns())

    def _heard(self, node: int, at_ns: int) -> None:
        if self.last_ns:
            self._gap(self.last_ns, at_ns, node)
        self.in_a_row = self.in_a_row + 1 if node == self.node else 1
        self.last_ns, self.node = at_ns, node
        self.answers += 1
        self.first.setdefault(node, at_ns)

    def _gap(self, from_ns: int, to_ns: int, node: int) -> None:
        gap_ns = to_ns - from_ns
        self.longest_ns = max(self.longest_ns, gap_ns)
        if gap_ns > self.gap_ns and len(self.gaps) < GAPS_MAX:
            self.gaps.append((from_ns, to_ns, self.node, node))

    def state(self) -> dict[str, Any]:
        age_ms = (now_ns() - self.last_ns) / 1e6 if self.last_ns else None
        return {"node": self.node, "age_ms": age_ms, "in_a_row": self.in_a_row}

    def report(self) -> dict[str, Any]:
        gaps, longest_ns, at_ns = list(self.gaps), self.longest_ns, now_ns()
        from_ns = self.last_ns or self.since_ns
        if at_ns - from_ns > self.gap_ns:
            gaps.append((from_ns, at_ns, self.node, 0))
            longest_ns = max(longest_ns, at_ns - from_ns)
        return {
            "longest_ms": longest_ns / 1e6,
            "gaps": [{"from_ns": a, "to_ns": b, "from": m, "to": n} for a, b, m, n in gaps],
            "first_ns": {str(node): at for node, at in self.first.items()},
            "asked": self.asked,
            "answers": self.answers,
            "late_ms": self.late_ns / 1e6,
        }


class Asker:
    """ARP and neighbour questions, so that whoever holds an address says so."""

    def __init__(self, settings: Settings) -> None:
        self.on = False
        self.interval_ns = settings.ask_interval_ms * 1_000_000
        self.next_ns = now_ns()
        mac = mac_bytes(settings.ask_mac)
        self._questions = [
            neighbour_question(mac, settings.ask_ip6, target.address)
            if ":" in target.address
            else arp_question(mac, settings.ask_ip, target.address)
            for target in settings.targets
        ]
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((settings.nic, 0))

    def ask(self, at_ns: int) -> None:
        self.next_ns = at_ns + self.interval_ns
        for question in self._questions:
            with suppress(OSError):
                self._socket.send(question)


class Prober:
    """The loop: ask what is due, hear what came, answer commands."""

    def __init__(self, settings: Settings) -> None:
        self.records = {t.address: Record(t, settings.port) for t in settings.targets}
        self.asker = Asker(settings) if settings.ask_mac else None
        self._by_fd = {record.socket.fileno(): record for record in self.records.values()}

    def run(self) -> None:
        commands = sys.stdin.fileno()
        waiting = [commands, *self._by_fd]
        while True:
            due_ns = self._ask_due(now_ns())
            ready, _, _ = select.select(waiting, [], [], max(0, due_ns - now_ns()) / 1e9)
            for descriptor in ready:
                if descriptor != commands:
                    self._by_fd[descriptor].hear()
            if commands in ready:
                command = sys.stdin.readline().strip()
                if not command:
                    return
                sys.stdout.buffer.write(msgspec.json.encode(self.obey(command)) + b"\n")
                sys.stdout.buffer.flush()

    def _ask_due(self, at_ns: int) -> int:
        """Ask whatever is due; when the next question is."""
        due_ns = at_ns + 1_000_000_000
        for record in self.records.values():
            if at_ns >= record.next_ns:
                record.ask(at_ns)
            due_ns = min(due_ns, record.next_ns)
        if self.asker is not None and self.asker.on:
            if at_ns >= self.asker.next_ns:
                self.asker.ask(at_ns)
            due_ns = min(due_ns, self.asker.next_ns)
        return due_ns

    def obey(self, command: str) -> dict[str, Any]:
        if command == "arm":
            for record in self.records.values():
                record.arm()
        elif command == "state":
            return {address: record.state() for address, record in self.records.items()}
        elif command == "report":
            return {address: record.report() for address, record in self.records.items()}
        elif command in ("ask on", "ask off") and self.asker is not None:
            self.asker.on = command == "ask on"
        return {}


def main() -> int:
    settings = msgspec.json.decode(sys.stdin.readline(), type=Settings)
    be_punctual(80)
    prober = Prober(settings)
    print("ready", flush=True)
    prober.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
