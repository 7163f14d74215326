"""Life of the local FreeSWITCH as this node follows it: which process, is it well, start it again.

Heart holds the process by pidfd and decides; this finds it, watches it, and brings it back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from haclusterd.agent.history import History
from haclusterd.agent.pid import ExitWatch, Process, read_process
from haclusterd.agent.standing import profile_reasons
from haclusterd.agent.starting import Starter
from haclusterd.agent.switch import Switch, SwitchError
from haclusterd.config import FreeSwitch
from haclusterd.core.inputs import FreeswitchHung, FromAgent
from haclusterd.core.model import ServiceSpec
from haclusterd.core.view import View
from haclusterd.freeswitch.health import Health
from haclusterd.lasting import unending

log = logging.getLogger(__name__)

WATCH_S = 0.1  # while no process is known, or it cannot be watched
FILE_CHECK_S = 1.0  # a pid file that names another process while the old one lives
PROFILES_S = 2.0
PROFILES_FIRST_S = 0.2
HUNG_AGAIN_S = 5.0
HUNG_AGAIN_MAX_S = 300.0  # what cannot be killed is told of ever more seldom
_ITS_OWN = ("owned", "standby")


def can_go(view: View | None, me: str) -> bool:
    """Whether heart would end a FreeSWITCH that hangs: others can have what node `me` serves.

    Not while a service is neither here nor there: an owner whose lease lapsed may have it back.
    """
    if view is None or view.pause is not None:
        return False
    if any(service.local_state not in _ITS_OWN for service in view.services):
        return False
    others = [set(service.successors) - {me} for service in view.services if service.owner == me]
    return not others or any(others)


class FreeswitchLife:
    """See the module. `changed()` is called whenever something that standing looks at changed."""

    def __init__(
        self,
        section: FreeSwitch,
        services: Sequence[ServiceSpec],
        history: History,
        send: Callable[[FromAgent], None],
        changed: Callable[[], None],
        exited: Callable[[], None],
    ) -> None:
        self._exited = exited
        self.pid_file = section.pid_file
        self._services = services
        self._history = history
        self._send = send
        self._changed = changed
        self.switch: Switch | None = None
        self.process: Process | None = read_process(section.pid_file)
        self.starter = Starter(section.start_command, self._is_up, self._tell)
        self.profiles: dict[str, str] = {}  # by service, see standing.Facts
        self.came_up: Callable[[str], None] = lambda profile: None  # a SIP profile that was away
        self.can_go: Callable[[], bool] = lambda: False  # nobody would miss this FreeSWITCH
        self._hung_at = 0.0  # when heart was last told
        self._hung_pause_s = HUNG_AGAIN_S
        self._running: frozenset[str] = frozenset()  # SIP profiles that are no news
        self._doubts = 0  # how often all of them were news again
        self._tasks: list[asyncio.Task[None]] = []
        self._look = asyncio.Event()
        self._exit_watch = ExitWatch()

    async def start(self) -> None:
        """Begin to watch."""
        self._tasks = [unending(self._watch, "watch FreeSWITCH")]
        if self.switch is not None:
            self._tasks.append(unending(self._watch_profiles, "watch profiles"))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.starter.stop()
        self._exit_watch.close()

    # -- what the connections say --

    def connected(self) -> None:
        """ESL is logged in, maybe of another process: everything is looked at again."""
        self._find_process()
        self.profiles = {}
        self.profile_started("")
        self._changed()

    def disconnected(self, reason: str) -> None:
        log.warning("ESL: %s", reason)
        self._find_process()
        self._changed()

    def health_changed(self, health: Health) -> None:
        """Three unanswered probes are a hang; heart decides what to do about it."""
        self._changed()
        self._hung_pause_s = HUNG_AGAIN_S
        if health.state == "hung":
            self._hangs()

    def _hangs(self) -> None:
        if self.process is not None:
            self._hung_at = asyncio.get_running_loop().time()
            self._send(FreeswitchHung(self.process.pid))

    def _look_at_hang(self) -> None:
        """Heart let it be while nobody else could have its calls. Told again once somebody can."""
        if self.switch is None or self.switch.health.state != "hung" or not self.can_go():
            return
        if asyncio.get_running_loop().time() >= self._hung_at + self._hung_pause_s:
            self._hung_pause_s = min(2 * self._hung_pause_s, HUNG_AGAIN_MAX_S)
            self._hangs()

    def shut_down(self) -> None:
        """FreeSWITCH says that it is being shut down: somebody wants it to stay down."""
        self.starter.stopped_on_purpose = True
        self._tell("FreeSWITCH is being shut down; it is not started again from here")

    def profile_started(self, profile: str) -> None:
        """FreeSWITCH says so of one, maybe some ms before it runs; empty: of any it may have."""
        if profile:
            self.came_up(profile)
        else:
            self._running = frozenset()
            self._doubts += 1
            self._look.set()

    # -- watching --

    def _find_process(self) -> None:
        process = read_process(self.pid_file)
        if process == self.process:
            return
        self.process = process
        if process is not None:
            self.starter.up()
        else:
            self._exited()
        self._changed()

    def _is_up(self) -> bool:
        return read_process(self.pid_file) is not None

    def _tell(self, text: str) -> None:
        self._history.add("A15", text)

    async def _watch(self) -> None:
        while True:
            self._find_process()
            self._look_at_hang()
            esl_up = self.switch is not None and self.switch.up
            if self.process is None and not esl_up:
                self.starter.exited()
            watched = self.process is not None and self._exit_watch.watch(self.process)
            await self._exit_watch.wait(FILE_CHECK_S if watched else WATCH_S)

    async def _watch_profiles(self) -> None:
        """Keep the SIP profiles of all services running, in standby where they are not ours."""
        wanted = sorted({name for service in self._services for name in service.profiles})
        by_service = [(service.name, service.profiles) for service in self._services]
        while wanted:
            switch = self.switch
            pause_s = PROFILES_FIRST_S
            if switch is not None and switch.up:
                doubts = self._doubts
                try:
                    states = await switch.profiles(wanted)
                except SwitchError as error:
                    log.warning("SIP profiles cannot be looked at: %s", error)
                else:
                    running = frozenset(s.name for s in states if s.running)
                    for name in sorted(running - self._running):
                        self.came_up(name)
                    if doubts == self._doubts:
                        self._running = running
                    found = profile_reasons(by_service, {s.name: s.problems for s in states})
                    if found != self.profiles:
                        self.profiles = found
                        self._changed()
                    pause_s = PROFILES_S
            self._look.clear()
            try:
                async with asyncio.timeout(pause_s):
                    await self._look.wait()
            except TimeoutError:
                continue
