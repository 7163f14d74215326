"""A FreeSWITCH that hangs: heart is told again when somebody else can have what it serves."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent.alarms import alarms
from haclusterd.agent.freeswitch import FreeswitchLife, can_go
from haclusterd.agent.history import History
from haclusterd.config import FreeSwitch
from haclusterd.core.inputs import FreeswitchHung, FromAgent
from haclusterd.core.view import PauseView, View
from haclusterd.freeswitch.health import Health
from tests.fixtures.agent_parts import FakeSwitch, spec, view

AGAIN_S = 0.05


@pytest.fixture
def told() -> list[FromAgent]:
    return []


@pytest.fixture
def life(tmp_path: Path, told: list[FromAgent], monkeypatch: pytest.MonkeyPatch) -> FreeswitchLife:
    """Of a process that lives, this one."""
    monkeypatch.setattr("haclusterd.agent.freeswitch.HUNG_AGAIN_S", AGAIN_S)
    monkeypatch.setattr("haclusterd.agent.freeswitch.FILE_CHECK_S", 0.005)
    (tmp_path / "pid").write_text(f"{os.getpid()}\n")
    section = FreeSwitch(
        "127.0.0.1", 8021, tmp_path / "secret", tmp_path / "core.db", tmp_path / "pid", ()
    )
    made = FreeswitchLife(
        section, spec().services, History(), told.append, lambda: None, lambda: None
    )
    made.switch = FakeSwitch()
    return made


def hang(life: FreeswitchLife) -> None:
    assert isinstance(life.switch, FakeSwitch)
    life.switch.health = Health("hung", "FreeSWITCH did not answer 3 probes (300 ms)", 3)
    life.health_changed(life.switch.health)


async def test_a_hang_is_told_again_only_while_somebody_can_have_the_calls(
    life: FreeswitchLife, told: list[FromAgent]
) -> None:
    somebody = False
    life.can_go = lambda: somebody
    await life.start()
    try:
        hang(life)
        await asyncio.sleep(4 * AGAIN_S)
        assert told == [FreeswitchHung(os.getpid())], "what changes nothing fills the history"
        somebody = True
        await asyncio.sleep(4 * AGAIN_S)
        again = len(told)
        assert 2 <= again <= 5
        assert set(told) == {FreeswitchHung(os.getpid())}
        assert isinstance(life.switch, FakeSwitch)
        life.switch.health = Health("up")
        life.health_changed(life.switch.health)
        await asyncio.sleep(2 * AGAIN_S)
        assert len(told) == again
    finally:
        await life.stop()


def with_successors(found: View, *nodes: str) -> View:
    services = tuple(msgspec.structs.replace(s, successors=nodes) for s in found.services)
    return msgspec.structs.replace(found, services=services)


def test_who_can_go() -> None:
    served = view({"east": ("fs-a", 3), "west": ("fs-b", 2)})
    assert can_go(served, "fs-a")
    assert not can_go(with_successors(served), "fs-a")
    assert not can_go(with_successors(served, "fs-a"), "fs-a"), "itself is nobody else"
    assert can_go(with_successors(served), "fs-c"), "it serves nothing"
    east, west = served.services
    lapsed = msgspec.structs.replace(east, owner="", local_state="lapsed", successors=())
    assert not can_go(msgspec.structs.replace(served, services=(lapsed, west)), "fs-a")
    paused = msgspec.structs.replace(served, pause=PauseView(1, "ben", 60_000_000))
    assert not can_go(paused, "fs-a")
    assert not can_go(None, "fs-a")


def test_a_hang_is_an_alarm_that_says_what_will_be_done(life: FreeswitchLife) -> None:
    assert isinstance(life.switch, FakeSwitch)
    life.switch.problem = "FreeSWITCH did not answer 'api sofia xmlstatus' within 2000 ms"
    life.switch.health = Health("hung", "", 3)
    (alarm,) = alarms({}, life, life.switch)
    assert alarm.name == "freeswitch"
    assert "It is ended when another node can have its calls" in alarm.text
