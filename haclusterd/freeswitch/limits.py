"""Usage of limits (mod_hash): what a FreeSWITCH counts, and what it is told of the others. Pure.

mod_hash adds what its remotes answer to `hash_dump limit` to every check (FREESWITCH.md 5). Keys
are made of what callers dial and send, so one that could break the line format, a command or a
neighbour's memory is left out and counted. Rates (`10/60`) are each FreeSWITCH's own: mod_hash
does not add those of remotes.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote
from xml.sax.saxutils import unescape

import msgspec

from haclusterd.core.records import CallRecord

from . import metadata

KEYS_MAX = 2000  # of one node; what is beyond is not shared, and counted
SAMPLE_KEYS = 64  # of these are whichever, so that no key waits for ever
READ_KEYS_MAX = 50_000  # of one dump, beside those that are needed
USAGE_MAX = 1_000_000
KEYS_OF_CALL_MAX = 32

# No "/" (the separator), no space (an ESL command), nothing of a dial string or a shell.
_KEY = re.compile(r"[A-Za-z0-9_.@+:*#-]{3,128}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_VARIABLE = re.compile(r"<limit_usage_([^<>/\s]{1,160})>")
_APPLICATION = re.compile(r'(<application app_name="limit" app_data=")([^"]{0,1024})(")')


class Usage(NamedTuple):
    """What one FreeSWITCH counts. `left_out`: keys that are not shared."""

    counts: dict[str, int]
    left_out: int


def parse_dump(dump: str, needed: Mapping[str, int] | None = None) -> Usage:
    """The counts in the answer to `hash_dump limit`, `L/KEY/USAGE/RATE/INTERVAL/CHECKED` each.

    `needed` are counts that others go by already: a caller who writes thousands of lines must not
    put them out of the dump. Of the rest those that claim most are taken.
    """
    needed = needed or {}
    counts: dict[str, int] = {}
    left_out = 0
    for line in dump.split("\n"):  # not `splitlines`: signs of a caller end lines for that
        if not line.startswith("L/"):
            continue
        parts = line.split("/")
        good = len(parts) == 6 and _KEY.fullmatch(parts[1]) and _NUMBER.fullmatch(parts[2])
        known = good and (parts[1] in counts or parts[1] in needed)
        if not good or (not known and len(counts) >= READ_KEYS_MAX):
            left_out += 1
        elif parts[2] != "0":  # the most of several: a forged line must not lower a count either
            counts[parts[1]] = max(int(parts[2]), counts.get(parts[1], 0))
    if len(counts) <= KEYS_MAX:
        return Usage(counts, left_out)
    kept = _most_needed(counts, needed)
    return Usage({key: counts[key] for key in kept}, left_out + len(counts) - len(kept))


def _most_needed(counts: Mapping[str, int], needed: Mapping[str, int]) -> list[str]:
    """`KEYS_MAX` of the keys, the same ones each time but for a few."""
    room = KEYS_MAX - SAMPLE_KEYS
    kept = heapq.nlargest(room, (k for k in counts if k in needed), key=needed.__getitem__)
    rest = (key for key in counts if key not in needed)
    kept += heapq.nlargest(room - len(kept), rest, key=counts.__getitem__)
    left = list(counts.keys() - set(kept))
    return kept + random.sample(left, SAMPLE_KEYS)


def checked(counts: Mapping[str, int]) -> dict[str, int]:
    """Another node's counts, without what must not be handed on."""
    good = {k: n for k, n in counts.items() if _KEY.fullmatch(k) and 0 < n <= USAGE_MAX}
    return dict(sorted(good.items())[:KEYS_MAX])


def answer(sums: Mapping[str, int]) -> str:
    """`hash_dump limit` as mod_hash reads it from a remote.

    Never empty: mod_hash keeps what it had when the body is.
    """
    lines = [f"L/{key}/{min(count, USAGE_MAX)}/0/0/0" for key, count in sums.items()]
    return "\n".join(["# of the other nodes", *lines, ""])


def added(usages: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several nodes' counts."""
    total: Counter[str] = Counter()
    for usage in usages:
        total.update(usage)
    return dict(total)


def keys_of(record: CallRecord) -> list[str]:
    """Limits that a call was counted under, as `REALM_KEY`."""
    try:
        metadata.check_uuid(record.uuid)
    except metadata.MetadataError:
        return []
    found = (unquote(name) for name in _VARIABLE.findall(record.metadata))
    return [key for key in dict.fromkeys(found) if _KEY.fullmatch(key)][:KEYS_OF_CALL_MAX]


def count_again(uuid: str, key: str) -> str:
    """The command that counts a call under `REALM_KEY` without refusing it, whatever the limit.

    Where realm ends and key begins is not told, and does not matter: mod_hash joins them with `_`.
    A call that is counted already stays so.
    """
    realm, _, rest = key.partition("_")
    return f"uuid_limit {uuid} hash {realm or '_'} {rest}"


def usage_question(key: str) -> str:
    """The command that asks for one count by its `REALM_KEY`."""
    realm, _, rest = key.partition("_")
    return f"limit_usage hash {realm or '_'} {rest}"


def mend(record: CallRecord) -> CallRecord:
    """Let a recovered call be counted, neither refused nor counted for ever.

    For a moment the new owner is told of the lost master's usage and has recovered calls as well;
    with its maximum the application that runs again would turn away a call that was up before.
    And FreeSWITCH gives a place back at hang-up only if it set `limit_backend` itself: with the
    variable of the lost master it thinks that it has arranged for that (switch_limit.c).
    """
    text = record.metadata
    if 'app_name="limit"' in text:
        text = _APPLICATION.sub(_without_maximum, text)
    text = metadata.without_variable(text, "limit_backend")
    if text == record.metadata:
        return record
    return msgspec.structs.replace(record, metadata=text)


def _without_maximum(found: re.Match[str]) -> str:
    words = unescape(found[2], {"&quot;": '"'}).split()
    if len(words) < 4 or words[0] != "hash":
        return found[0]
    return f"{found[1]}{' '.join(found[2].split()[:3])}{found[3]}"
