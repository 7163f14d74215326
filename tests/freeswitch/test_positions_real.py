"""Where a real FreeSWITCH's calls are in their dialplan, where that is easily mistaken.

A call that is put too far in it has skipped what it had still to do, which may be to ask for a PIN.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from haclusterd.core.records import CallRecord
from haclusterd.freeswitch import metadata
from tests.fixtures.talker import Talker
from tests.freeswitch.moving import watched
from tests.freeswitch.rig import CLIENT, EAST, Rig, eventually

pytestmark = [pytest.mark.freeswitch, pytest.mark.timeout(120)]


def runs_next(record: CallRecord) -> list[str]:
    """The applications that a recovery would run."""
    return [one.name for one in metadata.extension(record.metadata)][max(record.position, 0) :]


def at(rig: Rig, number: str, application: str, then: Callable[[Talker, str], None]) -> CallRecord:
    """The record of a call to `number` that has come to `application`, after `then`."""
    rig.activate(rig.a, "east", EAST)
    phone = Talker(f"{rig.name}-cl", CLIENT, EAST)

    def reach_it() -> None:
        phone.call(number)
        eventually(lambda: now(rig) == application, f"{application} to run")
        (uuid,) = [row[0] for row in shown(rig)]
        then(phone, uuid)

    (record,) = watched(rig.a, 1, positions=True, during=reach_it).values()
    print(number, metadata.profile_index(record.metadata), record.position, runs_next(record))
    phone.close()
    return record


def shown(rig: Rig) -> list[list[str]]:
    lines = rig.a.api("show channels").splitlines()
    return [line.split(",") for line in lines[1:] if "sofia/" in line]


def now(rig: Rig) -> str:
    found = [rig.a.api(f"uuid_getvar {row[0]} current_application") for row in shown(rig)]
    return found[0].strip() if found else ""


def nothing(phone: Talker, uuid: str) -> None:
    """No more than that."""


def test_eg1_what_is_run_within_an_application_is_not_where_the_call_is(rig: Rig) -> None:
    record = at(rig, "7001", "sleep", nothing)
    # A row that was written meanwhile holds nothing but the part: FreeSWITCH forgets the rest.
    assert runs_next(record) in (["execute_extension", "playback", "echo"], ["playback", "sleep"])


def test_eg1_an_application_that_was_broadcast_is_not_where_the_call_is(rig: Rig) -> None:
    def broadcast(phone: Talker, uuid: str) -> None:
        rig.a.api(f"uuid_broadcast {uuid} playback::tone_stream://%(300,0,440)")
        time.sleep(0.6)

    record = at(rig, "7003", "sleep", broadcast)
    assert runs_next(record) == ["sleep", "playback", "echo"]


def test_eg1_a_call_that_went_elsewhere_begins_there(rig: Rig) -> None:
    record = at(rig, "7003", "sleep", nothing)
    # As the row was written before or after.
    assert runs_next(record) in (["transfer"], ["sleep", "playback", "echo"])


def test_eg1_a_row_that_was_written_elsewhere_is_walked_from_there(rig: Rig) -> None:
    """A re-INVITE of the phone makes FreeSWITCH write the row anew, with the new extension."""

    def hold(phone: Talker, uuid: str) -> None:
        rig.a.api(f"uuid_media_reneg {uuid}")
        time.sleep(0.6)

    record = at(rig, "7003", "sleep", hold)
    assert runs_next(record) == ["sleep", "playback", "echo"]
