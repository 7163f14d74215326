"""printable: nothing that commands a terminal or turns a line gets through, all else does."""

from __future__ import annotations

import pytest

from haclusterd.core.text import printable


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
