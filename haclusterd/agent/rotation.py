"""`keys rotate`: new keys for the whole cluster, step by step, without a beat that is not opened.

The node where it is ordered conducts: it makes the new keys, gives every node its own over the
replication mesh, and lets all of them enter one phase (`haclusterd.rotation`) before any enters the
next. One conductor at a time. Whatever ends it in between, all nodes understand each other, and the
same command goes on, or goes back. While it is under way the set of nodes cannot be changed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from haclusterd import rotation as files
from haclusterd.agent.history import History
from haclusterd.agent.operators import OperatorError, Operators
from haclusterd.agent.rotation_words import (
    OVER,
    TELL,
    Task,
    Told,
    node_of,
    phase_of,
    phase_word,
    refuse_laggards,
    where,
)
from haclusterd.agent.schema import PARTLY, Alarm
from haclusterd.agent.schema_upkeep import KeysAt
from haclusterd.config import Config
from haclusterd.core.inputs import KeysGiven
from haclusterd.core.view import View
from haclusterd.keys import KeysError, load_cluster_key
from haclusterd.rotation import DONE, KNOWN, NAMES, OLD, USED, Generation, Kept
from haclusterd.sync.rpc import RequestFailed
from haclusterd.sync.transport import SyncError

log = logging.getLogger(__name__)

METHOD = "keys"
PEER_MS = 10_000
SETTLE_DEADS = 2  # times `dead_ms` between two phases: what was sealed before has been opened
CONDUCTED_S = 30.0  # a conductor that says nothing for so long is one no more


class Mesh(Protocol):
    """What is needed of the replicator here."""

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes: ...
    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None: ...
    def reload_certificates(self) -> None: ...


class Rotation:
    """This node's part, and the conductor's. Raises OperatorError to operators."""

    def __init__(
        self, config: Config, operators: Operators, history: History, view: Callable[[], View]
    ) -> None:
        self._config, self._operators = config, operators
        self._history, self._view = history, view
        self._mesh: Mesh | None = None
        self._lock = asyncio.Lock()
        self._conductor, self._conducted_until = "", 0.0
        self._taking: set[asyncio.Task[Told]] = set()
        self._kept: Kept | None = None
        self.problem = ""
        try:
            self._kept = files.settle(config)
        except KeysError as error:
            self.problem = str(error)
            log.error("%s", error)
        # What heart and the mesh go by: behind the disk where a step was cut short.
        self._in_force = OLD if self._kept is None else self._kept.phase

    def join(self, mesh: Mesh) -> None:
        self._mesh = mesh
        mesh.register(METHOD, self._asked)

    def tell_heart(self) -> KeysGiven | None:
        """After a start: the ring of the phase that was finished just now, if there is one."""
        if self._kept is None or not files.is_under_way(self._kept):
            return None
        return _given(-1, self._kept)

    @property
    def under_way(self) -> str:
        """Why the set of nodes must not change now; empty if it may."""
        if self.problem or not self._is_under_way():
            return ""
        return (
            "the keys of the cluster are being rotated: `haclusterctl keys rotate` goes on with "
            "it, `haclusterctl keys rotate --abort` goes back"
        )

    def alarms(self) -> list[Alarm]:
        if self.problem:
            return [Alarm("keys", self.problem)]
        kept = self._kept
        if kept is None or not self._is_under_way():
            return []
        text = f"{self.under_way}; begun by {kept.by} on {kept.origin}, here: {NAMES[kept.phase]}"
        return [Alarm("keys_rotating", text)]

    def _is_under_way(self) -> bool:
        kept = self._kept
        return files.is_under_way(kept) or (kept is not None and OLD < self._in_force < DONE)

    # -- as conductor --

    async def status(self) -> list[KeysAt]:
        """Where every node stands; asks and changes nothing."""
        told = await self._everywhere(Task("", TELL))
        return [
            KeysAt(node, phase_word(t), t.ring, t.by or None, t.problem) for node, t in told.items()
        ]

    async def rotate(self, by: str) -> str:
        """Begin, or go on with what was begun."""
        return await self._operators.alone("a rotation of the keys", self._conduct(by, False))

    async def abort(self, by: str) -> str:
        """Back to the old keys, as long as no node has given them up."""
        return await self._operators.alone("the end of a rotation", self._conduct(by, True))

    async def _conduct(self, by: str, back: bool) -> str:
        me = f"{self._me}/{secrets.token_hex(4)}"
        try:
            told = await self._all(Task(me, TELL), "nothing was changed")
            under_way = {t.id for t in told.values() if OLD < t.phase < DONE}
            if len(under_way) > 1:
                raise OperatorError(f"two rotations at once: {where(told)}; restore a backup")
            number = next(iter(under_way), "")
            if back:
                return await self._go_back(me, number, told)
            if number and self._is_lost(number, told):
                await self._go_back(me, number, told)
                number = ""
            if not number:
                return await self._begin(me, by)
            begun = next(f"{t.by} had begun" for t in told.values() if t.id == number)
            return f"{await self._go_on(me, number, told)}; went on with what {begun}"
        finally:
            await self._everywhere(Task(me, OVER))

    def _is_lost(self, number: str, told: dict[str, Told]) -> bool:
        """Some never took part, nobody uses the new keys, and they are not here to be given."""
        phases = {phase_of(t, number) for t in told.values()}
        kept = self._kept
        here = kept is not None and kept.id == number and bool(kept.issued)
        return phases == {OLD, KNOWN} and not here

    async def _begin(self, me: str, by: str) -> str:
        self._refuse_in_a_change()
        try:
            kept = await asyncio.to_thread(files.begin, self._config, f"{by} on {self._me}")
        except KeysError as error:
            raise OperatorError(f"{error}; nothing was changed") from None
        self._history.add("A41", f"{by} has begun to rotate the keys of the cluster")
        self._kept, self._in_force = kept, OLD
        return await self._go_on(me, kept.id, {})

    async def _go_on(self, me: str, number: str, told: dict[str, Told]) -> str:
        for phase in (KNOWN, USED, DONE):
            if told and all(phase_of(t, number) >= phase for t in told.values()):
                continue
            try:
                told = await self._enter(me, number, phase)
            except OperatorError as error:
                if phase > KNOWN:
                    raise OperatorError(
                        f"{error}; all nodes still understand each other: when that is mended, "
                        "`haclusterctl keys rotate` goes on, `--abort` goes back",
                        PARTLY,
                    ) from None
                await self._everywhere(Task(me, OLD, number))
                raise OperatorError(f"{error}; the keys are as before") from None
            await asyncio.sleep(SETTLE_DEADS * self._config.timing.dead_us / 1e6)
        self._history.add("A43", "all nodes have new keys and certificates; the old ones are void")
        return f"{len(told)} nodes have new keys and certificates; the old ones are void"

    async def _go_back(self, me: str, number: str, told: dict[str, Told]) -> str:
        if not number:
            raise OperatorError("no rotation of keys is under way: nothing to abort")
        done = [node for node, t in told.items() if t.id == number and t.phase == DONE]
        if done:
            raise OperatorError(
                f"{', '.join(done)} gave the old keys up already: only `haclusterctl keys rotate` "
                "can end it"
            )
        for phase in (KNOWN, OLD):
            behind = {node: t for node, t in told.items() if phase_of(t, number) > phase}
            if behind:
                await self._enter(me, number, phase, list(behind))
            await asyncio.sleep(SETTLE_DEADS * self._config.timing.dead_us / 1e6)
        self._history.add("A45", "the rotation of keys was aborted: the old ones are in use")
        return f"{len(told)} nodes use the old keys, as before"

    async def _enter(
        self, me: str, number: str, phase: int, nodes: list[str] | None = None
    ) -> dict[str, Told]:
        """All nodes into one phase. Raises OperatorError naming who is not there."""
        kept = self._kept
        issued = kept.issued if kept is not None and kept.id == number else {}
        origin = kept.origin if kept is not None else self._me
        by = kept.by if kept is not None else ""
        plain = Task(me, phase, number, by, origin)
        tasks = {
            node: msgspec.structs.replace(plain, new=issued.get(node, Generation()))
            if phase == KNOWN else plain
            for node in nodes or self._nodes
        }  # fmt: skip
        told = {}
        if self._me in tasks:  # first: a folder that nodes share is noticed by the others
            told[self._me] = await self._one(self._me, tasks.pop(self._me))
        answers = await asyncio.gather(*(self._one(n, t) for n, t in tasks.items()))
        told |= dict(zip(tasks, answers, strict=True))
        refuse_laggards(told, f"{NAMES[phase]!r} is not reached by")
        return told

    async def _all(self, task: Task, then: str) -> dict[str, Told]:
        told = await self._everywhere(task)
        try:
            refuse_laggards(told, "the keys cannot be rotated without")
        except OperatorError as error:
            raise OperatorError(f"{error}; {then}") from None
        return told

    async def _everywhere(self, task: Task) -> dict[str, Told]:
        told = await asyncio.gather(*(self._one(node, task) for node in self._nodes))
        return dict(zip(self._nodes, told, strict=True))

    async def _one(self, node: str, task: Task) -> Told:
        if node == self._me:
            return await self._take(task)
        if self._mesh is None:
            return Told(problem="replication does not run here")
        try:
            payload = msgspec.json.encode(task)
            answer = await self._mesh.request(node, METHOD, payload, PEER_MS)
            return msgspec.json.decode(answer, type=Told)
        except (RequestFailed, msgspec.DecodeError, UnicodeDecodeError) as error:
            return Told(problem=f"it does not answer ({error})")

    def _refuse_in_a_change(self) -> None:
        revision = self._view().revision
        if revision.staged or revision.lacking:
            raise OperatorError(
                f"the set of nodes is being changed (revision {revision.staged or revision.active}"
                "): finish that first, see `haclusterctl status`"
            )

    # -- as one of the nodes --

    async def _asked(self, peer: str, payload: bytes) -> bytes:
        task = msgspec.json.decode(payload, type=Task)
        if task.conductor and node_of(task.conductor) != peer:
            raise ValueError("a conductor speaks for itself")
        # To its end, also where the conductor is lost: disk, heart and our word stay in one phase.
        taking = asyncio.create_task(self._take(task))
        self._taking.add(taking)
        taking.add_done_callback(self._taking.discard)
        return msgspec.json.encode(await asyncio.shield(taking))

    async def _take(self, task: Task) -> Told:
        """Do what a conductor wants; where this node stands, and why it refused."""
        async with self._lock:
            problem = self._judge(task)
            if task.phase >= 0 and not problem:
                problem = await self._enter_here(task)
            return self._told(problem)

    def _judge(self, task: Task) -> str:
        if not task.conductor:
            return ""  # it only asks
        now = asyncio.get_running_loop().time()
        # The agent of a node conducts once at a time: another one of the same node has started
        # anew, and the run before is no more.
        other = self._conductor != "" and node_of(self._conductor) != node_of(task.conductor)
        busy = other and now < self._conducted_until
        if task.phase == OVER:
            if self._conductor == task.conductor:
                self._conductor = ""
            return ""
        if busy:
            who = node_of(self._conductor)
            return f"{who} is rotating the keys just now: try again in {CONDUCTED_S:.0f} s"
        self._conductor, self._conducted_until = task.conductor, now + CONDUCTED_S
        return self.problem

    async def _enter_here(self, task: Task) -> str:
        kept, phase = self._kept, task.phase
        try:
            if kept is None or kept.id != task.id:
                if phase == OLD:
                    return ""
                if phase != KNOWN or files.is_under_way(kept) or not task.new.ring:
                    return "it does not take part in it: `haclusterctl keys rotate --abort` first"
                self._refuse_in_a_change()
                kept = await asyncio.to_thread(
                    files.joined, self._config, task.id, task.by, task.origin, task.new
                )
            at = self._in_force if kept is self._kept else kept.phase
            if kept.phase == phase == at and kept is self._kept and phase != OLD:
                return ""
            if abs(at - phase) > 1 or at == DONE:
                return f"it cannot go from {NAMES[at]!r} to {NAMES[phase]!r}"
            return await self._write(kept, phase)
        except (KeysError, OperatorError) as error:
            return str(error)

    async def _write(self, kept: Kept, phase: int) -> str:
        """The disk first, then heart, then the certificates. What does not get to the end can be
        repeated: until then it has all secrets, and is in force where it was."""
        before = self._in_force if kept is self._kept else kept.phase
        entered = await asyncio.to_thread(files.enter, self._config, kept, phase)
        self._kept = now = msgspec.structs.replace(kept, phase=phase)
        self._in_force = before
        answer = await self._operators.ask(lambda number: _given(number, now))
        if not answer.ok:
            return answer.text
        try:
            if self._mesh is not None:
                self._mesh.reload_certificates()
        except SyncError as error:
            return str(error)
        self._kept, self._in_force = None if phase == OLD else entered, phase
        text = f"keys of {self._me}: from {NAMES[before]!r} to {NAMES[phase]!r}"
        self._history.add("A47", text)
        return ""

    def _told(self, problem: str) -> Told:
        kept = self._kept
        try:
            ring = [key.id for key in load_cluster_key(self._config.key_file).keys]
        except KeysError as error:
            ring, problem = [], problem or str(error)
        deaf = sorted({t.node for t in self._view().peer_tallies if t.unreadable_now})
        if kept is None:
            return Told(ring=ring, deaf_to=deaf, problem=problem)
        return Told(kept.id, self._in_force, kept.by, kept.origin, ring, deaf, problem)

    @property
    def _nodes(self) -> list[str]:
        """All that have to come along: who is marked dead needs the folder copied anyway."""
        dead = {mark.node for mark in self._view().marks if not mark.cleared}
        return [node.id for node in self._config.nodes if node.id not in dead]

    @property
    def _me(self) -> str:
        return self._config.node.id


def _given(number: int, kept: Kept) -> KeysGiven:
    return KeysGiven(number, tuple((k.id, k.secret) for k in files.ring_of(kept).keys))
