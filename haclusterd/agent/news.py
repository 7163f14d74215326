"""What has changed in the cluster, for those outside of it: from one status to the next. Pure.

A status is flattened to facts (a path and a value). A fact that differs from what was told last
for as long as its kind asks (so that a blink tells nobody) becomes one `News`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from haclusterd.agent.reports import sentence
from haclusterd.agent.schema import Report, Status

CLUSTER, NODE = "cluster", "node"  # whose news it is: one node tells it, or each its own
HOLD_S = 1.0
_GONE = ("dead", "left")
# Alarms that all nodes raise alike; the others are each node's own.
_COMMON_ALARMS = ("unserved", "maintenance", "rank_mismatch", "capacity_n1")

# "299", "4m59s", "97.5%": figures that go on changing while an alarm stands. Not part of a name or
# an address.
_FIGURE = re.compile(r"(?<![\w.:/-])(?:(?:\d+[hms])+|\d+(?:\.\d+)?)%?(?![\w/-])(?![.:]\w)")

Path = tuple[str, ...]
Facts = dict[Path, Any]


class News(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change. `key` is the same on every node that sees it; `scope` in cluster, node."""

    key: str
    event: str
    scope: str
    text: str
    service: str | None = None
    node: str | None = None
    from_: str | None = msgspec.field(name="from", default=None)
    to: str | None = None
    epoch: int | None = None
    alarm: str | None = None
    report: Report | None = None


class Watcher:
    """Follows one node's status and says what is new."""

    def __init__(self) -> None:
        self._told: Facts | None = None
        self._since: dict[Path, tuple[Any, float]] = {}

    def look(self, status: Status, now: float) -> list[News]:
        """The news, most important first. The first status only says how things were."""
        facts = facts_of(status)
        if self._told is None:
            me = next((n.role for n in status.nodes if n.id == status.node), "")
            # Alarms that a daemon finds at its start are news unless it was only upgraded.
            self._told = {p: v for p, v in facts.items() if p[0] != "alarm" or me != "starting"}
            return []
        found = []
        known = self._told.keys() | facts.keys()
        # What came and went again untold leaves nothing behind.
        self._since = {path: since for path, since in self._since.items() if path in known}
        for path in sorted(known, key=_importance):
            if not self._settled(path, facts.get(path), now):
                continue
            before, after = self._told.get(path), facts.get(path)
            found += list(_news(path, before, after, status))
            if after is None:
                del self._told[path]
            else:
                self._told[path] = after
        return found

    def _settled(self, path: Path, value: Any, now: float) -> bool:
        """Whether a changed fact has been so for long enough."""
        told = self._told or {}
        if _is_same(path, told.get(path), value):
            self._since.pop(path, None)
            return False
        known, since = self._since.get(path, (None, now))
        if path not in self._since or not _is_same(path, known, value):
            self._since[path] = (value, now)
            since = now
        if now - since < _hold_s(path, value):
            return False
        self._since.pop(path, None)
        return True


def facts_of(status: Status) -> Facts:
    """The status as paths and values; what is not worth telling is left out."""
    facts: Facts = {("quorum",): status.quorum.ok}
    primary = next((n.id for n in status.nodes if n.rank == 0), None)
    if primary is not None:
        facts["primary",] = primary
    for service in status.services:
        owner = service.owner if service.state == "owned" else None
        facts["service", service.name] = (owner, service.epoch if owner else 0)
    roles = {node.id: node.role for node in status.nodes}
    for node in status.nodes:
        facts["node", node.id] = node.role
        if node.id == status.node or {node.role, roles.get(status.node)} & {*_GONE, "starting"}:
            continue
        pair = sorted((node.id, status.node))
        for number, link in enumerate(node.links, start=1):
            facts["link", *pair, str(number)] = link.up
    alike = Counter[tuple[str, str]]()
    names = {node.id for node in status.nodes} | {service.name for service in status.services}
    for alarm in status.alarms:
        kind = alarm.name, _FIGURE.sub(lambda m: m[0] if m[0] in names else "#", alarm.text)
        facts["alarm", *kind, str(alike[kind])] = alarm.text
        alike[kind] += 1
    return facts


def _is_same(path: Path, one: Any, other: Any) -> bool:
    """An alarm stands or does not: that it counts down is no news."""
    if path[0] == "alarm":
        return (one is None) == (other is None)
    return bool(one == other)


def _importance(path: Path) -> tuple[int, Path]:
    order = ("service", "node", "quorum", "alarm", "link", "primary")
    return order.index(path[0]), path


def _hold_s(path: Path, value: Any) -> float:
    if path[0] == "service":
        return 0.0 if value is not None and value[0] else HOLD_S
    if path[0] == "node":
        return 0.0 if value in ("dead", "master") else HOLD_S
    return 0.0 if path[0] == "quorum" else HOLD_S


def _news(path: Path, before: Any, after: Any, status: Status) -> Iterator[News]:
    match path:
        case ("service", name) if after is not None:
            yield from _service(name, before, after)
        case ("node", node) if after is not None:
            text = f"{node} is {after}" + (f", was {before}" if before else "")
            yield News(f"node/{node}/{after}", "node_role", CLUSTER, text, node=node,
                       from_=before, to=after)  # fmt: skip
        case ("quorum",):
            event = "quorum_regained" if after else "quorum_lost"
            quorum = status.quorum
            text = f"{status.node} reaches {quorum.reachable} of {quorum.voters} voters"
            yield News(f"quorum/{status.node}/{after}", event, NODE, text, node=status.node)
        case ("alarm", name, shape, number):
            event = "alarm_raised" if after else "alarm_cleared"
            scope = CLUSTER if name in _COMMON_ALARMS else NODE
            said = after or f"over: {before}"
            key = f"alarm/{name}/{shape}/{number}/{bool(after)}"
            yield News(key, event, scope, said, alarm=name,
                       node=status.node if scope == NODE else None)  # fmt: skip
        case ("link", one, other, number) if before is not None and after is not None:
            event = "link_up" if after else "link_down"
            text = f"link {number} between {one} and {other} is {'up' if after else 'down'}"
            key = f"link/{one}/{other}/{number}/{after}"
            yield News(key, event, CLUSTER, text, node=one, to=other)
        case ("primary",):
            text = f"{after or 'nobody'} is the first in line"
            yield News(f"primary/{after}", "primary_slave", CLUSTER, text, from_=before, to=after)


def _service(name: str, before: Any, after: Any) -> Iterator[News]:
    owner, epoch = after
    was = before[0] if before else None
    if owner:
        text = f"{name} is served by {owner} at epoch {epoch}"
        if was == owner:
            text = f"{name} stays on {owner} at epoch {epoch}"
        elif was:
            text += f", was on {was}"
        yield News(f"service/{name}/{epoch}/{owner}", "service_owned", CLUSTER, text,
                   service=name, node=owner, from_=was, to=owner, epoch=epoch)  # fmt: skip
    else:
        text = f"nobody serves {name}" + (f", was on {was}" if was else "")
        yield News(f"service/{name}/unserved", "service_unserved", CLUSTER, text, service=name,
                   from_=was)  # fmt: skip


def of_report(report: Report) -> News:
    """A finished report, which only the new owner has."""
    return News(
        f"takeover/{report.service}/{report.epoch}/{report.to}/{report.number}", "takeover",
        NODE, sentence(report), service=report.service, node=report.to, from_=report.from_,
        to=report.to, epoch=report.epoch, report=report,
    )  # fmt: skip
