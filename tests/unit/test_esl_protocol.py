"""The ESL protocol against real captures, byte by byte, and against what must be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haclusterd.freeswitch import esl_protocol as esl

CAPTURES = Path(__file__).parents[1] / "fixtures" / "freeswitch"
STREAMS = sorted(CAPTURES.glob("*.esl"))


def parse(raw: bytes, step: int = 0) -> list[esl.Frame]:
    protocol = esl.EslProtocol()
    if not step:
        frames = protocol.receive_data(raw)
    else:
        frames = []
        for start in range(0, len(raw), step):
            frames += protocol.receive_data(raw[start : start + step])
    assert protocol.buffered_bytes == 0
    return frames


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.name)
def test_every_capture_is_all_events_whatever_the_chunks(path: Path) -> None:
    raw = path.read_bytes()
    whole = parse(raw)
    assert len(whole) == raw.count(b"Content-Type: text/event-")
    assert all(isinstance(frame, esl.Event) and frame.name for frame in whole)
    assert parse(raw, 1) == whole
    assert parse(raw, 1461) == whole


def test_plain_and_json_captures_tell_the_same_story() -> None:
    def names(file: str) -> set[str]:
        frames = parse((CAPTURES / file).read_bytes())
        return {frame.name for frame in frames if isinstance(frame, esl.Event)}

    assert names("hangup_9197_plain.esl") >= names("hangup_9197_json.esl") >= {"CHANNEL_HANGUP"}


def test_plain_values_are_decoded() -> None:
    frames = parse((CAPTURES / "sofia_register_plain.esl").read_bytes())
    event = frames[0]
    assert isinstance(event, esl.Event)
    assert event.subclass == "sofia::register"
    assert event.get("contact") == '"" <sip:1000@10.77.0.21:5090>'


def test_the_recorded_session_of_replies() -> None:
    text = (CAPTURES / "esl_session_transcript.txt").read_text()
    raw = ""
    for block in text.split("<<< ")[1:]:
        raw += block.split("\n>>> ")[0] + "\n"
    frames = esl.EslProtocol().receive_data(raw.encode())
    assert isinstance(frames[0], esl.AuthRequest)
    assert isinstance(frames[1], esl.CommandReply)
    assert not frames[1].ok
    assert isinstance(frames[2], esl.Disconnect)
    status = frames[5]
    assert isinstance(status, esl.ApiResponse)
    assert "is ready" in status.text
    missing = [frame for frame in frames if isinstance(frame, esl.ApiResponse) and not frame.ok]
    assert [frame.text for frame in missing] == ["-ERR nosuchcmd Command not found!\n"]
    job = frames[6]
    assert isinstance(job, esl.CommandReply)
    assert job.headers["Job-UUID"] == "427b4113-9b41-41c5-b06c-be8fccfc14e9"


@pytest.mark.parametrize("kind", ["plain", "json"])
def test_uuid_dump_output_parses(kind: str) -> None:
    raw = (CAPTURES / f"uuid_dump_{kind}.txt").read_bytes()
    parser = esl.parse_json_event if kind == "json" else esl.parse_plain_event
    event = parser(raw)
    assert event.name == "CHANNEL_DATA"
    assert event.get("variable_recovery_profile_name") == "pa"


def test_an_encoded_line_break_can_not_forge_a_header() -> None:
    body = b"Event-Name: CODEC\nx: a%0AEvent-Name: CHANNEL_HANGUP\n\n"
    event = esl.parse_plain_event(body)
    assert event.name == "CODEC"
    assert event.get("x") == "a\nEvent-Name: CHANNEL_HANGUP"


def test_event_body_is_not_read_as_headers() -> None:
    body = b"Event-Name: BACKGROUND_JOB\nContent-Length: 18\n\nEvent-Name: EVIL\n\nrest"
    event = esl.parse_plain_event(body)
    assert (event.name, event.body) == ("BACKGROUND_JOB", "Event-Name: EVIL\n\n")


def test_json_with_arrays_numbers_and_bad_utf8() -> None:
    event = esl.parse_json_event(b'{"Event-Name":"X","v":["1","2"],"_body":"b\\n"}')
    assert (event.get("v"), event.headers["v"], event.body) == ("1", ["1", "2"], "b\n")
    assert esl.parse_json_event(b'{"n":5,"l":[1]}').headers == {"n": "5", "l": ["1"]}
    odd = esl.parse_json_event(b'{"Event-Name":"X","caller":"J\xf6rg"}')
    assert odd.get("caller").encode("utf-8", "surrogateescape") == b"J\xf6rg"
    for bad in (b"", b"[]", b"{", b'"x"', b"[" * 100_000):
        with pytest.raises(esl.EslProtocolError):
            esl.parse_json_event(bad)


def test_unicode_line_separators_do_not_split_headers() -> None:
    event = esl.parse_plain_event("Event-Name: X\nv: a\u2028b\u0085c\n\n".encode())
    assert event.get("v") == "a\u2028b\u0085c"


def test_other_content_types() -> None:
    raw = (
        b"\n\nContent-Type: log/data\nLog-Level: 7\nContent-Length: 2\n\nhi"
        b"Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n\n"
        b"Content-Type: new/thing\n\n"
    )
    assert parse(raw) == [
        esl.LogLine(7, "hi"),
        esl.RudeRejection("Access Denied, go away.\n"),
        esl.UnknownFrame("new/thing", ""),
    ]


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Length: -1\n\n",
        b"Content-Length: 1e3\n\n",
        b"Content-Length: 99999999999\n\n",
        b"Content-Length: 1073741825\n\n",
        "Content-Length: \u0663\n\n".encode(),
        b"x" * (esl.HEADER_BLOCK_BYTES_MAX + 1),
        b"a: " + b"x" * esl.HEADER_BLOCK_BYTES_MAX + b"\n\n",
        b"Content-Type: text/event-json\nContent-Length: 3\n\n[1]",
    ],
)
def test_broken_framing_is_refused_and_stays_refused(raw: bytes) -> None:
    protocol = esl.EslProtocol()
    with pytest.raises(esl.EslProtocolError):
        protocol.receive_data(raw)
    assert protocol.buffered_bytes == 0
    with pytest.raises(esl.EslProtocolError):
        protocol.receive_data(b"Content-Type: auth/request\n\n")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.integers(1, 50))
def test_garbage_never_raises_anything_else(raw: bytes, step: int) -> None:
    protocol = esl.EslProtocol()
    try:
        for start in range(0, len(raw), step):
            protocol.receive_data(raw[start : start + step])
    except esl.EslProtocolError:
        pass


header_values = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=20), header_values, max_size=6))
def test_json_events_round_trip(headers: dict[str, str]) -> None:
    headers.pop("_body", None)
    event = esl.parse_json_event(json.dumps(headers).encode())
    assert event.headers == headers


@pytest.mark.parametrize("evil", ["a\nb", "a\rb", "a\n\nexit", "a\0b"])
def test_commands_refuse_injected_lines(evil: str) -> None:
    builders: list[Callable[[], bytes]] = [
        lambda: esl.command(evil),
        lambda: esl.api(evil),
        lambda: esl.bgapi("status", evil),
        lambda: esl.bgapi(evil),
        lambda: esl.auth(evil),
        lambda: esl.subscribe(["HEARTBEAT", evil]),
        lambda: esl.event_filter("Event-Name", evil),
        lambda: esl.sendevent(evil, {}),
        lambda: esl.sendevent("X", {evil: "1"}),
        lambda: esl.sendevent("X", {"h": evil}),
    ]
    for build in builders:
        with pytest.raises(esl.EslArgumentError):
            build()


def test_commands_on_the_wire() -> None:
    assert esl.api("status") == b"api status\n\n"
    assert esl.auth("p w") == b"auth p w\n\n"
    assert esl.bgapi("status", "j1") == b"bgapi status\nJob-UUID: j1\n\n"
    assert esl.bgapi("status") == b"bgapi status\n\n"
    assert esl.subscribe(["sofia::register", "SHUTDOWN"]) == (
        b"event json SHUTDOWN CUSTOM sofia::register\n\n"
    )
    assert esl.sendevent("CUSTOM", {"Event-Subclass": "a::b"}, "hé") == (
        b"sendevent CUSTOM\nEvent-Subclass: a::b\ncontent-length: 3\n\nh\xc3\xa9"
    )
    for names in ([], ["all"], ["ALL"], ["A B"]):
        with pytest.raises(esl.EslArgumentError):
            esl.subscribe(names)
    with pytest.raises(esl.EslArgumentError):
        esl.sendevent("X", {"Content-Length": "5"})
    with pytest.raises(esl.EslArgumentError):
        esl.api("x" * esl.COMMAND_BYTES_MAX)
    with pytest.raises(esl.EslArgumentError) as refused:
        esl.auth("geheim\nx")
    assert "geheim" not in str(refused.value)
