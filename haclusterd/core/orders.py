"""What operators order: switchover, maintenance, stop, pause. Each order has an answer.

A pause concerns the whole cluster, yet every node keeps it for itself: who has not heard of it
behaves as usual. While it lasts nobody takes over what another node lost, and nobody helps him.
"""

from __future__ import annotations

from haclusterd.core import standing
from haclusterd.core.actions import Action, Answered, Decided
from haclusterd.core.inputs import (
    MaintenanceRequested,
    PauseOrdered,
    StopRequested,
    SwitchoverRequested,
)
from haclusterd.core.leaving import give_up, leave_all
from haclusterd.core.model import FOR_GOOD_US, NOBODY_NODE, State
from haclusterd.core.state import FAR, NEVER, Node, Service, is_paused


def switchover(node: Node, event: SwitchoverRequested, now_us: int, out: list[Action]) -> None:
    out.append(Answered(event.request, *_try_switchover(node, event, now_us, out)))


def _try_switchover(
    node: Node, event: SwitchoverRequested, now_us: int, out: list[Action]
) -> tuple[bool, str]:
    if not 0 <= event.service < len(node.services):
        return False, f"there is no service number {event.service}"
    service = node.services[event.service]
    name = node.spec.services[event.service].name
    if service.state is not State.OWNED:
        return False, f"{_me(node)} does not own {name} (it is {service.state.name.lower()} here)"
    if node.rank_dirty:
        standing.refresh(node, now_us)
    line = [n for n in node.successors[event.service] if n != node.spec.me]
    if not line:
        return False, f"no node is ready to take {name}: see `haclusterctl rank --why`"
    to = event.to if event.to >= 0 else line[0]
    if to == node.spec.me:
        return False, f"{_me(node)} owns {name} already"
    if to not in line:
        who = node.spec.nodes[to].id if to < len(node.spec.nodes) else str(to)
        ready = ", ".join(node.spec.nodes[n].id for n in line)
        return False, f"{who} is not ready to take {name}; ready: {ready}"
    give_up(node, event.service, "a switchover was ordered", now_us, out, to, ordered=True)
    return True, f"{name} moves to {node.spec.nodes[to].id}"


def maintenance(node: Node, event: MaintenanceRequested, now_us: int, out: list[Action]) -> None:
    """Repeated by an agent that restarts (request -1), it is neither said nor answered again."""
    news = event.on != node.maintenance or event.request >= 0
    node.maintenance = event.on
    node.maintenance_until_us = _until(event.left_us, now_us)
    node.rank_dirty = True
    word = "in maintenance: no candidate" if event.on else "out of maintenance"
    if event.on and event.left_us < FOR_GOOD_US:
        word += f", {span(event.left_us)} from now a candidate again"
    if news:
        out.append(Decided(now_us, "M11", f"{_me(node)} is {word}"))
    if event.request >= 0:
        out.append(Answered(event.request, True, word))


def stop(node: Node, event: StopRequested, now_us: int, out: list[Action]) -> None:
    """Hand everything over; what nobody can take is fenced and left."""
    node.leaving = True
    node.rank_dirty = True
    leave_all(node, "this node is being stopped", now_us, out)


def pause(node: Node, event: PauseOrdered, now_us: int, out: list[Action]) -> None:
    """The agents' newest word; an older one changes nothing, the same one only shortens."""
    answer = "this node knew of it" if event.version < node.pause_version else "done"
    if event.version == node.pause_version:
        shorter_us = _until(event.left_us, now_us)
        node.paused_until_us = min(node.paused_until_us, shorter_us)
    elif event.version > node.pause_version:
        was = is_paused(node, now_us)
        node.pause_version, node.paused_by = event.version, event.by
        node.paused_until_us = _until(event.left_us, now_us) if event.left_us > 0 else NEVER
        if is_paused(node, now_us):
            length = "until it is resumed" if event.left_us >= FOR_GOOD_US else span(event.left_us)
            text = f"{event.by} paused the cluster ({length}): nothing moves by itself"
            out.append(Decided(now_us, "M17", text))
        elif was:
            text = f"{event.by} resumed the cluster: services move by themselves again"
            out.append(Decided(now_us, "M19", text))
            node.resumed_us = now_us
    node.rank_dirty = True
    node.wake_us = now_us
    if event.request >= 0:
        out.append(Answered(event.request, True, answer))


def expire(node: Node, now_us: int, out: list[Action]) -> None:
    """Orders for a time end by themselves."""
    if NEVER < node.paused_until_us <= now_us:
        node.paused_until_us = NEVER
        node.resumed_us = now_us
        node.rank_dirty = True
        text = f"the pause by {node.paused_by} is over: services move by themselves again"
        out.append(Decided(now_us, "M19", text))
    if node.maintenance and node.maintenance_until_us <= now_us:
        node.maintenance, node.maintenance_until_us = False, FAR
        node.rank_dirty = True
        text = f"{_me(node)} is out of maintenance: its time is over"
        out.append(Decided(now_us, "M11", text))


def waits_for_resume(node: Node, service: Service, now_us: int) -> bool:
    """In a pause: may this node not claim the service?

    It may what its owner released (a switchover, a stop), what was this node's own term, and what
    an operator said is free: the owner was marked dead. A claim of its own that came to nothing
    is no term, unless it rested on a release.
    """
    if not is_paused(node, now_us) or _is_free(node, service):
        return False
    held = service.promise
    owned = service.state is State.LAPSED or _was_its_term(service)
    return held.node != node.spec.me or not (owned or service.release is not None)


def withholds(node: Node, service: Service, claimant: int, now_us: int) -> bool:
    """In a pause: does this node keep its vote from `claimant`, who may not know of the pause?

    Not from the holder itself. A former owner that restarted keeps it for itself. Who stands by
    nobody, or by a claim of its own that came to nothing, has nothing to keep.
    """
    held = service.promise
    if not is_paused(node, now_us) or _is_free(node, service):
        return False
    if held.node == node.spec.me:
        return service.state is not State.STANDBY or _was_its_term(service)
    return held.node not in (NOBODY_NODE, claimant)


def _was_its_term(service: Service) -> bool:
    """The promise, to this node itself, is its last term; after a restart it may be one, unless
    somebody owned since. The epoch alone does not tell: another node may have won it."""
    held = service.promise
    return held == service.identity or (service.restored and service.owned_epoch == held.epoch)


def _is_free(node: Node, service: Service) -> bool:
    """Its owner, or an operator about it, said that it is held no more."""
    held = service.promise
    released = service.release is not None and service.release.identity == held
    return released or held.node in node.unvoting


def _until(left_us: int, now_us: int) -> int:
    return FAR if left_us >= FOR_GOOD_US else now_us + left_us


def span(left_us: int) -> str:
    """A length of time for people: 90s, 5m, 2h."""
    seconds = -(-left_us // 1_000_000)
    if seconds >= 7200 or (seconds >= 3600 and seconds % 3600 == 0):
        hours, rest = divmod(seconds, 3600)
        return f"{hours}h{rest // 60}m" if rest >= 60 else f"{hours}h"
    if seconds >= 120 or seconds == 60:
        minutes, rest = divmod(seconds, 60)
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    return f"{seconds}s"


def _me(node: Node) -> str:
    return node.spec.nodes[node.spec.me].id
