"""What FreeSWITCH's `recover` does wrong, by version, and what helps: for `doctor`.

A defect belongs here when it was seen on a running FreeSWITCH (FREESWITCH.md, docs/recovery.md) or
its fix is in FreeSWITCH's history (commit in `evidence`; read at tags v1.6.20 to v1.11.2). What a
setting of FreeSWITCH avoids has a check of its own and is not here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

Version = tuple[int, int, int]

OLDEST_KNOWN: Version = (1, 6, 0)
NEWEST_KNOWN: Version = (1, 11, 3)
_VERSION = re.compile(r"(?:\A|\s|v)(\d{1,3})\.(\d{1,3})\.(\d{1,4})(?![.\d])")


class Defect(NamedTuple):
    """One thing that goes wrong. `fixed` is the first version without it, None: none yet.

    `mend` is the key of `[recovery]` that keeps calls from it; `always`: haclusterd does it anyway.
    Where there is neither, `advice` is all that helps.
    """

    name: str
    text: str
    evidence: str
    fixed: Version | None = None
    mend: str = ""
    always: bool = False
    advice: str = ""

    def in_version(self, version: Version) -> bool:
        return self.fixed is None or version < self.fixed


KNOWN: tuple[Defect, ...] = (
    Defect(
        "dialogue turned round",
        "a call whose other side sent a re-INVITE (hold, session timer), and every call that was"
        " recovered once, is asked with the two sides exchanged: the phone answers 481",
        "7b8a36c2a9", (1, 10, 6), advice="update FreeSWITCH",
    ),
    Defect(
        "row outlives its call",
        "a recovered call whose phone does not answer keeps its row, and comes up again at the next"
        " recover",
        "f8004e1d66", (1, 10, 7), always=True,
    ),
    Defect(
        "announcements left out",
        "an unbridged call never runs playback, speak, say and gentones again, and ends if there is"
        " nothing else",
        "a162cf86e8", (1, 10, 7), advice="update FreeSWITCH",
    ),
    Defect(
        "caller and callee exchanged",
        "names and numbers of caller and callee change places with every recovery",
        "ea74d2a5d6", (1, 10, 7), advice="update FreeSWITCH",
    ),
    Defect(
        "CSeq by the clock",
        "the re-INVITE's CSeq follows the wall clock and may be below the last one",
        "nta.c of sofia-sip; measured", mend="mend_cseq",
    ),
    Defect(
        "session of nobody",
        "a row whose profile does not run leaves a session that nothing ends",
        "sofia_recover_callback, recover_callback; measured on 1.11.1", mend="mend_profile",
    ),
    Defect(
        "transport forgotten",
        "the re-INVITE to a phone on TCP or TLS has a Contact for UDP",
        "sofia_glue_do_invite; measured on 1.11.1", mend="mend_transport",
    ),
    Defect(
        "address of the row",
        "media stay at the address in the row, even if this node has another rtp-ip",
        "switch_core_media_recover_session; measured on 1.11.1", mend="mend_addresses",
    ),
    Defect(
        "bridged by memory",
        "the row may say that a leg is bridged which is not yet",
        "switch_ivr_bridge.c; measured on 1.11.1", always=True,
    ),
    Defect(
        "everything or nothing",
        "recover takes every row of its profile, whoever put it there, and deletes the rows that"
        " failed",
        "switch_core_recovery_recover; measured", always=True,
    ),
    Defect(
        "dead of a row",
        "recover crashes on a Contact like `%3C%3E <sip:...>` of a phone that was called, and on"
        " video without port or codec",
        "sofia_glue_get_url_from_contact, switch_core_media_recover_session; measured on 1.11.1",
        always=True,
    ),
    Defect(
        "limit kept for ever",
        "a place is given back at hang-up only where limit_backend was set by this process",
        "switch_limit.c; measured on 1.11.1", always=True,
    ),
)  # fmt: skip


class Finding(NamedTuple):
    """What is wrong with this version and this configuration, and what to do about it."""

    defect: Defect
    fix: str


def parse_version(text: str) -> Version | None:
    """From the answer to `version` or `freeswitch -version`; None where there is none."""
    found = _VERSION.search(text[:512])
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def harmful(version: Version, mends_off: Sequence[str]) -> list[Finding]:
    """Defects of this version that nothing keeps calls from. `mends_off`: keys set to false."""
    found = []
    for defect in KNOWN:
        if not defect.in_version(version) or defect.always:
            continue
        if defect.mend in mends_off:
            found.append(Finding(defect, f"set {defect.mend} to true in [recovery]"))
        elif not defect.mend and defect.fixed is not None:
            newer = ".".join(map(str, defect.fixed))
            found.append(Finding(defect, f"{defect.advice} to {newer} or later"))
    return found


def mended(version: Version, mends_off: Sequence[str]) -> list[Defect]:
    """Defects of this version that haclusterd keeps calls from."""
    return [
        defect
        for defect in KNOWN
        if defect.in_version(version)
        and (defect.always or (defect.mend and defect.mend not in mends_off))
    ]
