"""Calls taken up again: rows of table `recovery` become channels, re-INVITEs and media.

Everything about the dialog comes from the variables in the row, as with the real one, so a row
that haclusterd carried here from a real FreeSWITCH works too (FREESWITCH.md 1.3 to 1.5).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from haclusterd.lab.emulator.call_variables import local_sdp, uri_variables
from haclusterd.lab.emulator.channel import Channel, Pairs, now_us
from haclusterd.lab.emulator.coredb import Row
from haclusterd.lab.emulator.dialog import Dialog, time_based_cseq
from haclusterd.lab.emulator.inbound import remote_media
from haclusterd.lab.emulator.media import Stream, bind_udp
from haclusterd.lab.emulator.metadata import Metadata, MetadataError
from haclusterd.lab.emulator.sip_message import (
    SipMessage,
    SipParseError,
    Uri,
    address_uri,
    display_name,
    tag_of,
)

if TYPE_CHECKING:
    from haclusterd.lab.emulator.profile import SofiaProfile
    from haclusterd.lab.emulator.switch import Switch

_REFUSALS: Final = {
    404: "UNALLOCATED_NUMBER",
    408: "RECOVERY_ON_TIMER_EXPIRE",
    486: "USER_BUSY",
    488: "INCOMPATIBLE_DESTINATION",
    603: "CALL_REJECTED",
}
_APPLICATION_S: Final = 0.003
_FAILURES: Final = {
    "timeout": (408, "Request Timeout", "RECOVERY_ON_TIMER_EXPIRE"),
    "unreachable": (503, "Service Unavailable", "NORMAL_TEMPORARY_FAILURE"),
}


async def recover(switch: Switch, technology: str, profile: str) -> int:
    """Take up the calls of other processes; how many were launched, not how many succeeded.

    Serial, `recover_leg_ms` per row; the set is deleted at the end, failed rows too.
    """
    loop = asyncio.get_running_loop()
    rows = switch.db.rows_to_recover(technology, profile)
    launched = 0
    due = loop.time()
    with contextlib.closing(rows):
        row = await asyncio.to_thread(next, rows, None)
        while row is not None:
            due += switch.config.recover_leg_ms / 1000
            await asyncio.sleep(max(0.0, due - loop.time()))
            launched += _launch(switch, row)
            row = next(rows, None)
    await asyncio.to_thread(switch.db.forget_recovered, technology, profile)
    return launched


def _launch(switch: Switch, row: Row) -> int:
    try:
        document = Metadata(row.metadata)
        if document.uuid in switch.channels:
            raise MetadataError("Duplicate UUID!")
        name = document.need("recovery_profile_name")
        profile = switch.profiles.get(name)
        if profile is None or not profile.running:
            raise MetadataError(f"Invalid profile {name}")
        channel = _resurrect(switch, profile, document)
    except (MetadataError, SipParseError, OSError, ValueError) as error:
        switch.log(f"[CRIT] recovery: call {row.uuid} not recovered: {error}")
        return 0
    _announce(switch, channel)
    _invite(switch, profile, channel)
    return 1


def _resurrect(switch: Switch, profile: SofiaProfile, document: Metadata) -> Channel:
    """The channel with its dialog and its media socket, nothing sent yet.

    :raises MetadataError, SipParseError, ValueError: the row lacks or garbles what a dialog needs.
    :raises OSError: the media address or port cannot be bound.
    """
    variables = dict(document.variables)
    variables["recovered"] = "true"
    dialog = _dialog(profile, document.direction, variables)
    if dialog.key in switch.dialogs:
        raise MetadataError("its dialog is already here under another uuid")
    sock = bind_udp(
        document.need("local_media_ip"),
        _port(document.need("local_media_port")),
        switch.config.freebind,
    )
    payload_type = _port(variables.get("rtp_use_pt") or "0", low=0, high=127)
    remote = (document.need("remote_media_ip"), _port(document.need("remote_media_port")))
    channel = Channel(
        document.uuid,
        switch.next_session_id(),
        document.direction,
        profile.name,
        document.caller,
        dialog,
        variables,
    )
    channel.codec = variables.get("rtp_use_codec_name") or "PCMU"
    channel.applications = document.applications
    channel.times |= document.times
    channel.times["Channel-Created"] = channel.times["Channel-Resurrect"] = now_us()
    channel.times["Channel-Answered"] = channel.times["Channel-Answered"] or now_us()
    channel.answer_state = "answered"
    channel.recovering = True
    channel.stream = Stream(sock, remote, payload_type)
    channel.stream.echo = any(name == "echo" for name, _ in document.applications)
    for name, value in (
        ("session_id", str(channel.session_id)),
        ("sip_invite_call_id", dialog.call_id),
        ("rtp_use_ssrc", str(channel.stream.ssrc)),
        ("rtp_local_sdp_str", local_sdp(channel, offer=True)),
        ("sip_outgoing_contact_uri", dialog.contact),
        ("sip_req_uri", Uri(dialog.target).user_host_port),
    ):
        channel.set(name, value)
    return channel


def _dialog(profile: SofiaProfile, direction: str, variables: dict[str, str]) -> Dialog:
    def need(name: str) -> str:
        if not variables.get(name):
            raise MetadataError(f"variable {name} is missing in metadata")
        return variables[name]

    swap = variables.get("dlg_req_swap_direction") == "true"
    outbound = direction == "outbound"
    ours, theirs = (
        ("sip_full_from", "sip_full_to")
        if outbound != swap
        else (
            "sip_full_to",
            "sip_full_from",
        )
    )
    if outbound or not variables.get("sip_handle_full_from"):
        variables["sip_handle_full_from"] = need(ours)
    if outbound or not variables.get("sip_handle_full_to"):
        variables["sip_handle_full_to"] = need(theirs)
    if outbound:
        contact = variables.get("sip_recover_contact", "")
        target = address_uri(contact) if contact else "sip:" + need("sip_req_uri")
    else:
        parameters = variables.get("sip_contact_params", "")
        target = f"sip:{need('sip_contact_uri')}" + (f";{parameters}" if parameters else "")
        if not variables.get("sip_invite_record_route"):
            variables["sip_invite_route_uri"] = (
                f"<sip:{variables.get('sip_from_user', '')}@{need('sip_network_ip')}:"
                f"{need('sip_network_port')};transport={variables.get('sip_via_protocol', 'udp')}>"
            )
    dialog = Dialog(
        call_id=need("sip_call_id"),
        local=variables["sip_handle_full_from"],
        remote=variables["sip_handle_full_to"],
        target=target,
        contact=f"<sip:{Uri(target).user}@{profile.host}:{profile.config.sip_port}>",
        route=variables.get("sip_invite_route_uri", ""),
        cseq=_next_cseq(variables.get("sip_invite_cseq", "")),
    )
    if not (tag_of(dialog.local) and tag_of(dialog.remote)):
        raise MetadataError("the dialog's tags are missing in metadata")
    return dialog


def _next_cseq(wanted: str) -> int:
    """The CSeq before the re-INVITE's: from `sip_invite_cseq`, else time (FREESWITCH.md 1.4)."""
    if wanted.isascii() and wanted.isdigit() and len(wanted) <= 10:
        return int(wanted)
    return time_based_cseq() - 1


def _port(text: str, low: int = 1, high: int = 65535) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text[:6]) <= high):
        raise MetadataError(f"{text[:20]!r} in metadata is not a number from {low} to {high}")
    return int(text)


def _announce(switch: Switch, channel: Channel) -> None:
    events = switch.events
    switch.register(channel)
    channel.state = "CS_NONE"
    events.codecs(channel)
    channel.state, channel.state_number = "CS_INIT", 1
    events.callstate(channel, "ACTIVE" if channel.direction == "inbound" else "DOWN")


def _invite(switch: Switch, profile: SofiaProfile, channel: Channel) -> None:
    events = switch.events
    events.state(channel, "CS_INIT", 1)
    events.create(channel, 4 if channel.direction == "inbound" else 9)
    events.state(channel, "CS_EXECUTE", 4)
    _run_applications(switch, channel, 0)
    sdp = channel.variables["rtp_local_sdp_str"]
    datagram, branch = channel.dialog.request("INVITE", profile.sent_by, body=sdp)
    cseq = channel.dialog.cseq

    def outcome(answer: SipMessage | None, failure: str) -> None:
        if channel.uuid not in switch.channels:
            return
        if answer is None:
            _failed(switch, channel, *_FAILURES[failure], answer=None)
        elif 200 <= answer.status < 300:
            _answered(switch, profile, channel, answer, branch, cseq)
        elif answer.status in (180, 183):
            _set(channel, _response_variables(channel, answer, cseq))
            switch.track(channel)
        elif answer.status >= 300:
            _acknowledge(profile, channel, branch, cseq, same_branch=True)
            cause = _REFUSALS.get(answer.status, "NORMAL_TEMPORARY_FAILURE")
            _failed(switch, channel, answer.status, answer.reason, cause, answer=answer)

    if profile.transport is None:
        _failed(switch, channel, *_FAILURES["unreachable"], answer=None)
        return
    profile.transport.request(datagram, channel.dialog.destination(), branch, "INVITE", outcome)


def _run_applications(switch: Switch, channel: Channel, index: int) -> None:
    """The extension again from its first application, answered or not (FREESWITCH.md 1.5)."""
    if channel.hangup_cause or index >= len(channel.applications):
        return
    if index:
        switch.events.executed(channel, *channel.applications[index - 1])
    name, data = channel.applications[index]
    switch.events.execute(channel, name, data)
    if name == "playback":
        switch.events.playback(channel, data)
    loop = asyncio.get_running_loop()
    loop.call_later(_APPLICATION_S, _run_applications, switch, channel, index + 1)


def _acknowledge(
    profile: SofiaProfile, channel: Channel, branch: str, cseq: int, *, same_branch: bool
) -> None:
    own = branch if same_branch else ""
    datagram, _ = channel.dialog.request("ACK", profile.sent_by, cseq=cseq, branch=own)
    if profile.transport is not None:
        profile.transport.ack(datagram, channel.dialog.destination(), branch)


def _answered(
    switch: Switch,
    profile: SofiaProfile,
    channel: Channel,
    answer: SipMessage,
    branch: str,
    cseq: int,
) -> None:
    """The 200 OK: no event says so, only the variables change (FREESWITCH.md 1.5)."""
    contact = answer.get("contact")
    with contextlib.suppress(SipParseError):
        if contact:
            channel.dialog.target = Uri(address_uri(contact)).text
    _acknowledge(profile, channel, branch, cseq, same_branch=False)
    _set(channel, _response_variables(channel, answer, cseq))
    stream = channel.stream
    if stream is not None:
        with contextlib.suppress(SipParseError):
            sdp = remote_media(answer.body)
            if sdp.port:
                stream.remote = (sdp.address, sdp.port)
                channel.set("remote_media_ip", sdp.address)
                channel.set("remote_media_port", str(sdp.port))
                channel.set("remote_audio_media_flow", "sendrecv")
        switch.media.add(stream)
    channel.recovering = False
    switch.track(channel)


def _set(channel: Channel, pairs: Pairs) -> None:
    for name, value in pairs:
        channel.set(name, value)


def _response_variables(channel: Channel, answer: SipMessage, cseq: int) -> Pairs:
    """What FreeSWITCH takes over from a final answer, and from 180 and 183, too."""
    host, port = channel.dialog.destination()
    return [
        ("sip_reply_host", host),
        ("sip_reply_port", str(port)),
        ("sip_network_ip", host),
        ("sip_network_port", str(port)),
        ("sip_to_tag", tag_of(answer.get("to"))),
        ("sip_from_tag", tag_of(answer.get("from"))),
        ("sip_cseq", str(cseq)),
        *_leg_variables(channel, answer),
    ]


def _leg_variables(channel: Channel, answer: SipMessage) -> Pairs:
    """From and To as the answer has them: for an inbound leg the other way round than before."""
    pairs = [
        ("sip_full_via", ",".join(answer.all("via"))),
        ("sip_full_from", answer.get("from")),
        ("sip_full_to", answer.get("to")),
    ]
    for part in ("from", "to"):
        pairs.append((f"sip_{part}_display", display_name(answer.get(part))))
        with contextlib.suppress(SipParseError):
            pairs += uri_variables(part, Uri(address_uri(answer.get(part)))).items()
    if channel.direction == "inbound":
        pairs.append(("dlg_req_swap_direction", "true"))
    elif answer.get("contact"):
        pairs.append(("sip_recover_contact", answer.get("contact")))
    return pairs


def _failed(
    switch: Switch,
    channel: Channel,
    status: int,
    reason: str,
    cause: str,
    *,
    answer: SipMessage | None,
) -> None:
    for name, value in (
        ("sip_reply_port", "0" if answer is None else "5060"),
        ("sip_invite_failure_status", str(status)),
        ("sip_invite_failure_phrase", reason),
        ("sip_term_status", str(status)),
        ("proto_specific_hangup_cause", f"sip:{status}"),
        ("sip_term_cause", "102" if cause == "RECOVERY_ON_TIMER_EXPIRE" else "41"),
        ("sip_hangup_disposition", "recv_refuse"),
    ):
        channel.set(name, value)
    switch.hangup(channel, cause, "recv_refuse")
