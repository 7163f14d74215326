"""SIP profiles that came up here: FreeSWITCH starts them in standby, also where they have to serve.

A recovery lifts the standby of those that run. One that is started later, by an operator or by the
agent itself, would answer 503 to everybody for ever. What is lifted is one profile, not a service:
of two profiles one may not run. `drains` says when; it knows who owns what, and what is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from haclusterd.agent.schema import Alarm
from haclusterd.agent.switch import Switch, SwitchError

log = logging.getLogger(__name__)

# Told before the profile runs (FREESWITCH.md 8); and where all of FreeSWITCH came up, its recovery
# is known to be due by then, and lifts them itself.
LIFT_AFTER_S = 1.0
SAY_AFTER_S = 5.0


class Lifting:
    """`at_rest(service)`: nothing of it is being recovered, or waits for it."""

    def __init__(self, profiles: Sequence[str], at_rest: Callable[[str], bool]) -> None:
        self._profiles = frozenset(profiles)
        self.at_rest = at_rest
        self._came_up: dict[str, float] = {}  # loop time
        self._problems: dict[str, str] = {}  # by profile

    def came_up(self, profile: str) -> None:
        """Whether it is ours to lift is seen later: until then it is kept in mind."""
        if profile in self._profiles:
            self._came_up[profile] = asyncio.get_running_loop().time()

    def is_due(self, service: str, profile: str) -> bool:
        since = self._came_up.get(profile)
        late_s = 0.0 if since is None else asyncio.get_running_loop().time() - since
        return since is not None and late_s >= LIFT_AFTER_S and self.at_rest(service)

    async def lift(self, switch: Switch, service: str, profile: str) -> None:
        """If it is refused, it is due again."""
        since = self._came_up.get(profile, 0.0)
        try:
            await switch.stand_by([profile], False)
        except SwitchError as error:
            text = f"{service}: {error}"
            if self._problems.get(profile) != text:
                log.warning("%s", text)
            self._problems[profile] = text
            return
        self._problems.pop(profile, None)
        if self._came_up.get(profile) == since:  # else it was started once more
            del self._came_up[profile]
        log.info("SIP profile %s of %s runs, and takes calls", profile, service)

    def put_off(self, profiles: Sequence[str]) -> None:
        """They are not to serve here now: that they do not is no problem."""
        for profile in profiles:
            self._problems.pop(profile, None)

    def alarms(self) -> list[Alarm]:
        """Of profiles that should serve and do not; a profile that is just starting is none."""
        now = asyncio.get_running_loop().time()
        return [
            Alarm("standby", text)
            for profile, text in self._problems.items()
            if now - self._came_up.get(profile, now) >= SAY_AFTER_S
        ]
