"""Calls live on in another FreeSWITCH when their rows and their address are moved (FREESWITCH.md).

What haclusterd does by itself is done here step by step, so that a failure of the whole can be
told from a FreeSWITCH that does not do what we rely on.
"""

from __future__ import annotations

import subprocess
import time

import pytest

from haclusterd.lab.freeswitch import FreeswitchInstance
from tests.freeswitch.rig import (
    CLIENT,
    EAST,
    SIP_PORT,
    WEST,
    Rig,
    channels,
    eventually,
    insert,
    rows,
)

pytestmark = pytest.mark.freeswitch


def take_over(
    rig: Rig, source: FreeswitchInstance, target: FreeswitchInstance, address: str = EAST
) -> float:
    """Kill `source`, move its address and ALL its rows to `target`, recover east there.

    The monotonic clock of the death, in s.
    """
    copied = rows(source)
    source.kill()
    died_s = time.monotonic()
    rig.own(target, address)
    insert(target, copied)
    target.api("sofia profile east recover", timeout_s=30)
    return died_s


def calls_up(rig: Rig, node: FreeswitchInstance, extension: str, count: int) -> None:
    legs = count * (2 if extension.startswith("41") else 1)
    eventually(lambda: len(rows(node, "east")) == legs, f"{legs} rows")
    time.sleep(0.5)  # the last update of a row (ACK data) comes up to 212 ms after it


@pytest.mark.parametrize("extension", ["9197", "4100"], ids=["tone", "bridged"])
@pytest.mark.parametrize("who", ["caller", "freeswitch"])
def test_a_call_is_revived_and_ends_from_either_side(rig: Rig, extension: str, who: str) -> None:
    rig.activate(rig.a, "east", EAST)
    legs = 2 if extension == "4100" else 1
    callee = rig.callee(1) if legs == 2 else None
    caller = rig.call(EAST, extension, hold_ms=4000 if who == "caller" else 20000)
    calls_up(rig, rig.a, extension, 1)

    died_s = take_over(rig, rig.a, rig.b)

    eventually(lambda: len(rig.wire.sip("INVITE", died_s, EAST)) == legs, "a re-INVITE per leg")
    eventually(lambda: len(rig.wire.sip("ACK", died_s, EAST)) == legs, "an ACK per leg")
    eventually(lambda: len(rig.wire.media(died_s, source=EAST)) > 20, "media from the new node")
    assert len(rig.wire.media(died_s, target=EAST)) > 20, "the telephones stopped sending"
    assert channels(rig.b) == legs
    if who == "freeswitch":
        rig.b.api("hupall normal_clearing sofia_profile_name east")
    assert caller.wait(10) == 0
    if callee is not None:
        assert callee.wait(5) == 0
    eventually(lambda: channels(rig.b) == 0 and not rows(rig.b), "nothing left")


def test_recover_takes_only_the_rows_of_its_profile(rig: Rig) -> None:
    """Rows of another service in the same table stay where they are, and its calls unrecovered."""
    for profile, address in (("east", EAST), ("west", WEST)):
        rig.activate(rig.a, profile, address)
    rig.call(EAST, "9197", 2)
    rig.call(WEST, "9197", 3)
    eventually(lambda: len(rows(rig.a)) == 5, "five rows")
    take_over(rig, rig.a, rig.b)
    assert channels(rig.b) == 2
    assert len(rows(rig.b, "west")) == 3
    rig.own(rig.b, WEST)
    assert (rig.options(EAST), rig.options(WEST)) == (200, 503)


def test_a_node_that_serves_one_service_takes_a_second(rig: Rig) -> None:
    rig.activate(rig.a, "east", EAST)
    rig.activate(rig.b, "west", WEST)
    west = rig.call(WEST, "9197", 3, hold_ms=6000)
    east = rig.call(EAST, "9197", 3, hold_ms=4000)
    calls_up(rig, rig.a, "9197", 3)
    eventually(lambda: channels(rig.b) == 3, "the calls of west")
    take_over(rig, rig.a, rig.b)
    assert channels(rig.b) == 6
    assert (east.wait(15), west.wait(15)) == (0, 0)


def test_calls_survive_a_second_takeover_back_to_the_first_node(rig: Rig) -> None:
    rig.activate(rig.a, "east", EAST)
    caller = rig.call(EAST, "9197", 2, hold_ms=8000)
    calls_up(rig, rig.a, "9197", 2)
    take_over(rig, rig.a, rig.b)
    rig.a.start()
    rig.a.wait_ready()
    stale = rows(rig.a)
    assert len(stale) == 2, "rows outlive the process that wrote them"
    rig.a.api("sofia profile west recover flush")
    assert len(rows(rig.a)) == 2, "a flush of another profile must not touch them"
    rig.a.api("sofia profile east recover flush")
    assert rows(rig.a) == []
    eventually(lambda: len(rows(rig.b)) == 2, "rows written anew by the second node")
    time.sleep(0.5)
    died_s = take_over(rig, rig.b, rig.a)
    eventually(lambda: len(rig.wire.sip("ACK", died_s, EAST)) == 2, "re-INVITEs of the first node")
    assert caller.wait(15) == 0


def test_new_calls_get_no_port_of_recovered_calls(rig: Rig) -> None:
    """`rtp-port-usage-robustness` of fs_conf: without it new calls steal ports (FREESWITCH 12)."""
    rig.activate(rig.a, "east", EAST)
    old, new = 8, 16
    rig.call(EAST, "9197", old)
    calls_up(rig, rig.a, "9197", old)
    take_over(rig, rig.a, rig.b)
    rig.call(EAST, "9197", new)
    eventually(lambda: channels(rig.b) == old + new, "old and new calls")
    time.sleep(0.5)
    with_media = {p.source[1] for p in rig.wire.media(time.monotonic() - 0.4, source=EAST)}
    assert len(with_media) == old + new, "two calls send from the same port"


def test_a_telephone_that_forgot_the_call_ends_it(rig: Rig) -> None:
    rig.activate(rig.a, "east", EAST)
    caller: subprocess.Popen[bytes] = rig.call(EAST, "9197")
    calls_up(rig, rig.a, "9197", 1)
    caller.kill()
    caller.wait()
    died_s = take_over(rig, rig.a, rig.b)
    eventually(lambda: channels(rig.b) == 0 and not rows(rig.b), "the call hung up")
    sent = rig.wire.sip("INVITE", died_s, EAST)
    assert sent, "no re-INVITE was tried"
    assert all(packet.target[0] == CLIENT and packet.target[1] != SIP_PORT for packet in sent)
