"""A call from outside: INVITE, answer, ACK, requests in the dialog, CANCEL.

The dialplan is one table: tone (default), echo, ring (never answered) or busy by number.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from haclusterd.lab.emulator.call_variables import (
    answer_variables,
    local_sdp,
    media_variables,
    new_channel,
)
from haclusterd.lab.emulator.channel import Channel, now_us
from haclusterd.lab.emulator.events import Source
from haclusterd.lab.emulator.media import Stream
from haclusterd.lab.emulator.sip_message import (
    RemoteSdp,
    SipMessage,
    SipParseError,
    Uri,
    address_uri,
    display_name,
    response,
    response_target,
    tag_of,
)
from haclusterd.lab.emulator.sip_transport import Address

if TYPE_CHECKING:
    from haclusterd.lab.emulator.profile import SofiaProfile

TONE_STREAM: Final = "tone_stream://%(10000,0,440);loops=-1"
EXTENSIONS: Final = {"9196": "echo", "9198": "ring", "9199": "busy"}
_ROUTED: Final = Source("switch_core_state_machine.c", "check_presence", 521)


def remote_media(body: bytes) -> RemoteSdp:
    """
    :raises SipParseError: no usable SDP.
    """
    sdp = RemoteSdp(body.decode("utf-8", "replace"))
    try:
        ipaddress.ip_address(sdp.address)
    except ValueError as error:
        raise SipParseError("the SDP has no numeric address") from error
    return sdp


def invited(profile: SofiaProfile, request: SipMessage, source: Address) -> None:
    switch = profile.switch
    if switch.paused["inbound"] or len(switch.channels) >= switch.config.max_sessions:
        extra = [("Retry-After", "300")]
        profile.answer(request, source, 503, "Maximum Calls In Progress", extra=extra)
        return
    channel = new_channel(profile, request, source)
    profile.answer(request, source, 100, "Trying")
    if not request.body:
        profile.answer(request, source, 480, "Temporarily Unavailable")
        return
    sdp = remote_media(request.body)
    if sdp.payload_type < 0 or not sdp.port:
        profile.answer(request, source, 488, "Not Acceptable Here")
        return
    media_variables(channel, request, sdp)
    switch.register(channel)
    action = switch.config.extensions.get(channel.caller.destination_number) or EXTENSIONS.get(
        channel.caller.destination_number, "tone"
    )
    _route(profile, channel, action)
    if action == "busy":
        profile.answer(request, source, 486, "Busy Here", to_tag=channel.dialog.key[1])
        switch.hangup(channel, "USER_BUSY", "send_refuse")
    elif action == "ring":
        _ring(profile, channel, request, source)
    else:
        _answer(profile, channel, request, source, sdp.telephone_event)


def _route(profile: SofiaProfile, channel: Channel, action: str) -> None:
    events = profile.switch.events
    actions = {"echo": ("echo", ""), "ring": ("ring_ready", ""), "busy": ("hangup", "USER_BUSY")}
    application = actions.get(action, ("playback", TONE_STREAM))
    answered = action in ("tone", "echo")
    channel.applications = [("answer", ""), application] if answered else [application]
    events.state(channel, "CS_NEW", 0)
    events.codecs(channel)
    events.state(channel, "CS_INIT", 1)
    events.create(channel, 2)
    channel.state = "CS_ROUTING"
    events.callstate(channel, "RINGING")
    events.state(channel, "CS_ROUTING", 2)
    channel.state_number = 4
    events.presence(channel, "CS_ROUTING", "alerting", _ROUTED)
    events.state(channel, "CS_EXECUTE", 4)


def _ring(profile: SofiaProfile, channel: Channel, request: SipMessage, source: Address) -> None:
    profile.switch.events.execute(channel, *channel.applications[0])
    channel.times["Channel-Progress"] = now_us()
    extra = [("Contact", channel.dialog.contact)]
    tag = channel.dialog.key[1]
    profile.answer(request, source, 180, "Ringing", to_tag=tag, extra=extra)
    profile.ringing[(request.get("call-id"), request.cseq)] = (channel, request, source)


def _answer(
    profile: SofiaProfile,
    channel: Channel,
    request: SipMessage,
    source: Address,
    telephone_event: int,
) -> None:
    switch = profile.switch
    switch.events.execute(channel, "answer", "")
    try:
        sock = switch.ports.take(profile.config.ip)
    except OSError as error:
        switch.log(f"[ERR] rtp: {error}")
        profile.answer(request, source, 503, "Service Unavailable", to_tag=channel.dialog.key[1])
        switch.hangup(channel, "DESTINATION_OUT_OF_ORDER", "send_refuse")
        return
    read = channel.variables
    payload_type = int(read["rtp_audio_recv_pt"])
    remote = (read["remote_media_ip"], int(read["remote_media_port"]))
    stream = Stream(sock, remote, payload_type)
    channel.stream = stream
    answer_variables(channel, stream, telephone_event)
    sdp = local_sdp(channel)
    channel.set("rtp_local_sdp_str", sdp)
    channel.times["Channel-Answered"] = now_us()
    _send_ok(profile, channel, request, source, sdp)
    switch.events.answer(channel)
    switch.track(channel)
    switch.events.executed(channel, "answer", "")
    name, data = channel.applications[-1]
    stream.echo = name == "echo"
    switch.events.execute(channel, name, data)
    if name == "playback":
        switch.events.playback(channel, data)
    switch.media.add(stream)


def _send_ok(
    profile: SofiaProfile, channel: Channel, request: SipMessage, source: Address, sdp: str
) -> None:
    extra = [("Contact", channel.dialog.contact), ("Content-Type", "application/sdp")]
    datagram = response(
        request, 200, "OK", source=source, to_tag=channel.dialog.key[1], extra=extra, body=sdp
    )
    target = response_target(request.get("via"), source)
    if profile.transport is not None:
        profile.transport.reply(request, datagram, source, final=True)
        profile.repeat_until_acknowledged(channel, request, datagram, target)


def acknowledged(profile: SofiaProfile, channel: Channel, request: SipMessage) -> None:
    """The ACK brings the tagged headers into the variables and the row (FREESWITCH.md 2.2)."""
    profile.forget(channel)
    for name, value in (
        ("sip_to_tag", tag_of(request.get("to"))),
        ("sip_from_tag", tag_of(request.get("from"))),
        ("sip_cseq", str(request.cseq)),
        ("sip_call_id", request.get("call-id")),
        ("sip_full_via", ",".join(request.all("via"))),
        ("sip_from_display", display_name(request.get("from"))),
        ("sip_full_from", request.get("from")),
        ("sip_full_to", request.get("to")),
    ):
        channel.set(name, value)
    profile.switch.track(channel)


def in_dialog(
    profile: SofiaProfile, channel: Channel, request: SipMessage, source: Address
) -> None:
    dialog = channel.dialog
    if tag_of(request.get("from")) != tag_of(dialog.remote):
        profile.answer(request, source, 481, "Call Does Not Exist")
    elif request.cseq < dialog.remote_cseq:
        profile.answer(request, source, 500, "Overlapping Requests")
    elif request.method == "BYE":
        dialog.remote_cseq = request.cseq
        profile.answer(request, source, 200, "OK")
        channel.set("sip_term_status", "200")
        channel.set("proto_specific_hangup_cause", "sip:200")
        channel.set("sip_term_cause", "16")
        profile.switch.hangup(channel, "NORMAL_CLEARING", "recv_bye")
    elif request.method == "INVITE":
        dialog.remote_cseq = request.cseq
        _renegotiated(profile, channel, request, source)
    elif request.method in ("INFO", "OPTIONS", "MESSAGE", "UPDATE", "NOTIFY"):
        dialog.remote_cseq = request.cseq
        profile.answer(request, source, 200, "OK")
    else:
        profile.answer(request, source, 501, "Not Implemented")


def _renegotiated(
    profile: SofiaProfile, channel: Channel, request: SipMessage, source: Address
) -> None:
    """A re-INVITE of the peer: new media address and contact, then the row again."""
    if channel.recovering or channel.stream is None:
        profile.answer(request, source, 491, "Request Pending")
        return
    contact = request.get("contact")
    if contact:
        channel.dialog.target = Uri(address_uri(contact)).text
        if channel.direction == "inbound":
            channel.set("sip_contact_uri", Uri(channel.dialog.target).user_host_port)
    if request.body:
        sdp = remote_media(request.body)
        if sdp.payload_type < 0 or not sdp.port:
            profile.answer(request, source, 488, "Not Acceptable Here")
            return
        channel.stream.remote = (sdp.address, sdp.port)
        channel.set("switch_r_sdp", request.body.decode("utf-8", "replace"))
        channel.set("remote_media_ip", sdp.address)
        channel.set("remote_media_port", str(sdp.port))
    _send_ok(profile, channel, request, source, local_sdp(channel))
    profile.switch.track(channel)


def cancelled(profile: SofiaProfile, request: SipMessage, source: Address) -> None:
    waiting = profile.ringing.pop((request.get("call-id"), request.cseq), None)
    if waiting is None:
        profile.answer(request, source, 481, "Call Does Not Exist")
        return
    channel, invite, invite_source = waiting
    tag = channel.dialog.key[1]
    profile.answer(request, source, 200, "OK", to_tag=tag)
    profile.answer(invite, invite_source, 487, "Request Terminated", to_tag=tag)
    profile.switch.hangup(channel, "ORIGINATOR_CANCEL", "recv_cancel")
