"""Two takeovers of a service within two seconds, with a real FreeSWITCH and a phone of RFC 3261."""

from __future__ import annotations

import time

import pytest

from haclusterd.freeswitch.mends import ATTEMPT_BITS, Mends
from haclusterd.freeswitch.options import RecoveryOptions
from tests.fixtures.talker import Talker
from tests.freeswitch.moving import recovered, watched
from tests.freeswitch.rig import CLIENT, EAST, Rig, channels

pytestmark = [pytest.mark.freeswitch, pytest.mark.timeout(120)]


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_eg1_the_next_owner_is_heard_though_the_last_one_died_just_after_its_reinvite(
    rig: Rig, on: bool
) -> None:
    """No row of B's was replicated, so A has the same row that B had, and nearly the same clock."""
    rig.activate(rig.a, "east", EAST)
    phone = Talker(f"{rig.name}-cl", CLIENT, EAST)
    phone.call("9196")
    records = watched(rig.a, 1)
    rig.a.kill()
    rig.a.start()
    rig.a.wait_ready()
    rig.own(rig.b, EAST)
    options = RecoveryOptions(mends=Mends(cseq=on), deadline_ms=1500)
    time.sleep(2.05 - time.time() % 2)  # sofia-sip's number changes every 2 s
    began_s = time.monotonic()
    (first,) = recovered(rig.b, records, options, 2 << ATTEMPT_BITS).values()
    rig.b.kill()
    rig.own(rig.a, EAST)
    (second,) = recovered(rig.a, records, options, 3 << ATTEMPT_BITS).values()
    assert first.verdict == "recovered"
    took_s = time.monotonic() - began_s
    numbers = [one.cseq for one in phone.requests("INVITE", began_s)]
    print(numbers, second, round(took_s, 2))
    higher = numbers == sorted(set(numbers))
    assert (second.verdict == "recovered") is higher, second
    assert higher is on or took_s > 1.8, "on a busy machine sofia-sip's number may be another one"
    assert channels(rig.a) == int(higher)
    if higher:
        (dialogue,) = phone.dialogues.values()
        assert phone.bye(dialogue).startswith("SIP/2.0 200")
    phone.close()
