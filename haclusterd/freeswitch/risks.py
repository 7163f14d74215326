"""Why a call might not survive a takeover, told from its record before anything fails. Pure.

What FreeSWITCH cannot bring back, or was never seen to (FREESWITCH.md 3.4), belongs here; what the
cluster adds (not yet acknowledged, nobody ready) is the agent's knowledge.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from haclusterd.core.records import CallRecord

from . import metadata

CHANNELS_BYTES_MAX = 32 * 1024 * 1024
UNTAGGED = "the phone has not acknowledged the answer, as far as FreeSWITCH has written"
_STREAMS = ("tcp", "tls", "ws", "wss")
_RINGING = ("RINGING", "EARLY")
_ADDRESSES = ("local_media_ip", "remote_media_ip", "sip_network_ip")


class Ringing(NamedTuple):
    """A call leg that is not answered yet, so that FreeSWITCH keeps nothing of it."""

    uuid: str
    profile: str
    direction: str


def of_record(record: CallRecord) -> list[str]:
    """One short reason each; empty for a call like those that were measured."""
    try:
        return _of_document(record.metadata)
    except metadata.MetadataError as error:
        return [f"its record cannot be used: {error}"]


def _of_document(xml: str) -> list[str]:
    found = [UNTAGGED] if metadata.untagged(xml) else []
    transport = _transport(xml)
    if transport:
        found.append(f"over {transport.upper()}: {_way_to_it(xml, transport)}")
    sdp = metadata.variable(xml, "switch_r_sdp")
    if "RTP/SAVP" in sdp or metadata.variable(xml, "rtp_has_crypto"):
        found.append(_of_secure_media(sdp))
    if any(":" in metadata.variable(xml, name) for name in _ADDRESSES):
        found.append("over IPv6: not tried, and said to get a re-INVITE without SDP")
    if metadata.variable(xml, "rtp_use_video_codec_name"):
        found.append("video: not tried with this FreeSWITCH")
    if metadata.variable(xml, "remote_audio_media_flow") in ("sendonly", "inactive"):
        found.append("held: it comes back as a call that is not")
    for name in proxied(xml):
        found.append(f"{name.replace('_', ' ')}: FreeSWITCH does not know its media")
    return found


def proxied(xml: str) -> list[str]:
    """Variables by which FreeSWITCH leaves the media of a call to others."""
    names = ("proxy_media", "bypass_media", "bypass_media_after_bridge")
    return [name for name in names if metadata.variable(xml, name) in ("true", "1", "yes")]


def _of_secure_media(sdp: str) -> str:
    """Keys in the SDP are in the row; a DTLS handshake is not, and was not tried."""
    if "a=fingerprint" in sdp or "TLS/RTP" in sdp:
        return "SRTP by DTLS: not tried with this FreeSWITCH"
    return "SRTP: the phone is not heard if it has sent 65,536 packets, 22 minutes at most"


def _way_to_it(xml: str, transport: str) -> str:
    """Whether anybody can connect to the phone, whose own connection ends with its FreeSWITCH."""
    if transport in ("ws", "wss"):
        return "nobody can connect to it, so the call is lost"
    host = metadata.variable(xml, "sip_contact_host")
    came_from = metadata.variable(xml, "sip_network_ip")
    if metadata.variable(xml, "sip_nat_detected") == "true" or (host and host != came_from):
        return "behind NAT, so nobody can connect to it and the call is lost"
    return "it comes back if the phone takes connections at its Contact"


def _transport(xml: str) -> str:
    """The stream transport that this leg runs over, empty for UDP."""
    via = metadata.variable(xml, "sip_via_protocol").lower()
    if via in _STREAMS:
        return via
    for name in ("sip_contact_params", "sip_recover_contact", "sip_contact_uri", "sip_req_uri"):
        _, given, rest = metadata.variable(xml, name).lower().partition("transport=")
        word = rest.partition(";")[0].partition(">")[0].strip()
        if given and word in _STREAMS:
            return word
    return ""


def ringing(shown: str) -> list[Ringing]:
    """Unanswered legs in the answer to `show channels as json`."""
    if len(shown) > CHANNELS_BYTES_MAX:
        return []
    try:
        document = json.loads(shown)
    except ValueError:
        return []
    rows = document.get("rows") if isinstance(document, dict) else None
    found = []
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict) or row.get("callstate") not in _RINGING:
            continue
        words = str(row.get("name", "")).split("/")
        if len(words) >= 3 and words[0] == "sofia":
            found.append(Ringing(str(row.get("uuid", "")), words[1], str(row.get("direction", ""))))
    return found
