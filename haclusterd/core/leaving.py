"""Letting go: services that leave this node because something here is broken, or by order.

What leaves by itself waits while the cluster is paused; what an operator orders does not.
"""

from __future__ import annotations

from haclusterd.core import standing
from haclusterd.core.actions import Action, Decided, KillFreeswitch
from haclusterd.core.inputs import FreeswitchExited, FreeswitchHung
from haclusterd.core.model import State
from haclusterd.core.moves import BACK_OFF_US, happen
from haclusterd.core.state import Node, is_departing, is_paused, owns
from haclusterd.core.takeover import Event


def give_up(
    node: Node,
    k: int,
    cause: str,
    now_us: int,
    out: list[Action],
    to: int = -1,
    ordered: bool = False,
) -> bool:
    """Start a release of `k`, if a ready successor is in reach; False otherwise, and in a pause
    unless an operator `ordered` it. A claim under way is dropped in any case."""
    service = node.services[k]
    if is_paused(node, now_us) and not ordered and service.state is not State.CLAIMING:
        return False
    if to < 0:
        if node.rank_dirty:
            standing.refresh(node, now_us)
        line = [n for n in node.successors[k] if n != node.spec.me] if node.successors else []
        if not line:
            return False
        to = line[0]
    service.moving_to = to
    return happen(node, k, Event.GIVEN_UP, now_us, out, cause=cause)


def leave_all(node: Node, cause: str, now_us: int, out: list[Action]) -> None:
    """Hand everything over; what nobody can take is fenced and left. Always by order."""
    for k in range(len(node.services)):
        if not give_up(node, k, cause, now_us, out, ordered=True):
            node.services[k].moving_to = -1
            happen(node, k, Event.GIVEN_UP, now_us, out, cause=cause)
    node.next_beat_us = now_us


def leave_broken(node: Node, now_us: int, out: list[Action]) -> None:
    """Services whose FreeSWITCH or NIC is gone leave as soon as somebody ready can have them."""
    for k, service in enumerate(node.services):
        if service.state not in (State.ACQUIRING, State.OWNED, State.LAPSED):
            continue
        if node.freeswitch_gone:
            give_up(node, k, "its FreeSWITCH is gone", now_us, out)
        elif is_departing(node):
            give_up(node, k, "it leaves the cluster", now_us, out, ordered=True)
        elif not service.carrier:
            give_up(node, k, "its NIC has no carrier", now_us, out)
        elif service.unrecovered:
            leave_unrecovered(node, k, now_us, out)


def leave_unrecovered(node: Node, k: int, now_us: int, out: list[Action]) -> None:
    """Somebody who has the calls' state as well shall try, as soon as this node may let go."""
    service = node.services[k]
    cause = f"it cannot recover the calls: {service.unrecovered}"
    if owns(service) and give_up(node, k, cause, now_us, out):
        service.holding = False
        service.unrecovered = ""
        service.backoff_until_us = now_us + BACK_OFF_US


def freeswitch_exited(node: Node, event: FreeswitchExited, now_us: int, out: list[Action]) -> None:
    """Its own heart fences, removes the addresses and releases (DESIGN 2.2)."""
    node.freeswitch_up = False
    node.freeswitch_gone = True
    node.rank_dirty = True
    me = node.spec.nodes[node.spec.me].id
    out.append(Decided(now_us, "M5", f"FreeSWITCH on {me} {event.cause}"))
    for service in node.services:  # all of them first: `give_up` ranks the nodes anew
        service.holding = False
        service.ready = False
    for k in range(len(node.services)):
        give_up(node, k, f"its FreeSWITCH {event.cause}", now_us, out)


def freeswitch_hung(node: Node, event: FreeswitchHung, now_us: int, out: list[Action]) -> None:
    """A hang is killed only where somebody else can have the calls: the exit does the rest."""
    holds = [k for k, s in enumerate(node.services) if owns(s)]
    line = node.successors if node.successors else ((),) * len(node.services)
    taken = not is_paused(node, now_us) and any(n != node.spec.me for k in holds for n in line[k])
    if not holds or taken:
        out.append(KillFreeswitch("three status probes in a row went unanswered"))
    me = node.spec.nodes[node.spec.me].id
    text = f"FreeSWITCH on {me} hangs: three status probes in a row went unanswered"
    out.append(Decided(now_us, "M7", text))
