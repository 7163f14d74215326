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

from .cpu_wait import CpuWait
from .esl import Esl, EslFactory
from .esl_errors import EslError

# A FreeSWITCH that is killed for a hang takes live calls with it, so an interval in which it, or
# the agent, stood in line for a CPU is no evidence: at load 8 of 2 CPUs that would end calls.
INTERVAL_MS = 100
MISSES_UNTIL_HUNG = 3
UNPROVED_MAX = 30  # intervals in a row that are no evidence because there was no CPU
CLOCK_S = 0.001

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
    answer: str = ""

    @property
    def status(self) -> FreeswitchStatus:
        """What the last answer says."""
        return parse_status(self.answer)


class HealthProbe:
    """Asks every `interval_ms`; `on_change(health)` is called when `state` changes."""

    def __init__(
        self,
        esl_factory: EslFactory,
        on_change: Callable[[Health], None] | None = None,
        *,
        interval_ms: int = INTERVAL_MS,
        misses_until_hung: int = MISSES_UNTIL_HUNG,
        cpu_wait: CpuWait | None = None,
    ) -> None:
        self._cpu_wait = cpu_wait
        self._esl: Esl = esl_factory(name="health")
        self._on_change = on_change
        self._interval_ms = interval_ms
        self._misses_until_hung = misses_until_hung
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._question: asyncio.Task[str] | None = None
        self._asked_at = 0.0
        self._unproved = 0
        self._answered_before = False
        self.health = Health("down", "not asked yet")

    async def start(self) -> None:
        await self._esl.start()
        self._tick_at(asyncio.get_running_loop().time())

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._question is not None:
            self._question.cancel()
            await asyncio.gather(self._question, return_exceptions=True)
        await self._esl.stop()

    def _tick_at(self, when: float) -> None:
        self._due = when
        self._timer = asyncio.get_running_loop().call_at(when, self._tick)

    def _tick(self) -> None:
        """The end of an interval; what was readable by now has been read before this is called."""
        now = asyncio.get_running_loop().time()
        interval_s = self._interval_ms / 1000
        if self._question is not None and now < self._asked_at + interval_s - CLOCK_S:
            self._tick_at(self._asked_at + interval_s)  # the question got out late
            return
        if self._question is None and self._esl.up:
            self._question = asyncio.create_task(self._ask(), name="health-question")
            self._question.add_done_callback(self._answered)
            self._asked_at = now
        elif self._question is None:
            self._missed(connected=False)
        elif self._proves_nothing(now) and self._unproved < UNPROVED_MAX:
            self._unproved += 1
        else:
            self._missed(connected=True)
        self._tick_at(now + interval_s)

    def _proves_nothing(self, now: float) -> bool:
        """The agent itself was late, or FreeSWITCH stood in line for a CPU most of the time."""
        half_s = self._interval_ms / 2000
        waited_s = self._cpu_wait.look() if self._cpu_wait is not None else 0.0
        return now - self._due > half_s or waited_s > half_s

    async def _ask(self) -> str:
        self._asked_at = asyncio.get_running_loop().time()
        return await self._esl.api("status", 600_000)

    def _answered(self, question: asyncio.Task[str]) -> None:
        self._question = None
        self._unproved = 0
        if self._cpu_wait is not None and self.health.misses:
            self._cpu_wait.forget()
        if question.cancelled():
            return
        if isinstance(question.exception(), EslError):
            self._missed(connected=False)
            return
        self._answered_before = True
        rtt_ms = (asyncio.get_running_loop().time() - self._asked_at) * 1000
        self._set(Health("up", "", 0, rtt_ms, question.result()))

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
