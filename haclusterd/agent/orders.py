"""Orders for the whole cluster: pause, resume, marks, drains; and this node's maintenance.

Each is on disk here, then with heart, then with every other agent that can be reached, before the
operator hears that it is done. Agents that were not reached hear of it when they ask (`peers`).
What the orders mean is the core's; how copies come to agree is `core.agreed`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from haclusterd.agent.clock import now_us, wall_s
from haclusterd.agent.giving import Give, draining, given, marking, named, pausing, signed
from haclusterd.agent.majorities import lost_by_unmarking
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.orders_file import (
    FILE_NAME,
    FORMAT,
    Kept,
    Maintenance,
    OrdersFileError,
    read,
    sentence,
    set_aside,
    write,
)
from haclusterd.agent.schema import PARTLY
from haclusterd.core.actions import Answered
from haclusterd.core.agreed import Agreed, AgreedWord, DrainWord, MarkWord
from haclusterd.core.inputs import FromAgent, MaintenanceRequested
from haclusterd.core.model import FOR_GOOD_US, ClusterSpec
from haclusterd.core.orders import span
from haclusterd.core.view import NodeView, View
from haclusterd.files import boot_id
from haclusterd.lasting import lasting
from haclusterd.sync.rpc import RequestFailed

log = logging.getLogger(__name__)

METHOD, HEARS = "orders", "hears"
PEER_MS = 3000
KEEP_AGAIN_US = 60_000_000  # what is left of a time, anew: a restart of the host costs no more
RETRY_US = 1_000_000
YES, NO = b"yes", b"no"
_DEAD = ("dead", "left")
_NOT_BACK = (*_DEAD, "starting", "failed")  # or somebody may count without it still


class Mesh(Protocol):
    """What is needed of the replicator here."""

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes: ...
    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None: ...


Ask = Callable[[Callable[[int], FromAgent]], Awaitable[Answered]]


class Orders:
    """`ask` puts a request to heart and waits; `send` tells it without one."""

    def __init__(
        self,
        spec: ClusterSpec,
        state_dir: Path,
        view: Callable[[], View | None],
        ask: Ask,
        send: Callable[[FromAgent], None],
    ) -> None:
        self._spec = spec
        self._path = state_dir / FILE_NAME
        self._view = view
        self._ask = ask
        self._send = send
        self._agreed = Agreed(spec)
        self._maintenance = Maintenance()
        self._maintenance_end_us = 0
        self._mesh: Mesh | None = None
        self._lock = asyncio.Lock()
        self._kept_us = self._failed_us = 0
        self._work: asyncio.Task[None] | None = None
        self.standing_by: tuple[str, ...] = ()
        self.changed: Callable[[], None] = lambda: None  # called when a drain begins or ends
        self.problem = self._damaged = ""  # why nothing can be kept; what was kept and is lost
        self._forgotten: list[MarkWord] = []  # of another boot
        self._outdated = False  # the file lacks something, as it does while there is a `problem`

    # -- life --

    def load(self) -> None:
        """Read what was kept and tell heart, before anything else is said to it."""
        now = now_us()
        try:
            kept = read(self._path, self._spec.name, now)
        except OrdersFileError as error:
            self._damaged = f"{error}{set_aside(self._path)}"
            log.error("%s", self._damaged)
            return
        self._kept_us = now
        if kept is None:
            return
        self._agreed.merge(kept.agreed, now)
        if not kept.is_of_this_boot() and (dead := self._agreed.forget_dead()):
            self._forgotten, self._outdated = dead, True
            log.warning("%s", self.lost)
        self.standing_by = kept.standing_by
        self._tell()
        if kept.maintenance.on:
            self._note_maintenance(kept.maintenance, now)
            self._send(MaintenanceRequested(-1, True, kept.maintenance.left_us))

    @property
    def lost(self) -> str:
        """What was ordered before this start and is not in force any more; empty for nothing."""
        return self._damaged or sentence(self._agreed.unsaid(self._forgotten))

    def join(self, mesh: Mesh) -> None:
        """Take and give orders over the mesh."""
        self._mesh = mesh
        mesh.register(METHOD, self._asked)
        mesh.register(HEARS, self._asked_hears)

    async def stop(self) -> None:
        if self._work is not None:
            await asyncio.gather(self._work, return_exceptions=True)

    # -- what operators order --

    async def pause(self, left_us: int, by: str) -> str:
        """Nothing moves by itself for `left_us` (FOR_GOOD_US: until resumed). As all here,
        raises OperatorError."""
        by = signed(by, self._me)
        length = "until it is resumed" if left_us >= FOR_GOOD_US else f"for {span(left_us)}"
        text = f"the cluster is paused {length}"
        return await self._carry_out(text, pausing(left_us, by), self._pause_at_heart)

    async def resume(self, by: str) -> str:
        """Services move by themselves again; for a node that is away also where nothing is known of
        a pause, for it may keep one that nobody has heard of. Raises OperatorError."""
        by = signed(by, self._me)
        away = [n.id for n in self._spec.nodes if n.id != self._me and not self._lives(n.id)]
        if not self._agreed.left_us(now_us()) and not away:
            raise OperatorError(f"the cluster is not paused, as far as {self._me} knows")
        text = "the cluster is resumed"
        return await self._carry_out(text, pausing(0, by), self._pause_at_heart)

    async def mark_dead(self, node: str, by: str) -> str:
        """`by` has looked: `node` is dead, and stays so. Raises OperatorError."""
        named(self._spec, node)
        by = signed(by)
        await self._refuse_if_heard(node, "it is not dead; stop it first")
        text = f"{node} is marked dead, verified by {by}"
        try:
            return await self._carry_out(text, marking(node, by, True), self._marks_at_heart, node)
        except _HeartRefused as error:
            await self._keep(marking(node, by, False))
            self._tell()  # it may have heard of the mark beside the request, and keeps that
            raise OperatorError(str(error)) from None

    async def unmark(self, node: str, by: str) -> str:
        """Take a mark back; who lives loses it by itself (docs/design.md). Raises OperatorError."""
        named(self._spec, node)
        if self._agreed.mark_of(node) is None:
            raise OperatorError(f"{node} is not marked dead, as far as {self._me} knows")
        await self._refuse_if_heard(node, "its mark goes by itself once it stands by; or stop it")
        text = f"{node} is not marked dead any more{lost_by_unmarking(self._view(), node)}"
        give = marking(node, signed(by, self._me), False)
        return await self._carry_out(text, give, self._marks_at_heart)

    async def drain(self, target: str, left_us: int, by: str, move_us: int = FOR_GOOD_US) -> str:
        """No new calls to `target` (as `drained.target_of` has it) for `left_us`. What a drained
        node serves is moved away after `move_us`, or once it is empty. Raises OperatorError."""
        give = draining(target, left_us, signed(by, self._me), move_us)
        length = "until `drain off`" if left_us >= FOR_GOOD_US else f"for {span(left_us)}"
        text = f"{target.partition(':')[2]} takes no new calls {length}"
        return await self._carry_out(text, give, self._drains_changed)

    async def undrain(self, target: str, by: str) -> str:
        """It takes new calls again. Raises OperatorError."""
        name = target.partition(":")[2]
        if self._agreed.drain_of(target, now_us()) is None:
            raise OperatorError(f"{name} is not drained, as far as {self._me} knows")
        text, give = f"{name} takes new calls again", draining(target, 0, signed(by, self._me))
        return await self._carry_out(text, give, self._drains_changed)

    def drains(self) -> list[DrainWord]:
        """Those in force, their times as they stand now."""
        return self._agreed.drains(now_us())

    async def keep_standing_by(self, services: Sequence[str]) -> None:
        """Services whose profiles this agent has put into standby: its successor must know."""
        self.standing_by = tuple(services)
        try:
            await self._keep()
        except OperatorError as error:
            log.error("%s", error)

    async def keep_maintenance(self, on: bool, left_us: int) -> None:
        """On disk before heart is told. Raises OperatorError; then nothing has changed."""
        before = self._maintenance, self._maintenance_end_us
        self._note_maintenance(Maintenance(on, left_us), now_us())
        try:
            await self._keep()
        except OperatorError:
            self._maintenance, self._maintenance_end_us = before
            raise

    def _note_maintenance(self, maintenance: Maintenance, now: int) -> None:
        self._maintenance = maintenance
        self._maintenance_end_us = now + maintenance.left_us

    # -- carrying out --

    async def _carry_out(
        self, text: str, give: Give, at_heart: Callable[[], Awaitable[None]], without: str = ""
    ) -> str:
        await self._keep(give)
        try:
            await at_heart()
        except _HeartRefused:
            raise
        except OperatorError as error:
            told = f"{text}: that is on the disk here and goes to the other nodes, but {error}"
            raise OperatorError(told, PARTLY) from None
        missing, absent = await self._pass_on(without)
        if missing:
            raise OperatorError(
                f"{text}, but {', '.join(missing)} could not be told and will hear of it from "
                "the others; see `haclusterctl status`",
                PARTLY,
            )
        return f"{text}; {', '.join(absent)} will hear of it when back" if absent else text

    async def _keep(self, give: Give | None = None) -> None:
        """Write it all, with the order that `give` gives. Raises OperatorError; then there was no
        order: nobody hears of what is on no disk."""
        async with self._lock:
            now, self._outdated = now_us(), False
            agreed = given(self._spec, self._agreed, give, now)
            maintenance = self._maintenance.until(self._maintenance_end_us, now)
            kept = Kept(FORMAT, self._spec.name, boot_id(), now, agreed.word(now),
                        maintenance, self.standing_by)  # fmt: skip
            try:
                await asyncio.to_thread(write, self._path, kept)
            except OSError as error:
                self._failed_us = now_us()
                self.problem = (
                    f"{self._path}: {error.strerror}: orders cannot be kept; make its folder "
                    "writable and its disk not full"
                )
                raise OperatorError(f"not done: {self.problem}") from None
            if give is not None:
                self._agreed.merge(agreed.word(now), now)
                self._damaged = ""
            self._kept_us, self.problem = now, ""

    async def _drains_changed(self) -> None:
        """Drains are the agents' own: heart has nothing to do."""
        self.changed()

    async def _pause_at_heart(self) -> None:
        await self._at_heart(lambda number: self._agreed.pause_input(number, now_us()))

    async def _marks_at_heart(self) -> None:
        await self._at_heart(self._agreed.marks_input)

    async def _at_heart(self, make: Callable[[int], FromAgent]) -> None:
        answer = await self._ask(make)
        if not answer.ok:
            raise _HeartRefused(answer.text)

    def _tell(self) -> None:
        self._send(self._agreed.pause_input(-1, now_us()))
        self._send(self._agreed.marks_input(-1))

    async def _pass_on(self, without: str) -> tuple[list[str], list[str]]:
        """Tell every other agent: (nodes that live and were not reached, nodes that are away)."""
        others = [n.id for n in self._spec.nodes if n.id not in (self._me, without)]
        told = await asyncio.gather(*(self._tell_peer(node) for node in others))
        missing = [node for node, done in zip(others, told, strict=True) if not done]
        living = [node for node in missing if self._lives(node)]
        return living, [node for node in missing if node not in living]

    async def _tell_peer(self, node: str) -> bool:
        if self._mesh is None:
            return False
        payload = msgspec.json.encode(self._agreed.word(now_us()))
        try:
            await self._mesh.request(node, METHOD, payload, PEER_MS)
        except RequestFailed as error:
            log.info("%s was not told of an order: %s", node, error)
            return False
        return True

    async def _refuse_if_heard(self, node: str, fix: str) -> None:
        """Nobody here may hear it, and who lives must have been asked. Raises OperatorError."""
        if self._hears(node):
            raise OperatorError(f"{self._me} hears {node}: {fix}")
        others = (n.id for n in self._spec.nodes if n.id not in (self._me, node))
        living = [n for n in others if self._lives(n)]
        answers = await asyncio.gather(*(self._ask_hears(n, node) for n in living))
        for other, answer in zip(living, answers, strict=True):
            if answer == YES:
                raise OperatorError(f"{other} hears {node}: {fix}")
            if answer != NO:
                raise OperatorError(f"{other} lives but could not be asked whether it hears {node}")

    async def _ask_hears(self, node: str, about: str) -> bytes:
        if self._mesh is None:
            return b""
        try:
            return await self._mesh.request(node, HEARS, about.encode(), PEER_MS)
        except RequestFailed:
            return b""

    # -- what others say --

    async def _asked(self, peer: str, payload: bytes) -> bytes:
        await self.heard(msgspec.json.decode(payload, type=AgreedWord))
        return msgspec.json.encode(self._agreed.word(now_us()))

    async def _asked_hears(self, peer: str, payload: bytes) -> bytes:
        return YES if self._hears(payload.decode(errors="replace")) else NO

    async def heard(self, word: AgreedWord) -> None:
        """What another agent knows: keep and obey what is newer, also if its connection ends."""
        if self._agreed.merge(word, now_us()):
            self._outdated = True
            try:
                await self._keep()
            except OperatorError as error:
                log.error("%s", error)
            finally:
                self._tell()
                self.changed()

    def word(self) -> AgreedWord:
        """What this agent knows, for the others."""
        return self._agreed.word(now_us())

    def observe(self, view: View) -> None:
        """Heart's word: who is heard as a standby again loses its mark for all, also one that is
        forgotten here: who is away may have it still, and is to hear a newer word."""
        if self._work is not None and not self._work.done():
            return  # the next word says it again
        agreed, now = self._agreed, now_us()
        ended = [m.node for m in view.marks if m.cleared and agreed.is_marked(m.node, m.version)]
        ended += [m.node for m in agreed.unsaid(self._forgotten) if self._is_back(m.node)]
        for node in ended:
            agreed.order_mark(node, "the cluster", False, wall_s())
        timed = agreed.is_timed(now) or (
            self._maintenance.on and self._maintenance.left_us < FOR_GOOD_US
        )
        wanted = self.problem or self._outdated or (timed and now - self._kept_us > KEEP_AGAIN_US)
        if ended or (wanted and now - self._failed_us > RETRY_US):
            self._work = lasting(self._renew(bool(ended)), "orders kept anew")

    async def _renew(self, ended: bool) -> None:
        known = self.problem
        try:
            await self._keep()
        except OperatorError as error:
            if self.problem != known:
                log.error("%s", error)
        if ended:
            self._tell()
            await self._pass_on("")

    @property
    def _me(self) -> str:
        return self._spec.nodes[self._spec.me].id

    def _seen(self, node: str) -> NodeView | None:
        view = self._view()
        return next((n for n in view.nodes if n.id == node), None) if view is not None else None

    def _lives(self, node: str) -> bool:
        seen = self._seen(node)
        return seen is not None and seen.silent_us <= self._spec.timing.dead_us

    def _is_back(self, node: str) -> bool:
        return (seen := self._seen(node)) is not None and seen.role not in _NOT_BACK

    def _hears(self, node: str) -> bool:
        """Anything of it, one way or both; and whoever cannot tell does hear it."""
        seen = self._seen(node)
        if node == self._me or seen is None:
            return True
        silent_us = min(seen.silent_us, seen.unheard_us)
        return seen.role not in _DEAD or silent_us < 2 * self._spec.timing.dead_us


class _HeartRefused(OperatorError):
    """Heart knows better."""
