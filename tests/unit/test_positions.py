"""Where a call is in its dialplan, as CHANNEL_EXECUTE tells it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from haclusterd.core.records import CallRecord
from haclusterd.freeswitch import metadata, positions
from haclusterd.freeswitch.calls import CallSource, Change, build_record
from haclusterd.freeswitch.changelog import RecoveryRow
from haclusterd.freeswitch.esl import EslConnection, EslSettings
from haclusterd.freeswitch.esl_protocol import Event
from haclusterd.freeswitch.mends import Mends, mend_all
from haclusterd.freeswitch.metadata import Application
from haclusterd.freeswitch.positions import position
from tests.fixtures.freeswitch.fake_esl import json_event
from tests.fixtures.freeswitch.fake_recovery import TONE, Switch

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("heard", "at"),
    [
        ([], -1),
        (["answer"], 0),
        (["answer", "playback"], 1),
        (["answer", "playback", "playback"], 2),
        (["answer", "playback", "playback", "playback"], 2),
        (["answer", "elsewhere", "park"], 3),
        (["park", "answer"], 3),
    ],
)
def test_the_extension_is_walked_forwards(heard: list[str], at: int) -> None:
    names = ["answer", "playback", "playback", "park"]
    assert position([Application(name, "", 0, 0) for name in names], heard) == at


def test_only_plain_variables_of_the_dialplan_are_taken() -> None:
    taken = {"variable_menu": "3", "variable_ivr_path": "a/b", "variable_x.y": "é"}
    left = {
        "variable_sip_to_tag": "t", "variable_rtp_use_pt": "0", "variable_uuid": "u",
        "variable_local_media_port": "1", "variable_current_application": "echo",
        "variable_a b": "1", "variable_": "1", "variable_long": "x" * 1025, "Unique-ID": "u",
        "variable_lines": "a\r\nb", "variable_<b>": "1",
    }  # fmt: skip
    found = positions.variables(Event({**taken, **left, "variable_list": ["a", "b"]}))
    assert found == {header.removeprefix("variable_"): value for header, value in taken.items()}
    many = Event({f"variable_v{n}": "1" for n in range(1000)})
    assert len(positions.variables(many)) == positions.VARIABLES_MAX


def test_e1_variables_of_the_dialplan_make_no_call_too_large_to_recover() -> None:
    """The row was within its bound, what came with the events was not counted."""
    text = TONE
    for n in range(29):
        text = metadata.set_variable(text, f"sip_h_X{n}", "a" * 7000)
    record = build_record("east", 1, RecoveryRow("u1", "core-a", "pa", text))
    heard = positions._Heard([(metadata.profile_index(text), "answer"),
                              (metadata.profile_index(text), "playback")])  # fmt: skip
    heard.variables = {f"v{n}": "%" * 1000 for n in range(positions.VARIABLES_MAX)}
    heard.variables["last"] = "short"
    told = positions.Positions(Path("/x"), lambda **_: None, lambda: "")  # type: ignore[arg-type]
    told._heard["u1"] = heard
    placed = told.placed(record)
    assert placed.position > 0
    assert len(text) < len(placed.metadata) <= metadata.METADATA_BYTES_MAX
    assert metadata.variable(placed.metadata, "v0") == "%" * 1000
    assert metadata.variable(placed.metadata, "last") == "short"
    assert mend_all([placed], Mends(addresses=False))[1] == {}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("on", [True, False])
async def test_a_new_application_is_a_new_version_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    monkeypatch.setattr(positions, "SETTLE_S", 0.02)
    switch = Switch(tmp_path / "core.db")
    await switch.listen()
    told: list[CallRecord] = []

    async def take(changes: list[Change]) -> None:
        told.extend(change for change in changes if isinstance(change, CallRecord))

    def say(event: str, uuid: str, name: str = "", profile: str = "1") -> None:
        headers = {"Event-Name": event, "Unique-ID": uuid, "Application": name}
        headers |= {"Application-UUID": f"{uuid}-{name}", "Caller-Profile-Index": profile}
        headers |= {"variable_digits": f"4 & {name}", "variable_sip_cseq": "999"}
        switch.send_all(json_event(headers))

    def execute(uuid: str, name: str, profile: str = "1") -> None:
        say("CHANNEL_EXECUTE", uuid, name, profile)
        say("CHANNEL_EXECUTE_COMPLETE", uuid, name, profile)

    settings = EslSettings("127.0.0.1", switch.port, "ClueCon", backoff_first_ms=5)
    source = CallSource(
        switch.path, {"pa": "east"}, take,
        esl_factory=lambda **options: EslConnection(settings, **options), positions=on,
    )  # fmt: skip
    await source.start()
    try:
        await until(lambda: source.core_uuid == "core-b")
        with contextlib.closing(switch.open()) as db:
            db.execute(
                "INSERT INTO recovery VALUES ('core-b', 'sofia', 'pa', 'h', 'u1', ?)", (TONE,)
            )
        await until(lambda: len(told) == 1)
        assert told[0].position == -1
        execute("u1", "answer")  # begun before we listened, as far as anybody knows
        say("CHANNEL_CREATE", "u1")
        for name in ("set", "answer"):
            execute("u1", name)
        say("CHANNEL_EXECUTE", "u1", "playback")
        execute("u1", "park")  # within the playback: a broadcast
        execute("u1", "park", "2")  # after a transfer
        execute("nobody", "park")
        if on:
            await until(lambda: told[-1].position == 2)
            assert told[-1].version > told[0].version
            assert (await source.snapshot())[0].position == 2
            assert metadata.variable(told[-1].metadata, "digits") == "4 & playback"
            assert metadata.variable(told[-1].metadata, "sip_cseq") == told[0].sip_cseq
        else:
            await asyncio.sleep(0.2)
            assert len(told) == 1
    finally:
        await source.stop()
        await switch.close()
