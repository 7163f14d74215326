"""Is the local FreeSWITCH alive and well: `api status` on a connection of its own.

Only the probe and the reading of its answer belong here. A connection of its own, because a long
command blocks its connection, and an API call, because a stalled event dispatcher is normal
(FREESWITCH.md 2.4 and 7). EOF is not death: the process's end shows on its pidfd, a hang here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from .esl import Esl, EslFactory
from .esl_errors import EslError

# Three of these make a hang. Twice the 100 ms that FREESWITCH.md 7 suggests: a host that is short
# of CPU for 300 ms is not worth killing a FreeSWITCH with live calls for.
INTERVAL_MS = 200
MISSES_UNTIL_HUNG = 3

_SESSIONS = re.compile(r"^(\d+) session\(s\) - peak (\d+)", re.MULTILINE)
_TOTAL = re.compile(r"^(\d+) session\(s\) since startup", re.MULTILINE)
_MAX = re.compile(r"^(\d+) session\(s\) max", re.MULTILINE)
_VERSION = re.compile(r"^FreeSWITCH \(Version ([^)]*)\) is (.+?)\s*$", re.MULTILINE)
_IDLE = re.compile(r"^min idle cpu [\d.]+/([\d.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FreeswitchStatus:
    """What `api status` says; counts are -1 and texts empty where it does not."""

    sessions: int = -1
    sessions_peak: int = -1
    sessions_total: int = -1
    sessions_max: int = -1
    version: str = ""
    ready: bool = False
    idle_cpu_percent: float = -1.0


def parse_status(text: str) -> FreeswitchStatus:
    """Read the output of `api status` (captures: esl_session_transcript.txt)."""
    now = _SESSIONS.search(text)
    total = _TOTAL.search(text)
    most = _MAX.search(text)
    version = _VERSION.search(text)
    idle = _IDLE.search(text)
    return FreeswitchStatus(
        sessions=int(now.group(1)) if now else -1,
        sessions_peak=int(now.group(2)) if now else -1,
        sessions_total=int(total.group(1)) if total else -1,
        sessions_max=int(most.group(1)) if most else -1,
        version=version.group(1) if version else "",
        ready=version is not None and version.group(2) == "ready",
        idle_cpu_percent=float(idle.group(1)) if idle else -1.0,
    )


@dataclass(frozen=True, slots=True)
class Health:
    """`state` is up, hung or down; `hung` needs `MISSES_UNTIL_HUNG` probes without an answer.

    down means no usable connection (refused, wrong password, EOF): whether the process lives is
    told by its pidfd, not here. `rtt_ms` is of the last answered probe, -1 before the first.
    """

    state: str
    problem: str = ""
    misses: int = 0
    rtt_ms: float = -1.0
    status: FreeswitchStatus = FreeswitchStatus()


class HealthProbe:
    """Asks every `interval_ms`; `on_change(health)` is called when `state` changes."""

    def __init__(
        self,
        esl_factory: EslFactory,
        on_change: Callable[[Health], None] | None = None,
        *,
        interval_ms: int = INTERVAL_MS,
        misses_until_hung: int = MISSES_UNTIL_HUNG,
    ) -> None:
        self._esl: Esl = esl_factory(name="health")
        self._on_change = on_change
        self._interval_ms = interval_ms
        self._misses_until_hung = misses_until_hung
        self._task: asyncio.Task[None] | None = None
        self._answered_before = False
        self.health = Health("down", "not asked yet")

    async def start(self) -> None:
        await self._esl.start()
        self._task = asyncio.create_task(self._probe_forever(), name="health-probe")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._esl.stop()

    async def _probe_forever(self) -> None:
        loop = asyncio.get_running_loop()
        pending: asyncio.Task[str] | None = None
        asked_at = 0.0
        while True:
            if pending is None and self._esl.up:
                asked_at = loop.time()
                pending = asyncio.create_task(self._esl.api("status", 600_000))
            if pending is not None:
                await asyncio.wait([pending], timeout=self._interval_ms / 1000)
            if pending is not None and pending.done():
                self._answer(pending, (loop.time() - asked_at) * 1000)
                pending = None
                await asyncio.sleep(max(0.0, asked_at + self._interval_ms / 1000 - loop.time()))
            else:
                if pending is None:
                    await asyncio.sleep(self._interval_ms / 1000)
                self._missed(connected=pending is not None)

    def _answer(self, task: asyncio.Task[str], rtt_ms: float) -> None:
        try:
            text = task.result()
        except EslError:
            self._missed(connected=False)
            return
        self._answered_before = True
        self._set(Health("up", "", 0, rtt_ms, parse_status(text)))

    def _missed(self, *, connected: bool) -> None:
        """One interval without an answer.

        A frozen FreeSWITCH still accepts connections but greets nobody, so after it has answered
        once, a greeting that does not come counts like a missed probe.
        """
        misses = self.health.misses + 1
        problem = self._esl.problem
        silent = connected or ("no ESL greeting" in problem) or problem == "connecting"
        if silent and self._answered_before:
            state = "hung" if misses >= self._misses_until_hung else self.health.state
            problem = f"FreeSWITCH did not answer {misses} probes ({misses * self._interval_ms} ms)"
        else:
            state = "down"
        self._set(replace(self.health, state=state, problem=problem, misses=misses))

    def _set(self, health: Health) -> None:
        changed = health.state != self.health.state
        self.health = health
        if changed and self._on_change is not None:
            self._on_change(health)
