"""Tables and lines for people: coloured where a terminal is, plain text where not.

A renderable is a list of parts: `Table`, or a line of text. Nothing here asks the daemon.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TextIO

from haclusterd.core.text import printable

_GOOD = frozenset({"master", "slave", "owned", "in-sync", "up", "ok", "recovered", "yes"})
_WAIT = frozenset(
    {"starting", "syncing", "moving", "maintenance", "suspended", "partial", "warning", "skipped"}
)
_LINKS_UP = re.compile(r"(?P<up>\d+) of (?P<all>\d+) up\b")
_ALARMING = ("ALARM", "NO QUORUM")
_ASCII = str.maketrans({"━": "=", "─": "-", "●": "*", "│": "|", "╷": "|"})
_LAST_MIN = 24  # characters for the last column, which has sentences in it
_WHOLE_MAX = 64  # who names a call by a novel does not get the whole terminal for it
_BAD = frozenset({"dead", "failed", "unserved", "lost", "down", "no", "at risk"})


@dataclass(frozen=True)
class Table:
    """Cells are text; columns named in `right` are numbers.

    Those in `whole` are there to be copied: where a terminal is too narrow, those in `spare` go,
    the first first, and the others make room.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[str] = frozenset()
    empty: str = "none"
    whole: frozenset[str] = frozenset()
    spare: Sequence[str] = ()


@dataclass(frozen=True)
class Drawing:
    """Lines made of (text, colour); colours mean nothing that the text does not say."""

    title: str
    lines: Sequence[Sequence[tuple[str, str]]]


Part = Table | Drawing | str


def cell(value: Any) -> str:
    """A value as text: lists with commas, nothing as a dash."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def show(parts: Sequence[Part], out: TextIO | None = None) -> None:
    """Print parts to `out`, standard output by default."""
    out = out or sys.stdout
    parts = [encodable(clean(part), out) for part in parts]
    if out.isatty():
        _show_rich(parts, out)
    else:
        out.write(plain(parts))


def clean(part: Part) -> Part:
    """The part without anything that would command the terminal instead of being shown."""
    if isinstance(part, str):
        return "\n".join(printable(line) for line in part.split("\n"))
    if isinstance(part, Drawing):
        lines = [[(printable(text), colour) for text, colour in line] for line in part.lines]
        return replace(part, title=printable(part.title), lines=lines)
    rows = [[printable(text) for text in row] for row in part.rows]
    return replace(part, title=printable(part.title), rows=rows)


def encodable(part: Part, out: TextIO) -> Part:
    """A drawing with plain characters where `out` has no others."""
    if not isinstance(part, Drawing) or (out.encoding or "").lower().replace("-", "") == "utf8":
        return part
    lines = [[(text.translate(_ASCII), colour) for text, colour in line] for line in part.lines]
    return replace(part, title=part.title.translate(_ASCII), lines=lines)


def plain(parts: Sequence[Part]) -> str:
    """The parts as plain text, columns aligned, no trailing blanks."""
    lines: list[str] = []
    for part in parts:
        if isinstance(part, str):
            lines.append(part)
            continue
        if isinstance(part, Drawing):
            drawn = ["".join(text for text, _ in line).rstrip() for line in part.lines]
            lines += ["", f"{part.title}:", *(f"  {line}" for line in drawn)]
            continue
        if lines and lines[-1]:
            lines.append("")
        lines += _plain_table(part)
    return "\n".join(lines) + "\n"


def _plain_table(table: Table) -> list[str]:
    lines = [f"{table.title}:"] if table.title else []
    if not table.rows:
        return [f"{table.title}: {table.empty}"] if table.title else [table.empty]
    grid = [list(table.headers), *(list(row) for row in table.rows)]
    widths = [max(len(row[n]) for row in grid) for n in range(len(table.headers))]
    for row in grid:
        words = [
            text.rjust(width) if name in table.right else text.ljust(width)
            for text, width, name in zip(row, widths, table.headers, strict=True)
        ]
        lines.append(("  " + "  ".join(words)).rstrip())
    return lines


def style_of(text: str) -> str:
    """The colour of a word of status, empty for other text."""
    if text in _GOOD:
        return "green"
    if text in _WAIT:
        return "yellow"
    if text in _BAD:
        return "red"
    up = _LINKS_UP.match(text)
    if up is None or up["up"] == up["all"]:
        return ""
    return "red" if up["up"] == "0" else "yellow"


def _show_rich(parts: Sequence[Part], out: TextIO) -> None:
    from rich.console import Console

    console = Console(file=out, highlight=False, emoji=False)
    for number, part in enumerate(parts):
        if number and not isinstance(part, str):
            console.print()
        if isinstance(part, Table):
            part = fitted(part, console.width)
        console.print(rich_part(part))


def fitted(table: Table, width: int) -> Table:
    """Without those of `spare` that `width` characters have no room for."""
    for name in table.spare:
        grid = [table.headers, *table.rows]
        widths = [max(len(row[n]) for row in grid) + 2 for n in range(len(table.headers) - 1)]
        if sum(widths) + _LAST_MIN <= width:
            break
        at = list(table.headers).index(name)
        headers, *rows = [[*row[:at], *row[at + 1 :]] for row in grid]
        table = replace(table, headers=headers, rows=rows)
    return table


def rich_part(part: Part) -> Any:
    """A part for rich. Texts of others are never read as markup."""
    from rich.table import Table as RichTable
    from rich.text import Text

    if isinstance(part, str):
        return Text(part, style="bold red" if any(word in part for word in _ALARMING) else "")
    if isinstance(part, Drawing):
        lines = [Text.assemble(*line) for line in part.lines]
        return Text("\n").join([Text(part.title, style="bold"), *lines])
    table = RichTable(
        title=part.title, title_justify="left", title_style="bold", box=None, pad_edge=False,
        header_style="dim", caption=None if part.rows else part.empty, caption_justify="left",
    )  # fmt: skip
    for at, name in enumerate(part.headers):
        longest = max((len(row[at]) for row in part.rows), default=0)
        whole = name in part.whole and longest <= _WHOLE_MAX
        table.add_column(
            name, justify="right" if name in part.right else "left",
            no_wrap=whole, min_width=longest if whole else None,
        )  # fmt: skip
    for row in part.rows:
        table.add_row(*(Text(text, style=style_of(text)) for text in row))
    return table
