"""What operators ask for: switchover, maintenance, upgrade. One at a time, each with an answer.

A request that this node cannot carry out goes to the node that can, over the replication mesh.
Every refusal says why, and what to do next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from haclusterd.agent.elsewhere import refusal, told
from haclusterd.agent.history import History
from haclusterd.agent.schema import PARTLY, REFUSED, USAGE
from haclusterd.agent.switch import Switch, SwitchError
from haclusterd.core.actions import Answered, Relinquish
from haclusterd.core.inputs import (
    FromAgent,
    MaintenanceRequested,
    SwitchoverRequested,
    UpgradeRequested,
)
from haclusterd.core.model import FOR_GOOD_US, ClusterSpec, ServiceSpec
from haclusterd.core.text import brief
from haclusterd.core.view import ServiceView, View
from haclusterd.lasting import lasting
from haclusterd.sync.rpc import RequestFailed

log = logging.getLogger(__name__)

ROW_DELAY_S = 0.25  # FreeSWITCH writes recovery rows this much later (FREESWITCH.md 1.2)
ACKNOWLEDGED_MS = 1000
HEART_S = 2.0
UPGRADE_S = 35.0  # the new heart has 30 s to start and to warm up (heart.upgrade_run)
MOVED_S = 10.0
MOVED_POLL_S = 0.005
PEER_MS = 15_000
PRESENT, PRESENT_MS = "present", 1000
_OLDER = "unknown method"  # says an agent that is older than this question, and thereby answers


async def _present(_peer: str, _payload: bytes) -> bytes:
    return b"yes"


class OperatorError(Exception):
    """Refused or failed; `code` as in schema.Fault, the message says why and what next."""

    def __init__(self, message: str, code: str = REFUSED) -> None:
        super().__init__(brief(message))
        self.code = code


class Order(msgspec.Struct, frozen=True):
    """An operator's order on its way to the node that can carry it out."""

    service: str = ""
    to: str = ""
    on: bool = False
    left_us: int = FOR_GOOD_US  # of maintenance


class Mesh(Protocol):
    """What is needed of the replicator here."""

    async def wait_acked(self, service: str, timeout_ms: int) -> bool: ...
    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes: ...
    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None: ...


class Reloading(Protocol):
    """What is needed of `agent.voters` here."""

    async def reload(self, without_majority: bool = False) -> str: ...


class Operators:
    """Carries orders out. `view()` is heart's newest word; `send` goes to heart."""

    def __init__(
        self,
        spec: ClusterSpec,
        history: History,
        view: Callable[[], View | None],
        send: Callable[[FromAgent], None],
    ) -> None:
        self._spec = spec
        self._history = history
        self._view = view
        self._send = send
        self._mesh: Mesh | None = None
        self.switch: Switch | None = None
        self.keep_maintenance: Callable[[bool, int], Awaitable[None]] = _keep_nothing
        self.voters: Reloading | None = None
        self.is_closed: Callable[[str], bool] = lambda service: False  # takes no new calls
        self.hold: Callable[[str], Awaitable[None]] = _hold_nothing
        self.let_go: Callable[[str, bool], Awaitable[None]] = _hold_nothing
        self._lock = asyncio.Lock()
        self._doing = ""
        self._switching = ""
        self._relinquishing: set[asyncio.Task[None]] = set()
        self._waiting: dict[int, asyncio.Future[Answered]] = {}
        self._number = 0

    def join(self, mesh: Mesh) -> None:
        """Take and give orders over the mesh."""
        self._mesh = mesh
        mesh.register("switchover", self._asked_switchover)
        mesh.register(PRESENT, _present)
        mesh.register("maintenance", self._asked_maintenance)

    def answered(self, message: Answered) -> None:
        """Heart's answer to a request."""
        waiter = self._waiting.get(message.request)
        if waiter is not None and not waiter.done():
            waiter.set_result(message)

    # -- orders --

    async def switchover(self, service: str, to: str | None) -> str:
        """Move a service to `to` or to the first successor; a sentence. Raises OperatorError."""
        self.check_names(service, to)
        owner = self._service(service).owner
        if not owner:
            raise OperatorError(
                f"nobody serves {service} at the moment, so there is nothing to move; "
                "see `haclusterctl status`"
            )
        if owner == to:
            raise OperatorError(f"{to} owns {service} already")
        if owner != self._me:
            return await self._at(owner, "switchover", Order(service=service, to=to or ""))
        return await self.alone(f"a switchover of {service}", self._switch_over(service, to))

    async def maintenance(self, on: bool, node: str | None, left_us: int = FOR_GOOD_US) -> str:
        """Take a node out of (or back into) the line of candidates. Raises OperatorError."""
        node = node or self._me
        if node not in [n.id for n in self._spec.nodes]:
            known = ", ".join(n.id for n in self._spec.nodes)
            raise OperatorError(f"there is no node {node}; known: {known}", USAGE)
        if node != self._me:
            return await self._at(node, "maintenance", Order(on=on, left_us=left_us))
        return await self.alone("a change of maintenance", self._maintain(on, left_us))

    def relinquish(self, action: Relinquish) -> None:
        """Heart finds that this master can be spared (B19): a switchover like any other."""
        service, to = self._spec.services[action.service].name, self._spec.nodes[action.to].id
        task = lasting(self._relinquish(service, to), f"relinquish {service}")
        self._relinquishing.add(task)
        task.add_done_callback(self._relinquishing.discard)

    async def _relinquish(self, service: str, to: str) -> None:
        try:
            await self.switchover(service, to)
        except OperatorError as error:
            text = f"{self._me} keeps {service}, which it was to relinquish: {error}"
            self._history.add("A25", text, None, service)

    async def upgrade(self) -> str:
        """Replace the running heart and agent by the installed version. Raises OperatorError."""
        return await self.alone("an upgrade", self._upgrade())

    async def reload(self, without_majority: bool) -> str:
        """Agree to the set of nodes that the file names now. Raises OperatorError."""
        if self.voters is None:
            raise OperatorError("this agent is starting: try again in a second")
        return await self.alone("a reload", self.voters.reload(without_majority))

    # -- carried out here --

    async def _switch_over(self, service: str, to: str | None) -> str:
        index = [s.name for s in self._spec.services].index(service)
        line = self._service(service).successors
        if not line or (to is not None and to not in line):
            who = "no node is ready" if to is None else f"{to} is not ready"
            ready = f"; ready: {', '.join(line)}" if line else ""
            raise OperatorError(f"{who} to take {service}{ready}; see `haclusterctl rank --why`")
        self._history.add("A21", f"switchover of {service} ordered on {self._me}", None, service)
        named = await self._target(line, to)
        self._switching = service
        try:
            await self._pause(index)
            await self._quiesce(service)
            target = [n.id for n in self._spec.nodes].index(named) if named else -1
            answer = await self.ask(lambda number: SwitchoverRequested(number, index, target))
            if not answer.ok:
                raise OperatorError(answer.text)
            return await self.moved(service, to)
        finally:
            self._switching = ""
            await self._resume(index)

    def switching(self, service: str) -> str:
        """What an order does to a service of this node just now, empty if nothing."""
        return "a switchover" if service == self._switching else ""

    async def _target(self, line: Sequence[str], to: str | None) -> str:
        """Whom to name to heart, empty: its own choice. A node whose agent does not answer now
        would leave the calls silent; heart counts it as ready for some seconds, which a takeover
        has to risk and a switchover has not."""
        if self._mesh is None or self.switch is None:
            return to or ""
        for node in [to] if to else line:
            try:
                await self._mesh.request(node, PRESENT, b"", PRESENT_MS)
            except RequestFailed as error:
                if _OLDER in str(error):
                    return to or ""
                if to:
                    raise OperatorError(
                        f"{to} would not take up the calls at once ({error}); try again in some "
                        "seconds, or without --to"
                    ) from None
            else:
                return node if to or node != line[0] else ""
        return ""  # whoever it is: a node that is about to stop has to let go

    async def _quiesce(self, service: str) -> None:
        """Let FreeSWITCH write its rows and a standby acknowledge them, both bounded."""
        if self.switch is None:
            return
        await asyncio.sleep(ROW_DELAY_S)
        if self._mesh is None:
            return
        if not await self._mesh.wait_acked(service, ACKNOWLEDGED_MS):
            raise OperatorError(
                f"no standby has acknowledged the last change of {service} within "
                f"{ACKNOWLEDGED_MS} ms, so calls could be lost; see `haclusterctl sync`"
            )

    async def _pause(self, index: int) -> None:
        """Refuse new calls on this service's own profiles: calls that are up go on."""
        profiles = self._spec.services[index].profiles
        if self.switch is None or not profiles:
            return
        await self.hold(self._spec.services[index].name)
        try:
            await self.switch.stand_by(profiles, True)
        except SwitchError as error:
            raise OperatorError(f"new calls could not be paused: {error}") from None

    async def _resume(self, index: int) -> None:
        """Take calls again if the service stayed; if it went, its profiles stand by."""
        service = self._spec.services[index]
        seen = self._service(service.name)
        here = seen.owner == self._me and seen.local_state == "owned"
        lifted = False
        if self.switch is not None and service.profiles and here:
            lifted = self.is_closed(service.name) or await self._lift(service)
        await self.let_go(service.name, lifted)

    async def _lift(self, service: ServiceSpec) -> bool:
        if self.switch is None:
            return False
        try:
            await self.switch.stand_by(service.profiles, False)
        except SwitchError as error:
            text = f"{service.name} takes no new calls on {self._me}: {error}"
            self._history.add("A23", text, None, service.name)
            return False
        return True

    async def moved(self, service: str, to: str | None) -> str:
        """Wait until heart's view shows the new owner, who may not be the one that was named."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() - began < MOVED_S:
            seen = self._service(service)
            if seen.state == "owned" and seen.owner != self._me:
                moved = f"{service} moved from {self._me} to {seen.owner} at epoch {seen.epoch}"
                if to is not None and seen.owner != to:
                    why = f"{to} could not take it any more; see `haclusterctl history`"
                    raise OperatorError(f"{moved}, not to {to}: {why}", PARTLY)
                return moved
            await asyncio.sleep(MOVED_POLL_S)
        seen = self._service(service)
        where = f"{seen.owner} owns it" if seen.owner else f"it is {seen.state}"
        raise OperatorError(
            f"{service} was released, but after {MOVED_S:.0f} s {where}; "
            "see `haclusterctl history`",
            PARTLY,
        )

    async def _maintain(self, on: bool, left_us: int) -> str:
        await self.keep_maintenance(on, left_us)
        try:
            answer = await self.ask(lambda number: MaintenanceRequested(number, on, left_us))
        except OperatorError as error:
            late = "it is on the disk here, and holds at the latest when the agent starts again"
            raise OperatorError(f"{error}; {late}", PARTLY) from None
        if not answer.ok:
            raise OperatorError(answer.text)
        return f"{self._me} is {answer.text}"

    async def _upgrade(self) -> str:
        answer = await self.ask(UpgradeRequested, UPGRADE_S)
        if not answer.ok:
            raise OperatorError(answer.text)
        return answer.text

    # -- parts --

    @property
    def _me(self) -> str:
        return self._spec.nodes[self._spec.me].id

    def _service(self, name: str) -> ServiceView:
        view = self._view()
        if view is None:
            raise OperatorError("heart has not told this agent its view yet: try again in a second")
        return next(s for s in view.services if s.name == name)

    def check_names(self, service: str, to: str | None) -> None:
        services = [s.name for s in self._spec.services]
        if service not in services:
            known = ", ".join(services)
            raise OperatorError(f"there is no service {service}; known: {known}", USAGE)
        nodes = [n.id for n in self._spec.nodes]
        if to is not None and to not in nodes:
            raise OperatorError(f"there is no node {to}; known: {', '.join(nodes)}", USAGE)

    async def alone(self, what: str, work: Awaitable[str]) -> str:
        """One order at a time on this node: a second operator waits, and is told for whom."""
        if self._lock.locked():
            log.info("%s waits for %s", what, self._doing)
        async with self._lock:
            self._doing = what
            return await work

    async def ask(self, make: Callable[[int], FromAgent], patience_s: float = HEART_S) -> Answered:
        """Put a request to heart and wait for its answer. Raises OperatorError."""
        self._number += 1
        number = self._number
        waiter: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiter
        try:
            self._send(make(number))
            async with asyncio.timeout(patience_s):
                return await waiter
        except TimeoutError:
            raise OperatorError(
                f"heart did not answer within {patience_s:.0f} s, and may still carry it out: see "
                "`haclusterctl status`, and its log (journalctl)"
            ) from None
        finally:
            del self._waiting[number]

    async def _at(self, node: str, method: str, order: Order) -> str:
        if self._mesh is None:
            raise OperatorError(f"replication does not run here: run this on {node}")
        try:
            answer = await self._mesh.request(node, method, msgspec.json.encode(order), PEER_MS)
        except RequestFailed as error:
            raise OperatorError(*told(node, str(error))) from None
        return answer.decode(errors="replace")

    async def _asked_switchover(self, peer: str, payload: bytes) -> bytes:
        order = msgspec.json.decode(payload, type=Order)
        try:
            self.check_names(order.service, None)
            if self._service(order.service).owner != self._me:
                raise OperatorError(f"{self._me} does not own {order.service}: ask again")
            return (await self.switchover(order.service, order.to or None)).encode()
        except OperatorError as error:
            raise ValueError(refusal(str(error), error.code)) from None

    async def _asked_maintenance(self, peer: str, payload: bytes) -> bytes:
        order = msgspec.json.decode(payload, type=Order)
        try:
            left_us = max(0, order.left_us)
            return (await self.maintenance(order.on, None, left_us)).encode()
        except OperatorError as error:
            raise ValueError(refusal(str(error), error.code)) from None


async def _hold_nothing(service: str, lifted: bool = False) -> None:
    """Until the daemon says who keeps in mind which profiles stand by."""


async def _keep_nothing(on: bool, left_us: int) -> None:
    """Until the daemon says where orders are kept."""
