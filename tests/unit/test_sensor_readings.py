"""Hysteresis of a sensor, and what FreeSWITCH's words about gateways and events mean. Pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from haclusterd.config.watching import Sensor
from haclusterd.freeswitch.esl_protocol import Event
from haclusterd.sensors.reading import (
    CRITICAL,
    IDLE,
    OK,
    UNKNOWN,
    WARN,
    Gauge,
    Reading,
    by_thresholds,
    penalty,
    plain,
)
from haclusterd.sensors.switch import Condition, concerns, gateway_reading, subscription

SENSOR = Sensor(
    "x", "event", 5000, 2000, 3, 3, 60, False, (), 0, 0, "", False, "", "", "trunk", "", 5060,
    "CUSTOM sofia::gateway_state", (("Gateway", "trunk"), ("State", "DOWN")),
    (("Gateway", "trunk"), ("State", "REGED")), 0, (),
)  # fmt: skip


def after(*levels: str, gauge: Gauge | None = None) -> list[str]:
    """The state after each reading."""
    gauge = gauge or Gauge(3, 2)
    found = []
    for level in levels:
        gauge.take(Reading(level, level), 0.0)
        found.append(gauge.state)
    return found


def test_the_first_good_reading_counts_at_once_and_a_bad_one_does_not() -> None:
    assert after(OK) == [OK]
    assert after(CRITICAL, CRITICAL, CRITICAL) == [UNKNOWN, UNKNOWN, CRITICAL]


def test_readings_in_a_row_change_the_state_and_single_ones_do_not() -> None:
    flapping = [OK, CRITICAL, CRITICAL, OK, CRITICAL, CRITICAL, OK]
    assert set(after(*flapping)) == {OK}
    assert after(OK, CRITICAL, CRITICAL, CRITICAL)[-1] == CRITICAL
    assert after(OK, CRITICAL, CRITICAL, CRITICAL, OK, CRITICAL, OK)[-1] == CRITICAL
    assert after(OK, CRITICAL, CRITICAL, CRITICAL, OK, OK)[-1] == OK


def test_worse_goes_to_the_mildest_and_better_to_the_worst() -> None:
    assert after(OK, WARN, CRITICAL, CRITICAL) == [OK, OK, OK, WARN]
    assert after(OK, WARN, *[CRITICAL] * 5)[-1] == CRITICAL
    assert after(OK, *[CRITICAL] * 3, WARN, OK) == [OK, OK, OK, CRITICAL, CRITICAL, WARN]


def test_what_cannot_be_told_for_long_is_unknown_and_what_does_not_apply_idle_at_once() -> None:
    assert after(OK, UNKNOWN, UNKNOWN, UNKNOWN) == [OK, OK, OK, UNKNOWN]
    assert after(OK, CRITICAL, CRITICAL, UNKNOWN, CRITICAL)[-1] == OK
    assert after(*[CRITICAL] * 3, IDLE, OK) == [UNKNOWN, UNKNOWN, CRITICAL, IDLE, OK]
    gauge = Gauge(3, 2)
    after(*[UNKNOWN] * 1000, gauge=gauge)
    assert gauge._unknown <= 3, "nothing grows with time"


def test_an_alarm_keeps_the_text_it_was_raised_with() -> None:
    gauge = Gauge(1, 1)
    gauge.take(Reading(CRITICAL, "97 % used"), 1.0)
    assert not gauge.take(Reading(CRITICAL, "98 % used"), 2.0)
    assert (gauge.text, gauge.raised, gauge.since) == ("98 % used", "97 % used", 1.0)


@pytest.mark.parametrize(
    ("state", "takes"), [(OK, 0), (WARN, 15), (CRITICAL, 60), (UNKNOWN, 0), (IDLE, 0)]
)
def test_what_a_state_takes_from_the_health(state: str, takes: int) -> None:
    assert penalty(state, 60) == takes


def test_thresholds_of_zero_are_never_reached() -> None:
    assert by_thresholds(10**9, 0, 0, "x").level == OK
    assert [by_thresholds(v, 85, 95, "x").level for v in (84, 85, 94, 95)] == [
        OK, WARN, WARN, CRITICAL
    ]  # fmt: skip


def test_hostile_output_is_one_short_printable_line() -> None:
    assert plain("\n\n\x1b[2Jboom\x00\nsecond") == "?[2Jboom?"
    assert len(plain("x" * 100_000)) == 200
    assert plain("") == ""


GATEWAY = """=====
Name    \ttrunk
Profile \t{profile}
Scheme  \tDigest
Realm   \tprovider.example
State   \t{state}
Status  \t{status}
Uptime  \t0s
"""


@pytest.mark.parametrize(
    ("state", "status", "level"),
    [
        ("REGED", "UP", OK),
        ("NOREG", "UP (ping)", OK),
        ("TRYING", "DOWN", WARN),
        ("FAIL_WAIT", "DOWN", CRITICAL),
        ("NOREG", "DOWN (ping)", CRITICAL),
    ],
)
def test_a_gateway_is_what_freeswitch_says(state: str, status: str, level: str) -> None:
    answer = GATEWAY.format(profile="east", state=state, status=status)
    assert gateway_reading("trunk", answer, lambda profile: profile == "east").level == level


def test_a_gateway_of_a_profile_that_stands_by_here_says_nothing() -> None:
    answer = GATEWAY.format(profile="west", state="NOREG", status="DOWN")
    assert gateway_reading("trunk", answer, lambda profile: profile == "east").level == IDLE


@pytest.mark.parametrize("answer", ["", "-ERR no such command", "\x00\x1b" * 1000, "Status\n"])
def test_an_answer_that_makes_no_sense_takes_nothing(answer: str) -> None:
    assert gateway_reading("trunk", answer, lambda profile: True).level == UNKNOWN


def test_a_gateway_that_is_not_there_is_critical() -> None:
    assert gateway_reading("trunk", "Invalid Gateway!\n", lambda profile: True).level == CRITICAL


def event(**headers: str | list[str]) -> Event:
    named = {"Event-Name": "CUSTOM", "Event-Subclass": "sofia::gateway_state"}
    return Event(named | headers)


def test_an_event_raises_and_clears_a_condition() -> None:
    """B29."""
    condition = Condition(SENSOR)
    assert condition.reading(0).level == OK
    assert not condition.event(event(Gateway="other", State="DOWN"), 1)
    assert not condition.event(event(Gateway="trunk", State="TRYING"), 1)
    assert condition.event(event(Gateway="trunk", State="DOWN"), 1)
    assert condition.reading(10**6).level == CRITICAL
    assert condition.event(event(Gateway="trunk", State="REGED"), 2)
    assert condition.reading(2).level == OK


def test_a_condition_ends_by_itself_after_its_time() -> None:
    condition = Condition(replace(SENSOR, clear_if=(), clear_after_s=60))
    condition.event(event(Gateway="trunk", State="DOWN"), 100)
    assert condition.reading(159.9).level == CRITICAL
    assert condition.reading(160).level == OK
    assert condition.reading(1000).level == OK


def test_only_the_named_event_is_looked_at() -> None:
    assert concerns(SENSOR, event())
    assert not concerns(SENSOR, Event({"Event-Name": "CUSTOM", "Event-Subclass": "x::y"}))
    assert not concerns(SENSOR, Event({"Event-Name": "HEARTBEAT"}))
    assert concerns(replace(SENSOR, event="HEARTBEAT"), Event({"Event-Name": "HEARTBEAT"}))
    assert subscription([SENSOR, SENSOR, replace(SENSOR, event="HEARTBEAT")]) == (
        "HEARTBEAT", "sofia::gateway_state"
    )  # fmt: skip
