"""Which of the configured nodes this host is: the one whose link addresses it has."""

from __future__ import annotations

from collections.abc import Sequence

import netifaces

from haclusterd.config.reading import Problems, one_of, suggestion
from haclusterd.core.model import NodeSpec


def local_addresses() -> tuple[str, ...]:
    """Every IPv4 and IPv6 address of this host (in this network namespace), without scopes."""
    found = []
    for nic in netifaces.interfaces():
        try:
            by_family = netifaces.ifaddresses(nic)
        except ValueError:
            continue  # it went between the two questions, as those of containers do
        for family in (netifaces.AF_INET, netifaces.AF_INET6):
            for entry in by_family.get(family, []):
                found.append(str(entry["addr"]).partition("%")[0])
    return tuple(found)


def named_node(nodes: Sequence[NodeSpec], node: str, problems: Problems) -> int:
    """The index of the node named with `--node`; notes a problem and returns -1 otherwise."""
    ids = [spec.id for spec in nodes]
    if node in ids:
        return ids.index(node)
    near = suggestion(node, ids)
    problems.note("node", f'--node "{node}" is no node of this file{near}', f"use {one_of(ids)}")
    return -1


def own_node(nodes: Sequence[NodeSpec], local: Sequence[str], problems: Problems) -> int:
    """The index of the one node that has a link address in `local`; notes a problem otherwise.

    One address is enough: a NIC may be down just now.
    """
    present = set(local)
    matches = [index for index, spec in enumerate(nodes) if present.intersection(spec.links)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = one_of([nodes[index].id for index in matches])
        problems.note(
            "node", f"this host has link addresses of several nodes: {names}", "choose with --node"
        )
    else:
        wanted = "; ".join(f"{spec.id}: {', '.join(spec.links)}" for spec in nodes)
        problems.note(
            "node",
            "this host has none of the configured link addresses; "
            f"it has {', '.join(sorted(present)) or 'no address at all'}",
            f"correct links ({wanted}), bring the NICs up, or name the node with --node",
        )
    return -1
