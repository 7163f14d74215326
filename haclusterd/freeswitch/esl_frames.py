"""What FreeSWITCH sends over ESL, as typed frames; `esl_protocol` cuts them out of the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """The banner: FreeSWITCH waits for `auth`."""


@dataclass(frozen=True, slots=True)
class CommandReply:
    """Answer to every command but `api`; `text` is Reply-Text, for example `+OK accepted`."""

    text: str
    headers: Mapping[str, str]

    @property
    def ok(self) -> bool:
        return not self.text.startswith("-ERR")


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """Answer to `api`: the command's whole output."""

    text: str

    @property
    def ok(self) -> bool:
        return not self.text.startswith("-ERR")


@dataclass(frozen=True, slots=True)
class Event:
    """One event; repeated headers become a list, `body` is empty where there is none."""

    headers: Mapping[str, str | list[str]]
    body: str = ""
    size: int = field(default=0, compare=False)  # bytes on the wire, where the backend tells

    @property
    def name(self) -> str:
        return self.get("Event-Name")

    @property
    def subclass(self) -> str:
        return self.get("Event-Subclass")

    def get(self, header: str, default: str = "") -> str:
        """The header's (first) value."""
        value = self.headers.get(header, default)
        if isinstance(value, list):
            return value[0] if value else default
        return value


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of `log/data`."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """FreeSWITCH says goodbye (`exit`, wrong password, shutdown)."""

    text: str


@dataclass(frozen=True, slots=True)
class RudeRejection:
    """FreeSWITCH's access list refuses our address."""

    text: str


@dataclass(frozen=True, slots=True)
class UnknownFrame:
    """A content type this client does not know; kept so that nothing vanishes silently."""

    content_type: str
    body: str


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A frame whose body went by unread: a caller of megabytes must not end a connection."""

    content_type: str
    length: int


Frame = (
    AuthRequest | CommandReply | ApiResponse | Event | LogLine | Disconnect | RudeRejection
    | UnknownFrame | TooLarge
)  # fmt: skip
