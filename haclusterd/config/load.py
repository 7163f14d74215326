"""From the bytes of the file to a `Config`, or to all that is wrong with it."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haclusterd.config import identity, notices, recovering, rules, sections, sensors
from haclusterd.config.model import (
    NODE_PLACEHOLDER,
    SOCKET_NAME,
    Config,
    ConfigError,
    FreeSwitch,
    Problem,
)
from haclusterd.config.presets import PRESETS, to_timing
from haclusterd.config.reading import Problems, Section, shown, suggestion
from haclusterd.core.model import LastResort, NodeSpec, Quorum, ServiceSpec

FILE_BYTES_MAX = 1 << 20
REVISION_MAX = 1_000_000_000

SECTIONS = [
    "cluster", "timing", "freeswitch", "recovery", "sync", "heartbeat", "api", "node", "service",
    "hook", "dns", "health", "sensor",
]  # fmt: skip


def load(
    path: Path | str,
    *,
    node: str | None = None,
    run_dir: Path | None = None,
    local_addresses: Sequence[str] | None = None,
    text: str | None = None,
) -> Config:
    """The configuration as this node uses it (`--node`, `--run-dir`). Raises ConfigError.

    Without `node` the host finds itself by its link addresses; `local_addresses` replaces the
    question to the kernel. `text` stands for the content of `path`.
    """
    config = load_cluster(path, text)
    problems = Problems(str(path))
    if node is not None:
        me = identity.named_node(config.nodes, node, problems)
    else:
        local = identity.local_addresses() if local_addresses is None else local_addresses
        me = identity.own_node(config.nodes, local, problems)
    if run_dir is not None:
        rules.check_socket("--run-dir", run_dir.absolute() / SOCKET_NAME, (), problems)
    if me >= 0 and not config.nodes[me].witness:
        rules.check_backend(config.freeswitch, problems)
    problems.raise_if_any()
    return config.bound_to(me, run_dir)


def load_cluster(path: Path | str, text: str | None = None) -> Config:
    """The configuration as a whole, bound to no node. Raises ConfigError.

    `text` stands for the content of `path`: it was kept from another time.
    """
    path = Path(path)
    content = _content(path) if text is None else text.encode()
    document = _parse(path, content)
    problems = Problems(str(path))
    for name in document:
        if name not in SECTIONS:
            near = suggestion(name, SECTIONS)
            problems.note(name, f"unknown section{near}", f"known: {', '.join(SECTIONS)}")
    config = read_document(path, document, problems)
    problems.raise_if_any()
    return dataclasses.replace(config, text=content.decode())


def read_document(path: Path, document: Mapping[str, Any], problems: Problems) -> Config:
    """What the file at `path` means; stand-ins where `problems` were noted."""
    return _Reader(path, document, problems).read()


def _refused(path: Path, message: str, fix: str) -> ConfigError:
    return ConfigError((Problem(str(path), "", message, fix),))


def _content(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, "is no regular file", "name the right file")
        if status.st_size > FILE_BYTES_MAX:
            raise _refused(path, f"is larger than {FILE_BYTES_MAX} bytes", "name the right file")
        return path.read_bytes()
    except OSError as error:
        fix = "name the file with --config, and make it readable for this user"
        raise _refused(path, f"cannot be read: {error.strerror}", fix) from None


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _refused(path, f"is not UTF-8 in line {line}", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise _refused(path, f"is not TOML: {error}", "correct that line") from None
    except (ValueError, RecursionError):
        # tomllib lets these through: a number of thousands of digits, brackets nested without end.
        raise _refused(
            path, "is not TOML that can be read", "write plain keys and values"
        ) from None


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Section `[cluster]`; `quorum` is empty where the file leaves it open."""

    name: str
    key_written: str
    key_file: Path
    preset: str
    quorum: str
    last_resort: str
    relinquish: bool
    revision: int
    maintenance_service: str


class _Reader:
    """Walks the sections in order. Values are stand-ins once a problem has been noted."""

    def __init__(self, path: Path, document: Mapping[str, Any], problems: Problems) -> None:
        self._path = path
        self._base = path.absolute().parent
        self._document = document
        self._problems = problems

    def read(self) -> Config:
        problems, cluster = self._problems, self._cluster()
        times = sections.read_timing(self._table("timing"), cluster.preset)
        sync_port = self._port("sync", 7801)
        heartbeat_port = self._port("heartbeat", 7800)
        api, api_document = sections.read_api(self._table("api"), self._base)
        freeswitch, freeswitch_document = self._freeswitch()
        nodes, node_documents = self._nodes()
        texts = [sections.ServiceText(section) for section in self._tables("service", "name")]
        rules.check_nodes(nodes, cluster.key_file.name, problems)
        rules.check_services(texts, nodes, problems)
        rules.check_socket("api.socket", api.socket, nodes, problems)
        rules.check_ports(
            heartbeat=heartbeat_port, sync=sync_port, http=api.http_port,
            esl=freeswitch.esl_port if freeswitch is not None else 0, problems=problems,
        )  # fmt: skip
        rules.check_beat_size(len(nodes), len(texts), problems)
        movers = tuple(text.mover for text in texts if text.mover is not None)
        quorum = rules.resolve_quorum(cluster.quorum, nodes, problems)
        config = Config(
            path=self._path,
            name=cluster.name,
            key_file=cluster.key_file,
            preset=cluster.preset,
            quorum=quorum,
            last_resort=LastResort(cluster.last_resort),
            relinquish=cluster.relinquish,
            revision=cluster.revision,
            maintenance_service=cluster.maintenance_service,
            timing=to_timing(times),
            freeswitch=freeswitch,
            sync_port=sync_port,
            heartbeat_port=heartbeat_port,
            api=api,
            nodes=nodes,
            services=_services(texts, nodes),
            movers=movers,
            run_dir=api.socket.parent,
        )
        document = {
            "cluster": _cluster_document(cluster, quorum),
            "timing": times,
            "freeswitch": freeswitch_document,
            "sync": {"port": sync_port},
            "heartbeat": {"port": heartbeat_port},
            "api": api_document,
            "node": node_documents,
            "service": [text.document() for text in texts],
        }
        return self._with_notices(dataclasses.replace(config, document=document))

    def _with_sensors(self, config: Config) -> Config:
        """And what it watches of itself."""
        health, changed = sensors.read_health(self._table("health"))
        read = [sensors.read_sensor(section) for section in self._tables("sensor", "name")]
        found = tuple(sensor for sensor, _ in read)
        document = dict(config.document)
        if changed:
            document["health"] = changed
        if read:
            document["sensor"] = [written for _, written in read]
        ids = [node.id for node in config.nodes]
        esl = config.freeswitch is not None and config.freeswitch.esl_port != 0
        sensors.check(found, health, ids, esl, self._problems)
        return dataclasses.replace(config, health=health, sensors=found, document=document)

    def _with_recovery(self, config: Config) -> Config:
        """And what becomes of calls."""
        recovery, changed = recovering.read_recovery(self._table("recovery"))
        document = dict(config.document)
        if changed:  # a file without it means what it meant to earlier versions
            document["recovery"] = changed
        return dataclasses.replace(config, recovery=recovery, document=document)

    def _with_notices(self, config: Config) -> Config:
        """And whom it tells outside of the cluster; calls, sensors; warnings."""
        config = self._with_sensors(self._with_recovery(config))
        hooks = [notices.read_hook(s, self._base) for s in self._tables("hook", "name")]
        records = [notices.read_dns(s, self._base) for s in self._tables("dns", "name")]
        found = dataclasses.replace(
            config,
            warnings=_warnings(config),
            hooks=tuple(hook for hook, _ in hooks),
            dns=tuple(record for record, _ in records),
            # Only where they are: a file without them means what it meant to earlier versions.
            document={
                **config.document,
                **({"hook": [document for _, document in hooks]} if hooks else {}),
                **({"dns": [document for _, document in records]} if records else {}),
            },
        )
        rules.check_maintenance(config, self._problems)
        names = [service.name for service in config.services]
        notices.check(found.hooks, found.dns, names, self._problems)
        return found

    def _cluster(self) -> _Cluster:
        section = self._table("cluster")
        name = section.named("name")
        key_written, key_file = sections.read_path(section, "key_file", self._base, "cluster.key")
        if NODE_PLACEHOLDER in key_written:
            fix = "the key is the same on all nodes: remove it"
            section.note("key_file", f"{NODE_PLACEHOLDER} makes no sense here", fix)
        found = _Cluster(
            name=name,
            key_written=key_written,
            key_file=key_file,
            preset=section.choice("preset", sorted(PRESETS), "lan"),
            quorum=section.choice("quorum", [policy.value for policy in Quorum], ""),
            last_resort=section.choice("last_resort", ["masters", "none"], "masters"),
            relinquish=section.flag("relinquish", False),
            revision=section.integer("revision", 1, 1, REVISION_MAX),
            maintenance_service=section.text("maintenance_service", "", "the name of a service"),
        )
        if found.relinquish and found.last_resort == "none":
            message = "needs masters that may own more than one service"
            section.note("relinquish", message, 'set last_resort = "masters", or leave it out')
        section.finish()
        return found

    def _freeswitch(self) -> tuple[FreeSwitch | None, sections.Document | None]:
        if "freeswitch" not in self._document:
            return None, None
        return sections.read_freeswitch(self._table("freeswitch"), self._base)

    def _port(self, name: str, default: int) -> int:
        section = self._table(name)
        port = section.integer("port", default, 1, 65535)
        section.finish()
        return port

    def _nodes(self) -> tuple[tuple[NodeSpec, ...], list[sections.Document]]:
        read = [sections.read_node(section) for section in self._tables("node", "id")]
        return tuple(node for node, _ in read), [document for _, document in read]

    def _table(self, name: str) -> Section:
        found = self._document.get(name, {})
        if not isinstance(found, dict):
            fix = f"write [{name}] on a line of its own"
            self._problems.note(name, f"is {shown(found)}, not a section", fix)
            found = {}
        return Section(found, name, self._problems)

    def _tables(self, name: str, label: str) -> list[Section]:
        """The tables of `[[name]]`, each called by its `label` where it has one."""
        found = self._document.get(name, [])
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            fix = f"write [[{name}]], with two brackets, before each one"
            self._problems.note(name, "is not an array of tables", fix)
            return []
        return [
            Section(table, f"{name}[{table.get(label, f'#{number + 1}')}]", self._problems)
            for number, table in enumerate(found)
        ]


def _cluster_document(cluster: _Cluster, quorum: Quorum) -> sections.Document:
    document: sections.Document = {
        "name": cluster.name,
        "key_file": cluster.key_written,
        "preset": cluster.preset,
        "quorum": quorum.value,
        "last_resort": cluster.last_resort,
    }
    if cluster.relinquish:
        document["relinquish"] = True
    if cluster.maintenance_service:
        document["maintenance_service"] = cluster.maintenance_service
    # The first revision means what a file without the key always meant, to older versions as well:
    # with another hash nodes of two versions would refuse each other's claims in a rolling upgrade.
    return document if cluster.revision == 1 else {**document, "revision": cluster.revision}


def _services(
    texts: Sequence[sections.ServiceText], nodes: Sequence[NodeSpec]
) -> tuple[ServiceSpec, ...]:
    ids = [node.id for node in nodes]
    return tuple(
        ServiceSpec(
            name=text.name,
            addresses=text.addresses,
            profiles=text.profiles,
            preferred=ids.index(text.preferred) if text.preferred in ids else -1,
            priority=text.priority,
        )
        for text in texts
    )


def _warnings(config: Config) -> tuple[str, ...]:
    """What is allowed but seldom meant."""
    found = []
    voters = len(config.nodes)
    if voters == 2 and config.quorum is not Quorum.AVAILABILITY:
        found.append("cluster.quorum: with two votes the loss of either node stops the other")
    if config.quorum is Quorum.AVAILABILITY:
        found.append(
            'cluster.quorum: "availability" may let two nodes own a service while they cannot '
            "see each other"
        )
    if config.preset == "fast":
        found.append('cluster.preset: "fast" is experimental and needs real-time scheduling')
    if config.freeswitch is not None and config.freeswitch.esl_backend == "greenswitch":
        found.append(
            "freeswitch.esl_backend: with greenswitch, line breaks in channel variables can forge "
            "events; see docs/esl-backends.md"
        )
    if config.freeswitch is None and any(service.profiles for service in config.services):
        found.append("service.profiles: without [freeswitch] only addresses move")
    return tuple(found)
