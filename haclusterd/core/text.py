"""Text of others, made fit to be shown: on a terminal, on a page, in a log."""

from __future__ import annotations

import re

VALUE_CHARS_MAX = 120  # of one value or word in a sentence: the longest path still fits
SENTENCE_CHARS_MAX = 4000
_KEPT = VALUE_CHARS_MAX // 2
_LONG = re.compile(rf'"[^"\n]{{{VALUE_CHARS_MAX},}}"|[^\s"]{{{VALUE_CHARS_MAX},}}')


def brief(text: str) -> str:
    """`text` with the middle of each long word or quoted value cut out, and the end of a long one.

    An error message repeats what somebody wrote, and that may be 100 kB long.
    """
    if len(text) <= VALUE_CHARS_MAX:
        return text
    text = _LONG.sub(_without_middle, text)
    if len(text) <= SENTENCE_CHARS_MAX:
        return text
    return f"{text[:SENTENCE_CHARS_MAX]}... ({len(text) - SENTENCE_CHARS_MAX} more characters)"


def _without_middle(found: re.Match[str]) -> str:
    whole = found[0]
    cut = len(whole) - 2 * _KEPT
    return f"{whole[:_KEPT]}...({cut} characters)...{whole[-_KEPT:]}" if cut > _KEPT else whole


def printable(text: str) -> str:
    """`text` with every character that is not shown as itself written as its number.

    Names, reasons, caller ids and versions come from configuration, peers and FreeSWITCH. ESC and
    the C1 codes move the cursor and recolour what others wrote, bidirectional overrides reverse
    it, a line break forges a line of its own.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _number(ord(char)) for char in text)


def _number(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
