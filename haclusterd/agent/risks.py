"""Why a call might not survive a takeover as the cluster stands now, for `calls --at-risk` (E3)."""

from __future__ import annotations

from collections.abc import Mapping

from haclusterd.agent.peers import Word
from haclusterd.core.records import CallRecord
from haclusterd.freeswitch.risks import of_record

UNACKNOWLEDGED = "no standby has acknowledged it yet"


def why(record: CallRecord, here: str, waiting: bool, lonely: str) -> list[str]:
    """All reasons. `waiting`: not acknowledged; `lonely`: why nobody could take its service."""
    found = of_record(record)
    if here == "own":
        found += [UNACKNOWLEDGED] if waiting else []
        found += [lonely] if lonely else []
    return found


def nobody_ready(service: str, words: Mapping[str, Word]) -> str:
    """No node could take this service over: what each of them says."""
    said = [f"{node}: {word.unready[service]}" for node, word in sorted(words.items())
            if service in word.unready]  # fmt: skip
    return f"nobody is ready to take {service} over" + (f" ({'; '.join(said)})" if said else "")
