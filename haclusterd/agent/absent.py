"""Registrations of SIP profiles that do not run at the owner of their service.

Phones cannot register there, so after a while such a profile counts as read: else the service's
registrations were never settled, and a node that starts meanwhile would hold its copy for
incomplete as long as the profile is down. What the former owner had of it is told on by this node
before, because all forget the former owner's word with that; it stays until the profile is read,
or the registration runs out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

import msgspec

from haclusterd.core.records import Registration, Tombstone
from haclusterd.core.replication import Item
from haclusterd.freeswitch.registrations import wall_s
from haclusterd.sync.codec import Malformed, registration_of
from haclusterd.sync.lane import Lane

log = logging.getLogger(__name__)

ABSENT_S = 20.0  # the agent itself starts a profile that is missing for 4 s
ASK_MS = 5000  # nothing waits for the others' answers, and what they tell later is in no stream
LOOK_S = 5.0  # how often for what has run out
SLICE = 64  # items (2 ms) between two turns of the event loop
TOLD_ON, BURIED = 1, 2  # versions: what is read of a table later has the time in us


class Absent:
    """See the module. Where clocks differ, `by_our_clock` has it in ours; before, `learn` is told
    the lane."""

    def __init__(
        self,
        lane: Lane,
        learn: Callable[[str], None],
        by_our_clock: Callable[[Item, Registration], Registration],
    ) -> None:
        self._lane = lane
        self._learn = learn
        self._by_our_clock = by_our_clock
        self._told: dict[str, dict[str, int]] = {}  # when each runs out, by key, by profile

    @staticmethod
    async def lasts(ready: asyncio.Event) -> bool:
        """Whether the profile is still not there after `ABSENT_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABSENT_S):
                await ready.wait()
        return not ready.is_set()

    async def tell_on(self, lane_name: str, profile: str) -> None:
        """What the copies have of it becomes part of this node's own stream."""
        told = self._told[profile] = {}
        self._learn(lane_name)
        for at, item in enumerate(list(self._lane.store.items(lane_name).values())):
            if at % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            record = self._inherited(item, profile)
            if record is not None:
                told[record.uuid] = record.expires_s
                self._lane.change_log.append([record])
        log.warning(
            "SIP profile %s does not run: it counts as one without phones; %d registrations "
            "that others know of are kept for it", profile, len(told),
        )  # fmt: skip

    async def wait(self, ready: asyncio.Event, lane_name: str, profile: str) -> None:
        """Until it runs; what runs out meanwhile goes."""
        while not ready.is_set():
            now_s = wall_s()
            told = self._told.get(profile, {})
            self._bury(lane_name, profile, [k for k, end_s in told.items() if end_s <= now_s])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await ready.wait()

    def read(self, lane_name: str, profile: str, there: Collection[str]) -> None:
        """The profile's table was read whole: what is not `there` is gone."""
        told = self._told.get(profile, {})
        self._bury(lane_name, profile, [key for key in told if key not in there])
        self._told.pop(profile, None)

    def forget(self, profile: str) -> None:
        """Another node owns the service."""
        self._told.pop(profile, None)

    def _inherited(self, item: Item, profile: str) -> Registration | None:
        if item.dead:
            return None
        try:
            record = registration_of(item)
        except Malformed:
            return None
        if record.profile != profile or record.uuid != item.uuid:
            return None
        record = self._by_our_clock(item, record)
        if record.expires_s <= wall_s():
            return None
        return msgspec.structs.replace(record, version=TOLD_ON)

    def _bury(self, lane_name: str, profile: str, keys: Collection[str]) -> None:
        told = self._told.get(profile, {})
        for key in keys:
            told.pop(key, None)
        self._lane.change_log.append(Tombstone(lane_name, key, BURIED, "gone") for key in keys)
