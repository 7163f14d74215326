"""Each mend with a real FreeSWITCH: what a call is with it, and what it is without.

`[recovery]` has a switch for each; both sides of every comparison are the same call, recovered by
the product itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from haclusterd.core.records import CallRecord
from haclusterd.freeswitch import metadata
from haclusterd.freeswitch.mends import Mends
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.lab.freeswitch import FreeswitchInstance
from tests.fixtures.talker import Dialogue, Talker
from tests.freeswitch.moving import moved, recovered, varied, watched
from tests.freeswitch.rig import CALLEE_PORT, CLIENT, EAST, Rig, channels, eventually

pytestmark = [pytest.mark.freeswitch, pytest.mark.timeout(180)]

ON_AND_OFF = pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
TIMEOUT_S = 90  # FreeSWITCH allows no shorter session


@contextmanager
def talking(rig: Rig, extension: str = "9196", user: str = "1000") -> Iterator[Talker]:
    """A phone whose only call is up on A."""
    phone = Talker(f"{rig.name}-cl", CLIENT, EAST, user=user)
    try:
        phone.call(extension)
        yield phone
    finally:
        phone.close()


def only(phone: Talker) -> Dialogue:
    (dialogue,) = phone.dialogues.values()
    return dialogue


def executed(node: FreeswitchInstance, during: Callable[[], None]) -> list[tuple[str, str]]:
    """What the dialplan runs on a node from here to a second after `during`."""
    with node.esl() as esl:
        esl.subscribe("CHANNEL_EXECUTE")
        during()
        return [(e["Application"], e.get("Application-Data") or "") for e in esl.events(1.0)]


def own_and_all(phone: Talker, during_s: float = 1.0) -> tuple[int, int]:
    """RTP packets that come in this time: how many say what the phone said, and how many."""
    before = phone.heard_own, phone.heard
    time.sleep(during_s)
    return phone.heard_own - before[0], phone.heard - before[1]


def in_the_ivr(rig: Rig, phone: Talker, positions: bool) -> dict[str, CallRecord]:
    """The records of a call that has come to the echo of extension 7000."""

    def reach_it() -> None:
        phone.call("7000")
        eventually(lambda: own_and_all(phone, 0.2)[0] > 5, "the echo")

    return watched(rig.a, 1, positions=positions, during=reach_it)


@ON_AND_OFF
def test_eg1_an_ivr_goes_on_where_the_caller_was(rig: Rig, on: bool) -> None:
    rig.activate(rig.a, "east", EAST)
    phone = Talker(f"{rig.name}-cl", CLIENT, EAST)
    records = in_the_ivr(rig, phone, positions=on)
    (uuid,) = records
    heard: list[tuple[int, int]] = []

    def take_over() -> None:
        _, (verdict,) = moved(rig, records, RecoveryOptions(mends=Mends(position=on)))
        assert verdict.verdict == "recovered"
        heard.append(own_and_all(phone, 0.5))

    ran = executed(rig.b, take_over)
    if on:
        assert ran == [("echo", "")]
        own, everything = heard[0]
        assert own == everything > 15
        # Set after FreeSWITCH had written its only row of the call: the event told it.
        assert rig.b.api(f"uuid_getvar {uuid} ha_step") == "two"
    else:
        names = [name for name, _ in ran]
        assert names == ["answer", "set", "playback", "set", "echo"]
    assert phone.bye(only(phone)).startswith("SIP/2.0 200")
    phone.close()


@ON_AND_OFF
def test_eg1_announcements_are_not_heard_twice(rig: Rig, on: bool) -> None:
    rig.activate(rig.a, "east", EAST)
    phone = Talker(f"{rig.name}-cl", CLIENT, EAST)
    records = in_the_ivr(rig, phone, positions=False)

    def take_over() -> None:
        mends = Mends(position=False, announcements=on)
        _, (verdict,) = moved(rig, records, RecoveryOptions(mends=mends))
        assert verdict.verdict == "recovered"

    names = [name for name, _ in executed(rig.b, take_over)]
    expected = ["answer", "set", "set", "echo"] if on else ["answer", "set", "playback"]
    assert names[: len(expected)] == expected
    phone.close()


@ON_AND_OFF
def test_eg1_media_move_to_the_address_of_the_new_node(rig: Rig, on: bool) -> None:
    """Each node's profile has its RTP on an address of that node: A's dies with A."""
    varied(rig.a, ("rtp-ip", "10.77.0.1"))
    varied(rig.b, ("rtp-ip", "10.77.0.2"))
    rig.activate(rig.a, "east", EAST)
    with talking(rig) as phone:
        records = watched(rig.a, 1)
        assert only(phone).media[0] == "10.77.0.1"
        options = RecoveryOptions(profiles=("east",), mends=Mends(addresses=on))
        _, (verdict,) = moved(rig, records, options)
        assert verdict.verdict == "recovered"
        assert verdict.reason.endswith("RTP flows" if on else "no RTP from the phone yet")
        assert only(phone).media[0] == ("10.77.0.2" if on else "10.77.0.1")
        own, _ = own_and_all(phone)
        assert (own > 30) is on, "the phone's own voice comes back only if RTP flows both ways"


@ON_AND_OFF
def test_eg1_the_phone_is_asked_with_a_cseq_it_takes(rig: Rig, on: bool) -> None:
    """B's clock was 1000 s ahead, so the phone has heard a higher CSeq than A's clock gives."""
    rig.activate(rig.a, "east", EAST)
    with talking(rig) as phone:
        _, (verdict,) = moved(rig, watched(rig.a, 1), RecoveryOptions())
        assert verdict.verdict == "recovered"
        ahead = {}
        for uuid, record in watched(rig.b, 1).items():
            cseq = str(int(record.sip_cseq) + 500)
            text = metadata.set_variable(record.metadata, "sip_cseq", cseq)
            ahead[uuid] = replace(record, metadata=text, sip_cseq=cseq)
        only(phone).heard_cseq += 500
        rig.a.start()
        rig.a.wait_ready()
        rig.a.api("sofia profile east recover flush")
        options = RecoveryOptions(mends=Mends(cseq=on))
        died_s, (verdict,) = moved(rig, ahead, options, rig.b, rig.a)
        cseq_now = phone.requests("INVITE", died_s)[0].cseq
        assert (cseq_now > only(phone).heard_cseq - 1) is on
        assert verdict.verdict == ("recovered" if on else "lost"), verdict
        assert channels(rig.a) == int(on)


def test_eg1_a_session_timer_is_agreed_anew(rig: Rig) -> None:
    """Two calls at once, because FreeSWITCH refreshes a session of 90 s after 45 s at most."""
    varied(rig.b, ("minimum-session-expires", str(TIMEOUT_S)))
    rig.activate(rig.a, "east", EAST)
    with talking(rig) as one, talking(rig, user="1001") as other:
        both = watched(rig.a, 2)
        rig.a.kill()
        died_s = time.monotonic()
        rig.own(rig.b, EAST)
        for phone, timeout_s in ((one, TIMEOUT_S), (other, 0)):
            mine = {
                uuid: record
                for uuid, record in both.items()
                if metadata.variable(record.metadata, "sip_call_id") == only(phone).call_id
            }
            options = RecoveryOptions(mends=Mends(session_timeout_s=timeout_s))
            (verdict,) = recovered(rig.b, mine, options, epoch=timeout_s + 1).values()
            assert verdict.verdict == "recovered"
        invites = [phone.requests("INVITE", died_s)[0] for phone in (one, other)]
        assert [i.header("Session-Expires") for i in invites] == [str(TIMEOUT_S), ""]
        again = one.wait(lambda s: s.first.startswith("INVITE"), 60, invites[0].at_s + 1)
        assert TIMEOUT_S / 2 - 10 < again.at_s - invites[0].at_s < TIMEOUT_S / 2 + 10
        assert len(other.requests("INVITE", died_s)) == 1
        assert channels(rig.b) == 2


@ON_AND_OFF
def test_eg1_a_row_that_names_another_profile_is_taken_up(rig: Rig, on: bool) -> None:
    rig.activate(rig.a, "east", EAST)
    with talking(rig):
        ((uuid, record),) = watched(rig.a, 1).items()
        text = metadata.set_variable(record.metadata, "recovery_profile_name", "gone")
        records = {uuid: replace(record, metadata=text)}
        _, (verdict,) = moved(rig, records, RecoveryOptions(mends=Mends(profile=on)))
        assert verdict.verdict == ("recovered" if on else "lost"), verdict
        # Without the mend FreeSWITCH makes a session for it that nothing ends any more.
        assert channels(rig.b) == 1


def test_e4_a_leg_whose_other_leg_is_lost_is_not_called_whole(rig: Rig) -> None:
    """A re-INVITE of a bridged phone has FreeSWITCH write a row that says it is bridged."""
    rig.activate(rig.a, "east", EAST)
    callee = Talker(f"{rig.name}-cl", CLIENT, EAST, port=CALLEE_PORT)
    with talking(rig, "4100") as phone:
        eventually(lambda: channels(rig.a) == 2, "both legs")

        def ask_again() -> None:
            time.sleep(0.5)
            phone.reinvite(only(phone))

        records = watched(rig.a, 2, during=ask_again, settle_s=1.0)
        said = [metadata.variable(r.metadata, "bridge_uuid") for r in records.values()]
        assert any(said), "without it there is nothing to be mistaken about"
        callee.close()
        _, verdicts = moved(rig, records, RecoveryOptions())
        by_direction = {records[v.uuid].direction: v.verdict for v in verdicts}
        assert by_direction == {"inbound": "partial", "outbound": "lost"}
