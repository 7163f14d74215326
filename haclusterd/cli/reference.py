"""docs/commands.md, made of the command lines themselves and the exit codes of the manual page.

`pytest tests/unit/test_command_reference.py --rewrite` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from haclusterd.cli.completion import Command, Option, Positional, haclusterctl
from haclusterd.cli.manual import CONTROL_EXIT

_HEAD = """# Every command

Generated from the command lines (`pytest tests/unit/test_command_reference.py --rewrite`); do not
edit.

`haclusterctl` asks the daemon of its node over a Unix socket; who may open the socket may command
the node ([security](security.md)). Inside `fs_cli` the same commands are `ha_cluster COMMAND`.
"""
_EXIT = """
## Exit codes

| code | meaning |
|---|---|
"""


def render(daemon: Command) -> str:
    """The whole document. `daemon` is the command line of haclusterd, which is not cli's."""
    program, *others = haclusterctl()
    shared = [option for option in program.options if option.flags[0] != "-h"]
    parts = [
        _HEAD,
        "\n## For every command\n\nBefore the command or behind it:\n\n",
        *_table((), shared),
        _EXIT,
        *(f"| {code} | {_cell(text)} |\n" for code, text in CONTROL_EXIT),
    ]
    common = {option.flags for option in program.options}
    for command in others:
        if not command.subcommands:
            own = [option for option in command.options if option.flags not in common]
            parts += _section(f"haclusterctl {command.name}", command, own, program.options)
    own = [option for option in daemon.options if option.flags[0] != "-h"]
    parts += _section("haclusterd", daemon, own, ())
    return "".join(parts)


def _section(
    name: str, command: Command, options: Sequence[Option], without: Sequence[Option]
) -> Iterator[str]:
    usage = command.usage
    for option in without:
        usage = usage.replace(f" [{' '.join((option.flags[0], option.value)).strip()}]", "")
    yield f"\n## {name}\n\n{_sentence(command.text)}\n\n    {usage.replace(' [-h]', '')}\n"
    rows = list(_table(command.positionals, options))
    if rows:
        yield "\n"
        yield from rows


def _table(positionals: Sequence[Positional], options: Sequence[Option]) -> Iterator[str]:
    rows = [(p.name, p.choices, p.text) for p in positionals]
    rows += [(" ".join((", ".join(o.flags), o.value)).strip(), o.choices, o.text) for o in options]
    if rows:
        yield "| argument | meaning |\n|---|---|\n"
    for name, choices, text in rows:
        allowed = f"one of {', '.join(f'`{choice}`' for choice in choices)}" if choices else ""
        # "create: what is missing" begins with a word that has to be typed as it stands.
        told = text if text.partition(":")[0] in choices else _sentence(text).rstrip(".")
        meaning = "; ".join(part for part in (told, allowed) if part)
        yield f"| `{name}` | {_cell(meaning)} |\n"


def _sentence(text: str) -> str:
    plain = text[:1].upper() + text[1:]
    return plain if not plain or plain.endswith((".", "!", "?")) else f"{plain}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
