"""The recovery row's XML CDR: read the few facts we need, set a variable, refuse what is odd.

Only text work on one document belongs here. There is deliberately no XML parser: FreeSWITCH writes
one flat element per line with URL-encoded values (FREESWITCH.md 1.1, captures), a scan costs a
twentieth of a parse, and where nothing is parsed no entity can expand.
"""

from __future__ import annotations

import re
from functools import lru_cache
from html import unescape
from typing import NamedTuple
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from .percent import literal

METADATA_BYTES_MAX = 256 * 1024
VARIABLE_BYTES_MAX = 8 * 1024

# With inbound-use-callid-as-uuid it is what a stranger wrote, and it stands in ESL commands. There
# a quote takes the next word along and a backslash stands for another sign: no command would find
# the call, and one that is up would be called lost.
_UUID = re.compile(r"[!-&(-\[\]-~]{1,255}\Z")
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}\Z")
_ANSWERED = re.compile(r"<answered_time>(\d{1,19})</answered_time>")
_APPLICATION = re.compile(r"<application\b([^<>]*)>")
_ATTRIBUTE = re.compile(r'(app_name|app_data|last_executed)="([^"]*)"')
_PROFILE_INDEX = re.compile(r'<callflow\b[^<>]*\bprofile_index="(\d{1,9})"')
_DIRECTION = re.compile(r"<direction>(inbound|outbound)</direction>")
# One element behind the other, none in another, and all names as FreeSWITCH's parser takes them;
# without `[`: FreeSWITCH would take `sip_req_uri[1]` for a second value of another variable.
_FLAT = re.compile(r"(?:\s*+<([A-Za-z_][^\x00-\x20\x7f<>/\[]*+)>[^<>]*+</\1>)*+\s*+")
_NO_MARKUP = re.compile(r"(?:\s*+<([^<>/!?][^<>]*+)>[^<>]*+</\1>)*+\s*+")
_ELEMENT = re.compile(r"\s*+<([^<>/!?][^<>]*+)>[^<>]*+</\1>")
_PAIR = re.compile(r"<([^<>/!?][^<>]*+)>([^<>]*+)</")


class MetadataError(ValueError):
    """The document is not a recovery row's metadata; the message says what is wrong."""


class CallFacts(NamedTuple):
    """What the sidecar must know of a call leg; the rest stays FreeSWITCH's business."""

    direction: str
    partner: str
    sip_cseq: str
    answered_ms: int


class _Known(NamedTuple):
    """A document, where its variables are, and their first values as they are written."""

    xml: str
    start: int
    end: int
    values: dict[str, str]  # never changed: another thread may look at it


_known = _Known("", 0, 0, {})


def learn(xml: str) -> None:
    """Remember the variables of a `check`ed document of which a dozen will be asked.

    A scan per question was half of what 500 calls cost before they could be injected. Only one is
    remembered, and what is made of it by `set_variable` and `without_variable`.
    """
    global _known
    start, end = _variables_span(xml)
    pairs = _PAIR.findall(xml, start, end)
    _known = _Known(xml, start, end, dict(reversed(pairs)))


def check_uuid(uuid: str) -> None:
    """Refuse a uuid that is not one word of a command. Raises MetadataError."""
    if not _UUID.match(uuid):
        raise MetadataError(f"its uuid {uuid[:40]!r} cannot stand in a command to FreeSWITCH")


def _variables_span(xml: str) -> tuple[int, int]:
    start = xml.find("<variables>")
    end = xml.find("</variables>", start)
    if start < 0 or end < 0:
        raise MetadataError("no <variables> in the recovery metadata")
    return start + len("<variables>"), end


def check(xml: str) -> None:
    """Refuse what FreeSWITCH never writes and its own parser might act upon.

    Raises MetadataError on size, on any declaration (DOCTYPE, ENTITY, CDATA) and on another root.
    """
    if len(xml) > METADATA_BYTES_MAX:
        raise MetadataError(f"recovery metadata of more than {METADATA_BYTES_MAX} characters")
    if "<!" in xml or "\0" in xml:
        raise MetadataError("a declaration or NUL in the recovery metadata")
    if not xml.startswith("<cdr ") or not xml.rstrip().endswith("</cdr>"):
        raise MetadataError("the recovery metadata is not one <cdr> document")
    _check_names(xml)


@lru_cache(maxsize=2)
def _is_flat(xml: str, start: int, end: int) -> bool:
    return _FLAT.fullmatch(xml, start, end) is not None


def _check_names(xml: str) -> None:
    """Refuse a document in which the name of a variable is more than a name.

    FreeSWITCH encodes the values, not the names, and a caller can stand in one: `limit hash in
    ${caller_id_number}` makes `limit_usage_in_NUMBER`, and FreeSWITCH decodes %3C in a number
    (measured on 1.11.1: such a caller had the new owner run a command of his at hang-up). A name is
    written twice, to open and to close: markup in it leaves nested or unmatched elements.
    """
    start, end = _variables_span(xml)
    if xml.find("<variables>", start) >= 0 or xml.find("</variables>", end + 1) >= 0:
        raise MetadataError("more than one <variables> in the recovery metadata")
    if not _is_flat(xml, start, end) and not _NO_MARKUP.fullmatch(xml, start, end):
        raise MetadataError("the name of a channel variable has < or > in it")


def readable(xml: str) -> str:
    """The document, `check`ed before, as FreeSWITCH reads what it has written.

    Without variables whose names no parser takes: FreeSWITCH writes `<limit_usage_in_gw/1>` and
    then does not take the call up (measured). And see `percent`.
    """
    start, end = _variables_span(xml)
    if _is_flat(xml, start, end):
        return literal(xml, start, end)
    kept = (one[0] for one in _ELEMENT.finditer(xml, start, end) if _FLAT.fullmatch(one[0]))
    left = "".join(kept) + "\n  "
    return literal(xml[:start] + left + xml[end:], start, start + len(left))


def _find_variable(xml: str, name: str, start: int, end: int) -> str | None:
    opening = f"<{name}>"
    at = xml.find(opening, start, end)
    if at < 0:
        return None
    at += len(opening)
    stop = xml.find(f"</{name}>", at, end)
    if stop < 0 or stop - at > VARIABLE_BYTES_MAX:
        return None
    return unquote(xml[at:stop])


def encoded(value: str) -> str:
    """A value as FreeSWITCH writes it, but for percent signs: they are told from its own here."""
    return quote(value, safe="/,!'()*$")


def variable(xml: str, name: str) -> str:
    """A channel variable's first value, decoded; empty when unset. Raises MetadataError."""
    known = _known
    if known.xml is xml:
        value = known.values.get(name, "")
        return unquote(value) if len(value) <= VARIABLE_BYTES_MAX else ""
    start, end = _variables_span(xml)
    return _find_variable(xml, name, start, end) or ""


def too_long(xml: str, name: str) -> bool:
    """Whether `variable` does not tell it, though it is set. Raises MetadataError."""
    known = _known
    if known.xml is xml:
        return len(known.values.get(name, "")) > VARIABLE_BYTES_MAX
    start, end = _variables_span(xml)
    at = xml.find(f"<{name}>", start, end)
    return at >= 0 and _find_variable(xml, name, start, end) is None


def set_variable(xml: str, name: str, value: str) -> str:
    """The document with one channel variable set to `value`, replacing earlier values."""
    if not VARIABLE_NAME.match(name):
        raise MetadataError(f"not a channel variable name: {name[:40]!r}")
    global _known
    xml = without_variable(xml, name)
    known, written = _known, encoded(value)
    is_known = known.xml is xml
    start, end = known[1:3] if is_known else _variables_span(xml)
    changed = f"{xml[:start]}{xml[start:end].rstrip()}\n    <{name}>{written}</{name}>\n  "
    xml = changed + xml[end:]
    if is_known:
        _known = _Known(xml, start, len(changed), {**known.values, name: written})
    return xml


def untagged(xml: str) -> bool:
    """Whether a tag of the dialog is missing, without which no phone takes a re-INVITE as its own.

    FreeSWITCH writes the row of an inbound call at the answer, and the tags when the ACK has come:
    two writes, up to a batch (205 ms) apart. Raises MetadataError.
    """
    for name in ("full_from", "full_to"):
        whole = variable(xml, f"sip_handle_{name}") or variable(xml, f"sip_{name}")
        if whole and ";tag=" not in whole.rpartition(">")[2].lower():
            return True
    return False


def name_channel(xml: str, uuid: str) -> str:
    """The document whose variable `uuid` is not encoded. Raises MetadataError."""
    start, end = _variables_span(xml)
    at = xml.find("<uuid>", start, end)
    stop = xml.find("</uuid>", at, end)
    if at < 0 or stop < 0:
        return xml
    return xml[: at + len("<uuid>")] + escape(uuid) + xml[stop:]


def without_variable(xml: str, name: str) -> str:
    """The document without any value of a channel variable. Raises MetadataError."""
    global _known
    known = _known
    is_known = known.xml is xml
    if is_known and name not in known.values:
        return xml
    start, end = known[1:3] if is_known else _variables_span(xml)
    opening, closing = f"<{name}>", f"</{name}>"
    since = start
    while (at := xml.find(opening, since, end)) >= 0:
        since = at + len(opening)
        stop = xml.find("<", since, end)
        if xml.startswith(closing, stop):
            before = xml[:at].rstrip()
            xml = before + xml[stop + len(closing) :]
            end -= stop + len(closing) - len(before)
            since = len(before)
    if is_known:
        values = known.values.copy()
        values.pop(name)
        _known = _Known(xml, start, end, values)
    return xml


class Application(NamedTuple):
    """One dialplan application, and where in the document its element is."""

    name: str
    data: str
    start: int
    end: int


def _extension_span(xml: str) -> tuple[int, int]:
    """The first <extension> of the call flow: what FreeSWITCH runs after a recovery."""
    start = xml.find("<callflow")
    start = xml.find("<extension", start) if start >= 0 else -1
    start = xml.find(">", start) + 1 if start >= 0 else 0
    end = xml.find("</extension>", start)
    return (start, end) if 0 < start <= end else (0, 0)


def profile_index(xml: str) -> str:
    """Which caller profile of the channel that extension is of; empty where it is not said."""
    found = _PROFILE_INDEX.search(xml)
    return found[1] if found else ""


def _unescaped(value: str) -> str:
    try:
        return unescape(value)
    except ValueError:  # a decimal number of thousands of digits, which is no sign anyway
        return value


def _applications(xml: str, start: int, end: int) -> list[Application]:
    found = []
    for match in _APPLICATION.finditer(xml, start, end):
        pairs = {name: _unescaped(value) for name, value in _ATTRIBUTE.findall(match[1])}
        closing = xml.find("</application>", match.end(), end)
        whole = closing + len("</application>") if closing >= 0 else match.end()
        found.append(
            Application(pairs.get("app_name", ""), pairs.get("app_data", ""), match.start(), whole)
        )
    return found


def extension(xml: str) -> list[Application]:
    """The applications that FreeSWITCH would run again, in order."""
    return _applications(xml, *_extension_span(xml))


def executed(xml: str) -> list[Application]:
    """Applications that ran before the row was written (`app_log`), in order."""
    start = xml.find("<app_log>")
    end = xml.find("</app_log>", start)
    return _applications(xml, start, end) if 0 <= start <= end else []


def has_application(xml: str, name: str) -> bool:
    """Whether the extension names this application: a scan, no list."""
    start, end = _extension_span(xml)
    return xml.find(f'app_name="{name}"', start, end) >= 0


def without(xml: str, applications: list[Application]) -> str:
    """The document without these elements of it."""
    for one in sorted(applications, key=lambda one: one.start, reverse=True):
        xml = xml[: one.start].rstrip() + xml[one.end :]
    return xml


def facts(xml: str) -> CallFacts:
    """Direction, partner leg, CSeq and answer time of a leg. Raises MetadataError.

    The partner is what FreeSWITCH itself bridges to after recovery: the signal bond.
    """
    check(xml)
    start, end = _variables_span(xml)
    direction = _DIRECTION.search(xml, 0, start)
    partner = _find_variable(xml, "signal_bond", start, end)
    if not partner:
        partner = _find_variable(xml, "originate_signal_bond", start, end)
    answered = _ANSWERED.search(xml, end)
    return CallFacts(
        direction.group(1) if direction else "inbound",
        partner or "",
        _find_variable(xml, "sip_cseq", start, end) or "",
        int(answered.group(1)) // 1000 if answered else 0,
    )
