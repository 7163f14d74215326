"""Every command of haclusterctl is run by a test: the parser is walked, the tests are searched.

A command counts as run where a test names its words together, as in `main(["drain", "off", ..])`
or `ctl("switchover", ..)`. Where a positional has choices each of them is one more command, and
every option has to stand in a file that runs its command.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from haclusterd.cli.completion import Command, haclusterctl

TESTS = Path(__file__).parent
ME = Path(__file__).name
# `drain off` has no parser of its own: the word stands where a name would.
SPOKEN = [("drain", "off")]


def _words_together(path: Path) -> Iterator[list[str]]:
    """The texts of every list, tuple and call, in order; what is no text is left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        parts: list[ast.expr] = []
        if isinstance(node, ast.List | ast.Tuple):
            parts = node.elts
        elif isinstance(node, ast.Call):
            parts = node.args
        words = [p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)]
        if words:
            yield [one for word in words for one in word.split()]


@pytest.fixture(scope="module")
def spoken() -> list[list[list[str]]]:
    """By file."""
    files = [path for path in sorted(TESTS.rglob("*.py")) if path.name != ME]
    return [list(_words_together(path)) for path in files]


def _commands() -> Iterator[tuple[str, ...]]:
    for command in haclusterctl():
        if command.subcommands or not command.path:
            continue
        choices = [p.choices for p in command.positionals if p.choices]
        yield from ((*command.path, choice) for choice in (choices[0] if choices else ()))
        if not choices:
            yield command.path
    yield from SPOKEN


def _options() -> Iterator[tuple[Command, str]]:
    program, *others = haclusterctl()
    common = {flag for option in program.options for flag in option.flags}
    for command in others:
        for option in command.options:
            if not command.subcommands and not set(option.flags) & common:
                yield command, option.flags[-1]


def _says(words: list[str], path: tuple[str, ...]) -> bool:
    """The words of a command one behind the other, options in between aside."""
    bare = [word for word in words if not word.startswith("-")]
    return any(bare[at : at + len(path)] == list(path) for at in range(len(bare)))


@pytest.mark.parametrize("path", sorted(set(_commands())), ids=" ".join)
def test_every_command_is_run_by_a_test(
    path: tuple[str, ...], spoken: list[list[list[str]]]
) -> None:
    run = any(_says(words, path) for file in spoken for words in file)
    assert run, f"no test runs `{' '.join(path)}`"


@pytest.mark.parametrize(
    ("command", "flag"), list(_options()), ids=lambda one: getattr(one, "name", one)
)
def test_every_option_is_used_by_a_test(
    command: Command, flag: str, spoken: list[list[list[str]]]
) -> None:
    flags = {f for option in command.options if flag in option.flags for f in option.flags}
    name = command.path[-1]
    used = any(
        any(name in words for words in file) and any(flags & set(words) for words in file)
        for file in spoken
    )
    assert used, f"no test of `{command.name}` uses {flag}"
