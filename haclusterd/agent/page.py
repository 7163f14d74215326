"""The files of the status page, and what it is fed with (`web/` draws it in the browser)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from haclusterd.agent.clock import wall_text
from haclusterd.agent.history import History
from haclusterd.agent.schema import Overview, Report, Status

FOLDER = Path(__file__).parent / "web"
REPORTS_SHOWN = 12
DECISIONS_SHOWN = 60
MOMENTS_SHOWN = 32

_JS = "text/javascript; charset=utf-8"
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", _JS),
    "/dom.js": ("dom.js", _JS),
    "/timeline.js": ("timeline.js", _JS),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class File(NamedTuple):
    """One file as it is served."""

    type: str
    body: bytes


class Shown(Protocol):
    """What the page needs to know."""

    @property
    def history(self) -> History: ...
    def status(self) -> Status: ...
    def known_reports(self) -> Iterable[Report]: ...


@functools.cache
def files() -> dict[str, File]:
    """By path. The build's mark goes into the page, and with every word that it is fed."""
    raw = {path: (FOLDER / name).read_bytes() for path, (name, _) in _FILES.items()}
    mark = build().encode()
    return {
        path: File(kind, raw[path].replace(b'data-build="BUILD"', b'data-build="%s"' % mark))
        for path, (_, kind) in _FILES.items()
    }


@functools.cache
def build() -> str:
    """A short hash over all files."""
    digest = hashlib.blake2b(digest_size=6)
    for name, _ in _FILES.values():
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()


def overview(source: Shown) -> Overview:
    """What the page draws now. Raises OperatorError before heart's first word."""
    reports = sorted(source.known_reports(), key=lambda report: report.at)
    return Overview(
        at=wall_text(),
        build=build(),
        status=source.status(),
        reports=[brief(report) for report in reports[-REPORTS_SHOWN:]],
        history=source.history.last(DECISIONS_SHOWN),
    )


def brief(report: Report) -> Report:
    """Without what is there once for each call."""
    calls = msgspec.structs.replace(report.calls, verdicts=[])
    return msgspec.structs.replace(report, calls=calls, timeline=report.timeline[:MOMENTS_SHOWN])
