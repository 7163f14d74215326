"""One call leg: its state, variables, caller profile, and the headers its events carry.

Header sets and their order are those of the captures; basic events (CHANNEL_STATE, CODEC,
CALLSTATE, PRESENCE_IN) have no variables, extended ones have all of them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from haclusterd.lab.emulator.dialog import Dialog
from haclusterd.lab.emulator.media import Stream

CODECS: Final = {0: "PCMU", 8: "PCMA"}
CALLSTATE_NUMBERS: Final = {"DOWN": 0, "RINGING": 2, "ACTIVE": 4, "HANGUP": 7}
_TIMES: Final = (
    "Profile-Created",
    "Channel-Created",
    "Channel-Answered",
    "Channel-Progress",
    "Channel-Progress-Media",
    "Channel-Hangup",
    "Channel-Transfer",
    "Channel-Resurrect",
    "Channel-Bridged",
)
Pairs = list[tuple[str, str]]


def now_us() -> int:
    return time.time_ns() // 1000


@dataclass(slots=True)
class CallerProfile:
    username: str = ""
    dialplan: str = "XML"
    caller_id_name: str = ""
    caller_id_number: str = ""
    callee_id_name: str = ""
    callee_id_number: str = ""
    ani: str = ""
    aniii: str = ""
    network_addr: str = ""
    rdnis: str = ""
    destination_number: str = ""
    source: str = "mod_sofia"
    context: str = "test"
    chan_name: str = ""


@dataclass(slots=True, eq=False)
class Channel:
    uuid: str
    session_id: int
    direction: str  # inbound | outbound, as FreeSWITCH means it
    profile_name: str
    caller: CallerProfile
    dialog: Dialog
    variables: dict[str, str] = field(default_factory=dict)
    state: str = "CS_NEW"  # the running state, which events show
    state_number: int = 0  # the state to come, which may be ahead of it
    callstate: str = "DOWN"
    answer_state: str = "ringing"
    hangup_cause: str = ""
    codec: str = "PCMU"
    times: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_TIMES, 0))
    applications: Pairs = field(default_factory=list)
    executed: list[tuple[str, str, int]] = field(default_factory=list)  # name, data, stamp us
    application_uuid: str = ""
    presence_events: int = 0
    stream: Stream | None = None
    tracked: bool = False
    recovering: bool = False

    def set(self, name: str, value: str) -> None:
        """A changed variable moves to the end and an empty one goes, as in FreeSWITCH."""
        self.variables.pop(name, None)
        if value:
            self.variables[name] = value

    @property
    def answered(self) -> bool:
        return self.times["Channel-Answered"] > 0

    def state_headers(self) -> Pairs:
        """The few headers of the very first event, before the caller profile exists."""
        pairs = [
            ("Channel-State", self.state),
            ("Channel-Call-State", self.callstate),
            ("Channel-State-Number", str(self.state_number)),
            ("Channel-Name", self.caller.chan_name),
            ("Unique-ID", self.uuid),
            ("Call-Direction", self.direction),
            ("Presence-Call-Direction", self.direction),
            ("Channel-HIT-Dialplan", "true" if self.direction == "inbound" else "false"),
        ]
        presence_id = self.variables.get("presence_id")
        if presence_id and self.state != "CS_NEW":
            pairs.append(("Channel-Presence-ID", presence_id))
        pairs.append(("Channel-Call-UUID", self.variables.get("call_uuid", self.uuid)))
        pairs.append(("Answer-State", self.answer_state))
        if self.hangup_cause:
            pairs.append(("Hangup-Cause", self.hangup_cause))
        return pairs

    def basic_headers(self) -> Pairs:
        pairs = self.state_headers()
        if self.state == "CS_NEW" and "presence_id" in self.variables:
            pairs.insert(-2, ("Channel-Presence-ID", self.variables["presence_id"]))
        for side in ("Read", "Write"):
            pairs += [
                (f"Channel-{side}-Codec-Name", self.codec),
                (f"Channel-{side}-Codec-Rate", "8000"),
                (f"Channel-{side}-Codec-Bit-Rate", "64000"),
            ]
        return pairs + self._caller_headers()

    def _caller_headers(self) -> Pairs:
        caller = self.caller
        pairs = [
            ("Direction", self.direction),
            ("Logical-Direction", self.direction),
            ("Username", caller.username),
            ("Dialplan", caller.dialplan),
            ("Caller-ID-Name", caller.caller_id_name),
            ("Caller-ID-Number", caller.caller_id_number),
            ("Orig-Caller-ID-Name", caller.caller_id_name),
            ("Orig-Caller-ID-Number", caller.caller_id_number),
            ("Callee-ID-Name", caller.callee_id_name),
            ("Callee-ID-Number", caller.callee_id_number),
            ("Network-Addr", caller.network_addr),
            ("ANI", caller.ani),
            ("ANI-II", caller.aniii),
            ("RDNIS", caller.rdnis),
            ("Destination-Number", caller.destination_number),
            ("Unique-ID", self.uuid),
            ("Source", caller.source),
            ("Context", caller.context),
            ("Channel-Name", caller.chan_name),
            ("Profile-Index", "1"),
        ]
        pairs = [(f"Caller-{name}", value) for name, value in pairs if value]
        pairs += [(f"Caller-{name}-Time", str(self.times[name])) for name in _TIMES]
        return [
            *pairs,
            ("Caller-Channel-Last-Hold", "0"),
            ("Caller-Channel-Hold-Accum", "0"),
            ("Caller-Screen-Bit", "true"),
            ("Caller-Privacy-Hide-Name", "false"),
            ("Caller-Privacy-Hide-Number", "false"),
        ]

    def extended_headers(self) -> Pairs:
        variables = [(f"variable_{name}", value) for name, value in self.variables.items()]
        return self.basic_headers() + variables

    def show_row(self, switchname: str) -> dict[str, str]:
        """The row of `show channels`."""
        caller = self.caller
        created_s = self.times["Channel-Created"] // 1_000_000
        application = self.executed[-1][:2] if self.executed else ("", "")
        row = {
            "uuid": self.uuid,
            "direction": self.direction,
            "created": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(created_s)),
            "created_epoch": str(created_s),
            "name": caller.chan_name,
            "state": self.state,
            "cid_name": caller.caller_id_name,
            "cid_num": caller.caller_id_number,
            "ip_addr": caller.network_addr,
            "dest": caller.destination_number,
            "application": application[0],
            "application_data": application[1],
            "dialplan": caller.dialplan,
            "context": caller.context,
        }
        for side in ("read", "write"):
            row[f"{side}_codec"] = self.codec
            row[f"{side}_rate"] = "8000"
            row[f"{side}_bit_rate"] = "64000"
        row |= {
            "secure": "",
            "hostname": switchname,
            "presence_id": self.variables.get("presence_id", ""),
            "presence_data": "",
            "accountcode": self.variables.get("accountcode", ""),
            "callstate": self.callstate,
        }
        for name in ("callee_name", "callee_num", "callee_direction", "call_uuid"):
            row[name] = ""
        return row | {
            "sent_callee_name": "",
            "sent_callee_num": "",
            "initial_cid_name": caller.caller_id_name,
            "initial_cid_num": caller.caller_id_number,
            "initial_ip_addr": caller.network_addr,
            "initial_dest": caller.destination_number,
            "initial_dialplan": caller.dialplan,
            "initial_context": caller.context,
        }
