"""`mover` and its keys in `[[service]]`: who makes the network send a service's packets here."""

from __future__ import annotations

from typing import Any

from haclusterd.config.reading import Section
from haclusterd.config.watching import Mover

MOVERS = ["netlink", "exec"]
WORDS_MAX = 64
_COMMANDS = ("mover_add", "mover_remove", "mover_check", "mover_dry_run")
_NEEDS_EXEC = (*_COMMANDS, "mover_deadline_ms", "mover_check_ms")


def read_mover(section: Section, service: str) -> tuple[Mover | None, dict[str, Any]]:
    """None for `netlink`; and what stands in the file."""
    kind = section.choice("mover", MOVERS, "netlink")
    commands = {key: section.texts(key, [], "a command and its words") for key in _COMMANDS}
    deadline_ms = section.integer("mover_deadline_ms", 20_000, 100, 600_000)
    check_ms = section.integer("mover_check_ms", 30_000, 1000, 3_600_000)
    for key, words in commands.items():
        if len(words) > WORDS_MAX:
            section.note(key, f"{len(words)} words are too many", f"at most {WORDS_MAX}")
    if kind != "exec":
        for key in _NEEDS_EXEC:
            if section.has(key):
                section.note(key, 'has no meaning without mover = "exec"', "remove it, or add that")
        return None, {}
    if not commands["mover_add"]:
        fix = 'add mover_add = ["/etc/haclusterd/move-address"], see docs/movers.md'
        section.note("mover_add", "is missing", fix)
    found = Mover(
        service,
        tuple(commands["mover_add"]),
        tuple(commands["mover_remove"]),
        tuple(commands["mover_check"]),
        tuple(commands["mover_dry_run"]),
        deadline_ms,
        check_ms,
    )
    document = {"mover": kind, **commands, "mover_deadline_ms": deadline_ms,
                "mover_check_ms": check_ms}  # fmt: skip
    return found, document
