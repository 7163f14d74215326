"""Section `[recovery]`: what becomes of calls at a takeover."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haclusterd.config.reading import Section

POLICIES = ["recover", "recycle", "ignore"]
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}")


@dataclass(frozen=True, slots=True)
class RecoverySection:
    """Its keys as they are in the file; the defaults are those of a missing section."""

    source: str = "core_db"
    streams: int = 8
    deadline_ms: int = 3000
    orphan_timeout_ms: int = 10_000
    urgent_variable: str = ""
    calls: str = "recover"
    registrations: str = "recover"
    limits: str = "recover"
    half_calls: str = "recycle"
    orphans: str = "recycle"
    mend_cseq: bool = True
    mend_profile: bool = True
    mend_position: bool = False
    mend_addresses: bool = True
    mend_transport: bool = True
    skip_announcements: bool = False
    session_timeout_s: int = 0
    pace_invites_per_s: int = 200
    pace_registers_per_s: int = 200


_RANGES = {
    "streams": (1, 32),
    "deadline_ms": (500, 8000),
    "orphan_timeout_ms": (0, 30_000),
    "session_timeout_s": (0, 7200),
    "pace_invites_per_s": (0, 100_000),
    "pace_registers_per_s": (0, 100_000),
}
_CHOICES = {
    "source": ["core_db", "esl"],
    "calls": POLICIES,
    "registrations": POLICIES,
    "limits": ["recover", "ignore"],
    "half_calls": ["recycle", "ignore"],
    "orphans": ["recycle", "ignore"],
}


def read_recovery(section: Section) -> tuple[RecoverySection, dict[str, Any]]:
    """The section; and what of it is not as by default, for the document."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(RecoverySection):
        name, default = field.name, field.default
        if isinstance(default, bool):
            values[name] = section.flag(name, default)
        elif isinstance(default, int):
            values[name] = section.integer(name, default, *_RANGES[name])
        elif name in _CHOICES:
            values[name] = section.choice(name, _CHOICES[name], str(default))
        else:
            values[name] = section.text(name, str(default), "the name of a channel variable")
    section.finish()
    variable = values["urgent_variable"]
    if variable and not _VARIABLE.fullmatch(variable):
        fix = "use letters, digits, '.', ':', '_' and '-', the first one a letter or '_'"
        section.note("urgent_variable", f'"{variable}" names no channel variable', fix)
    found = RecoverySection(**values)
    standard = dataclasses.asdict(RecoverySection())
    return found, {name: value for name, value in values.items() if value != standard[name]}
