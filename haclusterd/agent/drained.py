"""Which services take no new calls, and why: drains (`core.agreed`) seen with heart's view. Pure.

A drained service follows its owner: whoever owns it refuses new calls. A drained node refuses them
for whatever it owns. The maintenance service is the other way round: it takes new calls only while
another service takes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from haclusterd.agent import schema
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.schema_upkeep import Drain
from haclusterd.core.agreed import DrainWord
from haclusterd.core.model import FOR_GOOD_US, ClusterSpec
from haclusterd.core.orders import span
from haclusterd.core.view import View

SERVICE, NODE = "service:", "node:"


def target_of(spec: ClusterSpec, name: str) -> str:
    """`service:NAME` or `node:ID` for what an operator named. Raises OperatorError."""
    known = [f"{SERVICE}{s.name}" for s in spec.services] + [f"{NODE}{n.id}" for n in spec.nodes]
    meant = [target for target in known if name in (target, target.partition(":")[2])]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise OperatorError(
            f"{name} is a service and a node: say {' or '.join(meant)}", schema.USAGE
        )
    names = ", ".join(target.partition(":")[2] for target in known)
    raise OperatorError(f"there is no service and no node {name}; known: {names}", schema.USAGE)


def closed(view: View, drains: Sequence[DrainWord], spare: str) -> dict[str, str]:
    """By service: why it takes no new calls. `spare`: the maintenance service, or nothing."""
    by_target = {drain.target: drain for drain in drains}
    found = {}
    for service in view.services:
        drain = by_target.get(f"{SERVICE}{service.name}")
        if drain is None and service.name != spare:
            drain = by_target.get(f"{NODE}{service.owner}")
        if drain is not None:
            found[service.name] = f"drained by {drain.by}"
    if spare and spare not in found and not found:
        found[spare] = "no other service is drained"
    return found


def shown(
    view: View, drains: Sequence[DrainWord], spare: str, calls: Mapping[str, int],
    problems: Mapping[str, str],
) -> list[Drain]:  # fmt: skip
    """For `status`. `calls`: legs by service as this node knows them; `problems` likewise: why
    something does not go on."""
    found = []
    for drain in drains:
        kind, _, name = drain.target.partition(":")
        services = [
            s.name
            for s in view.services
            if (s.name == name if kind == "service" else s.owner == name and s.name != spare)
        ]
        found.append(
            Drain(
                kind=kind,
                name=name,
                by=drain.by,
                left_s=_seconds(drain.left_us),
                moves_s=_seconds(drain.move_us),
                services=services,
                calls=sum(calls.get(service, 0) for service in services),
                problem="; ".join(problems[s] for s in services if s in problems),
            )
        )
    return found


def alarms(drains: Sequence[Drain]) -> list[schema.Alarm]:
    """What operators have ordered and must not forget, and what keeps it from being done."""
    found = []
    for drain in drains:
        if drain.kind == "node" and not drain.services:
            continue  # empty already; where it is in maintenance, that is an alarm of its own
        text = f"{drain.name} takes no new calls, by {drain.by}: {drain.calls} call legs left"
        if drain.moves_s is not None:
            text += f", moved in {span(drain.moves_s * 1_000_000)}" if drain.moves_s else ", moving"
        if drain.left_s is not None:
            text += f", ends in {span(drain.left_s * 1_000_000)}"
        found.append(schema.Alarm("drained", text))
        if drain.problem:
            found.append(schema.Alarm("drain_stuck", f"{drain.name}: {drain.problem}"))
    return found


def _seconds(left_us: int) -> int | None:
    return None if left_us >= FOR_GOOD_US else -(-left_us // 1_000_000)
