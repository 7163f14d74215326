"""`failover`: a service to another node although its owner cannot hand it over in good order.

The second verb beside `switchover`, as in Patroni: it may lose calls, so it is refused wherever the
first would do. It never takes a service from anybody: an owner that is heard is made to release it
as always, and what nobody owns is claimed by the cluster's own rules, for which only the way is
cleared. What would need two owners for a moment is refused, with the safe way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from haclusterd.agent.elsewhere import NOT_ASKED
from haclusterd.agent.history import History
from haclusterd.agent.operators import ACKNOWLEDGED_MS, OperatorError, Operators, Order
from haclusterd.agent.schema import REFUSED
from haclusterd.core.inputs import SwitchoverRequested
from haclusterd.core.model import ClusterSpec
from haclusterd.core.view import NodeView, View
from haclusterd.sync.rpc import RequestFailed

CHECK, METHOD, FORCE = "failover-check", "failover", "failover-force"
FORCED_S = 10.0  # how long a node counts as ready with a copy that is not
READY_S = 3.0  # until the others have heard that it does
TAKEN_S = 10.0
POLL_S = 0.02
PEER_MS = 20_000
_ABLE = ("master", "slave", "syncing", "failed")


class Said(msgspec.Struct, frozen=True):
    """Another node's answer, so that its refusal is not taken for a lost connection."""

    ok: bool
    text: str
    code: str = REFUSED


class Mesh(Protocol):
    """What is needed of the replicator here."""

    async def wait_acked(self, service: str, timeout_ms: int) -> bool: ...
    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes: ...
    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None: ...


class Failover:
    """All of it raises OperatorError with the reason and the next step.

    `force(service, seconds)`: this node counts as ready with the copy that it has. `unready()`: by
    node and service, why the others say that they are not.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        operators: Operators,
        history: History,
        view: Callable[[], View],
        force: Callable[[str, float], None],
        unready: Callable[[str, str], str],
    ) -> None:
        self._spec, self._operators, self._history = spec, operators, history
        self._view, self._force, self._unready = view, force, unready
        self._mesh: Mesh | None = None

    def join(self, mesh: Mesh) -> None:
        self._mesh = mesh
        for method, answer in (
            (CHECK, self._check), (METHOD, self._act), (FORCE, self._force_here),
        ):  # fmt: skip
            mesh.register(method, self._answering(answer))

    async def check(self, service: str, to: str) -> str:
        """What a failover would do and what it may cost; refused where it must not be."""
        return await self._there(CHECK, Order(service=service, to=to), self._check)

    async def act(self, service: str, to: str, by: str) -> str:
        """Do it; a sentence."""
        text = f"{by} ordered a failover of {service}" + (f" to {to}" if to else "")
        self._history.add("A37", text, None, service)
        return await self._there(METHOD, Order(service=service, to=to), self._act)

    async def _there(
        self, method: str, order: Order, here: Callable[[Order], Awaitable[str]]
    ) -> str:
        """With the owner, who alone can release; with this node where there is none."""
        self._operators.check_names(order.service, order.to or None)
        view = self._view()
        owner = next(s.owner for s in view.services if s.name == order.service)
        if owner in ("", view.node):
            return await here(order)
        try:
            return await self._ask(owner, method, order)
        except RequestFailed as error:
            asked = method == METHOD and not str(error).startswith(NOT_ASKED)
            done = ". It may have been done: see `haclusterctl status` first" if asked else ""
            raise OperatorError(
                f"{owner} serves {order.service}, and its agent cannot be asked ({error}). Nobody "
                "else may take what it holds: stop haclusterd there (`systemctl stop haclusterd`) "
                f"or power the host off, and the service moves by itself{done}"
            ) from None

    async def _ask(self, node: str, method: str, order: Order) -> str:
        if self._mesh is None:
            raise OperatorError(f"replication does not run here: run this on {node}")
        payload = msgspec.json.encode(order)
        said = msgspec.json.decode(
            await self._mesh.request(node, method, payload, PEER_MS), type=Said
        )
        if not said.ok:
            raise OperatorError(said.text, said.code)
        return said.text

    def _answering(
        self, work: Callable[[Order], Awaitable[str]]
    ) -> Callable[[str, bytes], Awaitable[bytes]]:
        async def answer(peer: str, payload: bytes) -> bytes:
            order = msgspec.json.decode(payload, type=Order)
            try:
                self._operators.check_names(order.service, order.to or None)
                said = Said(True, await work(order))
            except OperatorError as error:
                said = Said(False, str(error), error.code)
            return msgspec.json.encode(said)

        return answer

    # -- judging --

    async def _check(self, order: Order) -> str:
        view = self._view()
        seen = next(s for s in view.services if s.name == order.service)
        if seen.owner == view.node:
            return await self._check_owned(view, order, seen.successors)
        if seen.owner:
            raise OperatorError(f"{seen.owner} owns {order.service} by now: ask again")
        return self._check_orphan(view, order, seen.successors)

    async def _check_owned(self, view: View, order: Order, line: tuple[str, ...]) -> str:
        service = order.service
        if order.to == view.node:
            raise OperatorError(f"{order.to} owns {service} already")
        ready = bool(line) if not order.to else order.to in line
        why = await self._why_not_switchover(service)
        if ready and not why:
            to = f" --to {order.to}" if order.to else ""
            raise OperatorError(
                f"{view.node} can hand {service} over without losing a call: "
                f"`haclusterctl switchover {service}{to}`"
            )
        target = order.to or (line[0] if line else self._only_able(view, service))
        moved = f"{service} would move from {view.node} to {target}"
        if ready:
            return f"{moved} although {why}: what changed since then is lost"
        return f"{moved}, which {self._lacks(view, target, service)}: calls may be lost"

    async def _why_not_switchover(self, service: str) -> str:
        """Why the owner, this node, cannot hand over as it should; empty if it can."""
        switch = self._operators.switch
        if switch is not None and not switch.up:
            return f"FreeSWITCH does not answer ({switch.problem or 'ESL is not logged in'})"
        if switch is None or self._mesh is None:
            return ""
        if not await self._mesh.wait_acked(service, ACKNOWLEDGED_MS):
            return f"no standby has acknowledged its last change within {ACKNOWLEDGED_MS} ms"
        return ""

    def _check_orphan(self, view: View, order: Order, line: tuple[str, ...]) -> str:
        service = order.service
        if not view.quorate:
            raise OperatorError(
                f"{view.node} reaches no majority, so nobody may take {service}: bring nodes back, "
                "or say which are dead: `haclusterctl node mark-dead ID --verified-by NAME`"
            )
        if view.pause is not None:
            raise OperatorError(
                f"the cluster is paused by {view.pause.by}, so nobody takes {service}: "
                "`haclusterctl resume`; or, if its owner is dead for sure, `haclusterctl node "
                "mark-dead ID --verified-by NAME`"
            )
        if line:
            after = f", then `haclusterctl switchover {service} --to {order.to}`"
            raise OperatorError(
                f"{line[0]} is ready and takes {service} by itself: wait for it, see "
                f"`haclusterctl history`{after if order.to else ''}"
            )
        target = order.to or self._only_able(view, service)
        lacks = self._lacks(view, target, service)
        return f"{target}, which {lacks}, would take {service}: calls may be lost"

    def _lacks(self, view: View, node: str, service: str) -> str:
        """What `node` lacks; refused where it could not serve at all."""
        seen = self._node(view, node)
        if seen.role not in _ABLE or seen.witness:
            fix = f"`haclusterctl maintenance off {node}`" if not seen.witness else "name another"
            raise OperatorError(f"{node} cannot take {service}: it is {seen.role}; {fix}")
        reason = self._unready(node, service)
        return f"is not ready ({reason})" if reason else "does not count as ready"

    def _only_able(self, view: View, service: str) -> str:
        owner = next(s.owner for s in view.services if s.name == service)
        able = [n.id for n in view.nodes if n.role in _ABLE and not n.witness and n.id != owner]
        if len(able) == 1:
            return able[0]
        names = ", ".join(able) or "nobody is alive"
        raise OperatorError(f"no node is ready to take {service}: name one with --to ({names})")

    def _node(self, view: View, node: str) -> NodeView:
        return next(n for n in view.nodes if n.id == node)

    # -- doing --

    async def _act(self, order: Order) -> str:
        await self._check(order)
        return await self._operators.alone(f"a failover of {order.service}", self._fail_over(order))

    async def _fail_over(self, order: Order) -> str:
        view = self._view()
        seen = next(s for s in view.services if s.name == order.service)
        target = order.to or (
            seen.successors[0] if seen.successors else self._only_able(view, order.service)
        )
        if target not in seen.successors:
            await self._make_ready(target, order.service)
        if seen.owner != view.node:
            return await self._taken(order.service)
        index = [s.name for s in self._spec.services].index(order.service)
        to = [n.id for n in self._spec.nodes].index(target)
        answer = await self._operators.ask(lambda number: SwitchoverRequested(number, index, to))
        if not answer.ok:
            raise OperatorError(answer.text)
        return await self._operators.moved(order.service, target)

    async def _make_ready(self, node: str, service: str) -> None:
        """Have it count as ready for a moment, and wait until that is known."""
        order = Order(service=service, to=node)
        try:
            if node == self._view().node:
                await self._force_here(order)
            else:
                await self._ask(node, FORCE, order)
        except RequestFailed as error:
            raise OperatorError(f"{node} could not be asked ({error}): name another one") from None
        for _ in range(int(READY_S / POLL_S)):
            seen = next(s for s in self._view().services if s.name == service)
            if node in seen.successors or seen.owner == node:
                return
            await asyncio.sleep(POLL_S)
        reason = self._unready(node, service) or "see `haclusterctl rank --why` there"
        raise OperatorError(f"{node} cannot take {service}: {reason}; nothing was done")

    async def _force_here(self, order: Order) -> str:
        """This node takes it as it stands, if nothing but its copy of the calls is wanting."""
        self._force(order.service, FORCED_S)
        text = f"{order.to} counts as ready for {order.service} for {FORCED_S:.0f} s, by order"
        self._history.add("A39", text, None, order.service)
        return text

    async def _taken(self, service: str) -> str:
        for _ in range(int(TAKEN_S / POLL_S)):
            seen = next(s for s in self._view().services if s.name == service)
            if seen.owner and seen.state == "owned":
                return f"{seen.owner} has taken {service} at epoch {seen.epoch}"
            await asyncio.sleep(POLL_S)
        raise OperatorError(f"nobody has taken {service} yet; see `haclusterctl history`")
