"""What must hold between the sections of the file; each breach is noted with its fix."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from haclusterd.config.model import ESL_BACKENDS, NODE_PLACEHOLDER, Config, FreeSwitch
from haclusterd.config.reading import Problems, one_of, suggestion
from haclusterd.config.sections import ServiceText
from haclusterd.core.model import LastResort, NodeSpec, Quorum
from haclusterd.datagram import BEAT_BYTES_MAX, beat_bytes_bound

LINKS_MAX = 8
SOCKET_BYTES_MAX = 107  # of sun_path, one of 108 being the end
# Files that keys.py writes beside the cluster key, and that no node's files may be named like.
RESERVED_IDS = ("ca", "cluster")


def check_nodes(nodes: Sequence[NodeSpec], key_file: str, problems: Problems) -> None:
    if not nodes:
        problems.note("node", "there is no [[node]]", "add one [[node]] per host")
    if key_file in ("ca.crt", "ca.key"):
        message = f"{key_file} is a file of the CA, which lies beside it"
        problems.note("cluster.key_file", message, 'use another name, for example "cluster.key"')
    seen_ids: dict[str, str] = {}
    seen_links: dict[str, str] = {}
    for node in nodes:
        key = f"node[{node.id}]"
        if node.id and node.id.casefold() in seen_ids:
            other = seen_ids[node.id.casefold()]
            problems.note(f"{key}.id", f'the id is used twice (as "{other}")', "rename one node")
        seen_ids[node.id.casefold()] = node.id
        if node.id in RESERVED_IDS or key_file in (f"{node.id}.key", f"{node.id}.crt"):
            message = f'"{node.id}" would name its private key {node.id}.key, which is taken'
            problems.note(f"{key}.id", message, "choose another id")
        for link in node.links:
            if link in seen_links:
                message = f"{link} is already a link address of {seen_links[link]}"
                problems.note(f"{key}.links", message, "give every link its own address")
            seen_links.setdefault(link, node.id)
    _check_links_alike(nodes, problems)


def _check_links_alike(nodes: Sequence[NodeSpec], problems: Problems) -> None:
    """Link i is one network: every node has it, in one address family."""
    with_links = [node for node in nodes if node.links]
    if not with_links:
        return
    first = with_links[0]
    if len(first.links) > LINKS_MAX:
        problems.note(f"node[{first.id}].links", f"{len(first.links)} links are too many",
                      f"use at most {LINKS_MAX}")  # fmt: skip
    for node in with_links[1:]:
        key = f"node[{node.id}].links"
        if len(node.links) != len(first.links):
            problems.note(
                key,
                f"has {len(node.links)} link(s), but {first.id} has {len(first.links)}",
                "give every node one address per heartbeat NIC, in the same order",
            )
            continue
        for number, (mine, theirs) in enumerate(zip(node.links, first.links, strict=True)):
            if (":" in mine) != (":" in theirs):
                message = f"link {number + 1} is {mine} here and {theirs} on {first.id}"
                problems.note(key, message, "use one address family per link, on all nodes")


def check_services(
    services: Sequence[ServiceText], nodes: Sequence[NodeSpec], problems: Problems
) -> None:
    if not services:
        problems.note("service", "there is no [[service]]", "add one [[service]] per set of "
                      "addresses that moves as one")  # fmt: skip
    links = {link: node.id for node in nodes for link in node.links}
    seen: dict[tuple[str, str], str] = {}
    for service in services:
        section = service.section
        _claim_once(service, "name", service.name.casefold(), service.name, seen)
        for address in service.addresses:
            _claim_once(service, "addresses", address.ip, address.ip, seen)
            if address.ip in links:
                section.note("addresses", f"{address.ip} is a link address of {links[address.ip]}",
                             "a service address must be free to move")  # fmt: skip
        for profile in service.profiles:
            _claim_once(service, "profiles", profile, profile, seen)
        _check_preferred(service, nodes)


def _claim_once(
    service: ServiceText, key: str, value: str, shown: str, seen: dict[tuple[str, str], str]
) -> None:
    """A name, an address or a profile belongs to one service."""
    if not value:
        return
    if (key, value) in seen:
        fix = "leave it in one service only"
        service.section.note(key, f'"{shown}" is already in service {seen[key, value]}', fix)
    seen.setdefault((key, value), service.name)


def _check_preferred(service: ServiceText, nodes: Sequence[NodeSpec]) -> None:
    if not service.preferred:
        return
    able = [node.id for node in nodes if not node.witness]
    if service.preferred in able:
        return
    if any(node.id == service.preferred for node in nodes):
        message = f'"{service.preferred}" is a witness and cannot own a service'
    else:
        message = f'"{service.preferred}" is no node{suggestion(service.preferred, able)}'
    service.section.note("preferred", message, f"use one of {one_of(able)}, or leave it out")


def resolve_quorum(written: str, nodes: Sequence[NodeSpec], problems: Problems) -> Quorum:
    """The policy in force. Without a choice: majority from 3 nodes, witness where there is one."""
    witnesses = [node.id for node in nodes if node.witness]
    if nodes and len(witnesses) == len(nodes):
        problems.note("node", "every node is a witness", "add a node that can own services")
    if not written:
        if witnesses:
            return Quorum.WITNESS
        if len(nodes) == 2:
            problems.note(
                "cluster.quorum",
                "two nodes cannot form a majority when one is lost, so the policy must be chosen",
                'add a third [[node]] with witness = true (quorum = "witness", safe); or set '
                'quorum = "availability" (the survivor acts alone, as VRRP does: both may own a '
                'service while they cannot see each other); or set quorum = "majority" (safe, '
                "but the loss of one node stops both)",
            )
        return Quorum.MAJORITY
    if written == "witness" and not witnesses:
        problems.note("cluster.quorum", '"witness", but no node is one',
                      "set witness = true in one [[node]]")  # fmt: skip
    if written == "majority" and witnesses:
        problems.note("cluster.quorum", f'"majority", but {", ".join(witnesses)} is a witness',
                      'set quorum = "witness"')  # fmt: skip
    return Quorum(written)


def check_socket(key: str, socket: Path, nodes: Sequence[NodeSpec], problems: Problems) -> None:
    """A Unix socket's path is short; `{node}` may stand for the longest id."""
    for name in sorted((node.id for node in nodes), key=len, reverse=True)[:1] or [""]:
        used = Path(str(socket).replace(NODE_PLACEHOLDER, name))
        size = len(os.fsencode(used))
        if size > SOCKET_BYTES_MAX:
            message = f"{used} has {size} bytes, and a socket's path at most {SOCKET_BYTES_MAX}"
            problems.note(key, message, "use a shorter folder, as /run/haclusterd")


def check_backend(freeswitch: FreeSwitch | None, problems: Problems) -> None:
    """On the node itself: is the library there that `esl_backend` names?"""
    backend = freeswitch.esl_backend if freeswitch is not None and freeswitch.esl_port else "native"
    module = ESL_BACKENDS[backend]
    if module and importlib.util.find_spec(module) is None:
        problems.note(
            "freeswitch.esl_backend",
            f'"{backend}" needs the Python module {module}, which is not installed here',
            f"pip install 'haclusterd[{backend}]' into the environment of haclusterd, or use "
            '"native"',
        )


def check_ports(*, heartbeat: int, sync: int, http: int, esl: int, problems: Problems) -> None:
    """0 stands for a port that is not used."""
    taken: dict[int, str] = {}
    ports = {"freeswitch.esl_port": esl, "heartbeat.port": heartbeat, "sync.port": sync,
             "api.http": http}  # fmt: skip
    for key, port in ports.items():
        if port and port in taken:
            problems.note(key, f"port {port} is already {taken[port]}", "use another port")
        taken.setdefault(port, key)


def check_beat_size(node_count: int, service_count: int, problems: Problems) -> None:
    size = beat_bytes_bound(node_count, service_count)
    if size > BEAT_BYTES_MAX:
        problems.note(
            "service",
            f"{node_count} nodes and {service_count} services need heartbeats of up to {size} "
            f"bytes, more than the {BEAT_BYTES_MAX} that pass every network in one piece",
            "use fewer services (join those that may move together), or two clusters",
        )


def check_maintenance(config: Config, problems: Problems) -> None:
    """The maintenance service is a service like any other, beside one that it can stand in for."""
    name, key = config.maintenance_service, "cluster.maintenance_service"
    found = next((service for service in config.services if service.name == name), None)
    names = [service.name for service in config.services]
    if not name:
        return
    if found is None:
        near = suggestion(name, names)
        problems.note(key, f'"{name}" is no service of this file{near}', f"use {one_of(names)}")
        return
    if len(names) < 2:
        problems.note(key, f"{name} is the only service", "add the service that it stands in for")
    if config.last_resort is LastResort.NONE:
        message = "while it is in use the slave that has it must be able to take one more service"
        problems.note(key, message, 'set last_resort = "masters", or leave it out')
    if not found.profiles or config.freeswitch is None or not config.freeswitch.esl_port:
        message = f"{name} takes new calls only at times, and without ESL nobody can see to that"
        problems.note(key, message, "give it SIP profiles, and [freeswitch] an esl_port")
