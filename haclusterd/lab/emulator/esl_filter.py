"""What one ESL client has subscribed to: event names, custom subclasses, header filters."""

from __future__ import annotations

import re
from typing import Final

from haclusterd.lab.emulator.events import Event

_FILTERS_MAX: Final = 1000
_NAMES: Final = """
CUSTOM CLONE CHANNEL_CREATE CHANNEL_DESTROY CHANNEL_STATE CHANNEL_CALLSTATE CHANNEL_ANSWER
CHANNEL_HANGUP CHANNEL_HANGUP_COMPLETE CHANNEL_EXECUTE CHANNEL_EXECUTE_COMPLETE CHANNEL_HOLD
CHANNEL_UNHOLD CHANNEL_BRIDGE CHANNEL_UNBRIDGE CHANNEL_PROGRESS CHANNEL_PROGRESS_MEDIA
CHANNEL_OUTGOING CHANNEL_PARK CHANNEL_UNPARK CHANNEL_APPLICATION CHANNEL_ORIGINATE CHANNEL_UUID
API LOG INBOUND_CHAN OUTBOUND_CHAN STARTUP SHUTDOWN PUBLISH UNPUBLISH TALK NOTALK SESSION_CRASH
MODULE_LOAD MODULE_UNLOAD DTMF MESSAGE PRESENCE_IN NOTIFY_IN PRESENCE_OUT PRESENCE_PROBE
MESSAGE_WAITING MESSAGE_QUERY ROSTER CODEC BACKGROUND_JOB DETECTED_SPEECH DETECTED_TONE
PRIVATE_COMMAND HEARTBEAT TRAP ADD_SCHEDULE DEL_SCHEDULE EXE_SCHEDULE RE_SCHEDULE RELOADXML
NOTIFY PHONE_FEATURE PHONE_FEATURE_SUBSCRIBE SEND_MESSAGE RECV_MESSAGE REQUEST_PARAMS
CHANNEL_DATA GENERAL COMMAND SESSION_HEARTBEAT CLIENT_DISCONNECTED SERVER_DISCONNECTED SEND_INFO
RECV_INFO RECV_RTCP_MESSAGE SEND_RTCP_MESSAGE CALL_SECURE NAT RECORD_START RECORD_STOP
PLAYBACK_START PLAYBACK_STOP CALL_UPDATE FAILURE SOCKET_DATA MEDIA_BUG_START MEDIA_BUG_STOP
CONFERENCE_DATA_QUERY CONFERENCE_DATA CALL_SETUP_REQ CALL_SETUP_RESULT CALL_DETAIL DEVICE_STATE
TEXT SHUTDOWN_REQUESTED ALL
"""
EVENT_NAMES: Final = frozenset(_NAMES.split())


class Subscription:
    """Answers are the Reply-Text of the command that made the change."""

    def __init__(self) -> None:
        self.style = "plain"
        self._names: set[str] = set()
        self._subclasses: set[str] = set()
        self._filters: list[tuple[str, str]] = []
        self._listening = False

    def wants(self, name: str, subclass: str) -> bool:
        if "ALL" in self._names:
            return True
        if name == "CUSTOM":
            return subclass in self._subclasses
        return name in self._names

    def add(self, argument: str) -> str:
        words = argument.split()
        if words and words[0].lower() in ("plain", "json", "xml"):
            self.style = words.pop(0).lower()
        known = custom = 0
        for word in words:
            if custom:
                self._subclasses.add(word)
            elif word.upper() in EVENT_NAMES:
                known += 1
                self._names.add(word.upper())
                custom = word.upper() == "CUSTOM"
        if not known:
            return "-ERR no keywords supplied"
        self._listening = True
        return f"+OK event listener enabled {self.style}"

    def nix(self, argument: str) -> str:
        known = custom = 0
        for word in argument.split():
            if custom:
                self._subclasses.discard(word)
            elif word.upper() in EVENT_NAMES:
                known += 1
                if word.upper() == "ALL":
                    self._names.clear()
                elif "ALL" in self._names:
                    self._names = set(EVENT_NAMES - {"ALL"})
                self._names.discard(word.upper())
                custom = word.upper() == "CUSTOM"
        return "+OK events nixed" if known else "-ERR no keywords supplied"

    def clear(self) -> str:
        if not self._listening:
            return "-ERR not listening for events"
        self._listening = False
        self._names.clear()
        self._subclasses.clear()
        return "+OK no longer listening for events"

    def filter(self, argument: str) -> str:
        name, _, value = argument.partition(" ")
        if name.lower() == "delete" and value:
            name, _, value = value.partition(" ")
            if name.lower() == "all":
                self._filters.clear()
            else:
                self._filters = [
                    (n, v)
                    for n, v in self._filters
                    if n.lower() != name.lower() or (value and v != value)
                ]
            return f"+OK filter deleted. [{name}][{value}]"
        if name.lower() == "add" and value:
            name, _, value = value.partition(" ")
        if not value or len(self._filters) >= _FILTERS_MAX:
            return "-ERR invalid syntax"
        self._filters.append((name, value))
        return f"+OK filter added. [{name}]=[{value}]"

    def passes(self, event: Event) -> bool:
        """Positive filters are OR-ed and hide what lacks their header; `-` hides what matches."""
        if not self._filters:
            return True
        send = False
        for name, wanted in self._filters:
            actual = event.header(name)
            if actual is None:
                continue
            positive = not wanted.startswith("-")
            if send and positive:
                continue
            if _matches(actual, wanted.lstrip("+- ")):
                if not positive:
                    return False
                send = True
        return send


def _matches(actual: str, wanted: str) -> bool:
    if wanted.startswith("/") and wanted.endswith("/") and len(wanted) > 1:
        try:
            return re.search(wanted[1:-1], actual) is not None
        except re.error:
            return False
    return actual.lower() == wanted.lower()
