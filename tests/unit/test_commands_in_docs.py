"""Every `haclusterctl ...` in the Markdown here is a command that its parsers take.

Placeholders (SERVICE, NODE) are words like any other; what stands in brackets is tried alone, and
left out; of alternatives (`on|off`) the first one is tried.
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
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"^    +([^`\n]*)$", re.M)
_SPAN = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
_END = re.compile(r"\s{2,}.*|\s(?:[|&;>]|\|\|).*|[;:]$|\s#.*|\s\d?>.*")


def commands(text: str) -> Iterator[str]:
    """What follows `haclusterctl` on lines of code and in code spans of prose."""
    blocks = [block for language, block in _FENCED.findall(text) if language in ("", "sh")]
    code = [line for block in blocks for line in block.splitlines()]
    prose = _FENCED.sub("", text)
    paragraphs = re.split(r"\n\s*\n|\n(?=\|)", prose)
    found_in = (_SPAN.findall(paragraph) for paragraph in paragraphs)
    spans = (" ".join(span.split()) for several in found_in for _, span in several)
    for joined in (*code, *_INDENTED.findall(prose), *spans):
        found = re.search(r"(?<![\w./-])(?:[\w./]*/)?haclusterctl ([a-z-].*)", joined)
        if found and "=" not in joined.split("haclusterctl")[0]:
            yield _END.sub("", found[1]).strip()


def forms(command: str) -> Iterator[str]:
    """The command without what may be left out, and with one of these at a time."""
    parts = re.split(r"(\[[^\]]*\])", command)
    optional = [n for n, part in enumerate(parts) if part.startswith("[")]
    for kept in (-1, *optional):
        chosen = [part for n, part in enumerate(parts) if n == kept or n not in optional]
        yield "".join(chosen).replace("[", "").replace("]", "")


def refusal(command: str) -> str:
    """What the parser says against any of its forms, empty if it takes them."""
    return next((why for form in forms(command) if (why := _refusal(form))), "")


def _refusal(form: str) -> str:
    plain = re.sub(r"\.\.+", "X", form).strip("\"'")
    words = [word.split("|")[0] for word in shlex.split(plain)]
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
        # A text may name a command, or an option, without all that it needs.
        named = "arguments are required" in said and "--" not in form
        named |= "expected one argument" in said and words[-1].startswith("--")
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
