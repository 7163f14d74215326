"""A whole laboratory: wires, nodes, instruments and callers, brought up and torn down together."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from haclusterd import keys
from haclusterd.config import load_cluster
from haclusterd.lab import netns
from haclusterd.lab.calls import has_media, was_up
from haclusterd.lab.echo import ECHO_PORT
from haclusterd.lab.instrument import Instrument
from haclusterd.lab.netns import LabError
from haclusterd.lab.node import LabNode
from haclusterd.lab.overlap import admitted_ms
from haclusterd.lab.plan import ESL_PASSWORD, SERVICE_NIC, SIP_PORT, LabPlan, config_text
from haclusterd.lab.probe import Settings, Target
from haclusterd.lab.sip_watch import Call, Stream
from haclusterd.lab.topology import CLIENT_MAC, Topology
from haclusterd.lab.traffic import CALLS_PER_S, Callers

FORMED_S = 30.0
_CALLS_LISTED = 20_000
_STEADY = 100  # answers in a row of one node that make it the holder
_IPV6_INTERVAL_US = 5000
_READY_ROLES = frozenset({"master", "slave"})


class SpanSeen(msgspec.Struct):
    """`holders.Span` as reported, the MAC as text."""

    address: str
    mac: str
    first_ns: int
    last_ns: int
    frames: int


class Observation(msgspec.Struct):
    """What `sniff` reports."""

    at_ns: int
    spans: list[SpanSeen]
    calls: dict[str, Call]
    streams: dict[str, Stream]
    dropped: int


class Laboratory:
    """A running cluster with clients. Context manager; `prefix`: where a real FreeSWITCH is."""

    def __init__(self, plan: LabPlan, prefix: str | None = None) -> None:
        self.plan = plan
        self.topology = Topology(plan)
        self.nodes: dict[str, LabNode] = {}
        self.callers: dict[str, Callers] = {}
        self._prefix = prefix
        self._stack = ExitStack()
        self._kept = False

    def __enter__(self) -> Laboratory:
        try:
            self._up()
        except BaseException:
            self._down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._down()

    def keep(self) -> None:
        """Leave nodes and wires behind on exit; `lab down` ends them."""
        self._kept = True

    @property
    def directory(self) -> Path:
        return self.topology.directory

    # -- the cluster ----------------------------------------------------

    def wait_formed(self, timeout_s: float = FORMED_S) -> None:
        """Every service answers from its preferred node, every node is a master or a slave."""
        self.wait(lambda: not self.unformed(), timeout_s, "the cluster to form", self.unformed)

    def unformed(self) -> list[str]:
        """What is missing to a cluster in which everybody can do his part."""
        missing = []
        for node in self.nodes.values():
            if node.refused_to_start:
                raise LabError(f"haclusterd of {node.id} ended:\n{node.log_end()}")
        for service in self.plan.services:
            holder = self.holder(service.ip)
            if not holder:
                missing.append(f"{service.name} ({service.ip}) is not answered steadily")
        for node in self.nodes.values():
            missing += self._not_ready(node)
        return missing

    def _not_ready(self, node: LabNode) -> list[str]:
        status = node.status()
        if status is None:
            return [f"{node.id} does not answer `status`"]
        return [
            f"{entry['id']} is {entry['role']} for {node.id}"
            for entry in status["nodes"]
            if not does_its_part(entry) and entry["id"] in self.nodes
        ]

    def role(self, node_id: str) -> str:
        """What the others say a node is; empty when nobody says anything."""
        for node in self.nodes.values():
            if node.id != node_id and (status := node.status()) is not None:
                return next((str(n["role"]) for n in status["nodes"] if n["id"] == node_id), "")
        return ""

    def overlap_bound_ms(self) -> int:
        """The longest overlap that `status` of any node admits to; 0 if none does."""
        return max(admitted_ms(node.status()) for node in self.nodes.values())

    def holder(self, address: str) -> str:
        """The node that answers on `address` steadily, empty if none does."""
        state = self.probe.ask("state")[address]
        if state["in_a_row"] < _STEADY or state["age_ms"] is None or state["age_ms"] > 50:
            return ""
        return next((n.id for n in self.plan.nodes if n.number == state["node"]), "")

    def wait(self, condition: Any, timeout_s: float, what: str, missing: Any = None) -> None:
        """As `netns.wait_for`, with the reasons and the ends of the logs in the error."""
        try:
            netns.wait_for(condition, timeout_s, what)
        except LabError as error:
            reasons = "; ".join(missing()) if missing is not None else ""
            logs = "\n".join(f"--- {n.id}\n{n.log_end()}" for n in self.nodes.values())
            raise LabError(f"{error}: {reasons}\n{logs}") from None

    # -- the calls ------------------------------------------------------

    def start_calls(self, per_service: dict[str, int], tag: str = "1") -> None:
        """Start callers and wait until all of them talk; {service name: number of calls}."""
        started = []
        for name, count in per_service.items():
            if count:
                service = self.plan.service(name)
                callers = Callers(
                    self.plan, service, self.topology.client, self.directory, count, tag
                )
                self.callers[f"{name}.{tag}"] = callers
                self._stack.callback(callers.stop)
                started.append(callers)
        if started:
            wanted = sum(callers.count for callers in started)
            timeout_s = 15 + max(callers.count for callers in started) / CALLS_PER_S
            ids = {call_id for callers in started for call_id in callers.call_ids}
            self.wait(
                lambda: self._talking(ids) == wanted, timeout_s, f"{wanted} calls to talk",
                lambda: [f"{self._talking(ids)} talk"],
            )  # fmt: skip

    def wait_replicated(self, timeout_s: float = 15.0) -> None:
        """Until no node says that a call of it is at risk, and every slave is in sync."""
        self.wait(lambda: not self.at_risk(), timeout_s, "all calls to be replicated", self.at_risk)

    def at_risk(self) -> list[str]:
        """Why not every call would survive now."""
        found = []
        for service in self.plan.services:
            wanted = sum(c.count for c in self.callers.values() if c.service == service)
            owner = self.holder(service.ip)
            if not wanted:
                continue
            if owner not in self.nodes:
                found.append(f"{service.name} is not answered steadily")
                continue
            calls = self.nodes[owner].api("calls", limit=0)
            known = calls["total"]
            if not calls["at_risk"] and known >= wanted:
                # Among them are copies of the calls of others.
                listed = self.nodes[owner].api("calls", limit=_CALLS_LISTED)["calls"]
                known = sum(call["service"] == service.name for call in listed)
            if calls["at_risk"] or known < wanted:
                found.append(
                    f"{owner}: {known} of {wanted} calls of {service.name} known,"
                    f" {calls['at_risk']} at risk"
                )
        return found

    def _talking(self, call_ids: set[str]) -> int:
        seen = self.observe()
        return sum(
            was_up(call, seen.at_ns) and has_media(call, seen.streams, seen.at_ns)
            for call_id, call in seen.calls.items()
            if call_id in call_ids
        )

    # -- the instruments ------------------------------------------------

    def observe(self) -> Observation:
        return self.sniff.ask_as("report", Observation)

    def arm(self) -> None:
        """Begin to measure."""
        self.probe.ask("ask on")
        self.sniff.ask("arm")
        self.probe.ask("arm")

    # -- up and down ----------------------------------------------------

    def _up(self) -> None:
        self.topology.__enter__()
        config = self.directory / "haclusterd.toml"
        config.write_text(config_text(self.plan, self.directory))
        password = self.directory / "esl.password"
        password.touch(0o600)
        password.write_text(f"{ESL_PASSWORD}\n")
        keys.create(load_cluster(config))
        for node_plan in self.plan.nodes:
            node = LabNode(self.topology, node_plan, config, self._prefix)
            self.nodes[node.id] = node
        for node in self.nodes.values():
            if node.switch is not None:
                node.switch.start()
        self._start_instruments()
        for node in self.nodes.values():
            if node.switch is not None:
                node.switch.wait_ready()
            node.start_echo()
        for node in self.nodes.values():
            node.start_haclusterd()

    def _start_instruments(self) -> None:
        services = self.plan.services
        addresses = [ip for service in services for ip in (service.ip, service.ip6) if ip]
        span = [services[0].ip, services[-1].ip]
        self.sniff = Instrument(
            self.topology.switch, "haclusterd.lab.sniff", SERVICE_NIC, str(SIP_PORT),
            *span, *addresses, log=self.directory / "sniff.log",
        )  # fmt: skip
        self._stack.callback(self.sniff.close)
        targets = [Target(a, _IPV6_INTERVAL_US if ":" in a else 1000) for a in addresses]
        settings = Settings(
            targets, ECHO_PORT, SERVICE_NIC, CLIENT_MAC, self.plan.client_ip, self.plan.client_ip6
        )
        self.probe = Instrument(
            self.topology.client, "haclusterd.lab.probe",
            settings=settings, log=self.directory / "probe.log",
        )  # fmt: skip
        self._stack.callback(self.probe.close)

    def _down(self) -> None:
        self._stack.close()
        if self._kept:
            self.topology.release()
            return
        self.topology.down()
        for node in self.nodes.values():
            node.reap()


def does_its_part(entry: dict[str, Any]) -> bool:
    """A node of `status`: it serves or stands by; of a witness, it lives and votes."""
    witness = bool(entry.get("witness"))  # older versions say nothing of it
    return entry["role"] in _READY_ROLES or (witness and entry["role"] == "maintenance")


def settle(seconds: float) -> None:
    """Let a quiet cluster be quiet for a while, so that a fault meets no start-up work."""
    time.sleep(seconds)
