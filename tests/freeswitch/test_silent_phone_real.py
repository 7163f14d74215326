"""A bridged call, one of whose phones says nothing any more, with a real FreeSWITCH."""

from __future__ import annotations

import signal
import time

import pytest

from haclusterd.freeswitch.options import RecoveryOptions
from tests.freeswitch.moving import moved, watched
from tests.freeswitch.rig import EAST, Rig, channels, eventually

pytestmark = [pytest.mark.freeswitch, pytest.mark.timeout(120)]


@pytest.mark.parametrize("silent", ["caller", "callee"])
def test_e2_a_leg_of_a_silent_phone_is_not_called_recovered_by_its_bridge(
    rig: Rig, silent: str
) -> None:
    """FreeSWITCH bridges legs when the outbound one has answered: a bridge proves nothing. When
    that one is silent it takes the other's answer after 2.2 s: before that nobody can tell."""
    rig.activate(rig.a, "east", EAST)
    callee = rig.callee()
    caller = rig.call(EAST, "4100")
    records = watched(rig.a, 2)
    (callee if silent == "callee" else caller).send_signal(signal.SIGSTOP)
    began_s = time.monotonic()
    _, found = moved(rig, records, RecoveryOptions(deadline_ms=1000))
    early = time.monotonic() - began_s < 2.2
    verdicts = {records[v.uuid].direction: v for v in found}
    mute, other = ("outbound", "inbound") if silent == "callee" else ("inbound", "outbound")
    assert verdicts[mute].verdict == "lost", verdicts[mute]
    told = {"partial"} if silent == "caller" else {"lost"} if early else {"lost", "partial"}
    assert verdicts[other].verdict in told, verdicts[other]
    rig.b.api("hupall")
    eventually(lambda: channels(rig.b) == 0, "the end of both legs")
