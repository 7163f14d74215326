"""What one ESL connection is to `esl`, whichever library carries it: the interface of a backend.

A link lives and dies with one TCP connection. `esl` keeps the connection up, bounds the queue of
events and gives every command its deadline, so that a backend only has to carry frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from . import esl_protocol as wire

COMMANDS_PENDING_MAX = 4096

Reply = wire.CommandReply | wire.ApiResponse


@dataclass(frozen=True)
class EslSettings:
    """Where FreeSWITCH's event socket is and how patient to be; times in ms."""

    host: str
    port: int
    password: str = field(repr=False)
    connect_timeout_ms: int = 1000  # TCP, greeting and login together
    command_timeout_ms: int = 2000
    backoff_first_ms: int = 20
    backoff_max_ms: int = 2000
    event_queue_max: int = 10_000
    event_queue_bytes_max: int = 32 * 1024 * 1024  # a caller's headers are in each event of a call
    backend: str = "native"  # esl_backend in [freeswitch], see esl_backends


@dataclass(frozen=True, slots=True)
class EventsLost:
    """Events may be missing before this point: read the full state again."""

    reason: str
    dropped: int = 0  # that were counted on the way here


@dataclass(frozen=True, slots=True)
class Missed:
    """One event that nobody gets to see; all others are there. Counted, and said in the log."""

    reason: str


EventItem = wire.Event | EventsLost


class Link(Protocol):
    """One connection: `open` once, then `send` until `closed` says why it ended."""

    closed: asyncio.Future[str]

    @property
    def reached(self) -> bool:
        """TCP is connected: silence from now on is the peer's."""
        ...

    async def open(self) -> None:
        """Connect and log in. Raises OSError, EslDown; the caller bounds the time and closes."""
        ...

    def send(self, data: bytes) -> asyncio.Future[Reply]:
        """Send one command as `esl_protocol` builds it. Raises EslDown, EslArgumentError."""
        ...

    def close(self, reason: str) -> None:
        """End the connection; everything that waits on it fails with `reason` now."""
        ...


class LinkClass(Protocol):
    """How a link is made; nothing is connected yet."""

    @property
    def style(self) -> str:
        """In which form events are asked for: json, or plain where a library cannot read that."""
        ...

    def __call__(
        self,
        settings: EslSettings,
        on_event: Callable[[EventItem | Missed], None],
        on_close: Callable[[Link, str], None],
    ) -> Link: ...
