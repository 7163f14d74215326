"""The configuration as values: what the rest of haclusterd reads, and views of it as a whole.

Nodes, services and times are the core's own types, so that nothing is translated twice. Paths
and commands may hold `{node}`; they are as written until `Config.bound_to` names the node.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from haclusterd.config.recovering import RecoverySection
from haclusterd.config.watching import HealthSection, Mover, Sensor
from haclusterd.core.model import ClusterSpec, LastResort, NodeSpec, Quorum, ServiceSpec, Timing
from haclusterd.core.numbering import served_by
from haclusterd.core.text import brief, printable

NODE_PLACEHOLDER = "{node}"
# esl_backend, and the module that each one needs beside what is always installed.
ESL_BACKENDS = {"native": "", "greenswitch": "greenswitch", "python-esl": "ESL"}
STATE_DIR = Path("/var/lib/haclusterd")
RELINQUISH_DEADS = 400  # of `dead_ms` without a slave: a minute for lan, ten for wan
SOCKET_NAME = "haclusterd.sock"  # in --run-dir


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration. `key` is empty when the whole file is meant."""

    file: str
    key: str
    message: str
    fix: str

    def __post_init__(self) -> None:
        # Here, so that no reader of the file has to think of values without end.
        for name in ("key", "message", "fix"):
            object.__setattr__(self, name, brief(getattr(self, name)))

    def __str__(self) -> str:
        """One line that is safe on any terminal, whatever the file holds."""
        return printable(f"{self.where}: {self.message}. Fix: {self.fix}.")

    @property
    def where(self) -> str:
        """The file, and the key where one is meant."""
        return f"{self.file}: {self.key}" if self.key else self.file


class ConfigError(Exception):
    """All problems of a configuration; its text is one line for each."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class FreeSwitch:
    """Section `[freeswitch]`. `esl_port` 0: only the process in `pid_file` is watched, no ESL.

    `limits_port` 0: limits are each FreeSWITCH's own.
    `compare`: a node whose FreeSWITCH lacks what the owner's has is no candidate.
    """

    esl_host: str
    esl_port: int
    esl_password_file: Path
    core_db: Path
    pid_file: Path
    start_command: tuple[str, ...]
    limits_port: int = 0
    esl_backend: str = "native"
    compare: bool = True
    presence: bool = False


@dataclass(frozen=True, slots=True)
class Api:
    """Section `[api]`. `http_port` 0: no HTTP. `hosts`: names it may be asked for by."""

    socket: Path
    http_host: str
    http_port: int
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hook:
    """One `[[hook]]`: exactly one of `exec`, `webhook` and `email` is set. No `events`: all."""

    name: str
    events: tuple[str, ...]
    exec: tuple[str, ...]
    webhook: str
    email: tuple[str, ...]
    secret_file: Path | None
    ca_file: Path | None
    smtp_host: str
    smtp_port: int
    smtp_tls: str
    smtp_user: str
    smtp_password_file: Path | None
    sender: str
    timeout_ms: int
    retries: int
    every_node: bool


@dataclass(frozen=True, slots=True)
class Dns:
    """One `[[dns]]`: a name that holds the addresses in service. No `services`: all."""

    name: str
    zone: str
    server_host: str
    server_port: int
    key_name: str
    key_file: Path
    algorithm: str
    ttl_s: int
    hold_ms: int
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """One configuration file. `me` is the index of this node, -1 where no node is meant.

    `run_dir` holds the socket and what lives as long as a boot, `state_dir` what must survive
    one (promises, standby store, traces); `--run-dir` sets both. `document` is the file's content
    with all defaults filled in and nothing of this node or host in it: the base of `config_hash`.
    """

    path: Path
    name: str
    key_file: Path
    preset: str
    quorum: Quorum
    last_resort: LastResort
    relinquish: bool
    timing: Timing
    freeswitch: FreeSwitch | None
    sync_port: int
    heartbeat_port: int
    api: Api
    nodes: tuple[NodeSpec, ...]
    services: tuple[ServiceSpec, ...]
    run_dir: Path
    recovery: RecoverySection = field(default_factory=RecoverySection)
    hooks: tuple[Hook, ...] = ()
    dns: tuple[Dns, ...] = ()
    movers: tuple[Mover, ...] = ()
    health: HealthSection = field(default_factory=HealthSection)
    sensors: tuple[Sensor, ...] = ()
    state_dir: Path = STATE_DIR
    me: int = -1
    revision: int = 1  # of the set of nodes
    maintenance_service: str = ""  # takes new calls only while another service is drained
    text: str = field(default="", repr=False, compare=False)  # the file as it was read
    warnings: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def node(self) -> NodeSpec:
        """This node. ValueError in a configuration that is not bound to one."""
        if self.me < 0:
            raise ValueError("this configuration is not bound to a node: use load(), not "
                             "load_cluster()")  # fmt: skip
        return self.nodes[self.me]

    def bound_to(self, me: int, run_dir: Path | None = None) -> Config:
        """The same configuration as node `me` sees it: `{node}` filled in, `--run-dir` applied."""
        node = self.nodes[me].id
        api = dataclasses.replace(self.api, socket=_fill(self.api.socket, node))
        if run_dir is not None:
            run_dir = run_dir.absolute()
            api = dataclasses.replace(api, socket=run_dir / SOCKET_NAME)
        return dataclasses.replace(
            self,
            me=me,
            api=api,
            run_dir=run_dir or api.socket.parent,
            state_dir=run_dir or _fill(self.state_dir, node),
            freeswitch=_fill_freeswitch(self.freeswitch, node),
            hooks=tuple(_fill_hook(hook, node) for hook in self.hooks),
            movers=tuple(_fill_mover(mover, node) for mover in self.movers),
            sensors=tuple(
                dataclasses.replace(
                    sensor,
                    path=sensor.path.replace(NODE_PLACEHOLDER, node),
                    exec=_fill_words(sensor.exec, node),
                )
                for sensor in self.sensors
            ),
            dns=tuple(
                dataclasses.replace(record, key_file=_fill(record.key_file, node))
                for record in self.dns
            ),
        )


def _fill(path: Path, node: str) -> Path:
    return Path(str(path).replace(NODE_PLACEHOLDER, node))


def _fill_words(words: tuple[str, ...], node: str) -> tuple[str, ...]:
    return tuple(word.replace(NODE_PLACEHOLDER, node) for word in words)


def _fill_mover(mover: Mover, node: str) -> Mover:
    return dataclasses.replace(
        mover,
        mover_add=_fill_words(mover.mover_add, node),
        mover_remove=_fill_words(mover.mover_remove, node),
        mover_check=_fill_words(mover.mover_check, node),
        mover_dry_run=_fill_words(mover.mover_dry_run, node),
    )


def _fill_freeswitch(section: FreeSwitch | None, node: str) -> FreeSwitch | None:
    if section is None:
        return None
    return dataclasses.replace(
        section,
        esl_password_file=_fill(section.esl_password_file, node),
        core_db=_fill(section.core_db, node),
        pid_file=_fill(section.pid_file, node),
        start_command=_fill_words(section.start_command, node),
    )


def _fill_hook(hook: Hook, node: str) -> Hook:
    def filled(path: Path | None) -> Path | None:
        return None if path is None else _fill(path, node)

    return dataclasses.replace(
        hook,
        exec=_fill_words(hook.exec, node),
        secret_file=filled(hook.secret_file),
        ca_file=filled(hook.ca_file),
        smtp_password_file=filled(hook.smtp_password_file),
    )


def config_hash(config: Config) -> int:
    """32 bits over what the file means: the same on all nodes, whatever its layout or place."""
    text = json.dumps(config.document, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def shape(nodes: Sequence[NodeSpec], services: Sequence[ServiceSpec]) -> int:
    """32 bits, never 0, over what the positions of nodes and services in the file stand for.

    Between two files of one shape the numbers in a beat mean the same. A service is its name and
    the addresses it answers for, whatever NIC carries them.
    """
    return _hashed([[n.id for n in nodes], served_by(services)], 4)


def times(timing: Timing) -> int:
    """16 bits, never 0, over the times that leases rest on: between two files that have them in
    common an echo is good for as long as its receiver takes it for."""
    return _hashed(timing.bounds_us, 2)


def agents_shape(config: Config) -> int:
    """32 bits, never 0: what heart and its agent on one host have to count by alike."""
    here = [shape(config.nodes, config.services), times(config.timing)]
    return _hashed([*here, [s.profiles for s in config.services]], 4)


def _hashed(value: object, size: int) -> int:
    text = json.dumps(value, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big") or 1


def effective(config: Config) -> dict[str, Any]:
    """Every value in force, section by section as in the file, as plain JSON types.

    Paths are as this node uses them; `node_id` is None in a configuration bound to no node.
    """
    shown: dict[str, Any] = json.loads(json.dumps(config.document))
    shown["cluster"]["key_file"] = str(config.key_file)
    shown["cluster"]["revision"] = config.revision
    shown["cluster"]["relinquish"] = config.relinquish
    shown["api"]["socket"] = str(config.api.socket)
    if config.freeswitch is not None:
        used = dataclasses.asdict(config.freeswitch)
        shown["freeswitch"] = json.loads(json.dumps(used, default=str))
    shown["recovery"] = dataclasses.asdict(config.recovery)
    shown["health"] = dataclasses.asdict(config.health)
    shown["node_id"] = config.nodes[config.me].id if config.me >= 0 else None
    shown["file"] = str(config.path)
    shown["run_dir"] = str(config.run_dir)
    shown["state_dir"] = str(config.state_dir)
    shown["config_hash"] = f"{config_hash(config):08x}"
    return shown


def cluster_spec(config: Config) -> ClusterSpec:
    """What the core needs to know. ValueError if `config` is bound to no node."""
    return seen_by(config, config.node.id)


def seen_by(config: Config, node: str) -> ClusterSpec:
    """The same for a configuration that need not name this node: `me` is -1 then."""
    ids = [n.id for n in config.nodes]
    return ClusterSpec(
        name=config.name,
        me=ids.index(node) if node in ids else -1,
        nodes=config.nodes,
        services=config.services,
        timing=config.timing,
        quorum=config.quorum,
        last_resort=config.last_resort,
        config_hash=config_hash(config),
        freeswitch=config.freeswitch is not None,
        relinquish_us=RELINQUISH_DEADS * config.timing.dead_us if config.relinquish else 0,
        revision=config.revision,
        shape=shape(config.nodes, config.services),
        times=times(config.timing),
    )
