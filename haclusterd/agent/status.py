"""The cluster as the API shows it: heart's view with what the agents add. Projection only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from haclusterd import __version__
from haclusterd.agent import schema
from haclusterd.agent.peers import Word
from haclusterd.agent.schema_upkeep import Drain
from haclusterd.core.model import FOR_GOOD_US
from haclusterd.core.standby import Freshness
from haclusterd.core.view import NodeView, ServiceView, View

_WORST_FIRST = ("none", "suspended", "syncing", "in-sync")
_NONE = schema.Sync("none", 0)


def own_sync(owners: Mapping[str, tuple[str, int]], me: str, fresh: Mapping[str, Freshness],
             replicating: bool) -> schema.Sync:  # fmt: skip
    """How good this node's copies of the calls of others' services are: the worst of them."""
    if not replicating:
        return _NONE
    words = [
        fresh.get(name, Freshness("none", 0, 0, 0))
        for name, (owner, _) in owners.items()
        if owner and owner != me
    ]
    worst = min((w.state for w in words), key=_WORST_FIRST.index, default="in-sync")
    return schema.Sync(worst, max((w.lag_ms for w in words), default=0))


def status(view: View, own: schema.Sync, words: Mapping[str, Word],
           alarms: Sequence[schema.Alarm] = (),
           registrations: schema.Registered | None = None,
           recovering: Mapping[str, schema.Progress] | None = None,
           orphans: int = 0, stale: bool = False,
           sensors: Sequence[schema.SensorState] = (), drains: Sequence[Drain] = (),
           closed: Mapping[str, str] | None = None) -> schema.Status:  # fmt: skip
    """`status --json`. `alarms` and `sensors` are the agent's own, beside heart's word."""
    shut = closed or {}
    under_way = recovering or {}
    return schema.Status(
        cluster=view.cluster,
        node=view.node,
        quorum=schema.Quorum(view.policy, view.voters, view.reachable, view.quorate),
        rank_hash=f"{view.rank_hash:08x}",
        nodes=[_node(node, view, own, words, sensors) for node in view.nodes],
        services=[_service(s, under_way.get(s.name), shut.get(s.name, "")) for s in view.services],
        alarms=[*(schema.Alarm(a.name, a.text) for a in view.alarms), *alarms],
        paused=_paused(view),
        marked_dead=[schema.Marked(m.node, m.by) for m in view.marks if not m.cleared],
        registrations=registrations,
        revision=schema.Revision(
            view.revision.active, view.revision.staged or None, list(view.revision.lacking)
        ),
        orphans=orphans,
        stale=stale,
        drains=list(drains),
    )


def _service(seen: ServiceView, recovering: schema.Progress | None, closed: str) -> schema.Service:
    return schema.Service(
        name=seen.name,
        owner=seen.owner or None,
        epoch=seen.epoch,
        state=seen.state,
        addresses=list(seen.addresses),
        successors=list(seen.successors),
        recovering=recovering,
        closed=closed,
    )


def _paused(view: View) -> schema.Paused | None:
    if view.pause is None:
        return None
    left_us = view.pause.left_us
    left_s = None if left_us >= FOR_GOOD_US else -(-left_us // 1_000_000)
    return schema.Paused(view.pause.by, left_s)


def _node(
    node: NodeView, view: View, own: schema.Sync, words: Mapping[str, Word],
    mine: Sequence[schema.SensorState],
) -> schema.Node:  # fmt: skip
    here = node.id == view.node
    unreadable = {t.address: t.unreadable_now for t in view.peer_tallies if t.node == node.id}
    word = words.get(node.id)
    sync = own if here else (word.sync if word is not None else _NONE)
    sensors = mine if here else (word.sensors if word is not None else ())
    version = __version__ if here else (word.version if word is not None else "")
    links = [
        schema.Link(
            link.address,
            link.up,
            round(link.rtt_us / 1000, 3) if link.rtt_us or here else None,
            link.loss_permille / 1000,
            unreadable.get(link.address, ""),
        )
        for link in node.links
    ]
    return schema.Node(
        id=node.id,
        role=node.role,
        services=list(node.services),
        rank=node.rank if node.rank >= 0 else None,
        health=node.health,
        links=links,
        calls=node.calls,
        capacity=node.capacity,
        sync=sync,
        version=version,
        witness=node.witness,
        sensors=list(sensors),
    )


def rank(view: View, stale: bool = False, health: Sequence[str] = ()) -> schema.Rank:
    """`rank --json`."""
    slaves = sorted((n for n in view.nodes if n.rank >= 0), key=lambda n: n.rank)
    return schema.Rank(
        rank_hash=f"{view.rank_hash:08x}",
        slaves=[n.id for n in slaves],
        successors={s.name: list(s.successors) for s in view.services},
        why=list(view.why),
        not_ready={s.name: s.reason for s in view.services if s.reason and s.owner != view.node},
        stale=stale,
        health=list(health),
    )


def role_of(view: View) -> str:
    """This node's role."""
    return next((n.role for n in view.nodes if n.id == view.node), "starting")


def rank_of(view: View) -> int:
    """This node's rank, -1 for none."""
    return next((n.rank for n in view.nodes if n.id == view.node), -1)
