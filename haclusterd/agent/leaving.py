"""Takes out of the local FreeSWITCH what does not belong to it: calls of lost services, old rows.

Each function goes on until it is done or cannot be; who owns what is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from haclusterd.agent.history import History
from haclusterd.agent.switch import Switch, SwitchError

log = logging.getLogger(__name__)

RETRY_S = 0.5
SAY_AGAIN_S = 60.0
END_RETRY_S = 2.0
END_RETRIES_MAX = 10


async def end_calls(
    switch: Switch, history: History, me: str, service: str, profiles: Sequence[str]
) -> bool:
    """End a service's calls behind the fence, its profiles back into standby; False if it cannot.

    Quiet where there was no call, because heart repeats its order to every agent that starts.
    """
    for _ in range(END_RETRIES_MAX):
        if switch.up:
            try:
                had_calls = await switch.end_calls(profiles)
            except SwitchError as error:
                log.warning("calls of %s are not ended yet: %s", service, error)
            else:
                if had_calls:
                    text = f"{me} ended its calls of {service} and stands by again"
                    history.add("A9", text, None, service)
                return True
        await asyncio.sleep(END_RETRY_S)
    text = f"{me} could not end its calls of {service}: restart FreeSWITCH here"
    history.add("A11", text, None, service)
    return False


async def clear_old_rows(switch_of: Callable[[], Switch | None], history: History, me: str) -> None:
    """Old rows would be recovered by any `recover` (FREESWITCH.md 2.3): away with them.

    A failure is said when it is new, then once a minute: core.db may stay read-only for hours.
    """
    said, next_s = "", 0.0
    while (switch := switch_of()) is not None and switch.up:
        try:
            count = await switch.clear_stale()
        except SwitchError as error:
            now_s = asyncio.get_running_loop().time()
            if str(error) != said or now_s >= next_s:
                said, next_s = str(error), now_s + SAY_AGAIN_S
                log.warning("old recovery rows are not cleared yet: %s", error)
            await asyncio.sleep(RETRY_S)
            continue
        if count:
            history.add("A13", f"{me} cleared {count} old recovery rows")
        return
