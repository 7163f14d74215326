"""docs/commands.md has every command, argument and exit code, as the parsers have them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from haclusterd.cli import main, reference
from haclusterd.cli.completion import commands, haclusterctl
from haclusterd.heart.main import command_line

DOCUMENT = Path(__file__).parents[2] / "docs" / "commands.md"
TEXT = reference.render(commands(command_line())[0])


def test_document_is_current(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--rewrite"):
        DOCUMENT.write_text(TEXT)
    assert DOCUMENT.read_text() == TEXT


def test_every_command_has_a_heading_and_every_option_a_row_below_it() -> None:
    sections = dict(re.findall(r"^## haclusterctl (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
    program, *others = haclusterctl()
    common = {option.flags for option in program.options}
    for command in (c for c in others if not c.subcommands):
        text = sections.pop(command.name)
        for option in command.options:
            assert option.flags in common or f"| `{', '.join(option.flags)}" in text, option
        for positional in command.positionals:
            assert f"| `{positional.name}` |" in text
    assert sections == {}


def test_exit_codes_are_those_of_the_program() -> None:
    codes = [int(code) for code in re.findall(r"^\| (\d) \|", TEXT, re.M)]
    assert codes == [main.DONE, main.FAILED, main.USAGE, main.UNREACHABLE, main.PARTLY]
