"""Mends of position, limits, announcements, addresses and timers; the order of calls."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import msgspec
import pytest

from haclusterd.core.records import CallRecord
from haclusterd.freeswitch import classes, mends, metadata
from haclusterd.freeswitch.mends import Limit, MediaAddress, Mends
from haclusterd.freeswitch.streams import spread

TONE = (
    Path(__file__).parents[1] / "fixtures" / "freeswitch" / "recovery_metadata_tone.xml"
).read_text()


def record(uuid: str = "u", text: str = TONE, partner: str = "", position: int = -1) -> CallRecord:
    return CallRecord("east", uuid, 1, "pa", "core-a", text, partner, position=position)


def applications(leg: CallRecord) -> list[str]:
    return [one.name for one in metadata.extension(leg.metadata)]


def with_log(*lines: tuple[str, str]) -> str:
    log = "".join(f'<application app_name="{n}" app_data="{d}"></application>' for n, d in lines)
    return TONE.replace("<app_log>", f"<app_log>\n    {log}", 1)


def in_conference(text: str = TONE) -> str:
    return text.replace('app_name="playback"', 'app_name="conference"')


def test_an_ivr_goes_on_at_its_current_application() -> None:
    assert applications(record()) == ["set", "answer", "playback"]
    assert applications(mends.resume_at(record(position=2))) == ["playback"]
    metadata.check(mends.resume_at(record(position=2)).metadata)


@pytest.mark.parametrize("position", [-1, 0, 3, 99])
def test_an_unknown_position_changes_nothing(position: int) -> None:
    leg = record(position=position)
    assert mends.resume_at(leg) is leg


def test_a_bridged_call_runs_no_application_and_keeps_them() -> None:
    leg = record(partner="b", position=2)
    assert mends.resume_at(leg) is leg


def test_position_has_a_switch() -> None:
    leg = record(position=2)
    assert applications(mends.mend(leg, Mends(position=False))) == ["set", "answer", "playback"]
    assert applications(mends.mend(leg, Mends())) == ["playback"]


def test_announcements_are_skipped_where_something_else_is_left() -> None:
    name = "recovery_skip_announcement_type_applications"
    only_tone = record()
    assert mends.skip_announcements(only_tone) is only_tone
    ivr = record(text=TONE.replace('app_name="set"', 'app_name="conference"'))
    assert metadata.variable(mends.skip_announcements(ivr).metadata, name) == "true"
    assert metadata.variable(mends.mend(ivr, Mends()).metadata, name) == ""
    mended = mends.mend(ivr, Mends(announcements=True))
    assert metadata.variable(mended.metadata, name) == "true"


def test_a_session_timer_is_asked_for_only_when_configured() -> None:
    leg = record()
    assert mends.start_session_timer(leg, 0) is leg
    mended = mends.mend(leg, Mends(session_timeout_s=1800))
    assert metadata.variable(mended.metadata, "sofia_session_timeout") == "1800"
    assert mends.start_session_timer(mended, 1800) is mended


def test_media_moves_to_the_address_of_this_node() -> None:
    leg = record()
    here = MediaAddress("10.77.0.9", "198.51.100.9")
    mended = mends.mend(leg, Mends(media={"pa": here})).metadata
    assert metadata.variable(mended, "local_media_ip") == "10.77.0.9"
    assert metadata.variable(mended, "advertised_media_ip") == "198.51.100.9"
    assert metadata.variable(mended, "local_media_port") == "30394"
    sdp = metadata.variable(mended, "rtp_local_sdp_str")
    assert "c=IN IP4 198.51.100.9\r\n" in sdp
    assert sdp.startswith("v=0\r\no=FreeSWITCH 1795329189 1795329190 IN IP4 198.51.100.9\r\n")
    assert "10.77.0.101" not in sdp
    assert metadata.variable(mended, "sip_network_ip") == "10.77.0.21"


def test_media_stays_where_the_address_is_the_same_or_unknown() -> None:
    leg = record()
    assert mends.move_media(leg, None) is leg
    assert mends.move_media(leg, MediaAddress("10.77.0.101", "10.77.0.101")) is leg
    moved = MediaAddress("2001:db8::9", "2001:db8::9")
    sdp = metadata.variable(mends.move_media(leg, moved).metadata, "rtp_local_sdp_str")
    assert "c=IN IP6 2001:db8::9\r\n" in sdp
    off = mends.mend(leg, Mends(addresses=False, media={"pa": moved}))
    assert metadata.variable(off.metadata, "local_media_ip") == "10.77.0.101"


def test_limits_of_a_bridged_call_are_those_it_ran() -> None:
    text = with_log(("limit", "hash out trunk 5"), ("limit", "hash out trunk 5"), ("set", "a=b"))
    assert mends.limits_to_apply(record(text=text), Mends()) == []  # runs it again by itself
    leg = record(text=text, partner="b")
    assert mends.limits_to_apply(leg, Mends()) == [Limit("hash", "out", "trunk")]
    assert mends.limits_to_apply(leg, Mends(limits=False)) == []
    assert Limit("hash", "out", "trunk").command("u1") == "uuid_limit u1 hash out trunk"


@pytest.mark.parametrize("data", ["hash out", "hash ${domain} x 1", "hash a b&#10;c", "h " * 200])
def test_odd_limits_are_left_alone(data: str) -> None:
    assert mends.limits_to_apply(record(text=with_log(("limit", data)), partner="b"), Mends()) == []


def test_a_resumed_call_is_counted_for_the_limits_it_will_not_run_again() -> None:
    text = TONE.replace(
        '<application app_name="set" app_data="ha_test=yes"></application>\n      <app',
        '<application app_name="limit" app_data="hash in ivr 9"></application>\n      <app',
    )
    assert mends.limits_to_apply(record(text=text, position=2), Mends()) == [
        Limit("hash", "in", "ivr")
    ]
    assert mends.limits_to_apply(record(text=text, position=0), Mends()) == []
    assert mends.limits_to_apply(record(text=text, position=2), Mends(position=False)) == []


def test_bridged_calls_go_before_conferences_before_the_rest() -> None:
    legs = [record("t"), record("c", in_conference()), record("b", partner="x")]
    legs.sort(key=lambda leg: classes.order(leg, ""))
    assert [leg.uuid for leg in legs] == ["b", "c", "t"]


def test_a_channel_variable_goes_before_the_kind_of_call() -> None:
    urgent = record("e", metadata.set_variable(TONE, "emergency", "9"))
    legs = [record("b", partner="x"), urgent, record("c", in_conference())]
    legs.sort(key=lambda leg: classes.order(leg, "emergency"))
    assert [leg.uuid for leg in legs] == ["e", "b", "c"]


@pytest.mark.parametrize("value", ["", "x", "10", "-1", "²"])
def test_an_odd_urgency_is_none(value: str) -> None:
    assert classes.urgency(record(text=metadata.set_variable(TONE, "e", value)), "e") == 0
    assert classes.urgency(record(text="<oops/>"), "e") == 0


def test_every_stream_begins_with_its_share_of_the_urgent_calls() -> None:
    urgent = [record(f"e{n}", metadata.set_variable(TONE, "e", "9")) for n in range(8)]
    rest = [record(f"r{n}") for n in range(40)]
    parts = spread([*rest, *urgent], 4, "e")
    assert [[leg.uuid[0] for leg in part[:2]] for part in parts] == [["e", "e"]] * 4
    assert [len(part) for part in parts] == [12] * 4


def test_bridged_legs_are_as_urgent_as_the_more_urgent_of_them() -> None:
    legs = [record(f"r{n}") for n in range(9)]
    pair = [record("a", partner="b"), record("b", metadata.set_variable(TONE, "e", "1"), "a")]
    assert [leg.uuid for leg in spread([*legs, *pair], 1, "e")[0][:2]] == ["a", "b"]


def test_a_record_of_an_earlier_version_has_no_position() -> None:
    packed = msgspec.msgpack.encode(list(msgspec.structs.astuple(record()))[:-1])
    assert msgspec.msgpack.decode(packed, type=CallRecord).position == -1


def test_a_call_over_tcp_or_tls_keeps_its_transport() -> None:
    def named(via: str, direction: str = "inbound", **more: str) -> str:
        text = metadata.set_variable(TONE, "sip_via_protocol", via)
        for name, value in more.items():
            text = metadata.set_variable(text, name, value)
        leg = msgspec.structs.replace(record(text=text), direction=direction)
        return metadata.variable(mends.name_transport(leg).metadata, "sip_transport")

    assert [named(via) for via in ("tcp", "TLS", "udp", "wss", "x")] == ["tcp", "tls", "", "", ""]
    assert named("tcp", "outbound") == ""
    assert named("tcp", sip_transport="sctp") == "sctp"
    tcp = record(text=metadata.set_variable(TONE, "sip_via_protocol", "tcp"))
    off = mends.mend(tcp, Mends(transport=False)).metadata
    assert metadata.variable(off, "sip_transport") == ""


@pytest.mark.parametrize("uuid", ["1@host", "<a>&b", "a%20b", "plain"])
def test_a_channel_is_named_as_the_call_was(uuid: str) -> None:
    """FreeSWITCH does not decode the name: `1%40host` came up, and `1@host` was called lost."""
    encoded = metadata.set_variable(TONE, "uuid", uuid)
    before = record(text=encoded)
    named = mends.mend(msgspec.structs.replace(before, uuid=uuid), Mends()).metadata
    start = named.index("<uuid>") + len("<uuid>")
    assert unescape(named[start : named.index("</uuid>", start)]) == uuid
    assert named.count("<uuid>") == encoded.count("<uuid>")


def test_what_says_that_a_leg_is_bridged_is_dropped() -> None:
    leg = record(text=metadata.set_variable(TONE, "bridge_uuid", "b"), partner="b")
    mended = mends.mend(leg, Mends(cseq=False)).metadata
    assert metadata.variable(mended, "bridge_uuid") == ""
    assert mended.count("<") == TONE.count("<") + 2 * ("recovery_profile_name" not in TONE)
    assert mends.forget_bridge(record()) == record()
