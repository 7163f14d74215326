"""Reading tables of the configuration file: types, ranges, defaults, unknown keys.

A reader never stops at the first error: a wrong value is noted and a stand-in is returned, so
that one run shows everything that is wrong. Values are only used when nothing was noted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from haclusterd.config.model import ConfigError, Problem

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NAME_RULE = "use 1 to 63 letters, digits, '.', '_' or '-', the first one a letter or digit"

PROBLEMS_MAX = 100  # told of one file
WORD_CHARS_MAX = 64  # no longer one is compared with what is known: the time goes with its length

_TYPE_NAMES = {bool: "true or false", int: "an integer", str: "a string", list: "an array"}


def suggestion(word: str, known: list[str]) -> str:
    """' (did you mean "x"?)' for the known word most like `word`, else nothing."""
    near = difflib.get_close_matches(word[:WORD_CHARS_MAX], known, n=1, cutoff=0.6)
    return f' (did you mean "{near[0]}"?)' if near else ""


def one_of(words: list[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


class Asked(NamedTuple):
    """A key that was looked for. `default` is None for a required one."""

    section: str
    name: str
    kind: type
    default: object
    allowed: str


class Problems:
    """Collects what is wrong with one file, and which keys it could have held (`reference`)."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.asked: list[Asked] = []
        self._found: dict[Problem, None] = {}
        self._more = 0

    def note(self, key: str, message: str, fix: str) -> None:
        problem = Problem(self.file, key, message, fix)
        if len(self._found) < PROBLEMS_MAX:
            self._found[problem] = None
        else:
            self._more += problem not in self._found

    def raise_if_any(self) -> None:
        if self._more:
            fix = "correct these first"
            self._found[Problem(self.file, "", f"{self._more} more problems", fix)] = None
        if self._found:
            raise ConfigError(tuple(self._found))


class Section:
    """One table of the file. `path` is its place as people read it, like `node[fs-a]`."""

    def __init__(self, table: Mapping[str, Any], path: str, problems: Problems) -> None:
        self._table = table
        self._known: list[str] = []
        self.path = path
        self.problems = problems

    def key(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path and name else self.path or name

    def note(self, name: str, message: str, fix: str) -> None:
        self.problems.note(self.key(name), message, fix)

    def has(self, name: str) -> bool:
        return name in self._table

    def text(self, name: str, default: str | None = None, allowed: str = "") -> str:
        """A string; without `default` it is required. `allowed` tells people what may be there."""
        found = self._take(name, str, default, allowed)
        return found if isinstance(found, str) else (default or "")

    def named(self, name: str) -> str:
        """A required string that serves as an id."""
        found = self.text(name, allowed="a name")
        written = self._table.get(name)
        if isinstance(written, str) and not NAME.fullmatch(written):
            self.note(name, f'"{found}" cannot serve as a name', NAME_RULE)
        return found

    def choice(self, name: str, words: list[str], default: str | None) -> str:
        """One of `words`, or an empty string where a required choice is missing or wrong."""
        found = self.text(name, default, one_of(words))
        if found and found not in words:
            near = suggestion(found, words)
            self.note(name, f'"{found}" is not known{near}', f"use one of {one_of(words)}")
            return default or ""
        return found

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        found = self._take(name, int, default, f"{low} to {high}")
        if not isinstance(found, int):
            return default
        if not low <= found <= high:
            self.note(name, f"{found} is out of range", f"use a value from {low} to {high}")
            return default
        return found

    def flag(self, name: str, default: bool) -> bool:
        found = self._take(name, bool, default)
        return found if isinstance(found, bool) else default

    def texts(self, name: str, default: list[str] | None = None, allowed: str = "") -> list[str]:
        """An array of non-empty strings; without `default` it is required and not empty."""
        found = self._take(name, list, default, allowed)
        if not isinstance(found, list):
            return default or []
        for position, item in enumerate(found):
            if not isinstance(item, str) or not item:
                message = f"item {position + 1} is {shown(item)}, not a non-empty string"
                self.note(name, message, 'write it as ["...", "..."]')
        if default is None and not found:
            self.note(name, "is empty", "name at least one")
        return [item for item in found if isinstance(item, str) and item]

    def finish(self) -> None:
        """Note every key that nothing asked for."""
        for name in self._table:
            if name not in self._known:
                near = suggestion(name, self._known)
                allowed = ", ".join(sorted(self._known))
                self.note(name, f"unknown key{near}", f"remove it; known here: {allowed}")

    def _take(self, name: str, kind: type, default: object, allowed: str = "") -> object:
        """The raw value if it has type `kind`; notes what is missing or wrong."""
        self._known.append(name)
        section = self.path.partition("[")[0]
        self.problems.asked.append(Asked(section, name, kind, default, allowed))
        if name not in self._table:
            if default is None:
                self.note(name, "is missing", f"add {name} = {_example(kind)}")
            return default
        found = self._table[name]
        # bool is an int in Python, but never in the file.
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            self.note(
                name,
                f"is {shown(found)}, not {_TYPE_NAMES[kind]}",
                f"write it as {_example(kind)}",
            )
            return default
        self._refuse_unprintable(name, found)
        return found

    def _refuse_unprintable(self, name: str, found: object) -> None:
        """Nothing here is ever meant to hold a line break, an escape or a direction mark."""
        for text in found if isinstance(found, list) else [found]:
            if isinstance(text, str) and not text.isprintable():
                bad = next(char for char in text if not char.isprintable())
                message = f"holds the unprintable character U+{ord(bad):04X}"
                self.note(name, message, "write it again by hand, without what cannot be seen")
                return


def _example(kind: type) -> str:
    return {bool: "true", int: "123", str: '"..."', list: '["..."]'}[kind]


def shown(value: object) -> str:
    """A value as in the file, short enough for one line."""
    text = f'"{value}"' if isinstance(value, str) else str(value)
    if isinstance(value, bool):
        text = "true" if value else "false"
    return text if len(text) <= 60 else text[:57] + "..."
