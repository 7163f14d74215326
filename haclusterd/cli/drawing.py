"""A takeover's timeline as a drawing of characters."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from haclusterd.cli.show import Drawing

WIDTH_MAX = 72
_MARGIN = 34  # what stands left of the bars
_SILENT, _BRINGING, _SERVED = "red", "yellow", "green"


def timeline(moments: Sequence[dict[str, Any]], outage_ms: float | None) -> Drawing:
    """A line for each moment, with a bar that is as long as it took until then.

    Red until the address was up, yellow while calls came back, green at the last of them.
    """
    columns = min(WIDTH_MAX, max(12, shutil.get_terminal_size((100, 24)).columns - _MARGIN))
    first = min((m["at_ms"] for m in moments), default=0.0)
    span = max((m["at_ms"] for m in moments), default=0.0) - min(0.0, first)
    last = moments[-1] if moments else None
    lines: list[list[tuple[str, str]]] = []
    for moment in sorted(moments, key=lambda m: float(m["at_ms"])):
        at, event = float(moment["at_ms"]), str(moment["event"])
        end = _place(at - min(0.0, first), span, columns)
        up = end
        if outage_ms is not None and at > outage_ms:
            up = min(end, _place(outage_ms - min(0.0, first), span, columns))
        served = moment is last and event == "recovered"
        silent = outage_ms is None or at < outage_ms
        tone = _SERVED if served or event == "address_up" else _SILENT if silent else _BRINGING
        lines.append(
            [(f"{at:9.1f} ms  ", ""), (f"{event:<16} ", "bold"), ("━" * up, _SILENT),
             ("─" * (end - up), _BRINGING), ("●", tone)]
        )  # fmt: skip
    return Drawing("timeline (━ silent, ─ calls come back)", lines)


def _place(at_ms: float, span_ms: float, columns: int) -> int:
    return round(max(0.0, at_ms) / span_ms * columns) if span_ms > 0 else 0
