"""What a laboratory looks like: nodes, NICs, services, addresses, and the configuration file.

Pure: nothing here touches the system. Everything else in `lab` asks the plan for names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

SERVICE_NIC = "svc"
SIP_PORT = 5060
ESL_PORT = 8021
ESL_PASSWORD = "lab"
NODES_MAX = 26
NICS_MAX = 6
_CLIENT_NUMBER = 200
_FIRST_SERVICE = 100


class PlanError(ValueError):
    """The numbers asked for make no laboratory; the text says which and why."""


@dataclass(frozen=True)
class NodePlan:
    """One node. `number` counts from 1 and is the last octet of its addresses."""

    id: str
    number: int
    links: tuple[str, ...]
    service_ip: str
    mac: str  # of its service NIC
    witness: bool = False


@dataclass(frozen=True)
class ServicePlan:
    """One service; `preferred` is the node that owns it after a cold start."""

    name: str
    ip: str
    ip6: str
    profile: str
    preferred: str


@dataclass(frozen=True)
class LabPlan:
    """Everything that is decided before the first namespace is made.

    `freeswitch`: "none" (addresses only), "process" (only a process is watched: `esl_port = 0`),
    "emulator", or "real". `quorum` empty: majority, and two nodes get a witness, because two votes
    survive no loss. What only a
    real FreeSWITCH knows: `bridge_target`, HOST:PORT of the telephone that extension 41xx calls,
    `rtp_ports`, the first and last port of its media, and `profile_params`, set in every SIP
    profile instead of what fs_conf has there. Without `kernel_fence` the nodes find an
    `nft` that refuses, as on a kernel without egress hooks.

    `nice` is what FreeSWITCH, haclusterd, the echo service and SIPp run at. FreeSWITCH raises
    itself to -10, and the nodes of a laboratory share their processors with whatever else runs:
    without it a busy machine looks like a hung FreeSWITCH. It flatters figures taken on a busy
    machine, so results say what it was. `call_source` is `recovery.source`. `media_pps`: of the
    emulator, whose 50 packets a second for 1,000 calls would be all that the machine does.

    `maintenance_service` names one of the services; the first node has it, beside its own.
    """

    masters: int = 1
    slaves: int = 2
    nics: int = 2
    preset: str = "lan"
    freeswitch: str = "emulator"
    last_resort: str = "masters"
    quorum: str = ""
    ipv6: bool = True
    bridge_target: str = ""
    rtp_ports: tuple[int, int] = (16384, 32768)
    profile_params: tuple[tuple[str, str], ...] = ()
    timing: dict[str, int] = field(default_factory=dict)
    kernel_fence: bool = True
    nice: int = -10
    call_source: str = "core_db"
    media_pps: int = 50
    maintenance_service: str = ""

    def __post_init__(self) -> None:
        if self.masters < 1 or self.slaves < 0 or self.masters + self.slaves < 2:
            raise PlanError("a cluster needs at least one master and two nodes in all")
        if self.masters + self.slaves > NODES_MAX:
            raise PlanError(f"at most {NODES_MAX} nodes: lower --masters or --slaves")
        if not 1 <= self.nics <= NICS_MAX:
            raise PlanError(f"--nics must be 1 to {NICS_MAX}")
        if not -20 <= self.nice <= 19:
            raise PlanError("--nice must be -20 to 19; 0 is like everything else on the machine")

    @property
    def nodes(self) -> tuple[NodePlan, ...]:
        count = self.masters + self.slaves
        voters = count + 1 if count == 2 and not self.quorum else count
        return tuple(self._node(number, number > count) for number in range(1, voters + 1))

    @property
    def services(self) -> tuple[ServicePlan, ...]:
        return tuple(
            ServicePlan(
                name=f"east{number}",
                ip=f"10.9.0.{_FIRST_SERVICE + number}",
                ip6=f"fd00:9::{_FIRST_SERVICE + number}" if self.ipv6 else "",
                profile=f"profile{number}",
                preferred=node_id(1 if f"east{number}" == self.maintenance_service else number),
            )
            for number in range(1, self.masters + 1)
        )

    def service(self, name: str) -> ServicePlan:
        return next(service for service in self.services if service.name == name)

    @property
    def client_ip(self) -> str:
        return f"10.9.0.{_CLIENT_NUMBER}"

    @property
    def client_ip6(self) -> str:
        return f"fd00:9::{_CLIENT_NUMBER}"

    @property
    def heartbeat_nics(self) -> tuple[str, ...]:
        return tuple(f"hb{k}" for k in range(1, self.nics + 1))

    @property
    def node_nics(self) -> tuple[str, ...]:
        return (*self.heartbeat_nics, SERVICE_NIC)

    def _node(self, number: int, witness: bool) -> NodePlan:
        return NodePlan(
            id="witness" if witness else node_id(number),
            number=number,
            links=tuple(f"10.1{k}.0.{number}" for k in range(1, self.nics + 1)),
            service_ip=f"10.9.0.{number}",
            mac=f"02:ac:00:00:00:{number:02x}",
            witness=witness,
        )


def node_id(number: int) -> str:
    return f"fs-{chr(ord('a') + number - 1)}"


def _quorum(plan: LabPlan) -> str:
    return "witness" if any(node.witness for node in plan.nodes) else "majority"


def config_text(plan: LabPlan, root: Path) -> str:
    """The configuration file: the same bytes for every node. Node files are in ROOT/{node}."""
    sections = [
        "[cluster]",
        'name = "lab"',
        'key_file = "cluster.key"',
        f'preset = "{plan.preset}"',
        f'quorum = "{plan.quorum or _quorum(plan)}"',
        f'last_resort = "{plan.last_resort}"',
    ]
    if plan.maintenance_service:
        sections.append(f'maintenance_service = "{plan.maintenance_service}"')
    if plan.timing:
        sections += ["[timing]", *(f"{key} = {value}" for key, value in plan.timing.items())]
    if plan.freeswitch != "none":
        sections += _freeswitch_lines(plan, root)
        if plan.call_source != "core_db":
            sections += ["[recovery]", f'source = "{plan.call_source}"']
    for node in plan.nodes:
        sections += ["[[node]]", f'id = "{node.id}"', f"links = {_array(node.links)}"]
        if node.witness:
            sections.append("witness = true")
    for service in plan.services:
        addresses = [f"{service.ip}/24 dev {SERVICE_NIC}"]
        if service.ip6:
            addresses.append(f"{service.ip6}/64 dev {SERVICE_NIC}")
        sections += ["[[service]]", f'name = "{service.name}"', f"addresses = {_array(addresses)}"]
        if plan.freeswitch in ("emulator", "real"):
            sections.append(f"profiles = {_array([service.profile])}")
        sections.append(f'preferred = "{service.preferred}"')
    return "\n".join(sections) + "\n"


def _freeswitch_lines(plan: LabPlan, root: Path) -> list[str]:
    here = root / "{node}"  # the layout of `lab.switches`
    return [
        "[freeswitch]",
        f"esl_port = {ESL_PORT if plan.freeswitch in ('emulator', 'real') else 0}",
        'esl_password_file = "esl.password"',
        f'core_db = "{here}/freeswitch/db/core.db"',
        f'pid_file = "{here}/freeswitch/run/freeswitch.pid"',
        f'start_command = ["{here}/start-freeswitch"]',
        *(["presence = true"] if ("manage-presence", "true") in plan.profile_params else []),
    ]


def _array(words: tuple[str, ...] | list[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"
