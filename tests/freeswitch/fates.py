"""Telephones with different fates, all of them SIPp's, and what its message logs say they did.

A fate is what a phone does once its FreeSWITCH is lost and another one asks for its call. Callers
of one fate share a SIPp process; the one callee of bridged calls tells its fate by the user that
was called. `Testimony` is read from SIPp's logs alone.
"""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from haclusterd.lab import netns
from haclusterd.lab.tone import write_tone

SCENARIOS = Path(netns.__file__).parent / "scenarios"
LATE_MS = 6000  # after the deadline of verdicts, before an orphan is ended
BYE_MS = 400
INSTEAD_MS = 150
UP_S = 60.0

# by fate: the user that a callee of this fate is called by
CALLEES = {
    "talks": "00", "hung_up": "01", "refuses": "02", "silent": "03", "late": "04", "byes": "05",
    "rings": "06", "bye_instead": "07",
}  # fmt: skip


_PLAY = '<nop><action><exec rtp_stream="tone.pcmu,-1,0,PCMU/8000"/></action></nop>\n'


def _pieces(name: str) -> tuple[str, str, str]:
    """Of a scenario: up to where the call stands, the 200 to a re-INVITE, from the BYE on."""
    text = (SCENARIOS / name).read_text()
    head, _, rest = text.partition('  <label id="talking"/>')
    answer = re.search(r"  <send>\s*<!\[CDATA\[\s*SIP/2.0 200 OK.*?</send>", rest, re.DOTALL)
    end = rest.partition('  <label id="hanging_up"/>')[2]
    assert answer, name
    return head, answer[0], '  <label id="hanging_up"/>' + end


def _reply(status: str) -> str:
    names = ("Via", "From", "To", "Call-ID", "CSeq")
    lines = [f"SIP/2.0 {status}", *(f"[last_{name}:]" for name in names), "Content-Length: 0"]
    return "<send><![CDATA[\n\n" + "\n".join(lines) + "\n\n]]></send>\n"


def _bye(end: str) -> str:
    """The BYE of the scenario, sent once."""
    found = re.search(r"<send retrans=\"500\">(.*?)</send>", end, re.DOTALL)
    assert found
    return f"<send>{found[1]}</send>\n"


def _section(fate: str, answer: str, end: str) -> str:
    """What comes after the ACK of the first INVITE; falls through to the end of the scenario."""
    for_ever = '<recv request="NOTIFY" timeout="600000"/>\n'  # nobody sends one
    invited = f'<label id="{fate}"/>\n<recv request="INVITE"/>\n'
    talk = (
        f'<label id="{fate}_talk"/>\n'
        f'<recv request="INVITE" optional="true" next="{fate}_again"/>\n'
        '<recv request="BYE" ontimeout="hanging_up" next="ended"/>\n'
        f'<label id="{fate}_again"/>\n'
        f'{answer}<recv request="INVITE" optional="true" next="{fate}_again"/>\n'
        '<recv request="BYE" optional="true" next="ended"/>\n'
        f'<recv request="ACK" next="{fate}_talk"/>\n'
    )
    return {
        "talks": f'<label id="talks"/>\n<nop next="talks_talk"/>\n{talk}',
        "same_sdp": '<label id="same_sdp"/>\n<nop next="same_sdp_talk"/>\n'
        + talk.replace("talks_", "same_sdp_").replace(" 1 2 IN IP", " 1 1 IN IP"),
        "odd_codec": '<label id="odd_codec"/>\n<nop next="odd_codec_talk"/>\n'
        + talk.replace("RTP/AVP 0 101", "RTP/AVP 18 101").replace("0 PCMU", "18 G729"),
        "speaks": f'<label id="speaks"/>\n{_PLAY}<nop next="speaks_talk"/>\n{talk}',
        "hung_up": '<label id="hung_up"/>\n<recv request="INFO"/>\n'
        + _bye(end) + f'<recv request="INVITE"/>\n{_reply("481 Call Does Not Exist")}'
        + f'<recv request="ACK"/>\n{for_ever}',
        "refuses": f'{invited}{_reply("488 Not Acceptable Here")}<recv request="ACK"/>\n'
        '<recv request="BYE" next="ended"/>\n',
        "silent": f'<label id="silent"/>\n{for_ever}',
        "late": f'{invited}<pause milliseconds="{LATE_MS}"/>\n<nop next="late_again"/>\n{talk}',
        "byes": f'{invited}{answer}<recv request="ACK"/>\n<pause milliseconds="{BYE_MS}"/>\n'
        + _bye(end) + f'<recv response="200"/>\n{for_ever}',
        "rings": f'{invited}{_reply("180 Ringing")}{for_ever}',
        "bye_instead": f'{invited}<pause milliseconds="{INSTEAD_MS}"/>\n'
        + _bye(end) + f'<recv response="200"/>\n{for_ever}',
    }[fate]  # fmt: skip


def caller_scenario(fate: str) -> str:
    head, answer, end = _pieces("uac_echo.xml")
    return head + _section(fate, answer, end) + end


def callee_scenario() -> str:
    """One telephone for all fates."""
    head, answer, end = _pieces("uas.xml")
    asks = "".join(
        f'<ereg regexp="sip:{user}@" search_in="hdr" header="To:" check_it="false"'
        f' assign_to="is_{fate}"/>\n'
        for fate, user in CALLEES.items()
    )
    head = head.replace("</action>", asks + "</action>", 1)
    jumps = "".join(f'<nop next="{fate}" test="is_{fate}"/>\n' for fate in CALLEES)
    return head + jumps + "".join(_section(fate, answer, end) for fate in CALLEES) + end


class Phones:
    """The SIPp processes of one test, in one namespace, each with a message log."""

    def __init__(self, namespace: str, directory: Path, caller: str, callee: str) -> None:
        self._namespace, self._directory = namespace, directory
        self._caller, self._callee = caller, callee
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.logs: list[Path] = []

    def callers(
        self, name: str, fate: str, server: str, extension: str, count: int, *, echo: bool = True
    ) -> None:
        """Returns when all are up. `fate` "speaks" plays a tone and echoes nothing."""
        words = [
            f"{server}:5060", "-s", extension, "-i", self._caller, "-r", "40",
            "-m", str(count), "-l", str(count),
        ]  # fmt: skip
        self._start(name, caller_scenario(fate), words, echo and fate != "speaks")
        log = self.logs[-1]
        netns.wait_for(lambda: _acknowledged(log) >= count, UP_S, f"{count} calls of {name}")

    def callee(self) -> None:
        self._start("callee", callee_scenario(), ["-i", self._callee, "-p", "5060"], True)

    def call_ids(self, name: str, fate: str = "") -> list[str]:
        """Of the calls of one process; of the callee those of one fate."""
        log = self._directory / f"phones-{name}" / "messages.log"
        invites = [m for m in messages(log) if m.first.startswith("INVITE")]
        user = f"sip:{CALLEES[fate]}@" if fate else ""
        return list(dict.fromkeys(m.call_id for m in invites if user in m.first))

    def hang_up(self, call_ids: Iterable[str]) -> None:
        """Their users hang up now."""
        ports = {call_id: port for log in self.logs for call_id, port in _ports(log)}
        with netns.inside(self._namespace):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            for call_id in call_ids:
                lines = (
                    "INFO sip:phone SIP/2.0", "Via: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bKinfo",
                    "From: <sip:finger>;tag=f", "To: <sip:phone>", f"Call-ID: {call_id}",
                    "CSeq: 900 INFO", "Content-Length: 0",
                )  # fmt: skip
                sock.sendto(("\r\n".join(lines) + "\r\n\r\n").encode(), ports[call_id])

    def testimonies(self, after: datetime) -> dict[str, Testimony]:
        """By Call-ID, of what happened since."""
        found: dict[str, Testimony] = {}
        for log in self.logs:
            for message in messages(log):
                one = found.setdefault(message.call_id, Testimony())
                if message.at >= after:
                    one.take(message)
        return found

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _start(self, name: str, scenario: str, words: Sequence[str], echo: bool) -> None:
        where = self._directory / f"phones-{name}"
        where.mkdir()
        (where / "scenario.xml").write_text(scenario)
        write_tone(where)
        media_port = 20000 + 100 * len(self.processes)
        command = [
            "sipp", *words, "-sf", "scenario.xml", "-mp", str(media_port), "-nostdin",
            "-recv_timeout", "600000", "-default_behaviors", "none",
            "-watchdog_minor_maxtriggers", "100000", "-watchdog_major_maxtriggers", "100000",
            "-buff_size", "4000000",
            "-trace_msg", "-message_file", str(where / "messages.log"),
            "-trace_err", "-error_file", str(where / "errors.log"),
            *(["-rtp_echo"] if echo else []),
        ]  # fmt: skip
        with netns.inside(self._namespace), open(where / "screen.log", "wb") as screen:
            self.processes[name] = subprocess.Popen(
                command, cwd=where, stdout=screen, stderr=screen
            )
        self.logs.append(where / "messages.log")


def _acknowledged(log: Path) -> int:
    return log.read_bytes().count(b"CSeq: 1 ACK") if log.exists() else 0


@dataclass(frozen=True)
class Logged:
    """One message of a SIPp log."""

    at: datetime
    sent: bool
    first: str
    call_id: str
    cseq: int
    method: str
    text: str


_ENTRY = re.compile(
    r"^-{20,} (\d{4}-\d\d-\d\d[ \t]\d\d:\d\d:\d\d\.\d+)[^\n]*\n"
    r"UDP message (sent|received)[^\n]*\n\n(.*?)(?=^-{20,} \d{4}-|\Z)",
    re.MULTILINE | re.DOTALL,
)
_CALL_ID = re.compile(r"^Call-ID:\s*(\S+)", re.MULTILINE | re.IGNORECASE)
_CSEQ = re.compile(r"^CSeq:\s*(\d+)\s+(\S+)", re.MULTILINE | re.IGNORECASE)
_VIA_PORT = re.compile(r"^Contact: <sip:[^@>]*@([0-9.]+):(\d+)>", re.MULTILINE)
_AUDIO = re.compile(r"^m=audio (\d+)", re.MULTILINE)


def messages(log: Path) -> list[Logged]:
    found = []
    for at, way, body in _ENTRY.findall(log.read_text(errors="replace").replace("\r", "")):
        call_id, cseq = _CALL_ID.search(body), _CSEQ.search(body)
        if call_id and cseq:
            when = datetime.strptime(at.replace("\t", " "), "%Y-%m-%d %H:%M:%S.%f")
            found.append(
                Logged(
                    when, way == "sent", body.split("\n", 1)[0], call_id[1],
                    int(cseq[1]), cseq[2], body,
                )
            )  # fmt: skip
    return found


def _ports(log: Path) -> Iterable[tuple[str, tuple[str, int]]]:
    """Where the phone of each call is."""
    for message in messages(log):
        where = _VIA_PORT.search(message.text) if message.sent else None
        if where:
            yield message.call_id, (where[1], int(where[2]))


@dataclass
class Testimony:
    """What a phone did after the loss of its FreeSWITCH, as SIPp wrote it down.

    `asked` is the first re-INVITE it got, `answers` its statuses with their times.
    """

    __test__ = False

    asked: Logged | None = None
    answers: list[tuple[int, datetime]] = field(default_factory=list)
    acked: datetime | None = None
    said_bye: datetime | None = None
    was_told_bye: datetime | None = None

    def take(self, message: Logged) -> None:
        received, first = not message.sent, message.first
        if received and first.startswith("INVITE"):
            self.asked = self.asked or message
        elif message.sent and first.startswith("SIP/2.0") and message.method == "INVITE":
            self.answers.append((int(first.split()[1]), message.at))
        elif received and first.startswith("ACK"):
            self.acked = self.acked or message.at
        elif first.startswith("BYE"):
            if message.sent:
                self.said_bye = self.said_bye or message.at
            else:
                self.was_told_bye = self.was_told_bye or message.at

    @property
    def answered(self) -> datetime | None:
        """When it took the call up again."""
        return next((at for status, at in self.answers if 200 <= status < 300), None)

    @property
    def refused(self) -> int:
        """The status it refused with, 0 if it did not."""
        return next((status for status, _ in self.answers if status >= 300), 0)

    @property
    def media_port(self) -> int:
        """Where FreeSWITCH asked for its RTP."""
        found = _AUDIO.search(self.asked.text) if self.asked else None
        return int(found[1]) if found else 0
