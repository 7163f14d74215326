"""Lamps and message lights: which events of one FreeSWITCH another one is told, and in what form.

mod_sofia takes `multicast::event` as if the event were its own, tells its subscribers, and fires
nothing itself, so that nothing goes round in circles (sofia.c, `event_handler`; measured). Values
come from callers and scripts, and end in XML and SIP of another FreeSWITCH; a MESSAGE_WAITING whose
account has no host would even end it (`switch_assert`, sofia_presence.c). So what is not plain is
refused, on either side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from .esl_protocol import Event

PRESENCE_IN, MESSAGE_WAITING = "PRESENCE_IN", "MESSAGE_WAITING"
EVENTS = (PRESENCE_IN, MESSAGE_WAITING)
VALUE_MAX = 255
# What `event_handler` of mod_sofia reads of such an event, and nothing else.
_READ = {
    PRESENCE_IN: (
        "alt_event_type", "answer-state", "astate", "call-direction", "Caller-Callee-ID-Number",
        "Caller-Caller-ID-Name", "Caller-Caller-ID-Number", "Caller-Destination-Number",
        "Caller-Direction", "Caller-Username", "channel-state", "force-status", "from", "login",
        "Other-Leg-Caller-ID-Name", "Other-Leg-Caller-ID-Number", "presence-call-direction",
        "presence-call-info-state", "Presence-Privacy", "proto", "rpid", "status", "Unique-ID",
        "variable_sip_from_user", "variable_sip_to_user",
    ),
    MESSAGE_WAITING: ("MWI-Messages-Waiting", "MWI-Message-Account", "MWI-Voice-Message"),
}  # fmt: skip
_WHOSE_HEADER = {PRESENCE_IN: "from", MESSAGE_WAITING: "MWI-Message-Account"}
_WHOSE = re.compile(
    r"(?:sips?:)?[A-Za-z0-9_.!~*+=&/-]{1,120}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,118}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])\Z"
)
_UNSAFE = re.compile(r"[<>\"%&\\$`{}|^]")
# Of these the other nodes know as much, or more: answers to a probe, registrations.
_OF_SOFIA = ("sofia", "mod_sofia")


class Word(msgspec.Struct, frozen=True, array_like=True):
    """One event as it travels: its name, and its headers as mod_sofia reads them."""

    name: str
    headers: dict[str, str]


class Refused(ValueError):
    """An event that does not travel; the message says why."""


def word_of(event: Event) -> Word | None:
    """What the others are told of an event; None if nothing. Raises Refused."""
    if event.name not in EVENTS or not _is_news(event):
        return None
    # FreeSWITCH finds a header however it is written: it fires Answer-State, reads answer-state.
    given = {header.lower(): event.get(header) for header in event.headers}
    values = {name: _plain(given.get(name.lower(), "")) for name in _READ[event.name]}
    whose = _WHOSE_HEADER[event.name]
    values[whose] = given.get(whose.lower(), "")  # without a sign it would be somebody else
    return checked(Word(event.name, {name: value for name, value in values.items() if value}))


def _is_news(event: Event) -> bool:
    if event.name == MESSAGE_WAITING:  # to one phone that has just asked
        return not (event.get("call-id") or event.get("sub-call-id"))
    source = event.get("Event-Calling-File")
    return not source.startswith(_OF_SOFIA) or "publish" in event.get("Event-Calling-Function")


def _plain(value: str) -> str:
    """Without what could be more than a text: names of callers, mostly."""
    return _UNSAFE.sub("", "".join(c for c in value[:VALUE_MAX] if c.isprintable()))


def checked(word: Word) -> Word:
    """Hold a word to the rules, whoever said it. Raises Refused."""
    if word.name not in EVENTS:
        raise Refused(f"an event {word.name[:40]!a} does not travel")
    whose = word.headers.get(_WHOSE_HEADER[word.name], "")
    if not _WHOSE.match(whose):
        raise Refused(f"{word.name} of {whose[:60]!a}, which is no user@host")
    if word.name == MESSAGE_WAITING and not word.headers.get("MWI-Messages-Waiting"):
        raise Refused("MESSAGE_WAITING without MWI-Messages-Waiting")
    for name, value in word.headers.items():
        if name not in _READ[word.name]:
            raise Refused(f"a header {name[:40]!a} does not travel")
        if len(value) > VALUE_MAX or not value.isprintable() or _UNSAFE.search(value):
            raise Refused(f"{name} has signs that it must not have")
    return word


def multicast(word: Word) -> Mapping[str, str]:
    """The headers of the CUSTOM event that tells mod_sofia."""
    told = {f"Orig-{name}": value for name, value in word.headers.items()}
    return {"Event-Subclass": "multicast::event", "Orig-Event-Name": word.name, **told}
