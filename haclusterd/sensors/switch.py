"""Sensors that ask the local FreeSWITCH: state of a gateway, and its events as conditions (B29)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from haclusterd.config.watching import Sensor
from haclusterd.freeswitch.esl import Esl
from haclusterd.freeswitch.esl_errors import EslError
from haclusterd.freeswitch.esl_protocol import Event
from haclusterd.sensors.reading import CRITICAL, IDLE, OK, UNKNOWN, WARN, Reading, plain

_FIELD = re.compile(r"^(\w+)[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_ANSWER_CHARS_MAX = 65_536
# FreeSWITCH's words for a gateway (mod_sofia): a registration under way is no fault yet.
_COMING = frozenset({"TRYING", "REGISTER", "UNREGED"})


def gateway_reading(name: str, answer: str, mine: Callable[[str], bool]) -> Reading:
    """What `sofia status gateway NAME` says. `mine(profile)`: does this node answer for it?"""
    if answer.startswith("Invalid Gateway"):
        return Reading(CRITICAL, f"FreeSWITCH knows no gateway {name}")
    fields = dict(_FIELD.findall(answer[:_ANSWER_CHARS_MAX]))
    profile, state = fields.get("Profile", ""), fields.get("State", "")
    status = fields.get("Status", "")
    if not status:
        return Reading(UNKNOWN, f"gateway {name}: FreeSWITCH said {plain(answer) or 'nothing'}")
    if profile and not mine(profile):
        return Reading(IDLE, f"gateway {name} belongs to profile {profile}, which stands by here")
    text = f"gateway {name} is {status} ({state})"
    if status.startswith("UP"):
        return Reading(OK, text)
    return Reading(WARN if state in _COMING else CRITICAL, text)


async def read_gateway(esl: Esl | None, sensor: Sensor, mine: Callable[[str], bool]) -> Reading:
    if esl is None or not esl.up:
        return Reading(UNKNOWN, (esl.problem if esl is not None else "") or "ESL is not logged in")
    try:
        answer = await esl.api(f"sofia status gateway {sensor.gateway}", sensor.timeout_ms)
    except EslError as error:
        return Reading(CRITICAL, f"FreeSWITCH did not tell of gateway {sensor.gateway}: {error}")
    return gateway_reading(sensor.gateway, answer, mine)


class Condition:
    """One `event` sensor: raised and cleared by headers of events; `now` is given, never asked."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._raised_at: float | None = None
        self._text = "no such event yet"

    def event(self, event: Event, now: float) -> bool:
        """One event of the right name; whether it raises or clears the condition."""
        if _fulfils(event, self._sensor.raise_if):
            self._raised_at = now
            self._text = f"{self._sensor.event}: {_said(self._sensor.raise_if)}"
            return True
        if self._sensor.clear_if and _fulfils(event, self._sensor.clear_if):
            self._raised_at = None
            self._text = f"{self._sensor.event}: {_said(self._sensor.clear_if)}"
            return True
        return False

    def reading(self, now: float) -> Reading:
        """Critical while it stands; it clears itself after its time."""
        after_s = self._sensor.clear_after_s
        if self._raised_at is not None and after_s and now - self._raised_at >= after_s:
            self._raised_at = None
            self._text = f"{self._sensor.event}: over after {after_s} s"
        return Reading(OK if self._raised_at is None else CRITICAL, self._text)


def _fulfils(event: Event, wanted: Sequence[tuple[str, str]]) -> bool:
    return all(event.get(name) == value for name, value in wanted)


def _said(conditions: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name}={value}" for name, value in conditions)


def concerns(sensor: Sensor, event: Event) -> bool:
    """Whether this is the event that the sensor listens to."""
    name, _, subclass = sensor.event.partition(" ")
    return event.name == name and (not subclass or event.subclass == subclass)


def subscription(sensors: Sequence[Sensor]) -> tuple[str, ...]:
    """Names and CUSTOM subclasses to subscribe to, each once."""
    events = (sensor.event for sensor in sensors if sensor.kind == "event")
    return tuple(sorted({event.removeprefix("CUSTOM ") for event in events}))
