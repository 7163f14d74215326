"""The local FreeSWITCH as the agent needs it: a narrow port; `local_switch` is behind it.

Tests put a stand-in there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from haclusterd.core.records import CallRecord, CallVerdict, Tombstone
from haclusterd.freeswitch.capabilities import Capabilities
from haclusterd.freeswitch.health import Health
from haclusterd.freeswitch.profiles import (
    ProfileState,
)
from haclusterd.freeswitch.proving import Progress
from haclusterd.freeswitch.rest import Rest
from haclusterd.freeswitch.risks import Ringing

Change = CallRecord | Tombstone


class SwitchError(Exception):
    """FreeSWITCH could not do what it was told; the message names the reason and the fix."""


class Switch(Protocol):
    """What the agent asks of the local FreeSWITCH."""

    @property
    def up(self) -> bool:
        """ESL is logged in."""
        ...

    @property
    def problem(self) -> str:
        """Why calls cannot be followed or recovered now, with the fix; empty when they can."""
        ...

    @property
    def health(self) -> Health: ...
    @property
    def calls(self) -> int: ...
    @property
    def core_uuid(self) -> str: ...
    @property
    def orphans(self) -> int:
        """Recovered legs that no phone has answered for yet."""
        ...

    @property
    def unprotected(self) -> str:
        """A sentence while there are calls that no other node could recover; else empty."""
        ...

    def counters(self) -> dict[str, int]:
        """What only counts up: lost events, calls that cannot be recovered elsewhere."""
        ...

    @property
    def capabilities(self) -> Capabilities | None:
        """What it has, None while it has not told or is not asked."""
        ...

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def profiles(self, names: Sequence[str]) -> list[ProfileState]:
        """State of these SIP profiles; those that do not run are started. Raises SwitchError."""
        ...

    async def recover(
        self,
        service: str,
        profiles: Sequence[str],
        records: Sequence[CallRecord],
        progress: Progress,
        epoch: int,
        outage_began: float | None,
        rest: Rest | None = None,
    ) -> list[CallVerdict]:
        """A verdict for each record; see Recovery.recover. Raises SwitchError."""
        ...

    async def end_resurrected(self, service: str, uuids: Sequence[str]) -> None:
        """Hang up calls that had ended before they were injected. Raises SwitchError."""
        ...

    async def snapshot(self) -> list[CallRecord]:
        """Every recoverable call of services that are not fenced. Raises SwitchError."""
        ...

    async def clear_stale(self) -> int:
        """Delete recovery rows of other processes. Raises SwitchError."""
        ...

    async def end_calls(self, profiles: Sequence[str]) -> bool:
        """Hang up these profiles' calls and put them back into standby; True if there were calls.

        Raises SwitchError.
        """
        ...

    async def stand_by(self, profiles: Sequence[str], on: bool) -> None:
        """Refuse (or take) new calls on these profiles; the others go on. Raises SwitchError."""
        ...

    async def ringing(self) -> list[Ringing]:
        """Call legs that are not answered yet. Raises SwitchError."""
        ...

    async def tell(self, service: str, epoch: int, verdicts: Sequence[CallVerdict]) -> None:
        """One event on FreeSWITCH's event socket for each verdict. Raises SwitchError."""
        ...

    def set_fenced(self, service: str, fenced: bool) -> None: ...
    def forget(self, service: str) -> None:
        """Another node owns the service: nothing of it is told, watched or kept any more."""
        ...

    def expect_shutdown(self) -> None: ...


@dataclass(frozen=True)
class SwitchEvents:
    """What the agent wants to hear of FreeSWITCH."""

    changed: Callable[[list[Change]], Awaitable[None]]
    reset: Callable[[], Awaitable[None]]
    connected: Callable[[], None]
    disconnected: Callable[[str], None]
    health: Callable[[Health], None]
    shut_down: Callable[[], None]
    compared: Callable[[Capabilities], None]
    settled: Callable[[str, CallVerdict], None] = lambda service, verdict: None
    profile_started: Callable[[str], None] = lambda profile: None  # empty: any may have been
