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
_VARIABLE = re.compile(r"<((?!sip_multipart>|/)[^<>]++)>([^<]*+)<")  # a body has lines
_NO_WORD = re.compile(r"sdp|_display\Z|_name\Z")
# Where a user or tag stands: alone, in a URI, in a header. A name that reads the same is none.
_BEFORE = r"(?:\A|(?<=sip%3A)|(?<=sips%3A)|(?<=tag%3D))"
_BEHIND = r"(?=%40|%3A|%3B|%3E|\Z)"
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
    any_word = "|".join(sorted(map(re.escape, words), key=len, reverse=True)) or r"\Z\A."
    in_sip, elsewhere = (re.compile(f"{_BEFORE}({any_word}){b}") for b in (_BEHIND, "(?=%40)"))

    def mended(found: re.Match[str]) -> str:
        name, text = found[1], found[2]
        of_sip = name.startswith("sip_")
        if not _NO_WORD.search(name):
            text = (in_sip if of_sip else elsewhere).sub(lambda one: words[one[1]], text)
        if of_sip:
            text = _LINE_BREAK.sub("%25", text)
        return f"<{name}>{text}<"

    return xml[:start] + _VARIABLE.sub(mended, variables) + xml[end:]
