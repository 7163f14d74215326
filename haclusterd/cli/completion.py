"""Completion for bash and zsh, made of the command line itself so that it cannot fall behind.

`commands` walks a parser with its subcommands; `bash` and `zsh` write what they understand. Names
of services and nodes are not completed: that would ask the daemon at every press of a key.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FILE_METAVARS = frozenset({"FILE", "PATH", "DIR", "PREFIX"})


@dataclass(frozen=True)
class Option:
    """An option. `value` is empty for a flag; `choices` are its values where they are known."""

    flags: tuple[str, ...]
    text: str
    value: str = ""
    choices: tuple[str, ...] = ()

    @property
    def names_file(self) -> bool:
        return self.value in FILE_METAVARS


@dataclass(frozen=True)
class Positional:
    """An argument without a flag."""

    name: str
    text: str
    choices: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Command:
    """A command and what may stand behind it. `path` is empty for the program itself."""

    path: tuple[str, ...]
    text: str
    usage: str
    options: tuple[Option, ...]
    positionals: tuple[Positional, ...]
    subcommands: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join(self.path)


Trees = dict[tuple[str, ...], argparse.ArgumentParser]


def commands(parser: argparse.ArgumentParser, elsewhere: Trees | None = None) -> list[Command]:
    """The program and all its commands, in order. `elsewhere`: those with a parser of their own."""
    return list(_walk(parser, (), parser.description or "", elsewhere or {}))


def haclusterctl() -> list[Command]:
    """All of `haclusterctl`, with the command line that `lab` has of its own."""
    from haclusterd.cli.main import command_line
    from haclusterd.lab.cli import command_line as lab_command_line

    return commands(command_line(), {("lab",): lab_command_line()})


def _walk(
    parser: argparse.ArgumentParser, path: tuple[str, ...], text: str, elsewhere: Trees
) -> Iterator[Command]:
    parser = elsewhere.get(path, parser)
    options, positionals = [], []
    below: list[tuple[str, argparse.ArgumentParser, str]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {str(choice.dest): choice.help or "" for choice in action._choices_actions}
            below += [(name, sub, told.get(name, "")) for name, sub in action.choices.items()]
        elif action.help == argparse.SUPPRESS:
            continue
        elif action.option_strings:
            options.append(_option(action))
        else:
            positionals.append(_positional(action))
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    names = tuple(name for name, _, _ in below)
    yield Command(path, text, usage, tuple(options), tuple(positionals), names)
    for name, sub, told_of in below:
        yield from _walk(sub, (*path, name), told_of, elsewhere)


def _option(action: argparse.Action) -> Option:
    value = ""
    if action.nargs != 0:
        value = str(action.metavar or action.dest.upper())
    return Option(tuple(action.option_strings), _plain(action), value, _choices(action))


def _positional(action: argparse.Action) -> Positional:
    name = str(action.metavar or action.dest.upper())
    return Positional(name, _plain(action), _choices(action), action.nargs == "?")


def _plain(action: argparse.Action) -> str:
    return " ".join((action.help or "").split()).replace("%%", "%")


def _choices(action: argparse.Action) -> tuple[str, ...]:
    return tuple(str(choice) for choice in action.choices or ())


def _words(command: Command) -> Iterator[tuple[str, str]]:
    """(word, its meaning): all that can be completed behind `command`."""
    for positional in command.positionals:
        yield from ((choice, positional.text) for choice in positional.choices)
    for option in command.options:
        yield from ((flag, option.text) for flag in option.flags)


def _values(found: Sequence[Command]) -> dict[str, Option]:
    """Options with a value by `COMMAND:FLAG`; where all commands agree, by `*:FLAG`."""
    seen: dict[str, list[tuple[str, Option]]] = {}
    for command in found:
        for option in command.options:
            for flag in option.flags if option.value else ():
                seen.setdefault(flag, []).append((command.name, option))
    keys: dict[str, Option] = {}
    for flag, uses in seen.items():
        first = uses[0][1]
        if all((use.value, use.choices) == (first.value, first.choices) for _, use in uses):
            keys[f"*:{flag}"] = first
        else:
            keys |= {f"{name}:{flag}": option for name, option in uses}
    return keys


def _descent(found: Sequence[Command]) -> Iterator[tuple[str, str]]:
    """(`COMMAND:WORD`, the command that this leads to)."""
    for command in found:
        for name in command.subcommands:
            yield f"{command.name}:{name}", " ".join((*command.path, name))


def _patterns(keys: Sequence[str]) -> str:
    quoted = (f"*:{key[2:]}" if key.startswith("*:") else f'"{key}"' for key in keys)
    return " | ".join(quoted)


def bash(program: str, found: Sequence[Command]) -> str:
    """A file for /usr/share/bash-completion/completions. Needs nothing but bash."""
    values = _values(found)
    function = f"_{program}"
    lines = [
        f"# bash completion of {program}, made of its command line (`{program} completion bash`).",
        f"{function}() {{",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}",
        '    local at="" words="" i',
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        '        case "$at:${COMP_WORDS[i]}" in',
    ]
    if values:
        lines.append(f"        {_patterns(list(values))}) ((i++)) ;;")
    lines += [f'        "{key}") at="{there}" ;;' for key, there in _descent(found)]
    lines += ["        esac", "    done", '    case "$at:$prev" in']
    for key, option in values.items():
        if option.choices:
            lines.append(f'    {_patterns([key])}) words="{" ".join(option.choices)}" ;;')
    files = [key for key, option in values.items() if option.names_file and not option.choices]
    others = [key for key, o in values.items() if not o.names_file and not o.choices]
    if files:
        lines.append(f'    {_patterns(files)}) compopt -o filenames 2>/dev/null || :; '
                     'mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;')  # fmt: skip
    if others:
        lines.append(f"    {_patterns(others)}) return ;;")
    lines += ["    *)", '        case "$at" in']
    for command in found:
        words = " ".join([*command.subcommands, *(word for word, _ in _words(command))])
        lines.append(f'        "{command.name}") words="{words}" ;;')
    lines += [
        "        esac",
        "        ;;",
        "    esac",
        '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")',
        "}",
        f"complete -o default -F {function} {program}",
    ]
    return "\n".join(lines) + "\n"


def zsh(program: str, found: Sequence[Command]) -> str:
    """A file `_PROGRAM` for a folder in zsh's `fpath`."""
    texts = {command.name: command.text for command in found}
    values = _values(found)
    lines = [
        f"#compdef {program}",
        f"# zsh completion of {program}, made of its command line (`{program} completion zsh`).",
        'local at="" previous=${words[CURRENT-1]}',
        "local -i i",
        "local -a told",
        "for ((i = 2; i < CURRENT; i++)); do",
        '    case "$at:${words[i]}" in',
    ]
    if values:
        lines.append(f"    {_patterns(list(values))}) ((i++)) ;;")
    lines += [f'    "{key}") at="{there}" ;;' for key, there in _descent(found)]
    lines += ["    esac", "done", 'case "$at:$previous" in']
    for key, option in values.items():
        if option.choices:
            act = f"compadd -- {' '.join(option.choices)}"
        else:
            act = "_files" if option.names_file else f"_message {_quoted(option.value)}"
        lines.append(f"{_patterns([key])}) {act}; return ;;")
    lines += ["esac", 'case "$at" in']
    for command in found:
        pairs = [(name, texts[" ".join((*command.path, name))]) for name in command.subcommands]
        pairs += list(_words(command))
        told = " ".join(_quoted(f"{word}:{text}" if text else word) for word, text in pairs)
        lines.append(f'"{command.name}") told=({told}) ;;')
    lines += ["esac", f"_describe -t words {program} told && return", "_files"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
