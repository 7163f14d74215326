"""Why nobody takes a service, node by node, as the cores of a what-if see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from haclusterd.core.model import NOBODY_NODE, Flag, LastResort
from haclusterd.core.quorum import needed, voters
from haclusterd.core.ranking import ABSENT, TAKEN
from haclusterd.core.ranking import Facts as Word
from haclusterd.core.standing import facts
from haclusterd.core.state import Node, is_paused


def why_unserved(nodes: Mapping[int, Node], k: int, now_us: int) -> str:
    """Of service `k`, which none of the living `nodes` owns."""
    if not nodes:
        return "no node is left"
    if not any(node.majority for node in nodes.values()):
        some = next(iter(nodes.values()))
        reach = max(_reach(node, now_us) for node in nodes.values())
        return (
            f"no quorum: at most {reach} of {voters(some)} voters reach each other, "
            f"{needed(some)} are needed"
        )
    return _why_nobody(nodes, k, now_us, but=NOBODY_NODE)


def why_without_freeswitch(nodes: Mapping[int, Node], k: int, owner: int, now_us: int) -> str:
    """Of service `k`, whose `owner` keeps it though no FreeSWITCH runs there; empty if one does."""
    node = nodes[owner]
    if not node.freeswitch_gone and (node.freeswitch_up or not node.spec.freeswitch):
        return ""
    return (
        f"no FreeSWITCH runs on {node.spec.nodes[owner].id}: the service has no calls until one "
        "does; " + _why_nobody(nodes, k, now_us, but=owner)
    )


def _why_nobody(nodes: Mapping[int, Node], k: int, now_us: int, but: int) -> str:
    """By the first that sees a majority; of all nodes but one."""
    judge = next((n for n in nodes.values() if n.majority), next(iter(nodes.values())))
    if is_paused(judge, now_us):
        return f"the cluster is paused by {judge.paused_by}: nothing moves by itself"
    words = facts(judge, now_us)
    lines = [f"{spec.id} {_why_not(judge, n, words, k)}" for n, spec in
             enumerate(judge.spec.nodes) if n != but]  # fmt: skip
    return "nobody can take it: " + ("; ".join(lines) or "there is no other node")


def _reach(node: Node, now_us: int) -> int:
    limit_us = node.spec.timing.two_way_us
    return 1 + sum(now_us - peer.two_way_us <= limit_us for peer in node.peers)


def _why_not(node: Node, n: int, words: Sequence[Word], k: int) -> str:
    spec, word = node.spec, words[n]
    if spec.nodes[n].witness:
        return "is a witness"
    if not word.alive or not word.services:
        return "is lost"
    absent = [flag.name.lower() for flag in Flag if flag & ABSENT & word.flags and flag.name]
    if absent:
        return f"is {', '.join(absent)}"
    if not word.services[k].ready:
        return "is not ready: " + _not_ready(node, n, k)
    calls = max(w.services[k].calls for w in words if w.services)
    busy = any(entry.state in TAKEN for entry in word.services)
    if busy and spec.last_resort is LastResort.NONE:
        return 'owns another service, and last_resort = "none"'
    if busy and word.calls + calls > spec.nodes[n].capacity:
        return f"has {word.calls} calls of {spec.nodes[n].capacity} already: no room for {calls}"
    return "has not claimed it in the time that was watched"


def _not_ready(node: Node, n: int, k: int) -> str:
    if n != node.spec.me:
        return "its FreeSWITCH or its agent is not in order"
    return "its FreeSWITCH is gone" if node.freeswitch_gone else node.services[k].reason
