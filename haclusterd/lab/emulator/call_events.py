"""The events of a call in the order the real one fires them, from INVITE to destruction.

Each function moves the channel's state and fires; nothing here touches SIP, media or the database.
"""

from __future__ import annotations

import time
import uuid
from typing import Final

from haclusterd.lab.emulator.channel import CALLSTATE_NUMBERS, Channel, Pairs, now_us
from haclusterd.lab.emulator.events import EventBus, Source

_STATE: Final = Source("switch_channel.c", "switch_channel_perform_set_running_state", 2409)
_READ_CODEC: Final = Source("switch_core_codec.c", "switch_core_session_set_real_read_codec", 189)
_WRITE_CODEC: Final = Source("switch_core_codec.c", "switch_core_session_set_write_codec", 471)
_CREATE: Final = Source("switch_core_state_machine.c", "switch_core_session_run", 626)
_CALLSTATE: Final = Source("switch_channel.c", "switch_channel_perform_set_callstate", 302)
_PRESENCE: Final = Source("switch_channel.c", "switch_channel_perform_presence", 806)
_EXECUTE: Final = Source("switch_core_session.c", "switch_core_session_exec", 2949)
_EXECUTED: Final = Source("switch_core_session.c", "switch_core_session_exec", 2972)
_ANSWER: Final = Source("switch_channel.c", "switch_channel_perform_mark_answered", 3848)
_PLAY: Final = Source("switch_ivr_play_say.c", "switch_ivr_play_file", 1649)
_PLAYED: Final = Source("switch_ivr_play_say.c", "switch_ivr_play_file", 2023)
_HANGUP: Final = Source("switch_channel.c", "switch_channel_perform_hangup", 3447)
_COMPLETE: Final = Source("switch_core_state_machine.c", "switch_core_session_reporting_state", 943)
_DESTROY: Final = Source("switch_core_session.c", "switch_core_session_perform_destroy", 1588)
Q850: Final = {
    "UNALLOCATED_NUMBER": 1,
    "NORMAL_CLEARING": 16,
    "MANAGER_REQUEST": 16,
    "SYSTEM_SHUTDOWN": 16,
    "ORIGINATOR_CANCEL": 16,
    "USER_BUSY": 17,
    "CALL_REJECTED": 21,
    "NORMAL_TEMPORARY_FAILURE": 41,
    "INCOMPATIBLE_DESTINATION": 88,
    "RECOVERY_ON_TIMER_EXPIRE": 102,
}

_QUALITY: Final = {
    "in_jitter_packet_count": "0",
    "in_flush_packet_count": "0",
    "in_largest_jb_size": "0",
    "in_jitter_min_variance": "0.00",
    "in_jitter_max_variance": "0.00",
    "in_jitter_loss_rate": "0.00",
    "in_jitter_burst_rate": "0.00",
    "in_mean_interval": "0.00",
    "in_flaw_total": "0",
    "in_quality_percentage": "100.00",
    "in_mos": "4.50",
    "rtcp_packet_count": "0",
    "rtcp_octet_count": "0",
}


class CallEvents:
    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    def state(self, channel: Channel, state: str, number: int) -> None:
        channel.state, channel.state_number = state, number
        first = state == "CS_NEW"
        self._bus.fire(
            "CHANNEL_STATE", _STATE, channel.state_headers if first else channel.basic_headers
        )

    def codecs(self, channel: Channel) -> None:
        read = [
            ("channel-read-codec-name", channel.codec),
            ("channel-read-codec-rate", "8000"),
            ("channel-read-codec-bit-rate", "64000"),
        ]
        write = [
            ("Channel-Write-Codec-Name", channel.codec),
            ("Channel-Write-Codec-Rate", "8000"),
            ("Channel-Write-codec-bit-rate", "64000"),
        ]
        self._bus.fire("CODEC", _READ_CODEC, lambda: channel.basic_headers() + read)
        self._bus.fire("CODEC", _WRITE_CODEC, lambda: channel.basic_headers() + write)

    def create(self, channel: Channel, number: int) -> None:
        channel.state_number = number
        self._bus.fire("CHANNEL_CREATE", _CREATE, channel.extended_headers)

    def callstate(self, channel: Channel, callstate: str) -> None:
        changed: Pairs = [
            ("Original-Channel-Call-State", channel.callstate),
            ("Channel-Call-State-Number", str(CALLSTATE_NUMBERS[callstate])),
        ]
        channel.callstate = callstate
        self._bus.fire("CHANNEL_CALLSTATE", _CALLSTATE, lambda: changed + channel.basic_headers())

    def presence(self, channel: Channel, status: str, info: str, caller: Source) -> None:
        if "presence_id" not in channel.variables:
            return
        pairs = [
            ("proto", "any"),
            ("login", "src/switch_channel.c"),
            ("from", channel.variables["presence_id"]),
            ("rpid", "unknown"),
            ("status", status),
            ("event_type", "presence"),
            ("alt_event_type", "dialog"),
            ("presence-call-info-state", info),
            ("presence-call-direction", channel.direction),
            ("event_count", str(channel.presence_events)),
            ("Presence-Calling-File", "src/" + caller.file),
            ("Presence-Calling-Function", caller.function),
            ("Presence-Calling-Line", str(caller.line)),
        ]
        channel.presence_events += 1
        self._bus.fire("PRESENCE_IN", _PRESENCE, lambda: channel.basic_headers() + pairs)

    def execute(self, channel: Channel, name: str, data: str) -> None:
        channel.application_uuid = str(uuid.uuid4())
        channel.executed.append((name, data, now_us()))
        channel.set("current_application", name)
        if data:
            channel.set("current_application_data", data)
        else:
            channel.variables.pop("current_application_data", None)
        pairs = self._application(channel, name, data, None)
        self._bus.fire("CHANNEL_EXECUTE", _EXECUTE, lambda: channel.extended_headers() + pairs)

    def executed(self, channel: Channel, name: str, data: str, outcome: str = "_none_") -> None:
        if outcome != "_none_":
            channel.set("current_application_response", outcome)
        pairs = self._application(channel, name, data, outcome)
        self._bus.fire(
            "CHANNEL_EXECUTE_COMPLETE", _EXECUTED, lambda: channel.extended_headers() + pairs
        )

    def _application(self, channel: Channel, name: str, data: str, outcome: str | None) -> Pairs:
        pairs = [("Application", name)]
        if data:
            pairs.append(("Application-Data", data))
        if outcome is not None:
            pairs.append(("Application-Response", outcome))
        return [*pairs, ("Application-UUID", channel.application_uuid)]

    def answer(self, channel: Channel) -> None:
        channel.answer_state = "answered"
        self._bus.fire("CHANNEL_ANSWER", _ANSWER, channel.extended_headers)
        marked = Source("switch_channel.c", "switch_channel_perform_mark_answered", 3906)
        self.presence(channel, "answered", "active", marked)
        self.callstate(channel, "ACTIVE")

    def playback(self, channel: Channel, data: str, *, stop: bool = False) -> None:
        pairs = [
            ("Playback-File-Type", data.partition(":")[0]),
            ("Playback-File-Path", data),
        ]
        if stop:
            played_ms = (now_us() - channel.times["Channel-Answered"]) // 1000
            channel.set("playback_last_offset_pos", str(played_ms * 8))
            channel.set("playback_seconds", str(played_ms // 1000))
            channel.set("playback_ms", str(played_ms))
            channel.set("playback_samples", str(played_ms * 8))
            pairs.append(("Playback-Status", "done"))
        name, source = ("PLAYBACK_STOP", _PLAYED) if stop else ("PLAYBACK_START", _PLAY)
        self._bus.fire(name, source, lambda: channel.extended_headers() + pairs)

    def hangup(self, channel: Channel, cause: str) -> None:
        """CHANNEL_HANGUP, in the state the channel was in."""
        channel.hangup_cause = cause
        channel.answer_state = "hangup"
        channel.state_number = 10
        self._bus.fire("CHANNEL_HANGUP", _HANGUP, channel.extended_headers)

    def end(self, channel: Channel, disposition: str) -> None:
        """Everything after CHANNEL_HANGUP: the application ends, report, destruction."""
        name, data = channel.executed[-1][:2] if channel.executed else ("", "")
        if name == "playback" and channel.answered:
            self.playback(channel, data, stop=True)
            outcome = "PLAYBACK ERROR" if disposition == "recv_bye" else "FILE PLAYED"
            self.executed(channel, name, data, outcome)
        elif name:
            self.executed(channel, name, data)
        channel.set("sip_hangup_disposition", disposition)
        self.state(channel, "CS_HANGUP", 10)
        channel.times["Channel-Hangup"] = now_us()
        self.callstate(channel, "HANGUP")
        checked = Source("switch_core_state_machine.c", "check_presence", 521)
        channel.state_number = 11
        self.presence(channel, "CS_HANGUP", "idle", checked)
        self.state(channel, "CS_REPORTING", 11)
        self._report(channel)
        self._bus.fire("CHANNEL_HANGUP_COMPLETE", _COMPLETE, channel.extended_headers)
        channel.state_number = 12
        self._bus.fire("CHANNEL_DESTROY", _DESTROY, channel.extended_headers)
        self.state(channel, "CS_DESTROY", 12)

    def _report(self, channel: Channel) -> None:
        times = channel.times
        stamps = {
            "start": times["Channel-Created"],
            "profile_start": times["Profile-Created"],
            "answer": times["Channel-Answered"],
            "bridge": times["Channel-Bridged"],
            "resurrect": times["Channel-Resurrect"],
            "progress": times["Channel-Progress"],
            "progress_media": times["Channel-Progress-Media"],
            "last_hold": 0,
            "end": times["Channel-Hangup"],
        }
        channel.set("hangup_cause", channel.hangup_cause)
        channel.set("hangup_cause_q850", str(Q850.get(channel.hangup_cause, 31)))
        channel.set("digits_dialed", "none")
        for name, stamp_us in stamps.items():
            if stamp_us:
                text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stamp_us // 1_000_000))
                channel.set(f"{name}_stamp", text)
        for name, stamp_us in stamps.items():
            channel.set(f"{name}_epoch", str(stamp_us // 1_000_000))
            channel.set(f"{name}_uepoch", str(stamp_us))
        name, data = channel.executed[-1][:2] if channel.executed else ("", "")
        channel.set("last_app", name)
        channel.set("last_arg", data)
        caller = channel.caller
        channel.set("caller_id", f'"{caller.caller_id_name}" <{caller.caller_id_number}>')
        self._durations(channel, stamps["end"])

    def _durations(self, channel: Channel, end_us: int) -> None:
        created_us = channel.times["Channel-Created"]
        answered_us = channel.times["Channel-Answered"]
        billed_us = end_us - answered_us if answered_us else 0
        waited_us = max(answered_us - created_us, 0)
        spans = {"duration": end_us - created_us, "billsec": billed_us, "progresssec": 0}
        spans |= {"answersec": waited_us, "waitsec": waited_us, "progress_mediasec": 0}
        spans["flow_billsec"] = end_us - created_us
        for prefix, divisor in (("", 1_000_000), ("m", 1000), ("u", 1)):
            for name, span_us in spans.items():
                scaled = prefix + name if name == "duration" else name[:-3] + prefix + "sec"
                channel.set(scaled, str(span_us // divisor))
        for name in ("hold_accum_seconds", "hold_accum_usec", "hold_accum_ms"):
            channel.set(name, "0")
        self._media_report(channel)

    def _media_report(self, channel: Channel) -> None:
        stream = channel.stream
        if stream is None:
            return
        for side, packets in (("in", stream.received), ("out", stream.sent)):
            for name in ("raw_bytes", "media_bytes"):
                channel.set(f"rtp_audio_{side}_{name}", str(packets * 172))
            for name in ("packet_count", "media_packet_count"):
                channel.set(f"rtp_audio_{side}_{name}", str(packets))
            for name in ("skip", "dtmf", "cng"):
                channel.set(f"rtp_audio_{side}_{name}_packet_count", "0")
        for name, value in _QUALITY.items():
            channel.set(f"rtp_audio_{name}", value)
