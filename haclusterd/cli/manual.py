"""Manual pages, made of the command lines and of the readers of the configuration file.

`scripts/documents.py` writes them when a package is built. What no parser knows (files, signals,
exit codes) is told here, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from haclusterd import __version__
from haclusterd.cli.completion import Command, Option
from haclusterd.config import reference
from haclusterd.config.load import SECTIONS
from haclusterd.config.presets import PRESETS
from haclusterd.config.reading import Asked

Pairs = Sequence[tuple[str, str]]

BREAK = "\\:"  # a line may end here
_PAGES = ("haclusterd(8)", "haclusterctl(1)", "haclusterd.toml(5)")
DAEMON_FILES: Pairs = (
    ("/etc/haclusterd/haclusterd.toml", "The configuration, the same bytes on every node."),
    ("/etc/haclusterd/cluster.key, ca.crt, NODE.crt, NODE.key",
     "Key material, as `haclusterctl keys create` writes it."),
    ("/run/haclusterd/haclusterd.sock", "The socket that `haclusterctl` asks."),
    ("/var/lib/haclusterd", "What outlives the daemon: promises, copies of calls, recordings."),
)  # fmt: skip
_DAEMON_TEXT = """\
haclusterd runs beside FreeSWITCH on every node of an N+x cluster. When a master is lost, a slave
takes over its addresses and its live calls. It is two processes: the heart decides who owns which
service and keeps the kernel's fence open for the owner; the agent, its child, copies calls to the
other nodes and recovers them."""
_CONTROL_TEXT = """\
haclusterctl asks the haclusterd of this node and prints its answer, as tables for people or as
JSON for programs. The options --config, --socket, --node and --json may stand before or behind
the command."""
_SIGNALS: Pairs = (
    ("SIGTERM, SIGINT", "A planned stop: services are switched over first, for at most 5 s."),
    ("SIGHUP", "An upgrade: the installed version takes over between two beats; nothing moves."),
)
_DAEMON_EXIT: Pairs = (
    ("0", "A planned end."),
    ("1", "Refused or failed; the reason is on standard error."),
    ("2", "Wrong usage."),
)
CONTROL_EXIT: Pairs = (
    ("0", "Done."),
    ("1", "Refused or failed; the reason is on standard error."),
    ("2", "Wrong usage: words that do not belong together, or the name of nothing there is."),
    ("3", "The daemon is not reachable."),
    ("4", "Done in part."),
)
_CONTROL_ENVIRONMENT: Pairs = (
    ("HACLUSTERD_CONFIG", "The configuration file, where --config does not name one."),
    ("HACLUSTERD_SOCKET", "The daemon's socket, where --socket does not name one."),
)


@dataclass(frozen=True)
class Part:
    """A part of a page: its heading and its lines of roff."""

    heading: str
    lines: Sequence[str]


def daemon(program: Command) -> str:
    """haclusterd(8)."""
    return _page("haclusterd(8)", "high-availability controller beside FreeSWITCH", [
        Part("SYNOPSIS", [_usage(program)]),
        Part("DESCRIPTION", [_text(_DAEMON_TEXT)]),
        Part("OPTIONS", list(_options(program.options))),
        Part("SIGNALS", list(_listed(_SIGNALS))),
        Part("EXIT STATUS", list(_listed(_DAEMON_EXIT))),
        Part("FILES", list(_listed(DAEMON_FILES))),
    ])  # fmt: skip


def control(found: Sequence[Command]) -> str:
    """haclusterctl(1)."""
    program, *others = found
    common = {option.flags for option in program.options}
    lines: list[str] = []
    for command in others:
        if command.subcommands:
            continue
        lines += [f".SS {_roff(command.name)}", _text(_sentence(command.text))]
        lines.append(_usage(command, program.options))
        lines += _listed([(p.name, p.text) for p in command.positionals if p.text])
        lines += _options([o for o in command.options if o.flags not in common])
    return _page("haclusterctl(1)", "look at and command haclusterd", [
        Part("SYNOPSIS", [_usage(program)]),
        Part("DESCRIPTION", [_text(_CONTROL_TEXT)]),
        Part("OPTIONS", list(_options(program.options))),
        Part("COMMANDS", lines),
        Part("EXIT STATUS", list(_listed(CONTROL_EXIT))),
        Part("ENVIRONMENT", list(_listed(_CONTROL_ENVIRONMENT))),
    ])  # fmt: skip


def configuration() -> str:
    """haclusterd.toml(5)."""
    _title, _note, *paragraphs = reference.HEAD.strip().split("\n\n")
    parts = [Part("DESCRIPTION", [_text(paragraph) for paragraph in paragraphs])]
    for section in SECTIONS:
        double = section in reference.ARRAYS
        lines = [_text(reference.SECTION_TEXTS[section])]
        for key in reference.asked():
            if key.section == section:
                meaning = reference.MEANINGS[f"{section}.{key.name}"]
                lines += [".TP", f".B {_roff(key.name)}", _text(f"{_value(key)} {meaning}")]
        parts.append(Part(f"[[{section}]]" if double else f"[{section}]", lines))
    return _page("haclusterd.toml(5)", "configuration of haclusterd", parts)


def _value(key: Asked) -> str:
    """Type, range and default of a key as a sentence."""
    kind = reference.TYPES[key.kind] + (f": {key.allowed}" if key.allowed else "")
    if key.section == "timing":
        default = ", ".join(f"{PRESETS[name][key.name]} in `{name}`" for name in PRESETS)
    else:
        default = reference.default_of(key)
    return f"({kind}; {default if key.default is None else f'default {default}'})"


def _page(name: str, purpose: str, parts: Sequence[Part]) -> str:
    title, number = name.rstrip(")").split("(")
    also = [page.rstrip(")").split("(") for page in _PAGES if page != name]
    see = [f".BR {_roff(page)} ({n})" + ("," if (page, n) != tuple(also[-1]) else "")
           for page, n in also]  # fmt: skip
    lines = [
        f'.TH "{title}" "{number}" "" "haclusterd {__version__}" "haclusterd"',
        ".ad l",
        ".SH NAME",
        f"{_roff(title)} \\- {_roff(purpose)}",
    ]
    for part in (*parts, Part("SEE ALSO", see)):
        lines += [f'.SH "{_roff(part.heading)}"', *part.lines]
    return "\n".join(lines) + "\n"


def _usage(command: Command, without: Sequence[Option] = ()) -> str:
    usage = command.usage
    for option in without:
        usage = usage.replace(f" [{' '.join((option.flags[0], option.value)).strip()}]", "")
    program, *rest = usage.split()
    # Long lists of choices may be broken behind a comma.
    return f".P\n.B {_roff(program)}\n{_roff(' '.join(rest)).replace(',', ',' + BREAK)}"


def _options(options: Sequence[Option]) -> Iterator[str]:
    for option in options:
        names = ", ".join(f"\\fB{_roff(flag)}\\fR" for flag in option.flags)
        value = f" \\fI{_roff(option.value)}\\fR" if option.value else ""
        choices = f" One of {', '.join(option.choices)}." if option.choices else ""
        yield ".TP"
        yield f"{names}{value}"
        yield _roff(_sentence(option.text) + choices) or "\\&"


def _listed(pairs: Pairs) -> Iterator[str]:
    for name, text in pairs:
        yield ".TP"
        yield f"\\fB{_roff(name)}\\fR"
        yield _roff(_sentence(text))


def _text(text: str) -> str:
    return f".P\n{_roff(' '.join(text.split()))}" if not text.startswith("(") else _roff(text)


def _sentence(text: str) -> str:
    plain = text[:1].upper() + text[1:]
    return plain if not plain or plain.endswith((".", "!", "?")) else f"{plain}."


def _roff(text: str) -> str:
    """Text that troff prints as it is; words in backquotes become bold."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    if plain.startswith((".", "'")):
        plain = f"\\&{plain}"
    return re.sub(r"`([^`]*)`|\*(\w+)\*", r"\\fB\1\2\\fR", plain)
