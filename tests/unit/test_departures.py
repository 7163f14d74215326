"""Who leaves in a takeover stays away, bounded in time and number."""

from __future__ import annotations

from typing import Any

from haclusterd.freeswitch.departures import KEEP_S, LEFT_MAX, OF_USER_MAX, Departures
from haclusterd.freeswitch.esl_protocol import Event
from haclusterd.freeswitch.registrations import Row
from tests.unit.test_registrations import row as raw_row


def row(user: str, **other: Any) -> Row:
    return raw_row(user, f"<sip:{user}@10.0.0.1>", profile_name="east", **other)


def event(user: str, contact: str = "", call_id: str = "") -> Event:
    headers = {"from-user": user, "from-host": "lab.test", "contact": contact, "call-id": call_id}
    return Event(headers)


def test_a_departure_counts_for_its_user_at_its_profile_and_for_a_while() -> None:
    left, here = Departures(), row("1000")
    assert left.note("east", event("1000", here.contact), 100.0) == []
    others = [row("1001"), here._replace(profile_name="west"), here._replace(sip_host="x.test")]
    other = here._replace(contact="<sip:1000@10.0.0.2>", call_id="other")
    assert left.still_here([here, *others, other], 101.0) == [*others, other]
    assert left.still_here([here], 101.0 + KEEP_S) == [here]
    left.note("east", event("1000", here.contact), 200.0)
    left.forget("east")
    assert left.still_here([here], 200.0) == [here]


def test_what_was_put_in_goes_with_a_departure_that_is_told_late_but_not_for_ever() -> None:
    left, here = Departures(), row("1000")
    left.handed_over("east", [here, row("1001")], 100.0)
    assert left.note("west", event("1000", here.contact), 100.1) == []
    assert left.note("east", event("1000", here.contact), 100.2) == [here]
    assert left.note("east", event("1000", "", here.call_id), 100.3) == [here]
    assert left.note("east", event("1000", "*"), 100.3) == [here]
    assert left.note("east", event("1000"), 100.3) == [], "says nothing"
    assert left.note("east", event("1000", here.contact), 100.1 + KEEP_S) == []
    left.handed_over("east", [here], 300.0)
    left.forget("east")
    assert left.note("east", event("1000", here.contact), 300.1) == []


def test_a_flood_of_departures_is_bounded() -> None:
    left = Departures()
    for number in range(LEFT_MAX + 500):
        left.note("east", event(str(number), f"<sip:{number}@10.0.0.1>"), 100 + number / 1e6)
    left.still_here([], 101.0)
    assert len(left._left) == len(left._order) == LEFT_MAX
    for number in range(LEFT_MAX + 500):
        left.note("east", event("1000", "<sip:1000@10.0.0.1>"), 101 + number / 1e6)
    left.still_here([], 102.0)
    assert sum(map(len, left._left.values())) == OF_USER_MAX
    left.note("east", event("u" * 2000, "x"), 102.0)
    left.still_here([], 200.0)
    assert not left._left
    assert not left._order
