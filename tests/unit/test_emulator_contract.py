"""The emulator against the captures of a real FreeSWITCH: frames, replies, events, rows.

The same tests run against a real one: set HACLUSTERD_CONTRACT_ESL=HOST:PORT:PASSWORD and
HACLUSTERD_CONTRACT_SIP=IP:PORT of an active profile `pa` (configuration: fs_conf with its test
dialplan). What needs core.db is then skipped unless HACLUSTERD_CONTRACT_CORE_DB names it.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.unit.emulator_lab import Emulator, eventually, loopback
from tests.unit.emulator_peers import Esl, Frame, Telephone, header, read_frame

CAPTURES = Path(__file__).parent.parent / "fixtures" / "freeswitch"
# Headers and events that depend on the configuration: presence, the applications before answer.
CONFIGURED = {"Channel-Presence-ID", "variable_presence_id", "variable_ha_test"}
UNTIMED = {"HEARTBEAT", "RE_SCHEDULE", "PRESENCE_IN", "API"}
# Set by the ACK, which a real one may handle before or after the events around the answer.
RACING = {"variable_sip_to_tag", "variable_sip_cseq"}


@dataclass
class Target:
    host: str
    esl_port: int
    password: str
    sip: tuple[str, int]
    core_db: Path | None

    def esl(self) -> Esl:
        return Esl(self.host, self.esl_port, self.password)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    if given := os.environ.get("HACLUSTERD_CONTRACT_ESL"):
        host, port, password = given.split(":", 2)
        ip, _, sip_port = os.environ["HACLUSTERD_CONTRACT_SIP"].rpartition(":")
        core_db = os.environ.get("HACLUSTERD_CONTRACT_CORE_DB")
        sip = (ip, int(sip_port))
        yield Target(host, int(port), password, sip, Path(core_db) if core_db else None)
        return
    emulator = Emulator(tmp_path_factory.mktemp("emulator"), heartbeat_s=0.5).start()
    yield Target(
        "127.0.0.1", emulator.port, "ClueCon", emulator.sip, emulator.directory / "core.db"
    )
    emulator.kill()


def frames_of(name: str) -> list[Frame]:
    return frames_in((CAPTURES / name).read_bytes())


def frames_in(content: bytes) -> list[Frame]:
    stream = BytesIO(content)
    return list(iter(lambda: read_frame(stream), None))


def mask(text: str) -> str:
    """What may differ from run to run or from node to node becomes a placeholder."""
    text = re.sub(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", "UUID", text)
    text = re.sub(r"\(Version [^)]*\)", "(Version)", text)
    text = re.sub(r" *sip:mod_sofia@[\d.:]+", " sip:URL", text)
    text = re.sub(r"\d+(\.\d+)*", "N", text)
    return text


def transcript() -> Iterator[list[tuple[str, list[Frame]]]]:
    """The captured session, per connection: (command, its frames)."""
    connection: list[tuple[str, list[Frame]]] = []
    text = (CAPTURES / "esl_session_transcript.txt").read_text()
    command = ""
    for part in re.split(r"^(?=<<< |>>> )", text, flags=re.MULTILINE):
        if part.startswith(">>> "):
            command = part[4:].strip()
        elif part.startswith("<<< "):
            if "auth/request" in part and connection:
                yield connection
                connection = []
            connection.append((command, frames_in(part[4:].encode() + b"\n\n")))
            command = ""
    yield connection


def shape(command: str, frame: Frame) -> object:
    """What has to be equal in two answers to `command`."""
    headers = {k: mask(v) for k, v in frame.headers.items() if k != "Content-Length"}
    body = frame.body
    if command.endswith("as json") and '"rows"' in body:
        return headers, sorted(json.loads(body)["rows"][0])
    if command == "api global_getvar":
        names = {line.partition("=")[0] for line in body.splitlines()}
        return headers, names & {"hostname", "local_ip_v4", "core_uuid"}
    if command in ("api hash_dump all", "api hostname", "api switchname"):
        return headers
    return headers, mask(body)


def test_the_captured_session_is_answered_as_captured(target: Target) -> None:
    telephone = Telephone(loopback(), target.sip)
    telephone.call()
    time.sleep(0.5)
    for number, connection in enumerate(transcript()):
        with Esl(target.host, target.esl_port) as esl:
            for command, expected in connection[1:]:
                if command == "auth ClueCon":
                    command = f"auth {target.password}"
                esl.send(command)
                for frame in expected:
                    got = esl.read()
                    assert shape(command, got) == shape(command, frame), (number, command)
            with pytest.raises(EOFError):
                esl.read()
    telephone.hang_up()
    telephone.close()


def captured_events(*names: str) -> list[dict[str, str]]:
    return [f.event() for name in names for f in frames_of(name) if f.kind == "text/event-plain"]


def of_call(events: list[dict[str, str]]) -> list[dict[str, str]]:
    """The events of the only call there, without what configuration or chance decide."""
    call = next(event["Unique-ID"] for event in events if "Unique-ID" in event)
    return [
        event
        for event in events
        if event.get("Unique-ID") == call
        and event["Event-Name"] not in UNTIMED
        and event.get("Application") != "set"
    ]


def state(event: dict[str, str]) -> tuple[str, ...]:
    fields = ("Event-Name", "Channel-State", "Channel-State-Number", "Channel-Call-State")
    return tuple(event.get(name, "") for name in (*fields, "Application", "Hangup-Cause"))


def one_call(target: Target, style: str = "plain") -> list[dict[str, str]]:
    """Every event of a call to the tone that `hupall` ends."""
    telephone = Telephone(loopback(), target.sip)
    with target.esl() as events, target.esl() as commands:
        events.ask(f"event {style} all")
        telephone.call()
        found = events.events("PLAYBACK_START")
        time.sleep(0.3)
        commands.api("hupall")
        telephone.answer(telephone.wait_for("BYE"))
        found += events.events("CHANNEL_DESTROY") + events.events("CHANNEL_STATE")
    telephone.close()
    return found


def test_a_call_fires_the_captured_events_in_the_captured_order(target: Target) -> None:
    captured = of_call(captured_events("call_9197_plain.esl", "hangup_9197_plain.esl"))
    events = of_call(one_call(target))
    assert [state(event) for event in events] == [state(event) for event in captured]
    for event, model in zip(events, captured, strict=True):
        ignored = CONFIGURED | RACING
        if event.get("Application") == "answer":  # the capture's `set` left its data
            ignored = ignored | {"variable_current_application_data"}
        assert set(event) - ignored == set(model) - ignored, state(event)


def test_heartbeats_have_the_captured_headers(target: Target) -> None:
    captured = captured_events("call_9197_plain.esl")
    expected = next(set(e) for e in captured if e["Event-Name"] == "HEARTBEAT")
    with target.esl() as esl:
        esl.ask("event plain HEARTBEAT")
        assert set(esl.events("HEARTBEAT", 25)[-1]) == expected


def test_json_events_carry_what_plain_ones_do(target: Target) -> None:
    captured = frames_of("call_9197_json.esl")
    expected = next(json.loads(f.body) for f in captured if '"CHANNEL_ANSWER"' in f.body)
    telephone = Telephone(loopback(), target.sip)
    with target.esl() as esl:
        esl.ask("event json CHANNEL_ANSWER")
        telephone.call()
        frame = esl.read()
    telephone.hang_up()
    telephone.close()
    assert frame.kind == "text/event-json"
    got = json.loads(frame.body)
    missing = set(expected) ^ set(got)
    assert missing <= CONFIGURED | RACING | {"variable_current_application_data"}
    assert got["variable_remote_media_ip"] == telephone.ip


def test_uuid_dump_has_the_captured_headers(target: Target) -> None:
    limits = re.compile(r"variable_limit_")
    expected = set(json.loads((CAPTURES / "uuid_dump_json.txt").read_text()))
    telephone = Telephone(loopback(), target.sip)
    with target.esl() as events, target.esl() as commands:
        events.ask("event plain CHANNEL_ANSWER")
        telephone.call()
        uuid = events.events("CHANNEL_ANSWER")[-1]["Unique-ID"]
        time.sleep(0.1)
        dumped = json.loads(commands.api(f"uuid_dump {uuid} json"))
        plain = Frame({}, commands.api(f"uuid_dump {uuid}")).event()
    telephone.hang_up()
    telephone.close()
    different = {n for n in expected ^ set(dumped) if not limits.match(n)}
    assert different <= CONFIGURED
    assert set(plain) == set(dumped)
    assert plain["variable_sip_full_to"] == dumped["variable_sip_full_to"] == telephone.theirs


def bgapi_result(esl: Esl, command: str) -> tuple[str, Frame]:
    esl.ask("event plain BACKGROUND_JOB")
    reply = esl.ask(f"bgapi {command}")
    return reply.headers["Job-UUID"], esl.read()


def test_bgapi_reports_in_a_background_job_event(target: Target) -> None:
    with target.esl() as esl:
        job, frame = bgapi_result(esl, "echo one\ttwo")
        event = frame.event()
        assert (event["Job-UUID"], event["Job-Command"]) == (job, "echo")
        assert frame.body.endswith(f"Content-Length: {len('one' + chr(9) + 'two')}\n\none\ttwo")


def connect(core_db: Path | None) -> sqlite3.Connection:
    if core_db is None:
        pytest.skip("HACLUSTERD_CONTRACT_CORE_DB is not set")
    return sqlite3.connect(core_db, timeout=5, isolation_level=None)


def structure(element: ElementTree.Element, path: str = "") -> set[str]:
    here = f"{path}/{element.tag}"
    attributes = {f"{here}@{name}" for name in element.attrib}
    return {here}.union(attributes, *(structure(child, here) for child in element))


def test_the_recovery_row_has_the_captured_document(target: Target) -> None:
    with closing(connect(target.core_db)) as database:
        telephone = Telephone(loopback(), target.sip)
        telephone.call()
        query = "SELECT technology, profile_name, metadata FROM recovery WHERE metadata LIKE ?"
        needle = f"%{telephone.port}SIPpTag001%sip_full_to%"
        eventually(lambda: database.execute(query, (needle,)).fetchone() is not None)
        row = database.execute(query, (needle,)).fetchone()
        telephone.hang_up()
        telephone.close()
        eventually(lambda: database.execute(query, (needle,)).fetchone() is None)
    assert row[:2] == ("sofia", "pa")
    captured = ElementTree.parse(CAPTURES / "recovery_metadata_tone.xml").getroot()
    different = structure(captured) ^ structure(ElementTree.fromstring(row[2]))
    statistics = {p for p in different if "/call-stats" in p}
    assert different - statistics <= {
        "/cdr/variables/ha_test",
        "/cdr/variables/presence_id",
        "/cdr/variables/current_application_data",
        "/cdr/callflow/extension@current_app",  # there once an application follows the answer
        "/cdr/callflow/extension/application@last_executed",
    }


def test_a_captured_row_is_recovered(target: Target) -> None:
    """The document of a real FreeSWITCH, only its addresses changed to those at hand."""
    telephone = Telephone(loopback(), target.sip)
    text = (CAPTURES / "recovery_metadata_tone.xml").read_text()
    text = text.replace("10.77.0.101", target.sip[0]).replace("10.77.0.21%3A5060", "10.77.0.21")
    text = text.replace("10.77.0.21", f"{telephone.ip}%3A{telephone.port}")
    for name, value in (
        ("sip_network_ip", telephone.ip),
        ("sip_network_port", str(telephone.port)),
        ("remote_media_ip", telephone.ip),
        ("remote_media_port", str(telephone.rtp.getsockname()[1])),
    ):
        text = re.sub(rf"<{name}>.*</{name}>", f"<{name}>{value}</{name}>", text)
    uuid = "539a61dc-efef-40b0-98d7-f380cbabc23a"
    row = ("8faaf429-2490-42db-9a9a-6e670e6e094a", "sofia", "pa", "other", uuid, text)
    with closing(connect(target.core_db)) as database, target.esl() as esl:
        database.execute("INSERT INTO recovery VALUES (?,?,?,?,?,?)", row)
        assert esl.api("sofia profile pa recover") == "Recovered 1 session(s)\n"
        invite = telephone.wait_for("INVITE")
        assert esl.api(f"uuid_getvar {uuid} sip_cseq") == "1"
        telephone.answer(invite, body=telephone.sdp())
        telephone.wait_for("ACK")
        cseq = header(invite, "CSeq").split()[0]
        eventually(lambda: esl.api(f"uuid_getvar {uuid} sip_cseq") == cseq)
        assert telephone.rtp.recv(2000)[1] & 0x7F == 0
        assert "variable_recovered: true" in esl.api(f"uuid_dump {uuid}")
        assert header(invite, "Call-ID").startswith("1-12498@")
        assert header(invite, "From").endswith(";tag=H239cQH3N21QK")
        assert header(invite, "To").endswith(";tag=12498SIPpTag001")
        query = "SELECT count(*) FROM recovery WHERE uuid=? AND runtime_uuid!=?"
        core_uuid = esl.api("global_getvar core_uuid")
        eventually(lambda: database.execute(query, (uuid, row[0])).fetchone() == (1,))
        assert database.execute(query, (uuid, core_uuid)).fetchone() == (0,)
        esl.api(f"uuid_kill {uuid}")
        telephone.answer(telephone.wait_for("BYE"))
    telephone.close()
