"""What `doctor` says of FreeSWITCH's version: defects of `recover`, by freeswitch.defects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from haclusterd.cli.checks import OK, SKIPPED, WARNING, Check
from haclusterd.config import RecoverySection
from haclusterd.freeswitch.defects import (
    NEWEST_KNOWN,
    OLDEST_KNOWN,
    Version,
    harmful,
    mended,
    parse_version,
)

NAME = "recover"


def defect_checks(version_text: str, recovery: RecoverySection) -> Iterator[Check]:
    """One warning for each defect that costs calls here, and one line on those that do not."""
    version = parse_version(version_text)
    if version is None:
        yield Check(NAME, SKIPPED, "FreeSWITCH does not tell its version, so not its defects")
        return
    switches = dataclasses.asdict(recovery)
    off = [name for name, value in switches.items() if name.startswith("mend_") and not value]
    for defect, fix in harmful(version, off):
        yield Check(f"{NAME}: {defect.name}", WARNING, defect.text, fix)
    shown = _text(version)
    if not OLDEST_KNOWN <= version <= NEWEST_KNOWN:
        text = f"its defects in FreeSWITCH {shown} are not known: {_text(OLDEST_KNOWN)} to"
        text += f" {_text(NEWEST_KNOWN)} are"
        yield Check(NAME, WARNING, text, "try a takeover with a call before you rely on it")
        return
    names = ", ".join(defect.name for defect in mended(version, off))
    yield Check(NAME, OK, f"of FreeSWITCH {shown}, haclusterd keeps calls from: {names}")


def _text(version: Version) -> str:
    return ".".join(map(str, version))
