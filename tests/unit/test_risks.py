"""What makes a call unlikely to survive, told before anything fails (E3)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from haclusterd.agent.peers import Word
from haclusterd.agent.risks import nobody_ready, why
from haclusterd.agent.schema import Sync
from haclusterd.core.records import CallRecord
from haclusterd.freeswitch import metadata, risks
from haclusterd.freeswitch.risks import Ringing

TONE = (
    Path(__file__).parents[1] / "fixtures" / "freeswitch" / "recovery_metadata_tone.xml"
).read_text()


def call(**variables: str) -> CallRecord:
    text = TONE
    for name, value in variables.items():
        text = metadata.set_variable(text, name, value)
    return CallRecord("east", "u", 1, "pa", "core-a", text)


def test_e3_a_plain_udp_call_is_at_no_risk() -> None:
    assert risks.of_record(call()) == []


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"sip_via_protocol": "tls"}, "over TLS"),
        ({"sip_via_protocol": "tcp"}, "over TCP"),
        ({"sip_via_protocol": "WSS"}, "over WSS"),
        ({"sip_contact_params": "transport=ws;x=y"}, "over WS"),
        ({"sip_recover_contact": "<sip:u@h;transport=tcp>"}, "over TCP"),
        ({"rtp_has_crypto": "AES_CM_128_HMAC_SHA1_80"}, "SRTP"),
        ({"switch_r_sdp": "m=audio 1 RTP/SAVPF 0"}, "SRTP"),
        ({"remote_audio_media_flow": "sendonly"}, "held"),
        ({"remote_audio_media_flow": "inactive"}, "held"),
        ({"local_media_ip": "2001:db8::10"}, "over IPv6"),
        ({"remote_media_ip": "2001:db8::21"}, "over IPv6"),
        ({"sip_network_ip": "fe80::1"}, "over IPv6"),
        ({"rtp_use_video_codec_name": "VP8"}, "video"),
        ({"proxy_media": "true"}, "proxy media"),
        ({"bypass_media": "true"}, "bypass media"),
    ],
)
def test_e3_each_reason_is_named(variables: dict[str, str], word: str) -> None:
    (reason,) = risks.of_record(call(**variables))
    assert reason.startswith(word)


@pytest.mark.parametrize(
    ("variables", "end"),
    [
        ({"sip_via_protocol": "tcp"}, "if the phone takes connections at its Contact"),
        ({"sip_via_protocol": "tls", "sip_network_ip": "198.51.100.7"}, "the call is lost"),
        ({"sip_via_protocol": "tls", "sip_nat_detected": "true"}, "the call is lost"),
        ({"sip_via_protocol": "wss"}, "nobody can connect to it, so the call is lost"),
    ],
)
def test_e3_a_stream_says_whether_anybody_can_connect_to_the_phone(
    variables: dict[str, str], end: str
) -> None:
    (reason,) = risks.of_record(call(**variables))
    assert reason.endswith(end)


def test_e3_udp_by_name_is_no_stream() -> None:
    assert risks.of_record(call(sip_contact_params="transport=udp")) == []
    broken = CallRecord("east", "u", 1, "pa", "core-a", "<cdr ></cdr>")
    assert "cannot be used" in risks.of_record(broken)[0]


def test_e3_what_the_cluster_adds() -> None:
    assert why(call(), "own", True, "") == ["no standby has acknowledged it yet"]
    assert why(call(), "own", False, "nobody") == ["nobody"]
    assert why(call(), "copy", True, "nobody") == []
    words = {
        "fs-c": Word("1", Sync("in-sync", 0), unready={"east": "SIP profile 'east' does not run"}),
        "fs-d": Word("1", Sync("in-sync", 0)),
    }
    assert nobody_ready("east", words) == (
        "nobody is ready to take east over (fs-c: SIP profile 'east' does not run)"
    )
    assert nobody_ready("east", {}) == "nobody is ready to take east over"


def test_e3_ringing_legs_of_show_channels() -> None:
    rows = [
        {"uuid": "a", "direction": "inbound", "name": "sofia/east/1@h", "callstate": "RINGING"},
        {"uuid": "b", "direction": "outbound", "name": "sofia/east/2@h", "callstate": "EARLY"},
        {"uuid": "c", "direction": "inbound", "name": "sofia/east/3@h", "callstate": "ACTIVE"},
        {"uuid": "d", "direction": "inbound", "name": "loopback/x", "callstate": "RINGING"},
        "odd",
    ]
    found = risks.ringing(json.dumps({"row_count": 5, "rows": rows}))
    assert found == [Ringing("a", "east", "inbound"), Ringing("b", "east", "outbound")]
    for text in ("", "[]", "-ERR no reply", '{"rows": 3}', '{"row_count": 0}'):
        assert risks.ringing(text) == []
