"""Text of others, made fit to be shown: on a terminal, on a page, in a log."""

from __future__ import annotations


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
