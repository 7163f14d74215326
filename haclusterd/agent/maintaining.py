"""`drain` and `maintenance --drain` as operators order them: judged here, then left to the orders.

Nothing waits here for a drain to end. It is on disk on every node when the OK is given, and the
drained node carries it out (`drains`), whoever goes away meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from haclusterd.agent import drained
from haclusterd.agent.awaited import Awaited
from haclusterd.agent.operators import OperatorError, Operators
from haclusterd.agent.orders import Orders
from haclusterd.agent.schema import PARTLY, USAGE
from haclusterd.config import Config
from haclusterd.core.model import FOR_GOOD_US, ClusterSpec
from haclusterd.core.orders import span
from haclusterd.core.view import View


class Maintaining:
    """One per agent; all of it raises OperatorError with the reason and the next step."""

    def __init__(
        self,
        config: Config,
        spec: ClusterSpec,
        operators: Operators,
        orders: Orders,
        view: Callable[[], View],
        awaited: Awaited,
    ) -> None:
        self._config, self._spec = config, spec
        self._operators, self._orders, self._view = operators, orders, view
        self._awaited = awaited

    async def maintenance(
        self, on: bool, node: str, left_us: int, move_us: int | None, by: str
    ) -> str:
        """`move_us`: what the node serves is moved away by then; None: nothing is."""
        node = node or self._view().node
        if not on:
            return await self._end(node, by)
        if move_us is None:
            return await self._operators.maintenance(True, node, left_us)
        if move_us >= left_us:
            raise OperatorError(
                f"the drain of {span(move_us)} would not be over when the maintenance of "
                f"{span(left_us)} ends: give it less time, or maintenance more",
                USAGE,
            )
        self._refuse_without_successors(node)
        done = await self._operators.maintenance(True, node, left_us)
        try:
            drain = await self._orders.drain(f"{drained.NODE}{node}", left_us, by, move_us)
        except OperatorError as error:
            raise OperatorError(f"{done}, but: {error}", PARTLY) from None
        return (
            f"{done}; {drain}; what it serves moves when it has no calls left, and in "
            f"{span(move_us)} at the latest: see `haclusterctl status`"
        )

    async def _end(self, node: str, by: str) -> str:
        """What is done stays done: whatever is missing of the rest makes it partly done."""
        target, whole = f"{drained.NODE}{node}", True
        try:
            done = await self._out(node, by)
        except OperatorError as error:
            if error.code != PARTLY:
                raise
            done, whole = str(error), False
        if any(drain.target == target for drain in self._orders.drains()):
            try:
                done = f"{done}; {await self._orders.undrain(target, by)}"
            except OperatorError as error:
                done, whole = f"{done}, but: {error}", False
        if not whole:
            raise OperatorError(done, PARTLY)
        return done

    async def _out(self, node: str, by: str) -> str:
        try:
            return await self._operators.maintenance(False, node)
        except OperatorError:
            if node == self._view().node or not self._awaited.is_away(node):
                raise
        return await self._awaited.end(node, by)

    async def drain(self, name: str, left_us: int, by: str) -> str:
        target = drained.target_of(self._spec, name)
        kind, _, plain = target.partition(":")
        services = [s for s in self._view().services if plain in (s.name, s.owner)]
        services = [s for s in services if (s.name if kind == "service" else s.owner) == plain]
        self._refuse_without_profiles([s.name for s in services])
        if kind == "node" and not services:
            raise OperatorError(
                f"{plain} serves nothing, so there is nothing to drain; to keep it from taking "
                f"something over: `haclusterctl maintenance on {plain}`"
            )
        if any(d.target == target and d.move_us < FOR_GOOD_US for d in self._orders.drains()):
            raise OperatorError(
                f"{plain} is drained for its maintenance already; first "
                f"`haclusterctl maintenance off {plain}`"
            )
        return await self._orders.drain(target, left_us, by)

    async def undrain(self, name: str, by: str) -> str:
        return await self._orders.undrain(drained.target_of(self._spec, name), by)

    def _refuse_without_profiles(self, services: list[str]) -> None:
        freeswitch = self._config.freeswitch
        if freeswitch is None or not freeswitch.esl_port:
            raise OperatorError(
                "without ESL ([freeswitch] esl_port) nobody can make FreeSWITCH refuse new calls; "
                "move the service instead: `haclusterctl switchover`"
            )
        for spec in self._spec.services:
            if spec.name in services and not spec.profiles:
                raise OperatorError(
                    f"{spec.name} has no SIP profiles that could refuse calls; move it instead: "
                    f"`haclusterctl switchover {spec.name}`"
                )

    def _refuse_without_successors(self, node: str) -> None:
        """Before anything is drained that could not be moved."""
        known = [n.id for n in self._spec.nodes]
        if node not in known:
            raise OperatorError(f"there is no node {node}; known: {', '.join(known)}", USAGE)
        view = self._view()
        mine = [service for service in view.services if service.owner == node]
        self._refuse_without_profiles(
            [s.name for s in self._spec.services if s.profiles and s.name in {m.name for m in mine}]
        )
        alone = [s.name for s in mine if not set(s.successors) - {node}]
        if alone:
            raise OperatorError(
                f"no node is ready to take {', '.join(alone)}, so {node} would be drained for "
                "nothing: see `haclusterctl rank --why`"
            )
