"""What leaves the cluster: looks at the status, and has hooks and DNS told of what changed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

import msgspec

from haclusterd.agent import dns, hooks, news, telling
from haclusterd.agent.clock import wall_text
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.page import brief
from haclusterd.agent.schema import Alarm, Report, Status
from haclusterd.config.model import Config
from haclusterd.lasting import lasting
from haclusterd.sync.rpc import RequestFailed

log = logging.getLogger(__name__)

LOOK_S = 0.2
METHOD = "told"
ANSWER_MS = 1000
KEYS_MAX = 256


class Told(Protocol):
    """What the daemon says of itself and the cluster."""

    def status(self) -> Status: ...
    def own_reports(self) -> Sequence[Report]: ...


class Mesh(Protocol):
    """What is needed of the replicator here."""

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes: ...
    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None: ...


class Notices:
    """Idle where the configuration names neither a hook nor a DNS name."""

    def __init__(self, config: Config, source: Told, changed: Callable[[], None]) -> None:
        self._cluster, self._me = config.name, config.node.id
        self._others = [node.id for node in config.nodes if node.id != config.node.id]
        self._source = source
        self._watcher = news.Watcher()
        self._telling = telling.Telling()
        self._mesh: Mesh | None = None
        self._deliveries = hooks.Deliveries(config.hooks, changed)
        self._names = dns.Names(config.dns, changed)
        self._number = itertools.count(1)
        self._reported: set[int] | None = None
        self._started = wall_text()
        self._wanted = bool(config.hooks or config.dns)
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self, mesh: Mesh) -> None:
        """Hear from the others what they told, and say to them."""
        self._mesh = mesh
        mesh.register(METHOD, self._heard)

    def start(self) -> None:
        if not self._wanted:
            return
        self._deliveries.start()
        self._names.start()
        self._spawn(self._look_for_ever(), "notices")

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._deliveries.stop()
        await self._names.stop()

    @property
    def alarms(self) -> list[Alarm]:
        """Whom this node could not tell."""
        failed = [Alarm("hook", f"{n}: {why}") for n, why in self._deliveries.problems.items()]
        names = [r for r in self._names.records if r.problem]
        return failed + [Alarm("dns", f"{r.spec.name}: {r.problem}") for r in names]

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """Deliveries by hook and outcome."""
        return self._deliveries.counts

    @property
    def dns_counts(self) -> dict[tuple[str, str], int]:
        """Updates by name and outcome."""
        return {
            (record.spec.name, outcome): count
            for record in self._names.records
            for outcome, count in (("done", record.updates), ("failed", record.failures))
        }

    def look(self, status: Status, now: float) -> None:
        """One round."""
        place = telling.place_of(status)
        found = [*self._watcher.look(status, now), *self._reports()]
        mine = []
        for one in found:
            tells = self._telling.saw(one, place, now)
            self._deliveries.give(self._message(one), tells)
            mine += [one] if tells else []
        late = self._telling.due(now)
        for one in late:
            self._deliveries.give(self._message(one) | {"late": True}, True)
        self._say([one.key for one in (*mine, *late) if one.scope == news.CLUSTER])
        self._names.look(status, place == 0, now)

    def _reports(self) -> list[news.News]:
        """Reports of this node that were finished since the last round."""
        reports = self._source.own_reports()
        if self._reported is None:  # those of earlier lives were told by them
            self._reported = {r.number for r in reports if r.done and r.at < self._started}
        found = [r for r in reports if r.done and r.number not in self._reported]
        self._reported = {r.number for r in reports if r.done}
        return [news.of_report(brief(report)) for report in found if report.from_]

    def _message(self, one: news.News) -> dict[str, Any]:
        content: dict[str, Any] = msgspec.to_builtins(one)
        number = next(self._number)
        return {"id": f"{self._me}/{self._started}/{number}", "cluster": self._cluster,
                "teller": self._me, "at": wall_text(), **content}  # fmt: skip

    # -- the others --

    def _say(self, keys: Sequence[str]) -> None:
        if not keys or self._mesh is None:
            return
        payload = msgspec.json.encode(keys[:KEYS_MAX])
        for node in self._others:
            self._spawn(self._say_to(node, payload), f"told {node}")

    async def _say_to(self, node: str, payload: bytes) -> None:
        if self._mesh is not None:
            with contextlib.suppress(RequestFailed):
                await self._mesh.request(node, METHOD, payload, ANSWER_MS)

    async def _heard(self, peer: str, payload: bytes) -> bytes:
        keys = msgspec.json.decode(payload, type=list[str])
        self._telling.told(keys[:KEYS_MAX], asyncio.get_running_loop().time())
        return b""

    # -- life --

    async def _look_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.look(self._source.status(), loop.time())
            except OperatorError:
                pass  # before heart's first word
            except Exception:
                # Whatever one round met, the next one tells again.
                log.exception("a round of notices")
            await asyncio.sleep(LOOK_S)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = lasting(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
