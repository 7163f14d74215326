"""How calls end, half of them by their callers and half by FreeSWITCH, and what is left.

Asked of every FreeSWITCH by ESL; what the wire showed of the ends is judged in `calls`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress

from haclusterd.lab.esl_blocking import EslRefused
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.netns import LabError, wait_for
from haclusterd.lab.traffic import Callers

_ENDED_S = 20.0
_EMPTY_S = 5.0  # `show channels` lags behind, and a hangup takes its time
_NAMED_MAX = 5


def end_calls(lab: Laboratory, timeout_s: float = _ENDED_S) -> tuple[set[str], list[str]]:
    """End all calls: the Call-IDs that FreeSWITCH was told to end, every second one; complaints.

    A call that FreeSWITCH does not know is ended by its caller, and counted to its half all the
    same: that its BYE came from the wrong side is for the judge to say.
    """
    told: set[str] = set()
    for callers in lab.callers.values():
        mine = callers.call_ids
        half = set(mine[1::2])
        callers.hang_up(mine[::2] + sorted(half - _end_by_switch(lab, callers, half)))
        told |= half
    end = time.monotonic() + timeout_s
    failed = [
        f"SIPp does not say that all calls of {name} succeeded"
        for name, callers in lab.callers.items()
        if not callers.wait(max(0.1, end - time.monotonic()))
    ]
    return told, failed


def living_twice(lab: Laboratory) -> list[str]:
    """A complaint for each call that has a channel on more than one node."""
    count = Counter(uuid for uuids in channels(lab).values() for uuid in uuids)
    where = {uuid for uuid, times in count.items() if times > 1}
    return [f"channel {uuid} is up on {count[uuid]} nodes" for uuid in sorted(where)]


def still_there(lab: Laboratory) -> list[str]:
    """A complaint for each node that still has channels when all calls are over."""
    with suppress(LabError):
        wait_for(lambda: not any(channels(lab).values()), _EMPTY_S, "no channels", step_s=0.1)
    return [
        f"{len(uuids)} channels are left on {node}: {', '.join(sorted(uuids)[:_NAMED_MAX])}"
        for node, uuids in channels(lab).items()
        if uuids
    ]


def channels(lab: Laboratory) -> dict[str, set[str]]:
    """The uuids of all channels by node; a node whose FreeSWITCH is dead or starting has none."""
    found: dict[str, set[str]] = {}
    for node in lab.nodes.values():
        if node.switch is not None and node.switch.pid is not None:
            with suppress(OSError, EslRefused, ValueError), node.switch.esl() as esl:
                shown = json.loads(esl.api("show channels as json"))
                found[node.id] = {row["uuid"] for row in shown.get("rows", [])}
    return found


def _end_by_switch(lab: Laboratory, callers: Callers, call_ids: set[str]) -> set[str]:
    """Hang up at the FreeSWITCH that has these calls; those that it hung up."""
    owner = lab.nodes.get(lab.holder(callers.service.ip))
    ended: set[str] = set()
    if owner is None or owner.switch is None or not call_ids:
        return ended
    with suppress(OSError, EslRefused, ValueError), owner.switch.esl() as esl:
        for row in json.loads(esl.api("show channels as json")).get("rows", []):
            call_id = esl.api(f"uuid_getvar {row['uuid']} sip_call_id")
            if call_id in call_ids and esl.api(f"uuid_kill {row['uuid']}").startswith("+OK"):
                ended.add(call_id)
    return ended
