"""text: nothing that commands a terminal gets through, and nothing without end does."""

from __future__ import annotations

import pytest

from haclusterd.core.text import brief, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fs-a: 12 calls, 3 µs, Zürich, 東京", "fs-a: 12 calls, 3 µs, Zürich, 東京"),
        ("", ""),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\x9b2Jb\x7f", r"a\x9b2Jb\x7f"),
        ("one\ntwo\rthree\t", r"one\x0atwo\x0dthree\x09"),
        ("evil\u202egpj.exe", r"evil\u202egpj.exe"),
        ("\u2066x\u2069\u200b\u2028", r"\u2066x\u2069\u200b\u2028"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_brief_keeps_both_ends_of_what_is_long() -> None:
    name = "a" * 50_000 + "z" * 50_000
    said = brief(f'/etc/x.toml: "{name}" cannot serve as a name')
    assert len(said) < 250
    assert said.startswith('/etc/x.toml: "aaaa')
    assert said.endswith('zzz" cannot serve as a name')
    assert "(99882 characters)" in said
    assert len(brief(f'"{"a b " * 30_000}" is no name')) < 250, "quoted, with spaces"
    assert len(brief("many words " * 10_000)) < 4100


@pytest.mark.parametrize("text", ["", "short", "p/" * 50, "word " * 100, f'"{"x" * 100}"'])
def test_brief_leaves_alone_what_people_write(text: str) -> None:
    assert brief(text) == text
