"""The command `ha_cluster` on FreeSWITCH's console: an alias to haclusterctl, with completion.

FreeSWITCH forgets both when it restarts, and completes twice what is added twice, so they are made
anew, after a removal, at every login (FREESWITCH.md 9).
"""

from __future__ import annotations

import re

from .esl import Esl

NAME = "ha_cluster"
WORDS = ("status", "rank", "history", "report", "calls", "sync", "switchover", "doctor")

_PLAIN = re.compile(r"[A-Za-z0-9_./@%+=:,-]+\Z")


class ConsoleError(Exception):
    """The alias cannot be made; the message says why."""


async def install(esl: Esl, program: str, socket: str) -> None:
    """Make `fs_cli -x "ha_cluster status"` run `program --socket SOCKET status`.

    FreeSWITCH hands the line to a shell and keeps it in SQL, so only plain paths are taken.
    Raises ConsoleError, EslError.
    """
    for path in (program, socket):
        if not _PLAIN.match(path):
            raise ConsoleError(f"{path!r} has characters that cannot stand in an alias")
    lines = [f"alias add {NAME} system {program} --socket {socket}", f"complete del {NAME}"]
    lines += [f"complete add {NAME} {word}" for word in WORDS]
    for line in lines:
        reply = await esl.api(line)
        if reply.startswith("-ERR") or "USAGE" in reply:
            raise ConsoleError(f"FreeSWITCH refused {line!r}: {reply.strip()[:120]}")
