"""What FreeSWITCH keeps about a new call: the channel, its variables, its SDP.

The variables are the contract with recovery: names, order and content as in the captures.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from haclusterd.lab.emulator.channel import CODECS, CallerProfile, Channel, now_us
from haclusterd.lab.emulator.dialog import Dialog
from haclusterd.lab.emulator.media import Stream
from haclusterd.lab.emulator.sip_message import (
    RemoteSdp,
    SipMessage,
    SipParseError,
    Uri,
    address_uri,
    display_name,
    new_tag,
    tag_of,
)
from haclusterd.lab.emulator.sip_transport import Address

if TYPE_CHECKING:
    from haclusterd.lab.emulator.profile import SofiaProfile


def new_channel(profile: SofiaProfile, request: SipMessage, source: Address) -> Channel:
    switch = profile.switch
    if not request.get("contact"):
        raise SipParseError("INVITE without Contact")
    from_uri = Uri(address_uri(request.get("from")))
    contact = Uri(address_uri(request.get("contact")))
    asked = Uri(request.uri)
    port = profile.config.sip_port
    dialog = Dialog(
        call_id=request.get("call-id"),
        local=f"{request.get('to')};tag={new_tag()}",
        remote=request.get("from"),
        target=contact.text,
        contact=f"<sip:{asked.user}@{profile.host}:{port};transport=udp>",
        route=", ".join(request.all("record-route")),
        peer=source,
        remote_cseq=request.cseq,
    )
    caller = CallerProfile(
        username=from_uri.user,
        caller_id_name=display_name(request.get("from")) or from_uri.user,
        caller_id_number=from_uri.user,
        ani=from_uri.user,
        network_addr=source[0],
        destination_number=asked.user,
        context=profile.config.context,
        chan_name=f"sofia/{profile.name}/{from_uri.user_host_port}",
    )
    channel = Channel(
        str(uuid.uuid4()), switch.next_session_id(), "inbound", profile.name, caller, dialog
    )
    created = now_us()
    channel.times["Profile-Created"] = channel.times["Channel-Created"] = created
    channel.variables = _sip_variables(profile, channel, request, source)
    return channel


def _sip_variables(
    profile: SofiaProfile, channel: Channel, request: SipMessage, source: Address
) -> dict[str, str]:
    from_uri = Uri(address_uri(request.get("from")))
    contact = Uri(address_uri(request.get("contact")))
    via_by = request.get("via").split(";")[0].split(" ")[-1]
    variables = {
        "direction": "inbound",
        "uuid": channel.uuid,
        "call_uuid": channel.uuid,
        "session_id": str(channel.session_id),
        **uri_variables("from", from_uri),
        "video_media_flow": "disabled",
        "text_media_flow": "disabled",
        "channel_name": channel.caller.chan_name,
        "sip_call_id": channel.dialog.call_id,
        "sip_local_network_addr": profile.config.ip,
        "sip_network_ip": source[0],
        "sip_network_port": str(source[1]),
        "sip_invite_stamp": str(channel.times["Channel-Created"]),
        "sip_received_ip": source[0],
        "sip_received_port": str(source[1]),
        "sip_via_protocol": "udp",
        "sip_from_user_stripped": from_uri.user,
        "sip_from_tag": tag_of(request.get("from")),
        "sofia_profile_name": profile.name,
        "sofia_profile_url": profile.url,
        "recovery_profile_name": profile.name,
        "sip_full_via": ",".join(request.all("via")),
        "sip_from_display": display_name(request.get("from")),
        "sip_full_from": request.get("from"),
        "sip_full_to": request.get("to"),
        **uri_variables("req", Uri(request.uri)),
        **uri_variables("to", Uri(address_uri(request.get("to")))),
        **uri_variables("contact", contact),
        "sip_via_host": via_by.rpartition(":")[0] or via_by,
        "sip_via_port": via_by.rpartition(":")[2] if ":" in via_by else "5060",
        "max_forwards": request.get("max-forwards") or "70",
    }
    if profile.config.presence:
        variables["presence_id"] = f"{from_uri.user}@{from_uri.host}"
    if contact.params:
        variables["sip_contact_params"] = contact.params.lstrip(";")
    record_route = request.all("record-route")
    if record_route:
        variables["sip_invite_route_uri"] = ", ".join(record_route)
        variables["sip_invite_record_route"] = ", ".join(reversed(record_route))
    return {name: value for name, value in variables.items() if value}


def uri_variables(part: str, uri: Uri) -> dict[str, str]:
    return {
        f"sip_{part}_user": uri.user,
        f"sip_{part}_port": str(uri.port),
        f"sip_{part}_uri": uri.user_host_port,
        f"sip_{part}_host": uri.host,
    }


def answer_variables(channel: Channel, stream: Stream, telephone_event: int) -> None:
    """What the answer adds: our side of the media."""
    event = str(telephone_event or 101)
    for name, value in (
        ("local_media_ip", stream.local[0]),
        ("local_media_port", str(stream.local[1])),
        ("advertised_media_ip", stream.local[0]),
        ("rtp_use_timer_name", "soft"),
        ("rtp_use_pt", channel.variables["rtp_audio_recv_pt"]),
        ("rtp_use_ssrc", str(stream.ssrc)),
        ("rtp_2833_send_payload", event),
        ("rtp_2833_recv_payload", event),
        ("endpoint_disposition", "ANSWER"),
    ):
        channel.set(name, value)


def media_variables(channel: Channel, request: SipMessage, sdp: RemoteSdp) -> None:
    codec = channel.codec = CODECS[sdp.payload_type]
    channel.variables |= {
        "switch_r_sdp": request.body.decode("utf-8", "replace"),
        "ep_codec_string": f"CORE_PCM_MODULE.{codec}@8000h@20i@64000b",
        "rtp_use_codec_string": "PCMU,PCMA",
        "remote_video_media_flow": "inactive",
        "remote_text_media_flow": "inactive",
        "remote_audio_media_flow": "sendrecv",
        "audio_media_flow": "sendrecv",
        "remote_media_ip": sdp.address,
        "remote_media_port": str(sdp.port),
        "rtp_audio_recv_pt": str(sdp.payload_type),
        "rtp_use_codec_name": codec,
        "rtp_use_codec_rate": "8000",
        "rtp_use_codec_ptime": "20",
        "rtp_use_codec_channels": "1",
        "rtp_last_audio_codec_string": f"{codec}@8000h@20i@1c",
        "read_codec": codec,
        "original_read_codec": codec,
        "read_rate": "8000",
        "original_read_rate": "8000",
        "write_codec": codec,
        "write_rate": "8000",
        "dtmf_type": "rfc2833",
        "endpoint_disposition": "RECEIVED",
    }


def local_sdp(channel: Channel, *, offer: bool = False) -> str:
    """Our SDP from the channel's variables, so that a recovered call says the same again."""
    read = channel.variables
    payload = read.get("rtp_use_pt", "0")
    event = read.get("rtp_2833_recv_payload", "101")
    session = int(time.time()) - 26000 + int(read["local_media_port"]) % 1000
    version = session + (2 if offer else 1)
    address = read.get("advertised_media_ip") or read["local_media_ip"]
    kind = "IP6" if ":" in address else "IP4"
    lines = [
        "v=0",
        f"o=FreeSWITCH {session} {version} IN {kind} {address}",
        "s=FreeSWITCH",
        f"c=IN {kind} {address}",
        "t=0 0",
        f"m=audio {read['local_media_port']} RTP/AVP {payload} {event}" + (" 13" if offer else ""),
        f"a=rtpmap:{payload} {channel.codec}/8000",
        f"a=rtpmap:{event} telephone-event/8000",
        f"a=fmtp:{event} 0-15",
    ]
    if offer:
        lines.append("a=rtpmap:13 CN/8000")
    return "\r\n".join([*lines, "a=ptime:20", "a=sendrecv", ""])
