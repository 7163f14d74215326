"""The command `ha_cluster` on FreeSWITCH's console: an alias to haclusterctl, with completion.

FreeSWITCH forgets both when it restarts, and completes twice what is added twice, so they are made
anew, after a removal, at every login (FREESWITCH.md 9).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .esl import Esl

NAME = "ha_cluster"
# Not those that go on until they are interrupted: nobody could, and the console would hang.
COMMANDS = (
    "status", "rank", "rank --why", "history", "report", "report all", "calls", "calls --at-risk",
    "sync", "registrations", "capacity", "best-node", "explain", "keys status", "doctor", "pause",
    "resume", "upgrade", "hand-over",
)  # fmt: skip
STATES = ("on", "off")
# FreeSWITCH waits for the end of the command, whatever somebody typed behind `ha_cluster`.
PATIENCE_S = 60
COMPLETIONS_MAX = 400

_PLAIN = re.compile(r"[A-Za-z0-9_./@%+=:,-]+\Z")


class ConsoleError(Exception):
    """The alias cannot be made; the message says why."""


async def install(
    esl: Esl, program: str, socket: str, services: Sequence[str] = (), nodes: Sequence[str] = ()
) -> None:
    """Make `fs_cli -x "ha_cluster status"` run `program --socket SOCKET status`.

    FreeSWITCH hands the line to a shell and keeps it in SQL, so only plain paths are taken. It
    shows standard output only: the reason of a refusal goes there too.
    Raises ConsoleError, EslError.
    """
    for path in (program, socket):
        if not _PLAIN.match(path):
            raise ConsoleError(f"{path!r} has characters that cannot stand in an alias")
    run = f"system 2>&1 timeout {PATIENCE_S} {program} --socket {socket}"
    lines = [f"alias add {NAME} {run}", f"complete del {NAME}"]
    lines += [f"complete add {NAME} {words}" for words in completions(services, nodes)]
    for line in lines:
        reply = await esl.api(line)
        if reply.startswith("-ERR") or "USAGE" in reply:
            raise ConsoleError(f"FreeSWITCH refused {line!r}: {reply.strip()[:120]}")


def completions(services: Sequence[str], nodes: Sequence[str]) -> list[str]:
    """What the tab key offers behind `ha_cluster`, the most useful first, at most so many."""
    return list(_completions(services, nodes))[:COMPLETIONS_MAX]


def _completions(services: Sequence[str], nodes: Sequence[str]) -> Iterator[str]:
    yield from COMMANDS
    yield from (f"switchover {service}" for service in services)
    yield from (f"drain {service}" for service in services)
    yield from (f"drain off {service}" for service in services)
    yield from (f"maintenance {state}" for state in STATES)
    yield from (f"maintenance {state} {node}" for state in STATES for node in nodes)
    yield from (f"switchover {service} --to {node}" for service in services for node in nodes)
