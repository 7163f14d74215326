"""Things that go wrong, done to one node at one instant, and undone.

| fault | what is done | undone |
|---|---|---|
| freeswitch | SIGKILL to FreeSWITCH | by the node itself (`start_command`) |
| node | all cables cut in one instant, then SIGKILL to everything | never |
| freeze-heart, freeze-agent, freeze-both | SIGSTOP to that process | SIGCONT |
| freeze-freeswitch | SIGSTOP to FreeSWITCH; its kernel still takes connections | SIGCONT |
| freeze-node | SIGSTOP to every process; its kernel goes on answering | SIGCONT |
| links | all heartbeat cables cut; the service network stays | plugged in |
| nic | one heartbeat cable cut | plugged in |
| stun-heart | SIGSTOP to the heart for a given time | SIGCONT |
| stun-switch | all cables cut for a given time | plugged in |
| kill-agent | SIGKILL to that process | by haclusterd |
| kill-heart | SIGKILL to that process | started again, as systemd would |
| oom-heart, oom-agent, oom-freeswitch | the kernel kills it, out of memory | as after SIGKILL |
| switchover, upgrade | the operator's command | |
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from haclusterd.lab import netns
from haclusterd.lab.clock import at_once, now_ns
from haclusterd.lab.netns import LabError
from haclusterd.lab.node import LabNode
from haclusterd.lab.oom import OutOfMemory
from haclusterd.lab.topology import Topology

STUN_MS = 120

# Faults after which the services of the node belong to another one.
MOVING = frozenset(
    {"freeswitch", "node", "freeze-heart", "freeze-both", "freeze-node", "freeze-freeswitch",
     "links", "switchover", "kill-heart", "oom-heart", "oom-freeswitch"}
)  # fmt: skip
STAYING = frozenset(
    {"freeze-agent", "nic", "upgrade", "stun-heart", "stun-switch", "kill-agent", "oom-agent"}
)
FAULTS = tuple(sorted(MOVING | STAYING))


@dataclass
class Injection:
    """A fault done from `at_ns` to `done_ns` (BOOTTIME). `heal` undoes it, harmless when repeated.

    `held_ms` is how long a stun really lasted, None for what is no stun: a thread that wants to
    end it waits for its CPU as everybody does.
    """

    fault: str
    node: str
    heal: Callable[[], None]
    complete: Callable[[], None]  # what may take its time once the fault is there
    at_ns: int = 0
    done_ns: int = 0
    held_ms: float | None = None
    visible_ns: list[int] = field(default_factory=list)  # when the pidfd of FreeSWITCH fired
    watcher: threading.Thread | None = None
    complaint: str = ""  # what the operator's command said when it was refused

    @property
    def exit_visible_ms(self) -> float | None:
        if self.watcher is not None:
            self.watcher.join(2.0)
        return (self.visible_ns[0] - self.at_ns) / 1e6 if self.visible_ns else None


def strike(injectors: list[Injector], stun_ms: float = STUN_MS) -> list[Injection]:
    """All of them within microseconds: what takes time is done before the first or after the last.

    Stuns end together, `stun_ms` after the last of them has begun.
    """
    injections = [injector.aim() for injector in injectors]
    with at_once():
        for injector, injection in zip(injectors, injections, strict=True):
            injector.fire(injection)
        if any(injector.is_stun for injector in injectors):
            time.sleep(stun_ms / 1000)
            for injection in injections:
                injection.heal()
                injection.held_ms = (now_ns() - injection.at_ns) / 1e6
    return injections


def spread_ms(injections: list[Injection]) -> float:
    """From before the first fault to after the last one."""
    first, last = min(i.at_ns for i in injections), max(i.done_ns for i in injections)
    return (last - first) / 1e6


class Injector:
    """Prepares a fault on one node, so that `fire` does nothing but the fault."""

    def __init__(self, topology: Topology, node: LabNode, fault: str, service: str = "") -> None:
        if fault not in FAULTS:
            raise LabError(f'"{fault}" is no fault; known: {", ".join(FAULTS)}')
        self.fault = fault
        self.node = node
        self._topology = topology
        self._service = service
        self._act: Callable[[], None]
        self._heal: Callable[[], None] = _nothing
        self._complete: Callable[[], None] = _nothing
        self._watched_pid: int | None = None
        self._complaint = ""
        self._prepare()

    @property
    def is_stun(self) -> bool:
        return self.fault.startswith("stun-")

    def aim(self) -> Injection:
        """Begin to watch for what the fault makes visible."""
        descriptor = os.pidfd_open(self._watched_pid) if self._watched_pid else None
        injection = Injection(self.fault, self.node.id, self._heal, self._complete)
        if descriptor is not None:
            injection.watcher = threading.Thread(
                target=_watch_exit, args=(descriptor, injection.visible_ns), daemon=True
            )
            injection.watcher.start()
        return injection

    def fire(self, injection: Injection) -> None:
        injection.at_ns = now_ns()
        self._act()
        injection.done_ns = now_ns()
        injection.complaint = self._complaint

    def _prepare(self) -> None:
        kind, _, what = self.fault.partition("-")
        if kind in ("freeze", "stun", "kill"):
            self._prepare_signals(kind, what)
        elif kind == "oom":
            self._prepare_oom(what)
        elif self.fault == "freeswitch":
            pid = self._watch_switch()
            self._act = lambda: self.node.send([pid], signal.SIGKILL)
        elif self.fault == "node":
            pids = self.node.pids()
            self._act = lambda: self._lose(pids)
            self._complete = lambda: netns.kill_inside([self.node.namespace])
        elif self.fault in ("links", "nic"):
            nics = self._topology.plan.heartbeat_nics
            self._cables(nics if self.fault == "links" else nics[:1])
        elif self.fault == "switchover":
            self._act = lambda: self._command("switchover", self._service)
        elif self.fault == "upgrade":
            self._act = lambda: self._command("upgrade")

    def _prepare_signals(self, kind: str, what: str) -> None:
        if self.fault == "stun-switch":
            self._cables(self._topology.plan.node_nics)
        else:
            hearts, agents = self.node.haclusterd_pids()
            groups = {"heart": hearts, "agent": agents, "both": hearts + agents}
            if what == "freeswitch":
                pids = [self._watch_switch()]  # how long it stands is seen by its end
            else:
                pids = groups[what] if what in groups else self.node.pids()
            if not pids:
                raise LabError(f"{self.node.id} runs no {what}: {self.node.log_end(3)}")
            number = signal.SIGKILL if kind == "kill" else signal.SIGSTOP
            self._act = lambda: self.node.send(pids, number)
            if kind != "kill":
                self._heal = lambda: self.node.send(pids, signal.SIGCONT)
            elif what == "heart":
                self._heal = self._start_again

    def _prepare_oom(self, what: str) -> None:
        hearts, agents = self.node.haclusterd_pids()
        pids = {"heart": hearts, "agent": agents}.get(what) or [self._watch_switch()]
        memory = OutOfMemory(pids)
        self._act, self._complete = memory.kill, memory.close
        if what == "heart":
            self._heal = self._start_again

    def _watch_switch(self) -> int:
        pid = self.node.switch.pid if self.node.switch is not None else None
        if pid is None:
            raise LabError(f"{self.node.id} runs no FreeSWITCH: not with --address-only")
        self._watched_pid = pid
        return pid

    def _start_again(self) -> None:
        if not self.node.haclusterd_pids()[0]:
            self.node.start_haclusterd()

    def _cables(self, nics: tuple[str, ...]) -> None:
        self._act = lambda: self._topology.cut(self.node.id, nics)
        self._heal = lambda: self._topology.plug(self.node.id, nics)

    def _lose(self, pids: list[int]) -> None:
        """First the cables, all in one datagram: how long killing takes nobody can see."""
        self._topology.cut(self.node.id)
        self.node.send(pids, signal.SIGKILL)

    def _command(self, *words: str) -> None:
        try:
            done = self.node.ctl(*words)
        except subprocess.TimeoutExpired:
            self._complaint = f"haclusterctl {' '.join(words)} did not return"
            return
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            self._complaint = f"haclusterctl {' '.join(words)}: exit {done.returncode}: {said}"


def _watch_exit(descriptor: int, visible_ns: list[int]) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if poll.poll(10_000):
        visible_ns.append(now_ns())
    os.close(descriptor)


def _nothing() -> None:
    """For faults that cannot be undone."""
