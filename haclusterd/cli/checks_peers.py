"""Does `doctor` find the other nodes: their daemons by beats heard both ways, their hosts by TCP.

That a host answers says nothing about its haclusterd, and that its haclusterd listens says nothing
about keys: only the daemon of this node knows whether beats pass both ways and can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from haclusterd.cli.checks import FAILED, OK, SKIPPED, WARNING, Check, HostProbe
from haclusterd.config import Config
from haclusterd.core.model import NodeSpec


def peer_checks(
    config: Config, host: HostProbe, status: Mapping[str, Any] | None
) -> Iterator[Check]:
    """One for each other node. `status` is what this node's daemon says, None while it is down."""
    for node in config.nodes:
        if node.id == config.node.id:
            continue
        links = _links(status, node)
        if links is None:
            yield _by_host(config, host, node)
        else:
            yield _by_beats(config, host, node, links)


def _links(status: Mapping[str, Any] | None, node: NodeSpec) -> list[dict[str, Any]] | None:
    """The links to `node` as the daemon sees them."""
    for entry in status["nodes"] if status is not None else ():
        if entry["id"] == node.id:
            return list(entry["links"])
    return None


def _by_beats(
    config: Config, host: HostProbe, node: NodeSpec, links: list[dict[str, Any]]
) -> Check:
    name = f"peer {node.id}"
    unreadable = [f"{x['address']} ({x['unreadable']})" for x in links if x.get("unreadable")]
    if unreadable:
        text = f"what comes from it over {', '.join(unreadable)} cannot be read"
        fix = "compare key_file (sha256sum), haclusterd.toml and `haclusterd --version` on both"
        return Check(name, FAILED, text, f"{fix} nodes; the alarm unreadable_peer says which")
    down = [str(link["address"]) for link in links if not link["up"]]
    if not down:
        return Check(name, OK, f"beats pass both ways on all {len(links)} links")
    if len(down) < len(links):
        text = f"no beats pass both ways over {', '.join(down)}"
        return Check(name, WARNING, text, _network_fix(config))
    word = _reach(config, host, node)
    if word == "up":
        text = "its haclusterd listens, but no beats pass both ways"
        return Check(name, FAILED, text, _network_fix(config))
    return _by_host(config, host, node)


def _by_host(config: Config, host: HostProbe, node: NodeSpec) -> Check:
    name = f"peer {node.id}"
    pairs = list(zip(config.node.links, node.links, strict=True))
    found = [host.connect(own, peer, config.sync_port) for own, peer in pairs]
    silent = [peer for (_, peer), word in zip(pairs, found, strict=True) if word == "silent"]
    if silent:
        state = FAILED if len(silent) == len(pairs) else WARNING
        return Check(name, state, f"no answer over {', '.join(silent)}", _network_fix(config))
    if "up" not in found:
        text = "its host answers, its haclusterd does not"
        return Check(name, WARNING, text, f"start haclusterd on {node.id}")
    text = "its haclusterd listens; whether beats pass both ways, only the daemon here can tell"
    return Check(name, SKIPPED, text, "start haclusterd here, then run doctor again")


def _reach(config: Config, host: HostProbe, node: NodeSpec) -> str:
    """The best word over all links."""
    pairs = zip(config.node.links, node.links, strict=True)
    words = {host.connect(own, peer, config.sync_port) for own, peer in pairs}
    return next((word for word in ("up", "refused") if word in words), "silent")


def _network_fix(config: Config) -> str:
    return (
        f"check cable, switch and firewall (TCP {config.sync_port}, UDP {config.heartbeat_port}) "
        "between the nodes"
    )
