"""Every `haclusterctl ...` in the Markdown here is a command that its parsers take.

Placeholders (SERVICE, NODE) are words like any other; what stands in brackets may be there, so it
is; of alternatives (`on|off`) the first one is tried.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from haclusterd.cli.main import command_line
from haclusterd.lab.cli import command_line as lab_command_line

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    path
    for folder in (".", "docs", "docs/adr", "fs_conf", "contrib")
    for path in sorted((ROOT / folder).glob("*.md"))
    if path.name != "commands.md"  # made of the parsers themselves
]
_FENCED = re.compile(r"^```(?:sh|)\n(.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"^    +(.*)$", re.M)
_SPAN = re.compile(r"`([^`]+)`")
_END = re.compile(r"\s{2,}.*|\s(?:[|&;>]|\|\|).*|[;:]$|\s#.*|\s\d?>.*")


def commands(text: str) -> Iterator[str]:
    """What follows `haclusterctl` on lines of code and in code spans of prose."""
    code = [line for block in _FENCED.findall(text) for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    spans = (" ".join(span.split()) for span in _SPAN.findall(prose))
    for joined in (*code, *_INDENTED.findall(prose), *spans):
        found = re.search(r"(?<![\w./-])(?:[\w./]*/)?haclusterctl ([a-z-].*)", joined)
        if found and "=" not in joined.split("haclusterctl")[0]:
            yield _END.sub("", found[1]).strip()


def refusal(command: str) -> str:
    """What the parser says against it, empty if it takes it."""
    plain = re.sub(r"\.\.+", "X", command.replace("[", "").replace("]", ""))
    words = [word.split("|")[0] for word in shlex.split(plain.strip("\"'"))]
    words = [{"N": "1", "S": "1", "TIME": "1h"}.get(word, word) for word in words]
    parser = command_line()
    if words and words[0] == "lab":
        words, parser = words[1:], lab_command_line()
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parser.parse_args(words)
    except SystemExit as end:
        said = complaint.getvalue()
        # A text may name a command without all that it needs.
        named = "arguments are required" in said and "--" not in command
        return said if end.code and not named else ""
    return ""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_understood(path: Path) -> None:
    wrong = {c: why for c in commands(path.read_text()) if (why := refusal(c))}
    assert wrong == {}


def test_commands_are_found_and_wrong_ones_are_refused() -> None:
    text = (
        "Say `haclusterctl rank\n--why`.\n\n    on fs-a haclusterctl pause --for 1h  # a while\n\n"
        "```sh\n.venv/bin/haclusterctl lab run --fault node | cat\n```\n"
    )
    assert list(commands(text)) == ["lab run --fault node", "pause --for 1h", "rank --why"]
    assert [refusal(c) for c in commands(text)] == ["", "", ""]
    assert "invalid choice" in refusal("dance")
    assert "--why" in refusal("status --why")
    assert refusal("maintenance on|off [NODE] [--for 1h]") == ""
