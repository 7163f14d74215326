"""Reads this node's sensors for ever, and says what they make of its health.

One task for each sensor. A probe that does not come back is given up after its time, counts as
critical, and is not started a second time while it is out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from haclusterd.agent.clock import wall_text
from haclusterd.agent.history import History
from haclusterd.agent.schema import Alarm, SensorState
from haclusterd.config import Config
from haclusterd.config.watching import Sensor
from haclusterd.core.view import View
from haclusterd.freeswitch.esl import Esl, EslFactory, EventItem, EventsLost
from haclusterd.lasting import unending
from haclusterd.sensors.probes import Probe, probe_of
from haclusterd.sensors.reading import CRITICAL, UNKNOWN, WARN, Gauge, Reading, penalty
from haclusterd.sensors.switch import Condition, concerns, read_gateway, subscription

log = logging.getLogger(__name__)

GRACE_S = 1.0  # a probe has its own timeout; this is for one that does not keep it
CONDITION_S = 1.0  # how often a condition is looked at that clears itself
_BAD = (WARN, CRITICAL)


@dataclass
class Watched:
    """One sensor with its state."""

    spec: Sensor
    gauge: Gauge
    probe: Probe
    since: str = ""
    out: asyncio.Task[Reading] | None = None

    def word(self) -> SensorState:
        spec, gauge = self.spec, self.gauge
        takes = penalty(gauge.state, spec.weight)
        return SensorState(
            spec.name, spec.kind, gauge.state, gauge.text, takes, spec.required, self.since
        )


class Sensors:
    """Idle where the configuration has none for this node. `view()` is heart's newest word."""

    def __init__(
        self,
        config: Config,
        view: Callable[[], View | None],
        history: History,
        changed: Callable[[], None],
    ) -> None:
        self._me = config.node.id
        self._view = view
        self._history = history
        self._changed = changed
        self._services = {p: s.name for s in config.services for p in s.profiles}
        self._esl: Esl | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._conditions: dict[str, Condition] = {}
        mine = [s for s in config.sensors if not s.nodes or self._me in s.nodes]
        self.watched = [self._watched(s) for s in mine if not config.node.witness]

    def _watched(self, spec: Sensor) -> Watched:
        if spec.kind == "event":
            self._conditions[spec.name] = condition = Condition(spec)

            async def look() -> Reading:
                return condition.reading(asyncio.get_running_loop().time())

            return Watched(spec, Gauge(1, 1), look)
        probe = self._gateway(spec) if spec.kind == "gateway" else self._plain(spec)
        return Watched(spec, Gauge(spec.fails, spec.passes), probe)

    def _plain(self, spec: Sensor) -> Probe:
        return probe_of(spec, self._me, lambda: self._asked(True), lambda: self._asked(False))

    def _gateway(self, spec: Sensor) -> Probe:
        return lambda: read_gateway(self._esl, spec, self._answers_for)

    # -- life --

    def start(self) -> None:
        for number, one in enumerate(self.watched):
            wait_s = number * one.spec.interval_ms / 1000 / len(self.watched)
            work = partial(self._read_for_ever, one, wait_s)
            self._tasks.append(unending(work, f"sensor {one.spec.name}"))

    async def stop(self) -> None:
        out = [one.out for one in self.watched if one.out is not None]
        for task in (*self._tasks, *out):
            task.cancel()
        await asyncio.gather(*self._tasks, *out, return_exceptions=True)

    async def attach(self, connection: EslFactory) -> None:
        """FreeSWITCH can be asked from now on, where a sensor wants that."""
        specs = [one.spec for one in self.watched if one.spec.kind in ("gateway", "event")]
        if not specs or self._esl is not None:
            return
        events = subscription(specs)
        heard = self._event if events else None
        self._esl = connection(name="sensors", events=events, on_event=heard)
        await self._esl.start()

    async def detach(self) -> None:
        if self._esl is not None:
            await self._esl.stop()
            self._esl = None

    # -- readings --

    async def _read_for_ever(self, one: Watched, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        every_s = CONDITION_S if one.spec.kind == "event" else one.spec.interval_ms / 1000
        await asyncio.sleep(wait_s)
        while True:
            began = loop.time()
            self._took(one, await self._read(one))
            await asyncio.sleep(max(0.05, began + every_s - loop.time()))

    async def _read(self, one: Watched) -> Reading:
        if one.out is None:
            one.out = asyncio.ensure_future(one.probe())
        await asyncio.wait({one.out}, timeout=one.spec.timeout_ms / 1000 + GRACE_S)
        if not one.out.done():
            return Reading(CRITICAL, f"it did not answer within {one.spec.timeout_ms} ms")
        done, one.out = one.out, None
        if done.cancelled():  # by what it waited for: its result would end this task, too
            return Reading(UNKNOWN, "it was cut short")
        error = done.exception()
        if error is None:
            return done.result()
        log.error("sensor %s", one.spec.name, exc_info=error)
        return Reading(UNKNOWN, f"it cannot be read: {error}")

    def _took(self, one: Watched, reading: Reading) -> None:
        before = one.gauge.state
        if not one.gauge.take(reading, asyncio.get_running_loop().time()):
            return
        one.since = wall_text()
        after = one.gauge.state
        if after in _BAD or before in _BAD:
            text = f"sensor {one.spec.name} on {self._me} is {after}: {one.gauge.text}"
            self._history.add("A31", text)
        self._changed()

    async def _event(self, item: EventItem) -> None:
        if isinstance(item, EventsLost):
            return
        now = asyncio.get_running_loop().time()
        for one in self.watched:
            condition = self._conditions.get(one.spec.name)
            if condition is not None and concerns(one.spec, item) and condition.event(item, now):
                self._took(one, condition.reading(now))

    # -- what is asked --

    def _asked(self, own: bool) -> Sequence[tuple[str, str]]:
        """(service, address) of what this node (or another) serves at the moment."""
        view = self._view()
        return [
            (service.name, address.partition("/")[0])
            for service in (view.services if view is not None else ())
            if service.state == "owned" and (service.owner == self._me) == own
            for address in service.addresses
        ]

    def _answers_for(self, profile: str) -> bool:
        """Whether this node is the one that has this profile in service."""
        view, service = self._view(), self._services.get(profile)
        if service is None or view is None:
            return service is None
        return any(s.name == service and s.owner == self._me for s in view.services)

    # -- what it comes to --

    @property
    def penalty(self) -> int:
        """What all of them take from this node's health."""
        return sum(penalty(one.gauge.state, one.spec.weight) for one in self.watched)

    @property
    def unfit(self) -> str:
        """Why this node shall not take anything over, by a sensor that is `required`."""
        for one in self.watched:
            if one.spec.required and one.gauge.state == CRITICAL:
                return f"sensor {one.spec.name}: {one.gauge.raised}"
        return ""

    def words(self) -> list[SensorState]:
        return [one.word() for one in self.watched]

    @property
    def alarms(self) -> list[Alarm]:
        """With the text of the moment they were raised: figures go on changing."""
        return [
            Alarm("sensor", f"{one.spec.name} on {self._me} is {one.gauge.state}: "
                  f"{one.gauge.raised}")
            for one in self.watched
            if one.gauge.state in _BAD
            or (one.gauge.state == UNKNOWN and one.since)
        ]  # fmt: skip


def explain(health: int, words: Sequence[SensorState]) -> str:
    """Which sensors take from a node's health; empty where none does."""
    taken = [f"{w.name} {w.state} -{w.takes} ({w.text})" for w in words if w.takes]
    return f"health {health}: {', '.join(taken)}" if taken else ""
