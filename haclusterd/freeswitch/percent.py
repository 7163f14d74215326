"""Percent signs that a caller wrote, which FreeSWITCH's row does not tell from its own. Pure.

FreeSWITCH encodes the values in a row but leaves `%0A` as it is (switch_url_encode), and whoever
recovers decodes once: `%0A` in a SIP user becomes a line break, and the rest of the number a header
of the re-INVITE (measured on 1.11.1). What mod_sofia took from the wire has no line breaks of its
own, and a user part no space, quote or bracket: there such a sign was written with its percent, and
is encoded once more.
"""

from __future__ import annotations

import re

_USER = r"(?:from|to|req|contact|refer_to|invite_to|invite_from)_user(?:_stripped)?"
_WORD = r"(?:from|to)_tag|call_id"
# What FreeSWITCH would not have encoded: letters, digits, marks. And controls and space, which no
# word of SIP has; in a user also quotes, colon, brackets and at sign.
_SIGN = r"[01][0-9A-F]|2[01478-9AC-F]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AEF]"
_USER_SIGN = rf"{_SIGN}|22|3[ACE]|40"
_BREAK = r"0[0-8A-F]|1[0-9A-F]|7F"
_SUSPECT = re.compile(
    rf"<sip_(?:(?:{_USER})>[^<]*?%(?:{_USER_SIGN})|(?:{_WORD})>[^<]*?%(?:{_SIGN})"
    rf"|(?!multipart>)[^<>]*+>[^<]*?%(?:{_BREAK}))"
)
_VARIABLE = re.compile(r"<(sip_(?!multipart>)[^<>]*+)>([^<]*+)<")  # a body has lines
_FORMS = (
    (re.compile(rf"sip_{_USER}\Z"), re.compile(rf"%(?={_USER_SIGN})")),
    (re.compile(rf"sip_(?:{_WORD})\Z"), re.compile(rf"%(?={_SIGN})")),
)
_LINE_BREAK = re.compile(rf"%(?={_BREAK})")


def literal(xml: str, start: int, end: int) -> str:
    """The document whose variables, from `start` to `end`, keep their callers' percent signs."""
    if not _SUSPECT.search(xml, start, end):
        return xml
    variables = xml[start:end]
    words = {
        text: sign.sub("%25", text)
        for name, text in _VARIABLE.findall(variables)
        for form, sign in _FORMS
        if form.match(name) and sign.search(text)
    }
    again = sorted(words.items(), key=lambda one: len(one[0]), reverse=True)

    def mended(found: re.Match[str]) -> str:
        name, text = found[1], found[2]
        for word, encoded in again:
            text = text.replace(word, encoded)
        return f"<{name}>{_LINE_BREAK.sub('%25', text)}<"

    return xml[:start] + _VARIABLE.sub(mended, variables) + xml[end:]
