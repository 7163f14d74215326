"""`max-sessions` and `sessions-per-second` of a real FreeSWITCH while it takes calls over."""

from __future__ import annotations

import pytest

from haclusterd.freeswitch.options import RecoveryOptions
from tests.fixtures.talker import Talker
from tests.freeswitch.moving import moved, watched
from tests.freeswitch.rig import CLIENT, EAST, Rig, channels, eventually

pytestmark = [pytest.mark.freeswitch, pytest.mark.timeout(120)]
CALLS = 4


def refused(rig: Rig, user: str) -> str:
    """What a new call is answered with."""
    phone = Talker(f"{rig.name}-cl", CLIENT, EAST, user=user)
    try:
        return phone.call("9196").other and "200"
    except AssertionError as error:
        return str(error).split("\n")[0]
    finally:
        phone.close()


def test_b12_calls_that_are_taken_over_are_above_the_limits_and_count_against_them(
    rig: Rig,
) -> None:
    rig.activate(rig.a, "east", EAST)
    phones = [Talker(f"{rig.name}-cl", CLIENT, EAST, user=f"10{n:02}") for n in range(CALLS)]
    for phone in phones:
        phone.call("9196")
    records = watched(rig.a, CALLS)
    rig.b.api(f"fsctl max_sessions {CALLS - 1}")
    rig.b.api("fsctl sps 1")
    _, verdicts = moved(rig, records, RecoveryOptions())
    assert [v.verdict for v in verdicts] == ["recovered"] * CALLS
    assert channels(rig.b) == CALLS
    assert "503" in refused(rig, "1100"), "they count: there is no place for a new one"
    rig.b.api(f"fsctl max_sessions {CALLS + 5}")
    rig.b.api("fsctl sps 30")
    eventually(lambda: refused(rig, "1101") == "200", "a new call to get through")
    for phone in phones:
        phone.close()
